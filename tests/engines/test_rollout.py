"""A rollout shard on vLLM, the stage as it runs in a pod: trees in, pairs, tree records and counters out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from itrain_pipeline.records import PreferencePair, read_jsonl
from itrain_pipeline.stages import rollout
from itrain_testing.rollout_inputs import rollout_input, toolworld_examples, upstream_results
from itrain_testing.stageports import folder_ports

ROWS = 8
STAGE: dict[str, Any] = {
    "maxAnswerTokens": 64,
    "temperature": 0.8,
    "maxOverlap": 1.0,
    "certainty": "none",
    "maxFailedTrees": 0.0,
}


def test_a_rollout_shard_runs_on_each_engine_and_its_counters_add_up(bench: Any, tmp_path: Path) -> None:
    bench.close()  # the stage opens an engine of its own
    examples = toolworld_examples(ROWS)
    made = rollout_input({**STAGE, "engine": bench.kind})
    output = rollout.run(made, folder_ports(tmp_path / "run", upstream_results(tmp_path, examples)))
    counters = output.counters
    assert (counters["trees"], counters["failed_trees"]) == (ROWS, 0)
    assert counters["prefill_cached"] > counters["prefill_computed"] > 0
    assert counters["decoded"] == counters["decoded_tokens"] > 0
    prompts = {example.id: example.prompt_ids for example in examples}
    pairs = list(read_jsonl(output.outputs["pairs.jsonl"], PreferencePair))
    assert len(pairs) == counters["pairs"]
    for pair in pairs:
        assert pair.prompt_ids == prompts[pair.lineage.sample_id]
        assert pair.chosen_q > pair.rejected_q
