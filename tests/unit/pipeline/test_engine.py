"""Which engine is opened, and what only the transformers engine does. What both promise: tests/engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from itrain_pipeline.engine import choose_engine, open_engine
from itrain_pipeline.engine.adapters import check_servable
from itrain_pipeline.engine.devices import choose_dtype, has_code_for
from itrain_pipeline.errors import ConfigError, DataError, RetryableError
from itrain_pipeline.ports import Completion, Engine, SamplingParams
from itrain_testing.tiny_model import END, write_random_adapter, write_tiny_model

PROMPTS = [(1, 4, *range(20, 20 + k), 5) for k in (3, 8, 1, 12, 5, 8)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), context=256)


@pytest.fixture(scope="module")
def model(model_dir: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


def using(engine: Engine, body: Callable[[Engine], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        try:
            return await body(engine)
        finally:
            await engine.aclose()

    return asyncio.run(run())


def params(*seeds: int, max_tokens: int = 24, **fields: Any) -> SamplingParams:
    return SamplingParams(seeds=seeds, max_tokens=max_tokens, **fields)


def full_logprobs(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)


def greedy(model: Any, prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """The plain loop: one whole forward pass per token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + tokens:
        ids.append(int(full_logprobs(model, tuple(ids))[-1].argmax()))
        if ids[-1] == END:
            break
    return tuple(ids[len(prompt) :])


async def all_at_once(engine: Engine, how: SamplingParams) -> list[list[Completion]]:
    return await asyncio.gather(*(engine.generate(prompt, how) for prompt in PROMPTS))


def test_a_known_prefix_changes_no_greedy_token_and_is_not_computed_again(model_dir: Path) -> None:
    async def body(engine: Engine) -> None:
        how = params(0, temperature=0.0, max_tokens=8)
        prompt = PROMPTS[3]
        (first,) = await engine.generate(prompt, how)
        longer = prompt + first.token_ids[:4]
        before = engine.counters()
        (known,) = await engine.generate(longer, how)
        after = engine.counters()
        assert after.prefill_computed - before.prefill_computed == 1
        engine.reset_prefix_cache()
        (unknown,) = await engine.generate(longer, how)
        assert engine.counters().prefill_computed - after.prefill_computed == len(longer)
        assert known.token_ids == unknown.token_ids
        assert known.logprobs == pytest.approx(unknown.logprobs, abs=1e-5)

    using(open_engine("transformers", model_dir), body)


def test_waiting_requests_are_served_when_the_batch_is_full(model_dir: Path, model: Any) -> None:
    engine = open_engine("transformers", model_dir, max_batch_tokens=70)  # two rows of the shorter prompts
    done = using(engine, lambda e: all_at_once(e, params(0, temperature=0.0)))
    assert [c.token_ids for (c,) in done] == [greedy(model, prompt, 24) for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused(
    model_dir: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    folder = write_random_adapter(model_dir, tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=words):
        open_engine("transformers", model_dir).load_adapter("a", folder)
    with pytest.raises(DataError, match="no adapter_config"):
        open_engine("transformers", model_dir).load_adapter("a", tmp_path)


def test_a_failing_device_fails_its_requests_with_a_cause_and_the_next_ones_work(model_dir: Path) -> None:
    engine = open_engine("transformers", model_dir)
    runner = engine._runner  # type: ignore[attr-defined]

    class OnceBroken:
        """The runner, but for one decode step in which the device has no memory left."""

        def __init__(self) -> None:
            self.steps = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(runner, name)

        def decode(self, tokens: list[int], positions: list[int]) -> torch.Tensor:
            self.steps += 1
            if self.steps == 3:
                raise torch.OutOfMemoryError("no memory left")
            return runner.decode(tokens, positions)

    engine._runner = OnceBroken()  # type: ignore[attr-defined]

    async def body(engine: Engine) -> None:
        failed = await asyncio.gather(
            *(engine.generate(prompt, params(1, 2)) for prompt in PROMPTS), return_exceptions=True
        )
        assert all(isinstance(error, RetryableError) and "no memory left" in str(error) for error in failed)
        assert len(await engine.generate(PROMPTS[0], params(1, 2))) == 2

    using(engine, body)


def test_an_error_that_nobody_foresaw_ends_the_engine_and_leaves_no_caller_waiting(model_dir: Path) -> None:
    engine = open_engine("transformers", model_dir)
    runner = engine._runner  # type: ignore[attr-defined]

    class Wrong:
        """The runner, but for a mistake in its program."""

        def __getattr__(self, name: str) -> Any:
            return getattr(runner, name)

        def prefill(self, *_: Any, **__: Any) -> torch.Tensor:
            raise KeyError("bug")

    engine._runner = Wrong()  # type: ignore[attr-defined]

    async def body(engine: Engine) -> None:
        asked: list[Awaitable[Any]] = [engine.generate(prompt, params(1, 2)) for prompt in PROMPTS]
        asked.append(engine.option_logprobs(PROMPTS[0], [5]))
        failed = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)
        assert all(isinstance(error, RetryableError) and "KeyError: 'bug'" in str(error) for error in failed)
        with pytest.raises(RetryableError, match="the engine died: KeyError: 'bug'"):
            await engine.generate(PROMPTS[0], params(1))

    using(engine, body)


def test_a_model_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    for kind in ("auto", "transformers"):
        with pytest.raises(ConfigError, match=r"has no config\.json"):
            open_engine(kind, tmp_path)


def test_auto_is_vllm_where_it_is_installed_and_serves_a_gpu_else_transformers() -> None:
    assert choose_engine("auto", installed=True, serves_gpu=lambda: True) == "vllm"
    assert choose_engine("auto", installed=True, serves_gpu=lambda: False) == "transformers"
    assert choose_engine("auto", installed=False, serves_gpu=lambda: True) == "transformers"


def test_an_engine_that_is_named_is_taken_and_one_that_is_not_installed_says_what_to_install() -> None:
    assert choose_engine("vllm", installed=True, serves_gpu=lambda: False) == "vllm"
    assert choose_engine("transformers", installed=True, serves_gpu=lambda: True) == "transformers"
    with pytest.raises(ConfigError, match=r"not installed here: install vllm 0\.32\.0, on Volta 0\.19\.1") as raised:
        choose_engine("vllm", installed=False, serves_gpu=lambda: False)
    assert raised.value.exit_code == 64


@pytest.mark.parametrize(
    ("name", "capability", "dtype"),
    [
        ("auto", None, "float32"),
        ("auto", (7, 0), "float16"),
        ("auto", (7, 5), "float16"),
        ("auto", (8, 0), "bfloat16"),
        ("auto", (9, 0), "bfloat16"),
        ("fp16", (9, 0), "float16"),
        ("fp32", (7, 0), "float32"),
        ("bf16", None, "bfloat16"),
    ],
)
def test_the_number_format_follows_the_device(name: str, capability: tuple[int, int] | None, dtype: str) -> None:
    assert choose_dtype(name, capability) == dtype


def test_a_number_format_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"bf16 on a GPU of capability 7\.0: allowed is fp16"):
        choose_dtype("bf16", (7, 0))
    with pytest.raises(ConfigError, match="'int8' is unknown, allowed are auto, fp32, fp16, bf16"):
        choose_dtype("int8", None)


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["sm_70", "sm_80", "sm_90"], (7, 0), True),
        (["sm_75", "sm_80", "sm_90", "compute_90"], (7, 0), False),  # torch 2.13 on a V100
        (["sm_80"], (8, 6), True),
        (["sm_86"], (8, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_90", "compute_90"], (12, 0), True),
        (["sm_90"], (12, 0), False),
    ],
)
def test_code_runs_on_its_own_major_version_and_ptx_on_later_ones(
    built: list[str], capability: tuple[int, int], runs: bool
) -> None:
    assert has_code_for(built, capability) == runs


def test_the_rank_of_an_adapter_is_its_largest(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 8, "rank_pattern": {"q_proj": 24, "v_proj": 4}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert check_servable(tmp_path) == 24
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    assert check_servable(tmp_path) == 8
