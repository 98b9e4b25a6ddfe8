"""BFCL's own generator and `itrain evaluate`, asking the same model of one OpenAI-compatible vLLM server.

`python -m itrain_bench.evaluate.official FOLDER URL CATEGORY ITEMS THREADS` is the official one: its runner and its
handler of OpenAI-compatible models, in prompt mode. What is not installed and what generating never uses are empty
modules; tenacity, which repeats an answer of 429, is one that does not repeat.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from itrain_bench.evaluate.correct import Figures
from itrain_bench.evaluate.speed import ANSWER_TOKENS, CATEGORY, DIALOGUES, Say, Size
from itrain_pipeline.engine.vllm_versions import ENVIRONMENT, is_installed
from itrain_pipeline.evals.asking import Failure, ask_all
from itrain_pipeline.evaluating.benchmarks import open_benchmarks
from itrain_pipeline.evaluating.options import build_parser, check_options
from itrain_pipeline.evaluating.subjects import of_endpoint
from itrain_pipeline.quickstart import model_path
from itrain_pipeline.records import Prediction
from itrain_testing.daemons import free_port
from itrain_testing.officialbfcl import UNUSED, empty_module
from itrain_testing.stageports import Silent

MODEL = "toolworld"
POSITIONS = 65_536
"""Of the served model: the official prompt of a dialogue is three times as long as ours, beyond the shipped model's."""
START_S = 300
NO_ANSWER = ("not_asked", "context_overflow")
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Loopback is never behind a proxy."""
THREADS = {"": 8, "_unbatched": 1}
"""Items in flight; one is the official default for an API."""


def official_figures(folder: Path, size: Size, say: Say) -> Figures:
    """`official_…` beside `endpoint_…`, ours; `official` says `measured` or why it is not. Where an item got no answer,
    as with a prompt without room, there is no speed."""
    if not is_installed():
        return {"official": "vLLM is not installed: no server to ask"}
    figures: Figures = {}
    with server(folder) as url:
        ask_ours(folder / "warm", url, CATEGORY, 2, 1)
        for category, items, before in ((CATEGORY, size.items, ""), (DIALOGUES, size.official_dialogues, "dialogue_")):
            for end, threads in THREADS.items():
                for who, ask in (("official", ask_official), ("endpoint", ask_ours)) if items else ():
                    forget(url)
                    told = ask(folder / f"{who}-{category}-{threads}", url, category, items, threads)
                    if "failed" in told:
                        return {"official": str(told["failed"])}
                    key = f"{who}_{before}"
                    figures[f"{key}without_answer"] = told["without_answer"]
                    say(f"{who} {category}, {threads} at a time: {items} in {float(told['seconds']):.1f} s")
                    if told["without_answer"]:  # what was refused took no time
                        continue
                    figures[f"{key}items_per_s{end}"] = items / float(told["seconds"])
                    figures[f"{key}prompt_tokens_per_item"] = float(told["prompt_tokens"]) / items
                    figures[f"{key}decoded_per_item"] = float(told["completion_tokens"]) / items
    return {"official": "measured", "official_threads": THREADS[""], **figures}


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """vLLM serving the shipped model, its positions continued, answers cut at `ANSWER_TOKENS` for who names no length;
    its URL."""
    folder.mkdir(parents=True, exist_ok=True)
    model = _with_positions(model_path(), folder / "model")
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", str(POSITIONS), "--enforce-eager"]
    command += ["--override-generation-config", json.dumps({"max_new_tokens": ANSWER_TOKENS})]
    environ = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CONFIGURE_LOGGING": "1", "VLLM_SERVER_DEV_MODE": "1"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, folder / "server.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _with_positions(model: Path, folder: Path) -> Path:
    """A copy that takes prompts as long as `POSITIONS`. Rotary positions go on without end; what it says there is not
    asked."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": POSITIONS}))
    return folder


def forget(url: str) -> None:
    """Every measurement begins with a server that knows no prefix."""
    request = urllib.request.Request(url.removesuffix("/v1") + "/reset_prefix_cache", method="POST")
    with OPENER.open(request, timeout=60):
        return


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with OPENER.open(url, timeout=10):
                return
        except OSError as away:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"vLLM's server did not start:\n{log.read_text()[-2000:]}") from away
            time.sleep(0.5)


def ask_ours(folder: Path, url: str, category: str, items: int, threads: int) -> Figures:
    options = ["--endpoint", url, "--model", MODEL, "--categories", category, "--limit", str(items)]
    arguments = build_parser().parse_args([*options, "--max-new-tokens", str(ANSWER_TOKENS), "--out", str(folder)])
    check_options(arguments)
    made = of_endpoint(arguments, open_benchmarks(arguments, folder), folder, {})
    ask, close, counters = made.start()
    found: list[Prediction | Failure] = []

    async def whole() -> float:
        begun = time.perf_counter()
        try:
            await ask_all(made.questions, ask, found.append, concurrency=threads, stop=Silent(), patience=10)
            return time.perf_counter() - begun
        finally:
            await close()

    seconds = asyncio.run(whole())
    tokens = {name: counters().get(name, 0.0) for name in ("prompt_tokens", "completion_tokens")}
    unasked = sum(isinstance(one, Failure) or one.error_class in NO_ANSWER for one in found)
    return {"seconds": seconds, **tokens, "without_answer": unasked}


def ask_official(folder: Path, url: str, category: str, items: int, threads: int) -> Figures:
    command = [sys.executable, "-m", "itrain_bench.evaluate.official", str(folder), url, category]
    environ = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        [*command, str(items), str(threads)], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"failed": f"bfcl generate: {(done.stderr.strip().splitlines() or ['no word'])[-1][:300]}"}
    told: Figures = json.loads(done.stdout.splitlines()[-1])
    return told


def generate(root: Path, category: str, items: int, threads: int) -> Figures:
    """The official runner on the first items of a category, in this process; tokens as the server counts them."""
    os.environ["BFCL_PROJECT_ROOT"] = str(root)
    root.mkdir(parents=True, exist_ok=True)
    for name in UNUSED:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = empty_module(name)
            if name == "tenacity":
                sys.modules[name].__dict__["retry"] = lambda **_: lambda function: function
    config = types.ModuleType("bfcl_eval.constants.model_config")
    sys.modules[config.__name__] = config
    config.__dict__["MODEL_CONFIG_MAPPING"] = {}
    handlers = importlib.import_module("bfcl_eval.model_handler.api_inference.openai_completion")
    config.__dict__["MODEL_CONFIG_MAPPING"][MODEL] = types.SimpleNamespace(
        model_name=MODEL, model_handler=handlers.OpenAICompletionsHandler, is_fc_model=False, underscore_to_dot=False
    )
    runner = importlib.import_module("bfcl_eval._llm_response_generation")
    arguments = argparse.Namespace(
        temperature=0.0,
        num_threads=threads,
        include_input_log=False,
        exclude_state_log=True,
        result_dir=root / "result",
        run_ids=False,
    )
    cases = runner.load_dataset_entry(category)[:items]
    begun = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        runner.generate_results(arguments, MODEL, cases)
    seconds = time.perf_counter() - begun
    (file,) = (root / "result").rglob(f"*_{category}_result.json")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {
        "seconds": seconds,
        "prompt_tokens": sum(_total(row.get("input_token_count", 0)) for row in rows),
        "completion_tokens": sum(_total(row.get("output_token_count", 0)) for row in rows),
        "without_answer": sum(bool(re.match("Error during inference", str(row["result"]))) for row in rows),
    }


def _total(count: float | list[object]) -> float:
    """Of one step, or of the steps of the turns of a dialogue."""
    return sum(map(_total, count)) if isinstance(count, list) else float(count)  # type: ignore[arg-type]


if __name__ == "__main__":
    where, _, asked, count, at_a_time = sys.argv[1:]
    sys.stdout.write("\n" + json.dumps(generate(Path(where), asked, int(count), int(at_a_time))) + "\n")
