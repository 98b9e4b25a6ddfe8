"""The quickstart model's tokenizer: a byte-level BPE of 512 tokens, trained on toolworld text.

Its pre-tokeniser keeps what a call copies out of a prompt alike in both places: a space belongs to a lower-case word
or to the punctuation before it, never to a capitalised name or a digit, so `in Kelmora` and `'Kelmora'` share the
name's tokens. Digits stand alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from itrain_pipeline.files import write_atomic

VOCABULARY_SIZE: Final = 512
CONTEXT_TOKENS: Final = 16_384
BOS: Final = "<|bos|>"
END_OF_TURN: Final = "<|eot|>"
PAD: Final = "<|pad|>"
HEADERS: Final = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
SPECIALS: Final = (PAD, BOS, END_OF_TURN, *HEADERS)

CHAT_TEMPLATE: Final = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|eot|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

_PIECES: Final = r" ?\p{Ll}+|\p{Lu}\p{Ll}*|\p{L}|\p{N}|[^\s\p{L}\p{N}]+ ?|\s+"


def train_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Train on `texts` and save `tokenizer.json` and `tokenizer_config.json` (chat template inside) in `folder`.

    The same texts in the same order give the same files.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        additional_special_tokens=list(HEADERS),
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder, save_jinja_files=False)
    config = folder / "tokenizer_config.json"
    saved = json.loads(config.read_text(encoding="utf-8"))
    saved["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 and 5 both know this name
    write_atomic(config, (json.dumps(saved, indent=2, ensure_ascii=False) + "\n").encode())
