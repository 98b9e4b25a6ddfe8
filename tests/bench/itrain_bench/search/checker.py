"""Whether a pair is right: an opinion of its own that shares no code with the reward, the parser or the certainty rule.

The truth is written out by `repr` in every order of its calls and arguments. A side agrees when its text, blanks and
kinds of quotes aside, begins one of these, or, where the answer ended, is one; an answer that ended may also be equal
to the truth as a Python expression (`1.0` for `1`). Blanks do not count, so that steps joined with blanks are not
blamed for them.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from itrain_pipeline.records import Example, PreferencePair

MAX_ORDERS = 5000
NAME = re.compile(r"(?<=[\[\s,])([A-Za-z_][\w .\-']*)\(")


@dataclass(frozen=True)
class Checker:
    """One example's truth. `stop_ids` end an answer."""

    example: Example
    decode: Callable[[Sequence[int]], str]
    stop_ids: frozenset[int]

    def valid(self, pair: PreferencePair) -> bool:
        """Chosen agrees with the ground truth, rejected does not."""
        return self.agrees((*pair.shared_ids, *pair.chosen_ids)) and not self.agrees(
            (*pair.shared_ids, *pair.rejected_ids)
        )

    def agrees(self, answer_ids: Sequence[int]) -> bool:
        text = self.decode(answer_ids)
        ended = any(token in self.stop_ids for token in answer_ids)
        plain = squeeze(text)
        if not ended:
            return any(whole.startswith(plain) for whole in self._wholes)
        return plain in self._wholes or self._equal(text)

    @cached_property
    def _wholes(self) -> frozenset[str]:
        if not self.example.calls:
            return frozenset({squeeze(self.example.answer)})
        written = []
        for call in self.example.calls:
            items = [f"{key}={value!r}" for key, value in call.arguments.items()]
            orders = itertools.islice(itertools.permutations(items), MAX_ORDERS)
            written.append([f"{call.name}({', '.join(order)})" for order in orders])
        wholes = (
            f"[{', '.join(calls)}]" for order in itertools.permutations(written) for calls in itertools.product(*order)
        )
        return frozenset(map(squeeze, itertools.islice(wholes, MAX_ORDERS)))

    def _equal(self, text: str) -> bool:
        truth = [(call.name, dict(call.arguments)) for call in self.example.calls]
        said = read_calls(text)
        return (
            bool(truth)
            and said is not None
            and sorted(map(repr, map(_plain, said))) == sorted(map(repr, map(_plain, truth)))
        )


def squeeze(text: str) -> str:
    return "".join(text.split()).replace('"', "'")


def read_calls(text: str) -> list[tuple[str, dict[str, object]]] | None:
    """Calls of a Python list expression, names with blanks allowed; None where it is none."""
    names: list[str] = []

    def stand_in(match: re.Match[str]) -> str:
        names.append(match.group(1).strip())
        return f"f{len(names) - 1}("

    try:
        tree = ast.parse(NAME.sub(stand_in, text.strip()), mode="eval").body
        if not isinstance(tree, ast.List):
            return None
        calls = []
        for node in tree.elts:
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
                return None
            arguments = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
            calls.append((names[int(node.func.id[1:])], arguments))
        return calls
    except (SyntaxError, ValueError, IndexError, RecursionError):
        return None


def _plain(call: tuple[str, dict[str, object]]) -> tuple[str, list[tuple[str, object]]]:
    """Arguments by name; numbers that are equal are written alike."""
    name, arguments = call
    return name, sorted((key, float(v) if type(v) in (int, float) else v) for key, v in arguments.items())  # type: ignore[arg-type]
