"""The model that ships with the package: a 0.7 M-parameter Llama pre-trained on toolworld by `learn.pretrain`."""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """The folder with its weights, tokenizer and `recipe.json`, in Hugging Face layout."""
    return Path(__file__).parent / "model"
