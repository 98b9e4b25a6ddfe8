"""Keys and values: one slab for the rows being decoded, one radix tree for everything that may be needed again.

The slab is right-padded: row r holds its tokens at 0 … length-1, so rows join, leave and fork without moving others.
The radix tree (after SGLang, arXiv 2312.07104) keeps the keys and values of prompts and finished completions by token
ids; a request computes only what lies behind its longest known prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TOKEN_STEP = 64
"""The slab's token capacity grows in multiples of this."""


class KvSlab:
    """`kv`: [2, layers, rows, heads, tokens, dim]; index 0 of the first axis holds keys, 1 values."""

    def __init__(self, *, layers: int, heads: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self._layers, self._heads, self._dim = layers, heads, dim
        self._dtype, self._device = dtype, device
        self.kv = self._empty(0, 0)

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for `rows` rows of `tokens` tokens; what is there stays."""
        old_rows, old_tokens = self.kv.shape[2], self.kv.shape[4]
        if rows <= old_rows and tokens <= old_tokens:
            return
        # Rows grow by half at least: growing one by one would copy everything each time.
        rows = max(rows, old_rows * 3 // 2) if rows > old_rows else old_rows
        tokens = max(-(-tokens // TOKEN_STEP) * TOKEN_STEP, old_tokens)
        old = self.kv
        self.kv = self._empty(rows, tokens)
        self.kv[:, :, :old_rows, :, :old_tokens] = old

    def clear(self) -> None:
        self.kv = self._empty(0, 0)

    def fork(self, source: int, targets: Sequence[int], length: int) -> None:
        for target in targets:
            self.kv[:, :, target, :, :length] = self.kv[:, :, source, :, :length]

    def read(self, row: int, start: int, stop: int) -> torch.Tensor:
        """A copy of one row's tokens: [2, layers, heads, stop - start, dim]."""
        return self.kv[:, :, row, :, start:stop].clone()

    def write(self, row: int, start: int, block: torch.Tensor) -> None:
        self.kv[:, :, row, :, start : start + block.shape[3]] = block

    def _empty(self, rows: int, tokens: int) -> torch.Tensor:
        import torch

        # Zeros, not garbage: a masked position still meets its value as 0 · v, and 0 · NaN is NaN.
        return torch.zeros(
            (2, self._layers, rows, self._heads, tokens, self._dim), dtype=self._dtype, device=self._device
        )


class PrefillView:
    """What the model sees as its cache while one row's new tokens are computed."""

    def __init__(self, slab: KvSlab, row: int, start: int, stop: int) -> None:
        self._kv, self._row, self._start, self._stop = slab.kv, row, start, stop

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._start

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        block = self._kv[:, layer_idx, self._row : self._row + 1]
        block[0, :, :, self._start : self._stop] = keys
        block[1, :, :, self._start : self._stop] = values
        return block[0, :, :, : self._stop], block[1, :, :, : self._stop]


class DecodeView:
    """The same for one new token in each of the first `rows` rows, at `positions_B`."""

    def __init__(self, slab: KvSlab, rows: torch.Tensor, positions_B: torch.Tensor, width: int) -> None:
        self._kv, self._rows, self._positions, self._width = slab.kv, rows, positions_B, width

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._width - 1

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        block = self._kv[:, layer_idx, : len(self._rows)]
        block[0][self._rows, :, self._positions] = keys[:, :, 0]
        block[1][self._rows, :, self._positions] = values[:, :, 0]
        return block[0, :, :, : self._width], block[1, :, :, : self._width]


@dataclass(slots=True, kw_only=True, eq=False)
class _Segment:
    """Tokens between two branchings of the radix tree and their keys and values [2, layers, heads, n, dim]."""

    tokens: tuple[int, ...]
    kv: Any
    parent: _Segment | None
    children: dict[int, _Segment] = field(default_factory=dict)
    used: int = 0


class RadixCache:
    """Keys and values by token ids, at most `capacity` tokens, least recently used leaves first out."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.clear()

    def clear(self) -> None:
        self._root = _Segment(tokens=(), kv=None, parent=None)
        self._clock = 0
        self._size = 0

    def __len__(self) -> int:
        """Tokens held."""
        return self._size

    def match(self, tokens: Sequence[int]) -> list[torch.Tensor]:
        """The blocks, in order, of the longest known prefix of `tokens`."""
        blocks = []
        for segment, matched in self._walk(tuple(tokens)):
            blocks.append(segment.kv if matched == len(segment.tokens) else segment.kv[:, :, :, :matched])
        return blocks

    def insert(self, tokens: Sequence[int], slab: KvSlab, row: int) -> None:
        """Remember the keys and values that `row` holds for `tokens`; known beginnings are shared."""
        tokens = tuple(tokens)
        node, start = self._root, 0
        for segment, matched in self._walk(tokens):
            start += matched
            node = segment if matched == len(segment.tokens) else self._split(segment, matched)
        if start == len(tokens):
            return
        self._clock += 1
        leaf = _Segment(tokens=tokens[start:], kv=slab.read(row, start, len(tokens)), parent=node, used=self._clock)
        node.children[tokens[start]] = leaf
        self._size += len(leaf.tokens)
        self._evict(keep=leaf)

    def _walk(self, tokens: tuple[int, ...]) -> list[tuple[_Segment, int]]:
        found: list[tuple[_Segment, int]] = []
        node, at = self._root, 0
        self._clock += 1
        while at < len(tokens) and (child := node.children.get(tokens[at])) is not None:
            matched = _common(child.tokens, tokens, at)
            child.used = self._clock
            found.append((child, matched))
            at += matched
            if matched < len(child.tokens):
                break
            node = child
        return found

    def _split(self, segment: _Segment, at: int) -> _Segment:
        """Cut a segment in two; both halves own their memory, so that either can be freed."""
        parent = segment.parent
        assert parent is not None
        head = _Segment(
            tokens=segment.tokens[:at], kv=segment.kv[:, :, :, :at].clone(), parent=parent, used=segment.used
        )
        parent.children[head.tokens[0]] = head
        segment.tokens, segment.kv, segment.parent = segment.tokens[at:], segment.kv[:, :, :, at:].clone(), head
        head.children[segment.tokens[0]] = segment
        return head

    def _evict(self, keep: _Segment) -> None:
        while self._size > self._capacity:
            leaves = [leaf for leaf in self._leaves() if leaf is not keep]
            if not leaves:
                return
            oldest = min(leaves, key=lambda leaf: leaf.used)
            assert oldest.parent is not None
            del oldest.parent.children[oldest.tokens[0]]
            self._size -= len(oldest.tokens)

    def _leaves(self) -> list[_Segment]:
        stack, leaves = list(self._root.children.values()), []
        while stack:
            node = stack.pop()
            if node.children:
                stack.extend(node.children.values())
            else:
                leaves.append(node)
        return leaves


def _common(segment: tuple[int, ...], tokens: tuple[int, ...], start: int) -> int:
    """Length of the common beginning of `segment` and `tokens[start:]`."""
    limit = min(len(segment), len(tokens) - start)
    if segment[:limit] == tokens[start : start + limit]:
        return limit
    return next(i for i in range(limit) if segment[i] != tokens[start + i])
