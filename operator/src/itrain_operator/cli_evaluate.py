"""`itrain evaluate`: the pipeline's evaluation in place of this process, so that its terminal, its signals and its exit
code are the command's own."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from itrain_operator.cli_local import pipeline_python
from itrain_operator.cli_options import Output, OutputOption


class Precision(StrEnum):
    AUTO = "auto"
    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"


class CallFormat(StrEnum):
    PYTHONIC = "pythonic"
    HERMES = "hermes"
    LLAMA = "llama"


class ToolResults(StrEnum):
    TOOL = "tool"
    USER = "user"


class DevFormat(StrEnum):
    TOOLACE = "toolace"
    XLAM = "xlam"
    BFCL = "bfcl"
    MESSAGES = "messages"


def evaluate(
    model_dir: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="a model folder, builtin://toolworld, hf:// or s3://")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="answers and figures; again, only what is missing is asked")
    ] = Path("evaluation"),
    adapter: Annotated[
        Path | None, typer.Option("--adapter", metavar="DIR", help="a PEFT LoRA folder over MODEL")
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="what answers for MODEL: auto, transformers, vllm or package.module:factory")
    ] = "auto",
    precision: Annotated[Precision, typer.Option("--precision", help="what MODEL computes in")] = Precision.AUTO,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="in MODEL's place, an API as in http://127.0.0.1:8000/v1"),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="the model's name at the endpoint")
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option("--api-key-env", metavar="VAR", help="the environment variable with the endpoint's key"),
    ] = None,
    native: Annotated[
        bool, typer.Option("--native", help="send tools as tools and read tool_calls; default: tools in the prompt")
    ] = False,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option("--benchmark", metavar="NAME", help="dev, bfcl, apibank, acebench or package:factory; repeatable"),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME=URI", help="where the data of a benchmark lie; repeatable"),
    ] = None,
    dev_format: Annotated[DevFormat, typer.Option("--dev-format", help="of --data dev=URI")] = DevFormat.TOOLACE,
    categories: Annotated[
        list[str] | None,
        typer.Option("--categories", metavar="A,B", help="BFCL's, or NAME=A,B of another benchmark; repeatable"),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="items per category, the first ones; 0: all")] = 0,
    call_format: Annotated[
        CallFormat, typer.Option("--call-format", help="how answers write calls")
    ] = CallFormat.PYTHONIC,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="of an answer")] = 512,
    tool_results: Annotated[
        ToolResults | None,
        typer.Option(
            "--tool-results",
            help="how a dialogue shows what calls returned: a tool turn each or one user turn; default: tool, at an"
            " endpoint without --native user",
        ),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="items in flight; default: 64, 8 at an endpoint")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="seconds of an attempt at an endpoint")] = 120.0,
    retries: Annotated[int, typer.Option("--retries", min=0, help="attempts at an endpoint beyond the first")] = 4,
    export_bfcl: Annotated[
        Path | None, typer.Option("--export-bfcl", metavar="DIR", help="also write BFCL's own result format")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="plain lines even on a terminal")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Evaluate a model folder, or a model behind an OpenAI-compatible endpoint, on benchmarks.

    Exit codes: 0 every item has an answer, 64 configuration (a DIR of another model or other settings too), 65 data, 70
    the endpoint refuses items for good, 75 items without an answer, an endpoint that is away or a DIR in use (the same
    command asks for what is missing), 143 interrupted (the same command continues).
    """
    command = [pipeline_python(os.environ), "-m", "itrain_pipeline.evaluating"]
    for name, value in {
        "--out": out,
        "--adapter": adapter,
        "--engine": engine,
        "--precision": precision.value,
        "--endpoint": endpoint,
        "--model": model,
        "--api-key-env": api_key_env,
        "--dev-format": dev_format.value,
        "--limit": limit,
        "--call-format": call_format.value,
        "--max-new-tokens": max_new_tokens,
        "--tool-results": tool_results.value if tool_results else None,
        "--concurrency": concurrency,
        "--timeout": timeout,
        "--retries": retries,
        "--export-bfcl": export_bfcl,
        "--output": output.value,
    }.items():
        command += [] if value is None else [f"{name}={value}"]
    for name, values in {"--benchmark": benchmarks, "--data": data, "--categories": categories}.items():
        command += [f"{name}={value}" for value in values or ()]
    command += [name for name, value in {"--native": native, "--plain": plain}.items() if value]
    command += ["--", model_dir] if model_dir is not None else []
    sys.stdout.flush()
    os.execvpe(command[0], command, os.environ)  # noqa: S606  (our own interpreter and module)
