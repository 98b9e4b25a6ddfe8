"""Pre-training of the quickstart model: targets, weights, schedule, and that a recipe repeats."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.data.toolworld import draw_task, generate_tasks
from itrain_pipeline.learn.bpe import SPECIALS, VOCABULARY_SIZE, train_tokenizer
from itrain_pipeline.learn.pretrain import (
    Dialogue,
    Phase,
    Recipe,
    batches,
    build_model,
    dialogue,
    draw_repetition,
    evaluate_exact,
    losses,
    pretrain,
    rate,
    tokenizer_texts,
)

TINY = Recipe(
    seed=5,
    steps=3,
    tokens_per_step=600,
    threads=1,
    hidden=16,
    layers=1,
    heads=2,
    intermediate=24,
    phases=(Phase(start=0.0, easy=1.0, medium=0.0, hard=0.0, padded=0.0, turns=2),),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(tokenizer_texts(5), folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer)


def test_the_tokenizer_has_512_tokens_with_the_special_ones_first(tokenizer: Any) -> None:
    assert len(tokenizer) == VOCABULARY_SIZE
    assert tokenizer.convert_ids_to_tokens(list(range(len(SPECIALS)))) == list(SPECIALS)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_name_has_the_same_tokens_in_a_question_and_in_a_call(tokenizer: Any) -> None:
    name = tokenizer.encode("Kelmoratu", add_special_tokens=False)
    for text in ("go to Kelmoratu for 3 days", "(city='Kelmoratu', days=3)", "in Kelmoratu."):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert any(ids[i : i + len(name)] == name for i in range(len(ids)))


def test_targets_are_the_answers_with_their_ends_of_turn_and_nothing_else(renderer: Renderer, tokenizer: Any) -> None:
    task = draw_task(random.Random(1), "train", "medium", turns=3)
    one = dialogue(task, renderer)
    parts, current = [], []
    for token, is_answer in zip(one.ids, one.answer, strict=True):
        if is_answer:
            current.append(token)
        elif current:
            parts, current = [*parts, current], []
    parts.append(current)
    assert [tokenizer.decode(part) for part in parts] == [turn.answer + "<|eot|>" for turn in task.turns]


def test_the_loss_weighs_answers_fully_prompts_a_little_and_padding_not_at_all(tokenizer: Any) -> None:
    import torch

    model = build_model(TINY, 0, 1, 2)
    long, short = (
        Dialogue(ids=(1, 9, 8, 7), answer=(False, False, True, True)),
        Dialogue(ids=(1, 6), answer=(False, True)),
    )
    loss, answers = losses(model, [long, short], 0.25, 0)
    logp = [model(input_ids=torch.tensor([one.ids])).logits[0].log_softmax(-1) for one in (long, short)]
    nll = [-logp[0][0, 9].item(), -logp[0][1, 8].item(), -logp[0][2, 7].item(), -logp[1][0, 6].item()]
    assert loss.item() == pytest.approx((0.25 * nll[0] + nll[1] + nll[2] + nll[3]) / 3.25, rel=1e-5)
    assert answers.item() == pytest.approx((nll[1] + nll[2] + nll[3]) / 3, rel=1e-5)


def test_the_rate_rises_to_the_peak_and_falls_to_its_last_share() -> None:
    recipe = dataclasses.replace(TINY, steps=1_000, warmup=0.1, learning_rate=2.0, final_rate=0.05)
    assert rate(0, recipe) == pytest.approx(2.0 / 100)
    assert rate(99, recipe) == pytest.approx(2.0)
    assert rate(550, recipe) == pytest.approx(2.0 * (0.05 + 0.95 / 2))
    assert rate(999, recipe) == pytest.approx(0.1, rel=1e-3)


def test_batches_keep_their_token_budget_and_hold_dialogues_of_like_length(renderer: Renderer) -> None:
    recipe = dataclasses.replace(TINY, steps=30, tokens_per_step=3_000)
    made = list(batches(recipe, renderer))
    assert len(made) == 30
    for batch in made:
        lengths = [len(one.ids) for one in batch]
        assert len(batch) * max(lengths) <= 3_000
        assert max(lengths) - min(lengths) < 200


def test_a_recipe_repeats_bit_for_bit_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        pretrain(dataclasses.replace(TINY, seed=seed), tmp_path / name, eval_rows=2)
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "recipe.json"} <= files
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "c")]
    assert weights[0] != weights[1]


def test_greedy_evaluation_counts_only_exact_answers(renderer: Renderer, tokenizer: Any) -> None:
    """A model whose next token depends on the last one alone answers every question with the same fixed text."""
    import torch

    fixed = "No."
    tasks = list(generate_tasks("dev", 12, 0))
    for at in (3, 8):
        turn = dataclasses.replace(tasks[at].turns[0], answer=fixed, calls=())
        tasks[at] = dataclasses.replace(tasks[at], turns=(turn,))
    answer = renderer.answer_ids(fixed)
    assert len(set(answer)) == len(answer)
    model = build_model(dataclasses.replace(TINY, hidden=VOCABULARY_SIZE, layers=1, intermediate=8), 0, 1, 2)
    start = tokenizer.convert_tokens_to_ids("<|assistant|>")
    chain = dict(zip((start, *answer[:-1]), answer, strict=True))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.zero_() if "norm" not in name else weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY_SIZE))
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(VOCABULARY_SIZE, VOCABULARY_SIZE))
        for before, after in chain.items():
            model.lm_head.weight[after, before] = 1.0
    accuracy, answers = evaluate_exact(model.eval(), renderer, 0, tasks, batch_size=5)
    assert set(answers) == {fixed}
    assert (accuracy.rows, accuracy.exact, accuracy.exact_calls) == (12, 2, 0)
    assert accuracy.call_accuracy == accuracy.standard_error == 0.0


def test_an_untrained_model_already_copies_what_repeats() -> None:
    """Uniform guessing costs ln 512 = 6.24 nats a token; the heads written into the weights cost about 1.2."""
    import torch

    rng = random.Random(0)
    batch = [draw_repetition(rng) for _ in range(6)]
    model = build_model(Recipe(), 0, 1, 2)
    with torch.no_grad():
        _, repeated = losses(model, batch, 0.1, 0)
        shuffled = [dataclasses.replace(one, ids=tuple(rng.sample(one.ids, len(one.ids)))) for one in batch]
        _, unrepeated = losses(model, shuffled, 0.1, 0)
    assert repeated.item() < 2.0
    assert unrepeated.item() > 5.0


def test_the_previous_token_head_looks_one_token_back() -> None:
    import torch

    model = build_model(Recipe(), 0, 1, 2)
    model.set_attn_implementation("eager")
    ids = torch.randint(7, VOCABULARY_SIZE, (1, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention_TT = model(input_ids=ids, output_attentions=True).attentions[0][0, 0]
    assert attention_TT.diagonal(-1).mean() > 0.5
    assert (attention_TT[1:].argmax(-1) == torch.arange(299)).float().mean() > 0.95


def test_the_standard_error_is_that_of_a_share() -> None:
    from itrain_pipeline.learn.pretrain import Accuracy

    one = Accuracy(rows=120, exact=70, calls=100, exact_calls=60)
    assert one.call_accuracy == 0.6
    assert one.standard_error == pytest.approx(math.sqrt(0.6 * 0.4 / 100))


def test_muon_turns_every_matrix_into_one_with_singular_values_near_one() -> None:
    import torch

    from itrain_pipeline.learn.muon import orthogonalise

    given = torch.randn(3, 24, 10, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(given))
    assert 0.6 < values.min() < values.max() < 1.3
    assert torch.allclose(orthogonalise(given.mT), orthogonalise(given).mT, atol=1e-5)


def test_muon_steps_down_a_quadratic() -> None:
    import torch

    from itrain_pipeline.learn.muon import Muon

    target = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    weight = torch.nn.Parameter(torch.zeros(4, 6))
    optimizer = Muon([weight], lr=0.1)
    distance = [float((weight.detach() - target).norm())]
    for _ in range(40):
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
        distance.append(float((weight.detach() - target).norm()))
    assert distance[-1] < 0.5 * distance[0]


def test_the_shipped_model_is_made_by_the_recipe_beside_it_and_small() -> None:
    from transformers import AutoConfig, AutoTokenizer

    from itrain_pipeline.quickstart import model_path

    folder = model_path()
    card = json.loads((folder / "recipe.json").read_text())
    assert card["step"] == card["recipe"]["steps"]
    assert card["recipe"]["seed"] == 0
    assert 0.4 <= card["dev"]["call_accuracy"] <= 0.75
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4 * 2**20
    assert AutoConfig.from_pretrained(folder).max_position_embeddings >= 16_384
    assert len(AutoTokenizer.from_pretrained(folder)) == VOCABULARY_SIZE
