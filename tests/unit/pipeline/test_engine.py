"""The transformers engine against the model itself: same tokens, same logprobs, whoever shares the batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from itrain_pipeline.engine import open_engine
from itrain_pipeline.errors import ConfigError, DataError, PermanentError, RetryableError
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


def test_greedy_decoding_of_many_prompts_equals_the_plain_loop(model_dir: Path, model: Any) -> None:
    done = using(open_engine("transformers", model_dir), lambda e: all_at_once(e, params(0, temperature=0.0)))
    for prompt, (completion,) in zip(PROMPTS, done, strict=True):
        assert completion.token_ids == greedy(model, prompt, 24)
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] == END else "length")


def test_logprobs_are_the_models_own_before_temperature_and_top_p(model_dir: Path, model: Any) -> None:
    how = params(1, 2, 3, temperature=1.5, top_p=0.9)
    done = using(open_engine("auto", model_dir), lambda e: all_at_once(e, how))
    for prompt, completions in zip(PROMPTS, done, strict=True):
        for completion in completions:
            table = full_logprobs(model, prompt + completion.token_ids)
            wanted = [float(table[len(prompt) - 1 + i, t]) for i, t in enumerate(completion.token_ids)]
            assert completion.logprobs == pytest.approx(wanted, abs=2e-5)


def test_a_sequence_does_not_depend_on_who_is_in_the_batch(model_dir: Path) -> None:
    async def body(engine: Engine) -> None:
        together = await all_at_once(engine, params(11, 12, 13))
        assert len({c.token_ids for completions in together for c in completions}) > 12
        for prompt, completions in zip(PROMPTS, together, strict=True):
            (alone,) = await engine.generate(prompt, params(12))
            assert alone.token_ids == completions[1].token_ids

    using(open_engine("transformers", model_dir), body)


def test_the_same_requests_one_by_one_give_the_same_bits(model_dir: Path) -> None:
    async def body(engine: Engine) -> list[list[Completion]]:
        done = []
        for prompt in PROMPTS:
            engine.reset_prefix_cache()
            first = await engine.generate(prompt, params(1, 2, 3))
            done += [first, await engine.generate(prompt + first[0].token_ids[:3], params(4, 5))]
        return done

    async def after_other_work(engine: Engine) -> list[list[Completion]]:
        await all_at_once(engine, params(77, 78))
        return await body(engine)

    fresh = using(open_engine("transformers", model_dir), body)
    assert using(open_engine("transformers", model_dir), after_other_work) == fresh


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


def test_counters_reconcile(model_dir: Path) -> None:
    async def body(engine: Engine) -> None:
        done = await all_at_once(engine, params(1, 2))
        done += await all_at_once(engine, params(3))
        await engine.option_logprobs(PROMPTS[0], [5, 6])
        counters = engine.counters()
        assert counters.requests == 2 * len(PROMPTS) + 1
        prompt_tokens = 2 * sum(map(len, PROMPTS)) + len(PROMPTS[0])
        assert counters.prefill_computed + counters.prefill_cached == prompt_tokens
        assert counters.decoded == sum(len(c.token_ids) for completions in done for c in completions)

    using(open_engine("transformers", model_dir), body)


def test_waiting_requests_are_served_when_the_batch_is_full(model_dir: Path, model: Any) -> None:
    engine = open_engine("transformers", model_dir, max_batch_tokens=70)  # two rows of the shorter prompts
    done = using(engine, lambda e: all_at_once(e, params(0, temperature=0.0)))
    assert [c.token_ids for (c,) in done] == [greedy(model, prompt, 24) for prompt in PROMPTS]


def test_option_logprobs_are_those_of_the_next_token(model_dir: Path, model: Any) -> None:
    options = [40, 41, 42, 43]
    found = using(open_engine("transformers", model_dir), lambda e: e.option_logprobs(PROMPTS[1], options))
    assert found == pytest.approx([float(full_logprobs(model, PROMPTS[1])[-1, o]) for o in options], abs=2e-5)


def test_an_answer_that_meets_the_context_is_cut_and_a_prompt_without_room_is_refused(model_dir: Path) -> None:
    async def body(engine: Engine) -> None:
        (cut,) = await engine.generate((1,) * 30, params(0, max_tokens=50, stop_token_ids=(9999,)))
        assert (len(cut.token_ids), cut.finish_reason) == (2, "length")
        with pytest.raises(PermanentError, match="a prompt of 32 tokens leaves no room in a context of 32"):
            await engine.generate((1,) * 32, params(0))

    using(open_engine("transformers", model_dir, max_model_len=32), body)


def test_a_stop_token_ends_the_answer_and_belongs_to_it(model_dir: Path, model: Any) -> None:
    free = greedy(model, PROMPTS[0], 24)
    stop = free[5]
    how = params(0, temperature=0.0, stop_token_ids=(stop,))
    (completion,) = using(open_engine("transformers", model_dir), lambda e: e.generate(PROMPTS[0], how))
    assert completion.token_ids == free[: free.index(stop) + 1]
    assert completion.finish_reason == "stop"


def test_adapters_are_served_by_new_names_and_none_is_the_bare_model(
    model_dir: Path, model: Any, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folders = [write_random_adapter(model_dir, tmp_path / f"adapter{seed}", seed=seed) for seed in (1, 2)]

    async def body(engine: Engine) -> None:
        async def served() -> tuple[int, ...]:
            return (await engine.generate(PROMPTS[1], params(0, temperature=0.0)))[0].token_ids

        assert await served() == greedy(model, PROMPTS[1], 24)
        answers = set()
        for number, folder in enumerate(folders):
            engine.load_adapter(f"iteration-{number}", folder)
            base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
            assert await served() == greedy(PeftModel.from_pretrained(base, folder).eval(), PROMPTS[1], 24)
            answers.add(await served())
        assert len(answers) == 2
        engine.load_adapter("base", None)
        assert await served() == greedy(model, PROMPTS[1], 24)
        engine.load_adapter("again", folders[0])
        assert await served() in answers
        with pytest.raises(ConfigError, match="'iteration-1' was already used"):
            engine.load_adapter("iteration-1", folders[1])

    using(open_engine("transformers", model_dir), body)


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


def test_logits_that_are_not_finite_fail_the_request_and_not_the_engine(model_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in model_dir.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][30] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})

    async def body(engine: Engine) -> None:
        with pytest.raises(PermanentError, match="not finite"):
            await engine.generate((1, 30), params(1, 2))

    using(open_engine("transformers", broken), body)


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


def test_a_closed_engine_answers_nobody_silently(model_dir: Path) -> None:
    async def run() -> None:
        engine = open_engine("transformers", model_dir)
        waiting = asyncio.ensure_future(engine.generate(PROMPTS[0], params(1, max_tokens=200, stop_token_ids=(9999,))))
        await asyncio.sleep(0)
        await engine.aclose()
        with pytest.raises(RetryableError, match="closed"):
            await waiting
        with pytest.raises(RetryableError, match="closed"):
            await engine.generate(PROMPTS[0], params(1))

    asyncio.run(run())


def test_an_engine_that_is_not_there_is_one_clear_error(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vllm is .*installed.*'transformers' or 'auto'"):
        open_engine("vllm", model_dir)
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        open_engine("auto", tmp_path)
