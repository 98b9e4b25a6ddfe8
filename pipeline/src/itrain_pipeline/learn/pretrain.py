"""Pre-train the quickstart model on toolworld: `python -m itrain_pipeline.learn.pretrain --out DIR --seed 0`.

A 4-layer Llama of 0.7 M parameters learns to pick a tool, copy parameter names from its schema and values from the
question. Dialogues of several independent questions about the same tools give more answer tokens per prompt token;
prompts grow from one tool to about 2,000 tokens of distractors. The loss is on the answers, with a small weight on
the prompts, from which copying heads form early.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from itrain_pipeline.data.rendering import Renderer, system_text
from itrain_pipeline.data.toolworld import Task, Turn, draw_task, generate_tasks
from itrain_pipeline.files import write_atomic
from itrain_pipeline.learn.bpe import CONTEXT_TOKENS, SPECIALS, VOCABULARY_SIZE, train_tokenizer
from itrain_pipeline.records import Bucket, Message
from itrain_pipeline.toolcalls.compare import exact_match
from itrain_pipeline.toolcalls.parse import parse

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

log = logging.getLogger(__name__)

_TOKENIZER_ROWS: Final = 1_500


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A part of pre-training: from `start` (fraction of the steps) on, tasks are drawn with these weights."""

    start: float
    easy: float
    medium: float
    hard: float
    padded: float
    """Share of tasks with distractor tools up to a prompt of 300–2,000 tokens."""
    turns: int
    repetition: float = 0.0
    """Share of sequences that repeat random tokens: where copying heads form first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that pre-training depends on besides the code."""

    seed: int = 0
    steps: int = 2_000
    tokens_per_step: int = 4_096
    learning_rate: float = 4e-3
    final_rate: float = 0.02
    """The last learning rate as a fraction of the peak."""
    warmup: float = 0.04
    weight_decay: float = 0.05
    clip: float = 1.0
    prompt_weight: float = 0.1
    threads: int = 2
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    init_std: float = 0.02
    """Small, so that the copying heads written into the weights are not drowned."""
    intermediate: int = 288
    rope_theta: float = 10_000.0
    """Readers that do not know `rope_parameters` (transformers 4) assume this value."""
    phases: tuple[Phase, ...] = field(
        default=(
            Phase(start=0.0, easy=0.8, medium=0.0, hard=0.0, padded=0.0, turns=6, repetition=0.2),
            Phase(start=0.1, easy=0.5, medium=0.5, hard=0.0, padded=0.0, turns=4),
            Phase(start=0.35, easy=0.3, medium=0.35, hard=0.3, padded=0.05, turns=4),
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """One dialogue as token ids and, per token, whether it belongs to an answer."""

    ids: tuple[int, ...]
    answer: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Greedy exact matches over rows; `calls` counts the rows with a call only."""

    rows: int
    exact: int
    calls: int
    exact_calls: int

    @property
    def call_accuracy(self) -> float:
        return self.exact_calls / self.calls if self.calls else math.nan

    @property
    def standard_error(self) -> float:
        """Of `call_accuracy`."""
        share = self.call_accuracy
        return math.sqrt(share * (1 - share) / self.calls) if self.calls else math.nan


def dialogue(task: Task, renderer: Renderer) -> Dialogue:
    """The whole dialogue of a task; every answer and its end of turn are targets."""
    history: list[Message] = []
    ids: tuple[int, ...] = ()
    answer: list[bool] = []
    for turn in task.turns:
        history.append(Message(role="user", content=turn.query))
        prompt = renderer.prompt_ids(history, task.tools)
        target = renderer.answer_ids(turn.answer)
        answer += [False] * (len(prompt) - len(ids)) + [True] * len(target)
        ids = prompt + target
        history.append(Message(role="assistant", content=turn.answer))
    return Dialogue(ids=ids, answer=tuple(answer))


def draw_dialogue(rng: random.Random, phase: Phase, renderer: Renderer) -> Dialogue:
    weights = (phase.easy, phase.medium, phase.hard, phase.padded, phase.repetition)
    kind = rng.choices(("easy", "medium", "hard", "padded", "repetition"), weights)[0]
    if kind == "repetition":
        return draw_repetition(rng)
    buckets: dict[str, Bucket] = {"easy": "easy", "medium": "medium", "hard": "hard", "padded": "hard"}
    tokens = rng.randint(300, 2_000) if kind == "padded" else None
    return dialogue(draw_task(rng, "train", buckets[kind], turns=phase.turns, prompt_tokens=tokens), renderer)


def draw_repetition(rng: random.Random) -> Dialogue:
    """Random tokens, repeated; every repetition is a target."""
    once = [rng.randrange(len(SPECIALS), VOCABULARY_SIZE) for _ in range(rng.randint(8, 64))]
    times = rng.randint(3, 6)
    return Dialogue(ids=(1, *once * times), answer=(False,) * (1 + len(once)) + (True,) * (len(once) * (times - 1)))


def batches(recipe: Recipe, renderer: Renderer) -> Iterator[list[Dialogue]]:
    """One batch a step, of dialogues of like length, with at most `tokens_per_step` padded tokens."""
    rng = random.Random(f"{recipe.seed}/pretrain")
    pool: list[Dialogue] = []
    for step in range(recipe.steps):
        phase = [p for p in recipe.phases if p.start * recipe.steps <= step][-1]
        while len(pool) < 128:
            pool.append(draw_dialogue(rng, phase, renderer))
        pool.sort(key=lambda one: len(one.ids))
        first = rng.randrange(len(pool))
        size = max(1, recipe.tokens_per_step // len(pool[first].ids))
        low = max(0, first + 1 - size)
        yield pool[low : first + 1]
        del pool[low : first + 1]


def rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to `final_rate` of the peak."""
    warm = max(1, round(recipe.warmup * recipe.steps))
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, recipe.steps - warm)
    low = recipe.final_rate
    return recipe.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))


def build_model(recipe: Recipe, pad: int, bos: int, end_of_turn: int) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from itrain_pipeline.learn.heads import write_copying_heads

    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.intermediate,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=CONTEXT_TOKENS,
            rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
            initializer_range=recipe.init_std,
            tie_word_embeddings=True,
            pad_token_id=pad,
            bos_token_id=bos,
            eos_token_id=end_of_turn,
        )
    )
    if recipe.layers > 1:
        write_copying_heads(model, torch.Generator().manual_seed(recipe.seed))
    return model


def build_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices; AdamW for embeddings and norms at half the rate, lest tokens lose themselves."""
    import torch

    from itrain_pipeline.learn.muon import Muon

    rate = recipe.learning_rate
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        Muon([{"params": matrices, "share": 1.0}], lr=rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW([{"params": others, "share": 0.5}], lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def losses(
    model: LlamaForCausalLM, batch: Sequence[Dialogue], prompt_weight: float, pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The training loss and the mean over answer tokens alone, in nats a token.

    The training loss is the weighted mean negative log-likelihood: weight 1 on answer tokens, `prompt_weight` on the
    others, 0 on padding.
    """
    import torch

    width = max(len(one.ids) for one in batch)
    ids_BT = torch.full((len(batch), width), pad)
    answer_BT = torch.zeros(len(batch), width)
    real_BT = torch.zeros(len(batch), width)
    for row, one in enumerate(batch):
        ids_BT[row, : len(one.ids)] = torch.tensor(one.ids)
        answer_BT[row, : len(one.ids)] = torch.tensor(one.answer).float()
        real_BT[row, : len(one.ids)] = 1.0
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    nll_N = torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none"
    )
    answer_N, real_N = answer_BT[:, 1:].flatten(), real_BT[:, 1:].flatten()
    weight_N = answer_N + prompt_weight * (real_N - answer_N)
    return (nll_N * weight_N).sum() / weight_N.sum(), (nll_N.detach() * answer_N).sum() / answer_N.sum()


def is_exact(answer: str, turn: Turn) -> bool:
    """The same calls in any order, or the same text where no call is due."""
    if turn.calls:
        return exact_match(parse(answer, "pythonic").calls, turn.calls)
    return answer == turn.answer


def evaluate_exact(
    model: LlamaForCausalLM, renderer: Renderer, pad: int, tasks: Sequence[Task], batch_size: int = 64
) -> tuple[Accuracy, list[str]]:
    """Greedy answers to the first question of each task, and how many are exact (`is_exact`)."""
    import torch

    prompts = [renderer.prompt_ids((Message(role="user", content=t.turns[0].query),), t.tools) for t in tasks]
    order = sorted(range(len(tasks)), key=lambda i: len(prompts[i]))
    answers = [""] * len(tasks)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        lengths_B1 = torch.tensor([[len(prompts[i])] for i in chosen])
        width = int(lengths_B1.max())
        ids_BT = torch.tensor([[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in chosen])
        with torch.inference_mode():
            out_BT = model.generate(
                ids_BT,
                attention_mask=(
                    torch.arange(width)[None] >= width - torch.tensor([[len(prompts[i])] for i in chosen])
                ).long(),
                max_new_tokens=128,
                do_sample=False,
            )
        for i, row in zip(chosen, out_BT[:, width:].tolist(), strict=True):
            answers[i] = renderer.answer_text(row)
    exact = [is_exact(answer, task.turns[0]) for answer, task in zip(answers, tasks, strict=True)]
    with_call = [bool(task.turns[0].calls) for task in tasks]
    accuracy = Accuracy(
        rows=len(tasks),
        exact=sum(exact),
        calls=sum(with_call),
        exact_calls=sum(e for e, c in zip(exact, with_call, strict=True) if c),
    )
    return accuracy, answers


def pretrain(recipe: Recipe, folder: Path, *, eval_every: int = 400, eval_rows: int = 120) -> Accuracy:
    """Train the tokenizer and the model by the recipe and write a loadable fp16 checkpoint to `folder`.

    Progress goes to the log. With one thread count and one set of library versions the same recipe gives the same
    weights.
    """
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(recipe.threads)
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(tokenizer_texts(recipe.seed), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    renderer = Renderer(tokenizer)
    pad = int(tokenizer.pad_token_id)
    model = build_model(recipe, pad, tokenizer.bos_token_id, renderer.end_of_turn_id)
    log.info("parameters: %d", sum(p.numel() for p in model.parameters()))
    optimizers = build_optimizers(model, recipe)
    dev = list(generate_tasks("dev", eval_rows, recipe.seed))
    accuracy = Accuracy(rows=0, exact=0, calls=0, exact_calls=0)
    begin, tokens, running = time.monotonic(), 0, 0.0
    for step, batch in enumerate(batches(recipe, renderer)):
        now = rate(step, recipe)
        loss, answers = losses(model, batch, recipe.prompt_weight, pad)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = now * group["share"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += sum(len(one.ids) for one in batch)
        running = answers.item() if step == 0 else 0.95 * running + 0.05 * answers.item()
        if (step + 1) % 20 == 0:
            seconds = time.monotonic() - begin
            log.info(
                "step %d/%d  answer loss %.4f  lr %.2e  %.1f M tokens  %.0f tokens/s  %.0f s",
                step + 1, recipe.steps, running, now, tokens / 1e6, tokens / seconds, seconds,
            )  # fmt: skip
        if (step + 1) % eval_every == 0 or step + 1 == recipe.steps:
            accuracy, _ = evaluate_exact(model.eval(), renderer, pad, dev)
            model.train()
            log.info(
                "step %d: dev calls exact %d/%d = %.3f (se %.3f), all rows %d/%d",
                step + 1, accuracy.exact_calls, accuracy.calls, accuracy.call_accuracy, accuracy.standard_error,
                accuracy.exact, accuracy.rows,
            )  # fmt: skip
            save(model, recipe, folder, step=step + 1, tokens=tokens, accuracy=accuracy)
    return accuracy


def tokenizer_texts(seed: int) -> Iterator[str]:
    """What the tokenizer is trained on: schemas once, questions and answers three times, the wording now and then."""
    for index, task in enumerate(generate_tasks("train", _TOKENIZER_ROWS, seed)):
        yield system_text(task.tools[:2], "pythonic") if index % 20 == 0 else json.dumps(task.tools[0])
        for turn in task.turns:
            yield from (f"{turn.query}\n{turn.answer}",) * 3


def save(model: Any, recipe: Recipe, folder: Path, *, step: int, tokens: int, accuracy: Accuracy) -> None:
    """Weights as fp16 safetensors (the model itself stays fp32) and `recipe.json` beside them."""
    import copy

    import torch
    import transformers

    half = copy.deepcopy(model).to(torch.float16)
    half.generation_config.do_sample = False
    half.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    card = {
        "recipe": asdict(recipe),
        "step": step,
        "tokens": tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dev": {**asdict(accuracy), "call_accuracy": accuracy.call_accuracy, "standard_error": accuracy.standard_error},
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
    }
    write_atomic(folder / "recipe.json", (json.dumps(card, indent=1, allow_nan=False) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Pre-train the quickstart model on toolworld.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--threads", type=int, default=Recipe().threads)
    parser.add_argument("--eval-every", type=int, default=400)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = Recipe(seed=arguments.seed, steps=arguments.steps, threads=arguments.threads)
    pretrain(recipe, arguments.out, eval_every=arguments.eval_every)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
