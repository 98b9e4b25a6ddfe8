"""What both engines refuse, in the same words: before a request costs anything, or when a model answered nonsense."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set

from itrain_pipeline.errors import ConfigError, PermanentError
from itrain_pipeline.ports import SamplingParams

NOT_FINITE = "the model returned logits that are not finite"


def prompt_room(prompt_ids: Sequence[int], *, context: int, vocabulary: int) -> int:
    """Tokens that may follow the prompt, at least one.

    Raises PermanentError for an empty prompt, one that fills the `context`, or one with an id that is none of the
    model's `vocabulary` ids: an engine dies of these, and its other requests with it.
    """
    if not prompt_ids:
        raise PermanentError("a prompt needs at least one token")
    room = context - len(prompt_ids)
    if room < 1:
        raise PermanentError(f"a prompt of {len(prompt_ids)} tokens leaves no room in a context of {context}")
    check_ids("prompt", prompt_ids, vocabulary=vocabulary)
    return room


def check_ids(name: str, ids: Sequence[int], *, vocabulary: int) -> None:
    """Raises PermanentError where one of the ids is not in 0 … vocabulary - 1."""
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        wrong = next(one for one in ids if not 0 <= one < vocabulary)
        raise PermanentError(f"a {name} with the id {wrong}, outside of the model's vocabulary of {vocabulary}")


def check_params(params: SamplingParams) -> None:
    """Raises ConfigError for a request for nothing."""
    if not params.seeds or params.max_tokens < 1:
        raise ConfigError(f"a request needs seeds and max_tokens >= 1, got {params}")


def check_new_name(name: str, used: Set[str]) -> None:
    """Raises ConfigError for an adapter name that the engine knows: known prefixes of one never serve another."""
    if name in used:
        raise ConfigError(f"adapter name {name!r} was already used in this engine: every load needs a new name")


def check_finite(values: Iterable[float]) -> None:
    """Raises PermanentError unless all logprobs are numbers."""
    if not all(map(math.isfinite, values)):
        raise PermanentError(NOT_FINITE)
