"""Tree rows through a model: loss and gradients are those of two rows per pair and of TRL's trainer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.learn.adapter import new_adapter
from itrain_pipeline.learn.chosen import chosen_logprobs
from itrain_pipeline.learn.collate import PADDING_PAIR, PairCollator, PairRow
from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.learn.preference import PassCollator, pair_losses, pass_losses
from itrain_pipeline.learn.simpo import SimpoSettings
from itrain_pipeline.learn.treebatch import TreeCollator, answer_logprobs, tree_simpo
from itrain_pipeline.learn.treemask import flex_mask, tree_mask
from itrain_testing.cpo import cpo_batch, cpo_trainer
from itrain_testing.pairtrees import pair_trees, random_tree, with_truth
from itrain_testing.tiny_model import build_tokenizer, write_tiny_model

SETTINGS = SimpoSettings(beta=2.5, gamma=0.5)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def with_adapter(base: Any) -> Any:
    """An adapter whose B is not 0, so that every one of its weights has a gradient."""
    model = new_adapter(base, AdapterSpec(rank=4, alpha=8), seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return with_adapter(load_model(write_tiny_model(tmp_path_factory.mktemp("model")), precision="fp32"))


@pytest.fixture(scope="module")
def reference(policy: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        yield cpo_trainer(policy, build_tokenizer(), tmp_path_factory.mktemp("cpo"), SETTINGS)


def gradients(model: Any, loss: torch.Tensor) -> torch.Tensor:
    """Of all trained weights, as one vector."""
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max().item() <= 1e-5 * expected.abs().max().item()


def separate(model: Any, pairs: list[PairRow]) -> torch.Tensor:
    return pair_losses(model, model, PairCollator()(pairs), SETTINGS)[0]


@given(trees=pair_trees(most=3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_loss_and_gradients_are_those_of_two_rows_per_pair_and_of_trl_on_random_trees(
    policy: Any, reference: Any, trees: list[list[PairRow]]
) -> None:
    pairs = [pair for tree in trees for pair in tree]
    expected = separate(policy, pairs)
    trl_loss, _ = reference.get_batch_loss_metrics(policy, cpo_batch(pairs))
    found = tree_simpo(policy, trees, beta=2.5, gamma=0.5).losses
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert found.mean().item() == pytest.approx(trl_loss.item(), rel=1e-5)
    ours = gradients(policy, found.mean())
    assert_same(ours, gradients(policy, expected.mean()))
    assert_same(ours, gradients(policy, trl_loss))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("form", ["tree", "pair"])
def test_metrics_weights_and_the_nll_terms_are_those_of_separate_rows(policy: Any, form: Any, seed: int) -> None:
    rng = random.Random(seed)
    tree = [*with_truth(rng, random_tree(rng, prompt=9, pairs=3))[:3], PairRow(prompt_ids=(8, 9), truth_ids=(11, 12))]
    with_nll = SimpoSettings(beta=2.5, gamma=0.5, nll_weight=0.3, answer_nll_weight=0.7)
    rows = [tree] if form == "tree" else [[pair] for pair in tree]
    batch = PassCollator(form=form)([rows])
    losses, metrics = pass_losses(policy, policy, batch, with_nll)
    expected_losses, expected = pass_losses(policy, policy, PassCollator(form="separate")([rows]), with_nll)
    assert torch.allclose(losses, expected_losses, rtol=1e-5)
    assert metrics.keys() == expected.keys()
    assert all(torch.allclose(metrics[name], expected[name], rtol=1e-4, atol=1e-6) for name in expected)
    assert batch["weights"].tolist() == [1.0] * 4
    assert_same(gradients(policy, losses.mean()), gradients(policy, expected_losses.mean()))


def test_the_answer_term_is_the_right_answer_s_nll_and_a_batch_without_answers_has_none(policy: Any) -> None:
    rng = random.Random(8)
    tree = with_truth(rng, random_tree(rng, prompt=9, pairs=2))[:2]
    settings = SimpoSettings(beta=2.5, gamma=0.5, answer_nll_weight=0.7, answer_tokens=4.0)
    losses, metrics = pass_losses(policy, policy, TreeCollator()([tree]), settings)
    plain, _ = pass_losses(policy, policy, TreeCollator()([tree]), SETTINGS)
    ids = torch.tensor([[*tree[0].prompt_ids, *tree[0].truth_ids]])
    logprobs_TV = policy(input_ids=ids).logits[0].log_softmax(-1)
    places = range(len(tree[0].prompt_ids), ids.shape[1])
    mean = torch.stack([logprobs_TV[at - 1, ids[0, at]] for at in places]).mean()
    assert torch.allclose(metrics["answer_logprob"], mean.expand(2), rtol=1e-5)
    assert torch.allclose(losses, plain - 0.7 * mean * len(tree[0].truth_ids) / 4, rtol=1e-5)
    for form in ("tree", "separate"):  # what fills up a process's passes: the same names of metrics, no weight
        losses, metrics = pass_losses(policy, policy, PassCollator(form=form)([[[PADDING_PAIR]]]), settings)
        assert losses.isfinite().all()
        assert metrics["answer_logprob"].tolist() == [0.0]


def test_a_row_of_an_answer_alone_has_its_term_and_prefers_nothing(policy: Any) -> None:
    settings = SimpoSettings(beta=2.5, gamma=0.5, nll_weight=0.3, answer_nll_weight=0.7, answer_tokens=6.0)
    row = PairRow(prompt_ids=(8, 9), truth_ids=(11, 12, 2))
    for form in ("tree", "separate"):
        batch = PassCollator(form=form)([[[row]]])
        losses, metrics = pass_losses(policy, policy, batch, settings)
        assert torch.allclose(losses, -0.7 * metrics["answer_logprob"] * 3 / 6)
        assert metrics["answer_logprob"].item() < 0
        assert {name: value.item() for name, value in metrics.items() if name != "answer_logprob"} == dict.fromkeys(
            ("pairs", "reward_margin", "reward_accuracy", "chosen_logprob", "rejected_logprob"), 0.0
        )
        assert gradients(policy, losses.mean()).abs().max().item() > 0


def test_a_batch_in_which_only_some_pairs_have_an_answer_is_refused() -> None:
    rng = random.Random(9)
    tree = random_tree(rng, prompt=9, pairs=1)
    with pytest.raises(ValueError, match="all pairs of a batch have a right answer or none"):
        TreeCollator()([tree, with_truth(rng, tree)])


def test_gradient_checkpointing_changes_no_gradient(policy: Any) -> None:
    tree = random_tree(random.Random(4), prompt=9, pairs=4)
    plain = gradients(policy, tree_simpo(policy, [tree], beta=2.5, gamma=0.5).losses.mean())
    policy.enable_input_require_grads()
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    policy.train()
    try:
        again = gradients(policy, tree_simpo(policy, [tree], beta=2.5, gamma=0.5).losses.mean())
    finally:
        policy.gradient_checkpointing_disable()
        policy.disable_input_require_grads()
        policy.eval()
    assert_same(again, plain)


def test_padding_of_a_row_changes_nothing(policy: Any) -> None:
    rng = random.Random(5)
    short, long = random_tree(rng, prompt=3, pairs=2), random_tree(rng, prompt=40, pairs=3)
    alone = answer_logprobs(policy, policy, TreeCollator()([short]))
    for pad_id in (0, 2):
        batch = TreeCollator(pad_id=pad_id, multiple=16)([short, long])
        assert batch["input_ids"].shape[1] % 16 == 0
        together = answer_logprobs(policy, policy, batch)
        assert torch.allclose(together[[0, 1, 5, 6]], alone, rtol=1e-5)


def test_the_output_head_sees_only_places_that_predict_a_scored_token(policy: Any) -> None:
    prompt = tuple(range(100, 150))
    pairs = [
        PairRow(context_ids=prompt, chosen_ids=(1, 2, 3), rejected_ids=(4, 5)),
        PairRow(context_ids=(*prompt, 1, 2, 3), chosen_ids=(6,), rejected_ids=(7,)),
    ]
    seen = []
    head = policy.get_output_embeddings().register_forward_hook(lambda m, a, out: seen.append(out.shape[:-1]))
    try:
        tree_simpo(policy, [pairs], beta=2.5, gamma=0.5)
    finally:
        head.remove()
    # the prompt's end predicts 1 and 4; then 1, 2, 4; 3 predicts 6 and 7
    assert seen == [(1, 5)]


def test_a_sliding_window_is_counted_in_positions_and_layers_may_differ() -> None:
    """A row is longer than the window while no path is: were places counted, the branches would lose their prompt."""
    for model in (mistral(), gemma()):
        policy = with_adapter(model.eval().requires_grad_(False))
        tree = random_tree(random.Random(6), prompt=12, pairs=5, words=range(7, 60))
        found = tree_simpo(policy, [tree], beta=2.5, gamma=0.5).losses
        expected = separate(policy, tree)
        assert torch.allclose(found, expected, rtol=1e-5)
        assert_same(gradients(policy, found.mean()), gradients(policy, expected.mean()))


def small(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "sliding_window": 8,
        **more,
    }


def mistral() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**small()))


def gemma() -> Any:
    """Its layers alternate, and its logits are capped after the head."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**small(head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=3.0)))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flexattention_s_block_mask_is_the_dense_one() -> None:
    """The kernel runs on GPUs only; here its plain form shows that the mask, which is ours, says the same."""
    from torch.nn.attention.flex_attention import create_mask, flex_attention

    rng = random.Random(7)
    batch = TreeCollator(multiple=128)([random_tree(rng, prompt=90, pairs=4), random_tree(rng, prompt=150, pairs=3)])
    for window in (None, 20):
        dense = tree_mask(batch["ends"], batch["position_ids"], window)
        block = flex_mask(batch["ends"], batch["position_ids"], window)
        rows, length = batch["ends"].shape
        assert torch.equal(create_mask(block.mask_mod, rows, None, length, length, "cpu"), dense)
        torch.manual_seed(0)
        query, key, value = torch.randn(3, rows, 2, length, 16).unbind()
        found = flex_attention(query, key, value, block_mask=block)
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense)
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_chunks_change_neither_logprobs_nor_gradients(chunk_rows: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 50, dtype=torch.float32).mul_(4).requires_grad_()
    rows, targets = torch.tensor([0, 0, 0, 2, 6, 3]), torch.tensor([1, 1, 4, 49, 0, 9])
    weights = torch.randn(6)
    expected = logits.log_softmax(-1)[rows, targets]
    (wanted,) = torch.autograd.grad(expected @ weights, logits)
    found = chosen_logprobs(logits, rows, targets, chunk_rows=chunk_rows)
    (gradient,) = torch.autograd.grad(found @ weights, logits)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(gradient, wanted, atol=1e-6)


def test_logprobs_of_half_precision_logits_are_taken_in_fp32() -> None:
    logits = torch.tensor([[10.0, 9.0, -4.0]], dtype=torch.bfloat16, requires_grad=True)
    found = chosen_logprobs(logits, torch.tensor([0]), torch.tensor([1]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(logits.float().log_softmax(-1)[0, 1].item(), rel=1e-6)
    found.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
