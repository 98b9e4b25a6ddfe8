"""What `itrain profile` asks of an engine, on both of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from itrain_pipeline import profiling
from itrain_pipeline.ports import Engine
from itrain_pipeline.profiling import DECODE_ROWS, ProfileSettings, engine_rates


def test_an_engine_is_timed_prefilling_and_decoding_so_many_sequences_as_were_asked_for(
    engine: Engine, model_dir: Path
) -> None:
    settings = ProfileSettings(model=model_dir, name="tiny", prompt_tokens=40, seconds=0.01)
    before = engine.counters()
    prefill, decode = asyncio.run(engine_rates(engine, settings, vocabulary=200, never=0))
    assert prefill > 0
    assert tuple(rate.rows for rate in decode) == DECODE_ROWS
    assert all(rate.tokens_per_s > 0 for rate in decode)
    most = sum(DECODE_ROWS) * profiling.ANSWER_TOKENS
    assert engine.counters().decoded - before.decoded > 0.9 * most  # hardly a sequence ended before its length
