"""The options of an evaluation, and which of them go together."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from itrain_contract.stagespec import ENGINE_PATTERN
from itrain_pipeline.errors import ConfigError

ENGINES = "auto, transformers, vllm and package.module:factory"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m itrain_pipeline.evaluating", description="A model folder or an endpoint on the benchmarks."
    )
    parser.add_argument("model_dir", nargs="?", metavar="MODEL", help="folder, builtin://toolworld, hf:// or s3://")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT LoRA folder over MODEL")
    parser.add_argument("--engine", default="auto", help="auto, transformers, vllm or package.module:factory")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp16", "bf16", "fp32"))
    parser.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible API, as in http://127.0.0.1:8000/v1")
    parser.add_argument("--model", metavar="NAME", help="the endpoint's name of the model")
    parser.add_argument("--api-key-env", metavar="VAR", help="the environment variable that holds the endpoint's key")
    parser.add_argument("--native", action="store_true", help="send tools as tools, read tool_calls")
    parser.add_argument("--call-format", default="pythonic", choices=("pythonic", "hermes", "llama"))
    parser.add_argument("--benchmark", action="append", metavar="NAME", help="dev, bfcl, …; again for several")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=URI", help="where a benchmark's data lie")
    parser.add_argument("--dev-format", default="toolace", choices=("toolace", "xlam", "bfcl", "messages"))
    parser.add_argument("--categories", action="append", default=[], metavar="A,B", help="BFCL's, or NAME=A,B")
    parser.add_argument("--limit", type=int, default=0, help="items per category, the first ones; 0 means all")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tool-results", choices=("tool", "user"), help="the turn in which a dialogue shows results")
    parser.add_argument("--concurrency", type=int, help="items in flight")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds of one attempt at an endpoint")
    parser.add_argument("--retries", type=int, default=4, help="attempts at an endpoint beyond the first")
    parser.add_argument("--export-bfcl", type=Path, metavar="DIR", help="also write BFCL's own result format")
    parser.add_argument("--plain", action="store_true", help="plain lines even on a terminal")
    parser.add_argument("--output", default="text", choices=("text", "json"))
    return parser


def check_options(arguments: argparse.Namespace) -> None:
    """ConfigError for options that do not go together. Without a benchmark, BFCL is meant."""
    arguments.benchmark = arguments.benchmark or ["bfcl"]
    if (arguments.model_dir is None) == (arguments.endpoint is None):
        raise ConfigError("give a model folder, or --endpoint URL --model NAME; one of them")
    if arguments.endpoint and not arguments.model:
        raise ConfigError("--endpoint needs --model NAME: the name under which it serves the model")
    if not re.match(ENGINE_PATTERN, arguments.engine):
        raise ConfigError(f"--engine: got {arguments.engine!r}, allowed are {ENGINES}")
    ours = {"--adapter": arguments.adapter}
    theirs = {"--model": arguments.model, "--api-key-env": arguments.api_key_env, "--native": arguments.native}
    for name, value in (ours if arguments.endpoint else theirs).items():
        if value:
            raise ConfigError(f"{name} is for {'a model folder' if arguments.endpoint else '--endpoint'} only")
    if arguments.native and arguments.tool_results == "user":
        raise ConfigError("--tool-results user: with --native what a call returns is its tool turn")
    for name in ("limit", "max_new_tokens", "concurrency", "timeout", "retries"):
        least = 0 if name in ("limit", "retries") else 1
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')}: got {value}, allowed are numbers from {least} on")
    if arguments.export_bfcl is not None and "bfcl" not in arguments.benchmark:
        raise ConfigError("--export-bfcl needs --benchmark bfcl")
