"""Perplexity of the same answers: ours, and one row at a time with the logits of every position.

Arms: `loop`, the loss of every position as a model's own loss is computed; `sliced`, the logits of every position but
their log-softmax for answers only; `ours`, the score stage's batches and head.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itrain_bench.training.answers import SHORT, AnswerWorkload, make_rows
from itrain_bench.training.child import (
    Figures,
    Finish,
    Say,
    Told,
    Turn,
    flat,
    largest_difference,
    own_peak_mib,
    serve_turns,
    take_turns,
)
from itrain_bench.training.workload import write_model
from itrain_pipeline.records import Example

REFERENCE = "loop"
ARMS = (REFERENCE, "sliced", "ours")
SAME = 1e-3
"""Logprobs of about -10 in fp32, added up in another order."""


def ppl_figures(
    workload: AnswerWorkload, vocabularies: Sequence[int], folder: Path, say: Say, arms: Sequence[str] = ARMS
) -> Figures:
    """`ppl_speedup_4k` and so on against `loop` by CPU seconds. Raises AssertionError when the numbers differ."""
    figures: Figures = {f"ppl_{name}": value for name, value in dataclasses.asdict(workload).items() if name in SIZES}
    worst = 0.0
    for vocabulary in vocabularies:
        sized = dataclasses.replace(workload, vocabulary=vocabulary)
        name = f"{vocabulary // 1000}k" if vocabulary >= 1000 else str(vocabulary)
        model = write_model(sized.model, folder / name / "model")
        jobs = {arm: {"arm": arm, "workload": dataclasses.asdict(sized), "model": str(model)} for arm in arms}
        told = take_turns("itrain_bench.training.ppl", jobs, sized.repeats, folder / name)
        for arm, found in told.items():
            figures |= flat(f"ppl_{name}_{arm}", found)
            say(f"perplexity {name} {arm}: {found['cpu_seconds']:.2f} CPU s, peak {found['peak_mib']:,.0f} MiB")
            worst = max(worst, largest_difference(found["logprobs"], told[REFERENCE]["logprobs"]))
        assert worst < SAME, f"the arms' logprobs differ by {worst}"
        figures |= compare(name, told)
    return figures | {"ppl_logprob_max_abs_diff": worst}


SIZES = ("rows", "repeats", "prompt", "shortest_answer", "longest_answer", "hidden", "layers", "seed")


def compare(name: str, told: dict[str, Told]) -> Figures:
    ours, loop = told["ours"], told[REFERENCE]
    figures: Figures = {
        f"ppl_speedup_{name}": loop["cpu_seconds"] / ours["cpu_seconds"],
        f"ppl_speedup_{name}_wall": loop["seconds"] / ours["seconds"],
        f"ppl_peak_memory_ratio_{name}": ours["peak_mib"] / loop["peak_mib"],
    }
    if sliced := told.get("sliced"):
        figures[f"ppl_speedup_over_sliced_{name}"] = sliced["cpu_seconds"] / ours["cpu_seconds"]
    return figures


def prepare(job: dict[str, Any]) -> tuple[Turn, Finish]:
    """One arm in a process of its own, one thread, fp32, no gradients, warmed up by a short row."""
    import torch

    from itrain_pipeline.learn.loading import load_model

    torch.set_num_threads(1)
    workload = AnswerWorkload(**job["workload"])
    model = load_model(Path(job["model"]), precision="fp32")
    score = {"loop": every_position, "sliced": every_logit, "ours": ours}[job["arm"]]
    score(model, make_rows(workload, 1, prompt=SHORT))
    rows = make_rows(workload, workload.rows)
    loaded = own_peak_mib()

    def finish(found: tuple[list[float], int]) -> Told:
        logprobs, tokens = found
        return {"tokens": tokens, "logprobs": logprobs, "loaded_mib": loaded, "peak_mib": own_peak_mib()}

    return lambda: score(model, rows), finish


def every_position(model: Any, rows: Sequence[Example]) -> tuple[list[float], int]:
    """Row by row, cross entropy of all next tokens, as transformers computes a causal model's loss."""
    import torch

    found: list[float] = []
    with torch.inference_mode():
        for row in rows:
            ids_1T = torch.tensor([[*row.prompt_ids, *row.answer_ids]], device=model.device)
            logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
            losses_T = torch.nn.functional.cross_entropy(logits_TV, ids_1T[0, 1:], reduction="none")
            found += (-losses_T[-len(row.answer_ids) :]).tolist()
    return found, sum(map(_length, rows))


def every_logit(model: Any, rows: Sequence[Example]) -> tuple[list[float], int]:
    """Row by row, logits of all positions, the log-softmax of those that predict the answer."""
    import torch

    found: list[float] = []
    with torch.inference_mode():
        for row in rows:
            ids_1T = torch.tensor([[*row.prompt_ids, *row.answer_ids]], device=model.device)
            logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0]
            answer_AV = logits_TV[len(row.prompt_ids) - 1 : -1].float().log_softmax(-1)
            found += answer_AV.gather(-1, torch.tensor(row.answer_ids, device=model.device)[:, None])[:, 0].tolist()
    return found, sum(map(_length, rows))


def ours(model: Any, rows: Sequence[Example]) -> tuple[list[float], int]:
    """As the score stage does it by default."""
    from itrain_contract.stagespec import ScoreStage
    from itrain_pipeline.learn.perplexity import batch_budget, plan_token_batches, score_batch

    batches = plan_token_batches(rows, batch_budget(ScoreStage().batch_tokens, model.device.type))
    scored = {row.id: row.logprobs for batch in batches for row in score_batch(model, batch).rows}
    tokens = sum(len(batch) * max(map(_length, batch)) for batch in batches)
    return [value for row in rows for value in scored[row.id]], tokens


def _length(row: Example) -> int:
    return len(row.prompt_ids) + len(row.answer_ids)


if __name__ == "__main__":
    sys.exit(serve_turns(prepare))
