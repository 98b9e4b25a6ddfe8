"""The bytes behind token ids, read from a tokenizer's own vocabulary (its serialised form, no library needed)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from itrain_pipeline.errors import ConfigError

BYTE_TOKEN = re.compile(r"^<0x([0-9A-F]{2})>$")
SPACE_MARK = "▁"


class TokenBytes:
    """`of(ids)` gives the bytes of every id; empty for special tokens, which stand for no text.

    `state` is the JSON of a `tokenizers` tokenizer. Byte-level vocabularies (GPT-2, Llama 3, Qwen) and those of
    SentencePiece (`▁`, `<0x0A>`) are read; raises ConfigError for another kind.
    """

    def __init__(self, state: Mapping[str, Any], vocabulary: Mapping[str, int]) -> None:
        added = {int(token["id"]): token for token in state.get("added_tokens") or ()}
        special = {token_id for token_id, token in added.items() if token["special"]}
        kinds = _types(state.get("decoder"))
        if "ByteLevel" in kinds:
            alphabet = _byte_alphabet()
            self._bytes = {
                i: text.encode() if i in added else bytes(alphabet[c] for c in text) for text, i in vocabulary.items()
            }
        elif kinds & {"ByteFallback", "Metaspace", "Replace"}:
            self._bytes = {i: _sentencepiece_bytes(text) for text, i in vocabulary.items()}
        else:
            raise ConfigError(
                f"the tokenizer's decoder is {sorted(kinds) or 'absent'}: steps are cut for byte-level and "
                "SentencePiece vocabularies only"
            )
        self._bytes |= dict.fromkeys(special, b"")

    def of(self, token_ids: Sequence[int]) -> list[bytes]:
        """One entry per id. Ids beyond the vocabulary (padding rows of the head) stand for no text."""
        return [self._bytes.get(token_id, b"") for token_id in token_ids]


def _types(node: Any) -> set[str]:
    """The `type`s of a decoder and of all its parts."""
    if not isinstance(node, Mapping):
        return set()
    found = {str(node.get("type"))}
    for part in node.get("decoders") or ():
        found |= _types(part)
    return found


def _sentencepiece_bytes(text: str) -> bytes:
    byte = BYTE_TOKEN.match(text)
    return bytes([int(byte.group(1), 16)]) if byte else text.replace(SPACE_MARK, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return alphabet | {chr(256 + n): byte for n, byte in enumerate(others)}
