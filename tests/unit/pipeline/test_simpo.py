"""SimPO's loss: by hand, by its laws, and against TRL's trainer on the same token ids."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from itrain_contract.spec import AdapterSpec
from itrain_pipeline.learn.adapter import new_adapter
from itrain_pipeline.learn.collate import PADDING_PAIR, PairCollator, PairRow
from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.learn.preference import pair_losses
from itrain_pipeline.learn.simpo import SimpoSettings, simpo_loss
from itrain_pipeline.stages.train import training_row
from itrain_testing.cpo import cpo_batch, cpo_trainer
from itrain_testing.learning import make_pairs
from itrain_testing.tiny_model import build_tokenizer, write_tiny_model

SETTINGS = SimpoSettings(beta=2.5, gamma=0.5)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def policy(model_dir: Path) -> Any:
    model = new_adapter(load_model(model_dir, precision="fp32"), AdapterSpec(rank=4, alpha=8), seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def rows(count: int = 5) -> list[PairRow]:
    return [
        PairRow(context_ids=tuple(c), chosen_ids=tuple(w), rejected_ids=tuple(r))
        for c, w, r in map(training_row, make_pairs(count))
    ]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_the_loss_is_the_sum_worked_by_hand() -> None:
    # chosen: two tokens of -0.3 and -0.5, mean -0.4; rejected: three of -1.0, mean -1.0
    # 2.5·(-0.4) - 2.5·(-1.0) - 0.5 = 1.0; -log σ(1.0) = log(1 + e^-1)
    found = simpo_loss(
        torch.tensor([-0.8]), torch.tensor([2]), torch.tensor([-3.0]), torch.tensor([3]), beta=2.5, gamma=0.5
    )
    assert found.losses.item() == pytest.approx(math.log1p(math.exp(-1.0)), rel=1e-6)
    assert found.chosen_rewards.item() == pytest.approx(-1.0)
    assert found.rejected_rewards.item() == pytest.approx(-2.5)


def test_gamma_is_the_margin_itself_and_not_its_ratio_to_beta() -> None:
    equal = torch.tensor([-1.0]), torch.tensor([1])
    for beta in (1.0, 2.5, 10.0):
        found = simpo_loss(*equal, *equal, beta=beta, gamma=0.5)
        assert found.losses.item() == pytest.approx(math.log1p(math.exp(0.5)), rel=1e-6)


def test_each_response_is_averaged_over_its_own_length() -> None:
    one = simpo_loss(torch.tensor([-1.0]), torch.tensor([1]), torch.tensor([-2.0]), torch.tensor([1]), beta=1, gamma=0)
    longer = simpo_loss(
        torch.tensor([-7.0]), torch.tensor([7]), torch.tensor([-2.0]), torch.tensor([1]), beta=1, gamma=0
    )
    assert one.losses.item() == pytest.approx(longer.losses.item(), rel=1e-6)


def test_a_response_without_tokens_is_an_error_and_not_0_by_0() -> None:
    sums, lengths = torch.tensor([0.0]), torch.tensor([0])
    with pytest.raises(ValueError, match="without tokens"):
        simpo_loss(sums, lengths, torch.tensor([-1.0]), torch.tensor([1]), beta=1, gamma=0)


def test_only_the_diverging_step_is_scored_and_no_end_of_turn_is_added() -> None:
    pair = make_pairs(1)[0]
    context, chosen, rejected = training_row(pair)
    assert tuple(context) == pair.prompt_ids + pair.shared_ids
    assert (tuple(chosen), tuple(rejected)) == (pair.chosen_ids, pair.rejected_ids)
    batch = PairCollator()(
        [PairRow(context_ids=tuple(context), chosen_ids=tuple(chosen), rejected_ids=tuple(rejected))]
    )
    for row, step in ((0, pair.chosen_ids), (1, pair.rejected_ids)):
        assert tuple(batch["input_ids"][row][batch["scored"][row]].tolist()) == step


def test_the_shared_steps_get_no_gradient_of_their_own(policy: Any) -> None:
    """Were the shared step scored, two equal responses would differ by nothing but a longer shared part."""
    row = PairRow(context_ids=(1, 30, 31, 32), chosen_ids=(40, 41), rejected_ids=(40, 41))
    batch = PairCollator()([row])
    losses, _ = pair_losses(policy, policy, batch, SETTINGS)
    losses.sum().backward()
    assert losses.item() == pytest.approx(math.log1p(math.exp(0.5)), rel=1e-5)
    assert max(g.abs().max().item() for g in gradients(policy).values()) < 1e-6


def test_padding_and_its_id_change_nothing(policy: Any) -> None:
    """Trap 8: with pad = end of turn, a real end-of-turn token is still scored; longer neighbours do not matter."""
    short = PairRow(context_ids=(1, 30), chosen_ids=(40, 2), rejected_ids=(41,))
    long = PairRow(context_ids=tuple(range(30, 60)), chosen_ids=(70, 71, 72, 73), rejected_ids=(80, 2, 2))
    alone, _ = pair_losses(policy, policy, PairCollator()([short]), SETTINGS)
    for pad_id in (0, 2):
        together, _ = pair_losses(policy, policy, PairCollator(pad_id=pad_id)([short, long]), SETTINGS)
        assert together[0].item() == pytest.approx(alone[0].item(), rel=1e-5)


def test_a_padding_pair_weighs_nothing_and_has_a_finite_loss(policy: Any) -> None:
    batch = PairCollator()([*rows(1), PADDING_PAIR])
    losses, _ = pair_losses(policy, policy, batch, SETTINGS)
    assert batch["weights"].tolist() == [1.0, 0.0]
    assert bool(losses.isfinite().all())


def test_the_nll_term_is_the_chosen_step_s_mean_nll(policy: Any) -> None:
    batch = PairCollator()(rows(3))
    plain, watched = pair_losses(policy, policy, batch, SETTINGS)
    with_nll, _ = pair_losses(policy, policy, batch, SimpoSettings(beta=2.5, gamma=0.5, nll_weight=0.7))
    assert torch.allclose(with_nll - plain, -0.7 * watched["chosen_logprob"], atol=1e-5)


def test_loss_and_gradients_equal_trl_s_cpo_trainer_on_the_same_ids(
    policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    pairs = rows(6)
    losses, watched = pair_losses(policy, policy, PairCollator()(pairs), SETTINGS)
    losses.mean().backward()
    ours = gradients(policy)

    reference = cpo_trainer(policy, build_tokenizer(), tmp_path, SETTINGS)
    loss, metrics = reference.get_batch_loss_metrics(policy, cpo_batch(pairs))
    loss.backward()
    theirs = gradients(policy)

    assert losses.mean().item() == pytest.approx(loss.item(), rel=1e-5)
    assert watched["reward_margin"].mean().item() == pytest.approx(metrics["rewards/margins"], rel=1e-4)
    assert ours.keys() == theirs.keys()
    scale = max(gradient.abs().max().item() for gradient in theirs.values())
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).abs().max().item() <= 1e-5 * scale, name
