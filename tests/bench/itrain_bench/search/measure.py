"""One bench run: which arms on which prompts and engines; figures by flat names."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from itrain_bench.search import ablation, scale
from itrain_bench.search.arms import R2, Model, Outcome, run_ours, run_reference
from itrain_bench.search.engines import BenchEngine, open_bench_engine
from itrain_bench.search.samples import toolace_rows, toolworld_calls
from itrain_pipeline.engine.vllm_versions import is_installed
from itrain_pipeline.records import Example
from itrain_pipeline.search.levers import Levers

Say = Callable[[str], None]
Figures = dict[str, float | int | str]
MODEL_LEN = 8192
"""Of the shipped model's 16,384 positions; the longest prompts here have some 2,200 tokens, ToolACE's up to 8,192."""
COOLER = {"temperature": 0.8, "top_p": 0.95}
"""As the quickstart samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Trees of each measurement; 0 leaves it out."""

    trees: dict[int, int]
    """By prompt length."""
    cooler: int
    """At 800 tokens, sampled as the quickstart does."""
    ablation: int
    vllm: int
    repeats: int
    """Of the wall clock on vLLM; the median counts."""
    toolace: int
    scale_model: tuple[int, ...]
    scale_scripted: tuple[int, ...]

    def part(self, only: str) -> Size:
        """One of `PARTS` alone."""
        return replace(
            self,
            trees=self.trees if only == "counts" else {},
            cooler=self.cooler if only == "counts" else 0,
            toolace=self.toolace if only == "counts" else 0,
            ablation=self.ablation if only == "ablation" else 0,
            vllm=self.vllm if only == "wall" else 0,
            scale_model=self.scale_model if only == "scale" else (),
            scale_scripted=self.scale_scripted if only == "scale" else (),
        )


PARTS = ("counts", "ablation", "scale", "wall")
QUICK = Size(
    trees={200: 10, 800: 20, 2000: 3},
    cooler=8,
    ablation=8,
    vllm=16,
    repeats=1,
    toolace=2,
    scale_model=(10, 40),
    scale_scripted=(10, 100, 1000),
)
FULL = Size(
    trees={200: 100, 800: 200, 2000: 60},
    cooler=60,
    ablation=60,
    vllm=60,
    repeats=3,
    toolace=40,
    scale_model=(10, 100, 1000),
    scale_scripted=(10, 100, 1000, 10_000),
)


async def measure(model: Model, size: Size, *, threads: int, say: Say, vllm: bool = True) -> Figures:
    """All figures. Wall clock on vLLM is left out, with a reason, where that is not installed."""
    figures: Figures = {
        "model": model.folder.parent.name,
        "threads": threads,
        "temperature": model.temperature,
        "top_p": model.top_p,
        "max_model_len": MODEL_LEN,
    }
    engine = open_bench_engine("transformers", model.folder, threads=threads, max_model_len=MODEL_LEN)
    try:
        await _counts(engine, model, size, figures, say)
        await _scales(engine, model, size, figures, say)
    finally:
        await engine.aclose()
    if not (vllm and size.vllm):
        figures["vllm"] = "left out on request"
    elif not is_installed():
        figures["vllm"] = "not installed: no wall clock on vLLM"
    else:
        figures["vllm"] = "measured"
        await _wall(model, size, figures, threads=threads, say=say)
    if figures["vllm"] != "measured":
        say(f"wall_per_pair_r0_over_ours, wall_per_pair_r1_over_ours left out: vllm {figures['vllm']}")
    return figures


async def _counts(engine: BenchEngine, model: Model, size: Size, figures: Figures, say: Say) -> None:
    ours: list[Outcome] = []
    for prompt, trees in size.trees.items():
        examples = toolworld_calls(model.renderer, trees, prompt)
        figures[f"p{prompt}_prompt_tokens"] = _mean(len(e.prompt_ids) for e in examples)
        figures[f"p{prompt}_truth_tokens"] = _mean(len(e.answer_ids) for e in examples)
        arms = await run_arms(engine, model, examples, f"p{prompt}", figures, say, baselines=True)
        ours.append(arms["ours"])
    if ours:
        figures["duplicates_ours"] = sum(arm.duplicates for arm in ours)
        figures["lost_trees_ours"] = sum(arm.lost for arm in ours)
        figures["unsampled_pairs_ours"] = sum(arm.unsampled for arm in ours)
    if pairs := sum(arm.pairs for arm in ours):
        figures["pair_precision_ours"] = sum(arm.valid for arm in ours) / pairs
    if size.cooler:
        examples = toolworld_calls(model.renderer, size.cooler, 800)
        cooler = replace(model, **COOLER)
        await run_arms(engine, cooler, examples, "p800_t08", figures, say, baselines=False)
    if size.ablation:
        examples = toolworld_calls(model.renderer, size.ablation, 800)
        for row in ablation.ROWS:
            found = (await ablation.run_row(engine, model, examples, row)).figures()
            figures |= {f"ablation_{row.name}_{name}": found[name] for name in ablation.TOLD if name in found}
        say(f"ablation: {len(ablation.ROWS)} rows of {size.ablation} trees")
    if size.toolace:
        await _toolace(engine, model, size.toolace, figures, say)


async def _toolace(engine: BenchEngine, model: Model, count: int, figures: Figures, say: Say) -> None:
    rows = toolace_rows(model.renderer, count)
    if isinstance(rows, str):
        figures["toolace"] = f"left out: {rows}"
        say(f"ToolACE left out: {rows}")
        return
    found: Figures = {}
    await run_arms(engine, model, rows, "toolace", found, say, baselines=False)
    counts = (
        "trees",
        "requests_per_tree",
        "judge_requests_per_tree",
        "duplicate_share",
        "tokens_over_limit",
        "lost_trees",
    )
    figures["toolace"] = "measured"
    figures["toolace_prompt_tokens"] = _mean(len(e.prompt_ids) for e in rows)
    figures |= {k: v for k, v in found.items() if any(k.startswith(f"toolace_{name}_") for name in counts)}


async def run_arms(
    engine: BenchEngine,
    model: Model,
    examples: Sequence[Example],
    prefix: str,
    figures: Figures,
    say: Say,
    *,
    baselines: bool,
) -> dict[str, Outcome]:
    """R0, R1, R2, ours and, where asked for, the baselines; each from a cold cache on the same examples."""
    arms = {
        "r0": await run_reference(engine, model, examples, remember=False),
        "r1": await run_reference(engine, model, examples, remember=True),
        "r2": await run_reference(engine, model, examples, remember=True, quirks=R2),
        "ours": await run_ours(engine, model, examples),
    }
    if baselines:
        plain = Levers(hand_over=False)
        for arm, method in (("bon", "bestOfN"), ("fd", "firstDivergence")):
            arms[arm] = await run_ours(engine, model, examples, settings=model.settings(method=method), levers=plain)
    for arm, outcome in arms.items():
        figures |= {f"{prefix}_{name}_{arm}": value for name, value in outcome.figures().items()}
    figures |= {f"{prefix}_stopped_{reason}_ours": n for reason, n in arms["ours"].reasons.items()}
    figures[f"{prefix}_most_trees_in_flight_ours"] = arms["ours"].peak_in_flight
    said = ", ".join(f"{arm} {o.wall_s:.1f} s" for arm, o in arms.items())
    say(f"{prefix}: {len(examples)} trees; {said}")
    return arms


async def _scales(engine: BenchEngine, model: Model, size: Size, figures: Figures, say: Say) -> None:
    for trees in size.scale_model:
        found = await scale.scale_model(engine, model, trees)
        figures |= {f"scale_model_{trees}_{name}": value for name, value in found.items()}
    for trees in size.scale_scripted:
        found = await scale.scale_scripted(trees)
        figures |= {f"scale_{trees}_{name}": value for name, value in found.items()}
        say(f"{trees} trees on a scripted engine: {found['cpu_ms_per_tree']:.1f} ms of CPU each")
    if len(size.scale_scripted) > 1:
        # Ten trees are over before the forest is warm: where there are more sizes, the second is the first compared.
        few, most = size.scale_scripted[len(size.scale_scripted) > 2], size.scale_scripted[-1]
        cost = [float(figures[f"scale_{n}_cpu_ms_per_tree"]) for n in (few, most)]
        figures["scale_cost_ratio"] = cost[1] / cost[0]
        figures["scale_rss_growth_kib_per_tree"] = 1024 * float(figures[f"scale_{most}_rss_growth_mib"]) / most


async def _wall(model: Model, size: Size, figures: Figures, *, threads: int, say: Say) -> None:
    begun = time.perf_counter()
    engine = open_bench_engine("vllm", model.folder, threads=threads, max_model_len=MODEL_LEN)
    figures["vllm_start_s"] = time.perf_counter() - begun
    examples = toolworld_calls(model.renderer, size.vllm, 800)
    try:
        await run_ours(engine, model, examples[:2])  # warm
        rounds = [
            await run_arms(engine, model, examples, "vllm_p800", figures, say, baselines=False)
            for _ in range(size.repeats)
        ]
    finally:
        await engine.aclose()
    walls = {arm: sorted(arms[arm].wall_s for arms in rounds) for arm in rounds[0]}
    first = rounds[0]
    for arm, seconds in walls.items():
        figures[f"vllm_p800_wall_s_least_{arm}"], figures[f"vllm_p800_wall_s_most_{arm}"] = seconds[0], seconds[-1]

    def ratio(arm: str, what: str) -> float | None:
        made = {name: getattr(first[name], what) for name in (arm, "ours")}
        if not all(made.values()):
            return None
        of = {name: statistics.median(walls[name]) / made[name] for name in made}
        return of[arm] / of["ours"]

    for arm in ("r0", "r1", "r2"):
        for name, what in (("pair", "valid"), ("any_pair", "pairs"), ("tree", "trees")):
            value = ratio(arm, what)
            if value is None:
                say(f"wall_per_{name}_{arm}_over_ours left out: one of the two made none")
            else:
                figures[f"wall_per_{name}_{arm}_over_ours"] = value


def _mean(values: object) -> float:
    listed = list(values)  # type: ignore[call-overload]
    return sum(listed) / max(len(listed), 1)
