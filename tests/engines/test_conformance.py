"""What both engines promise (`itrain_pipeline.ports.Engine`), held against the model itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from itrain_pipeline.errors import ConfigError, PermanentError, RetryableError
from itrain_pipeline.ports import Completion, Engine, SamplingParams
from itrain_testing.tiny_model import END, write_random_adapter

PROMPTS = [(1, 4, *range(20, 20 + k), 5) for k in (3, 8, 1, 12, 5, 8)]
LONG = (1, 4, *(20 + 7 * i % 200 for i in range(97)), 5)
"""100 tokens: three whole blocks of 32 and a part."""
NEVER = (0,)
"""The padding token as the stop token: with the seeds below no answer holds it."""


def params(*seeds: int, max_tokens: int = 24, **fields: Any) -> SamplingParams:
    return SamplingParams(seeds=seeds, max_tokens=max_tokens, **fields)


GREEDY = params(0, temperature=0.0)


def full_logprobs(model: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0], dim=-1)


def greedy(model: Any, prompt: tuple[int, ...], tokens: int = 24) -> tuple[int, ...]:
    """The plain loop: one whole forward pass per token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + tokens:
        ids.append(int(full_logprobs(model, ids)[-1].argmax()))
        if ids[-1] == END:
            break
    return tuple(ids[len(prompt) :])


def ask(engine: Engine, prompt: Sequence[int], how: SamplingParams = GREEDY) -> list[Completion]:
    return asyncio.run(engine.generate(prompt, how))


def ask_all(engine: Engine, how: SamplingParams, prompts: Sequence[Sequence[int]] = PROMPTS) -> list[list[Completion]]:
    async def all_at_once() -> list[list[Completion]]:
        return await asyncio.gather(*(engine.generate(prompt, how) for prompt in prompts))

    return asyncio.run(all_at_once())


async def until_free(engine: Engine) -> None:
    """Returns when no request holds a block; the test's own timeout ends it otherwise."""
    while (capacity := engine.kv_capacity()).free_blocks < capacity.total_blocks:
        await asyncio.sleep(0.005)


def test_greedy_decoding_of_many_prompts_equals_the_plain_loop(engine: Engine, model: Any) -> None:
    done = ask_all(engine, GREEDY)
    for prompt, (completion,) in zip(PROMPTS, done, strict=True):
        assert completion.token_ids == greedy(model, prompt)
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] == END else "length")


def test_greedy_decoding_equals_the_librarys_generate(engine: Engine, model: Any) -> None:
    ids = torch.tensor([LONG])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0)
    assert ask(engine, LONG)[0].token_ids == tuple(made[0, len(LONG) :].tolist())


def test_logprobs_are_the_models_own_before_temperature_and_top_p(engine: Engine, model: Any) -> None:
    for prompt, completions in zip(PROMPTS, ask_all(engine, params(1, 2, 3, temperature=1.5, top_p=0.9)), strict=True):
        for completion in completions:
            table = full_logprobs(model, prompt + completion.token_ids)
            wanted = [float(table[len(prompt) - 1 + i, t]) for i, t in enumerate(completion.token_ids)]
            assert completion.logprobs == pytest.approx(wanted, abs=1e-4)


def test_a_sequence_does_not_depend_on_who_is_in_the_batch(engine: Engine) -> None:
    together = ask_all(engine, params(11, 12, 13))
    assert len({c.token_ids for completions in together for c in completions}) > 12
    for prompt, completions in zip(PROMPTS, together, strict=True):
        (alone,) = ask(engine, prompt, params(12))
        assert alone.token_ids == completions[1].token_ids


def test_greedy_requests_and_judgements_beside_it_do_not_change_what_a_seed_samples(engine: Engine) -> None:
    async def mixed() -> list[Completion]:
        sampled = asyncio.create_task(engine.generate(PROMPTS[1], params(7, 8)))
        for prompt in PROMPTS:
            await engine.generate(prompt, params(0, temperature=0.0, max_tokens=2))
            await engine.option_logprobs(prompt, [40, 41])
        return await sampled

    assert [c.token_ids for c in asyncio.run(mixed())] == [c.token_ids for c in ask(engine, PROMPTS[1], params(7, 8))]


def test_the_same_requests_one_by_one_give_the_same_bits(engine: Engine) -> None:
    def one_by_one() -> list[list[Completion]]:
        done = []
        for prompt in (*PROMPTS, LONG):
            engine.reset_prefix_cache()
            first = ask(engine, prompt, params(1, 2, 3))
            done += [first, ask(engine, prompt + first[0].token_ids[:3], params(4, 5))]
        return done

    fresh = one_by_one()
    ask_all(engine, params(77, 78))
    assert one_by_one() == fresh


def test_siblings_differ_by_their_seeds_alone(engine: Engine) -> None:
    first, second, third = ask(engine, PROMPTS[3], params(5, 6, 5))
    assert first.token_ids == third.token_ids != second.token_ids
    large = 2**63 - 1
    assert ask(engine, PROMPTS[3], params(large)) == ask(engine, PROMPTS[3], params(large))


def test_siblings_compute_the_blocks_of_their_prompt_once(engine: Engine) -> None:
    before = engine.counters()
    ask(engine, LONG, params(1, 2, 3, 4))
    after = engine.counters()
    computed = after.prefill_computed - before.prefill_computed
    assert computed + after.prefill_cached - before.prefill_cached == 4 * len(LONG)
    partial = len(LONG) % engine.kv_capacity().block_tokens
    assert computed == len(LONG) + 3 * partial


def test_a_known_prefix_changes_no_greedy_token_and_is_not_computed_again(engine: Engine) -> None:
    (first,) = ask(engine, LONG, params(0, temperature=0.0, max_tokens=40, stop_token_ids=NEVER))
    longer = LONG + first.token_ids[:36]
    before = engine.counters()
    (known,) = ask(engine, longer)
    after = engine.counters()
    assert after.prefill_computed - before.prefill_computed <= engine.kv_capacity().block_tokens
    engine.reset_prefix_cache()
    (unknown,) = ask(engine, longer)
    assert engine.counters().prefill_computed - after.prefill_computed == len(longer)
    assert known.token_ids == unknown.token_ids
    assert known.logprobs == pytest.approx(unknown.logprobs, abs=1e-4)


def test_counters_reconcile(engine: Engine) -> None:
    before = engine.counters()
    done = ask_all(engine, params(1, 2)) + ask_all(engine, params(3))
    after = engine.counters()
    assert after.requests - before.requests == 2 * len(PROMPTS)
    prefilled = after.prefill_computed + after.prefill_cached - before.prefill_computed - before.prefill_cached
    assert prefilled == 3 * sum(map(len, PROMPTS))
    assert after.decoded - before.decoded == sum(len(c.token_ids) for completions in done for c in completions)
    asyncio.run(engine.option_logprobs(PROMPTS[0], [5, 6]))
    judged = engine.counters()
    assert judged.requests == after.requests + 1
    prefilled = judged.prefill_computed + judged.prefill_cached - after.prefill_computed - after.prefill_cached
    assert prefilled in (len(PROMPTS[0]), 2 * len(PROMPTS[0]))  # one sequence for all labels, or one for each
    assert judged.decoded == after.decoded


def test_requests_beyond_the_free_blocks_wait_and_are_served(engine: Engine, model: Any) -> None:
    prompts = [(1, 4, *(20 + (i * k) % 150 for i in range(60)), 5) for k in range(1, 41)]  # 40 × 87 tokens, 2,048 fit

    async def body() -> list[list[Completion]]:
        asked = [asyncio.create_task(engine.generate(prompt, GREEDY)) for prompt in prompts]
        await asyncio.sleep(0)
        capacity = engine.kv_capacity()
        assert capacity.total_blocks * capacity.block_tokens == 2048
        assert capacity.free_blocks < capacity.total_blocks / 16
        done = await asyncio.gather(*asked)
        await until_free(engine)
        return done

    done = asyncio.run(body())
    for prompt, (completion,) in list(zip(prompts, done, strict=True))[::8]:
        assert completion.token_ids == greedy(model, prompt)


def test_option_scores_are_the_softmaxed_logits_of_the_next_token_even_of_unlikely_labels(
    engine: Engine, model: Any
) -> None:
    for prompt in (PROMPTS[1], LONG):
        table = full_logprobs(model, prompt)[-1]
        order = table.argsort().tolist()
        options = [order[-1], order[0], order[150], order[1]]
        found = asyncio.run(engine.option_logprobs(prompt, options))
        assert found == pytest.approx([float(table[option]) for option in options], abs=1e-4)


def test_an_answer_that_meets_the_context_is_cut_and_a_prompt_without_room_is_refused(engine: Engine) -> None:
    (cut,) = ask(engine, (1,) * 254, params(0, max_tokens=50, stop_token_ids=NEVER))
    assert (len(cut.token_ids), cut.finish_reason) == (2, "length")
    before = engine.counters()
    with pytest.raises(PermanentError, match="a prompt of 256 tokens leaves no room in a context of 256"):
        ask(engine, (1,) * 256)
    with pytest.raises(PermanentError, match="leaves no room"):
        asyncio.run(engine.option_logprobs((1,) * 300, [5]))
    with pytest.raises(PermanentError, match="at least one token"):
        ask(engine, ())
    assert engine.counters() == before


def test_a_stop_token_ends_the_answer_and_belongs_to_it(engine: Engine, model: Any) -> None:
    free = greedy(model, PROMPTS[0])
    stop = free[5]
    (completion,) = ask(engine, PROMPTS[0], params(0, temperature=0.0, stop_token_ids=(stop,)))
    assert completion.token_ids == free[: free.index(stop) + 1]
    assert completion.finish_reason == "stop"


def test_two_adapters_and_the_bare_model_answer_the_same_prompt_each_with_its_own_weights(
    engine: Engine, shelf: Any, model_dir: Path, model: Any, adapters: list[Path]
) -> None:
    wanted = {None: greedy(model, LONG)} | {folder: greedy(adapted(model_dir, folder), LONG) for folder in adapters}
    assert len(set(wanted.values())) == 3
    for folder in (None, *adapters, None, adapters[0]):  # known blocks of one must never serve another
        name = shelf.fresh_name()
        engine.load_adapter(name, folder)
        assert ask(engine, LONG)[0].token_ids == wanted[folder]
        assert ask(engine, LONG)[0].token_ids == wanted[folder]
    with pytest.raises(ConfigError, match=f"'{name}' was already used"):
        engine.load_adapter(name, adapters[1])


def test_an_adapter_is_not_changed_under_a_request(engine: Engine, shelf: Any, adapters: list[Path]) -> None:
    async def body() -> None:
        waiting = asyncio.create_task(engine.generate(LONG, params(1, max_tokens=100, stop_token_ids=NEVER)))
        await asyncio.sleep(0.01)
        with pytest.raises(ConfigError, match="cannot be loaded while"):
            engine.load_adapter(shelf.fresh_name(), adapters[0])
        await waiting

    asyncio.run(body())


def test_a_cancelled_call_frees_its_blocks_and_the_others_are_answered(engine: Engine, model: Any) -> None:
    async def body() -> Completion:
        long = params(1, 2, 3, max_tokens=150, stop_token_ids=NEVER)
        calls = [asyncio.create_task(engine.generate((*LONG, k), long)) for k in range(30, 34)]
        await asyncio.sleep(0.05)
        assert engine.kv_capacity().free_blocks < engine.kv_capacity().total_blocks
        for call in calls:
            call.cancel()
        (other,) = await engine.generate(PROMPTS[1], GREEDY)
        await until_free(engine)
        assert [call.cancelled() for call in calls] == [True] * 4
        return other

    assert asyncio.run(body()).token_ids == greedy(model, PROMPTS[1])


def test_a_call_cancelled_at_once_leaves_nothing_behind(engine: Engine) -> None:
    async def body() -> None:
        call = asyncio.create_task(engine.generate(LONG, params(1, 2)))
        await asyncio.sleep(0)
        call.cancel()
        await until_free(engine)

    asyncio.run(body())
    assert len(ask(engine, PROMPTS[0])) == 1


def test_a_request_for_nothing_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="needs seeds"):
        ask(engine, PROMPTS[0], params())
    with pytest.raises(ConfigError, match="max_tokens >= 1"):
        ask(engine, PROMPTS[0], params(1, max_tokens=0))


def test_an_id_that_an_engine_would_die_of_fails_its_request_for_good_and_alone(engine: Engine) -> None:
    before = engine.kv_capacity()
    for wrong in (100_000, 320, -1):
        message = f"a prompt with the id {wrong}, outside of the model's vocabulary of 320"
        with pytest.raises(PermanentError, match=message):
            ask(engine, (1, wrong), params(1, 2))
        with pytest.raises(PermanentError, match=message):
            asyncio.run(engine.option_logprobs((1, wrong), [5]))
        with pytest.raises(PermanentError, match=f"a judgement with the id {wrong}, outside"):
            asyncio.run(engine.option_logprobs((1, 20), [5, wrong]))
    assert engine.kv_capacity() == before
    assert len(ask(engine, (1, 319), params(1, 2))) == 2


def test_an_adapter_of_a_higher_rank_than_any_before_is_served(
    bench: Any, model_dir: Path, adapters: list[Path], tmp_path: Path
) -> None:
    engine = bench.own(model_dir)
    large = write_random_adapter(model_dir, tmp_path / "large", seed=3, rank=24)
    for name, folder in (("small", adapters[0]), ("large", large)):
        engine.load_adapter(name, folder)
        assert ask(engine, LONG)[0].token_ids == greedy(adapted(model_dir, folder), LONG)


def test_logits_that_are_not_finite_fail_the_request_and_not_the_engine(
    bench: Any, model_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in model_dir.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    engine = bench.own(broken)
    for _ in range(2):
        with pytest.raises(PermanentError, match="not finite"):
            ask(engine, (1, 30), params(1, 2))
    with pytest.raises(PermanentError, match="not finite"):
        asyncio.run(engine.option_logprobs((1, 30), [5, 6]))


def test_a_dead_engine_fails_every_call_in_flight_and_every_later_one(bench: Any, model_dir: Path) -> None:
    engine = bench.own(model_dir, max_batch_tokens=600)

    async def body() -> None:
        long = params(1, 2, max_tokens=100, stop_token_ids=NEVER)
        calls = [asyncio.create_task(engine.generate(prompt, long)) for prompt in PROMPTS]  # some run, some wait
        await asyncio.sleep(0.02)
        kill(engine)
        failed = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in failed] == [RetryableError] * len(PROMPTS)
        assert all("the engine died: SystemError: the device is gone" in str(error) for error in failed)
        with pytest.raises(RetryableError, match="died"):
            await engine.generate(PROMPTS[0], GREEDY)
        with pytest.raises(RetryableError, match="died"):
            await engine.option_logprobs(PROMPTS[0], [5])

    asyncio.run(body())


def test_a_closed_engine_answers_nobody_silently(bench: Any, model_dir: Path) -> None:
    engine = bench.own(model_dir)
    engine.load_adapter("base", None)
    assert engine.max_model_len == 256

    async def body() -> None:
        waiting = asyncio.create_task(engine.generate(PROMPTS[0], params(1, max_tokens=200, stop_token_ids=NEVER)))
        await asyncio.sleep(0.01)
        await engine.aclose()
        with pytest.raises(RetryableError, match="closed"):
            await waiting
        with pytest.raises(RetryableError, match="closed"):
            await engine.generate(PROMPTS[0], GREEDY)
        await engine.aclose()

    asyncio.run(body())


def adapted(model_dir: Path, folder: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder).eval()


def kill(engine: Any) -> None:
    """Let the device below the engine raise what no engine expects."""

    def gone(*_: Any, **__: Any) -> None:
        raise SystemError("the device is gone")

    if hasattr(engine, "_stepper"):
        engine._stepper.engine.engine_core.engine_core.model_executor.execute_model = gone
    else:
        engine._runner.decode = gone
