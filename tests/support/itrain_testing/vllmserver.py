"""vLLM's OpenAI server, started by the commands of a page: `nativecalls MODEL > tools.jinja`, `vllm serve MODEL …`."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from itrain_pipeline.engine.vllm_versions import ENVIRONMENT, is_installed
from itrain_testing.daemons import free_port
from itrain_testing.docs import ROOT

START_S = 400


def serving_commands(page: str) -> list[list[str]]:
    """The commands of the page's `sh` block that holds `vllm serve`; a line that ends with `\\` goes on."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "vllm serve" in block]
    return [shlex.split(line) for line in block.replace("\\\n", "").splitlines()]


@contextmanager
def served(model: Path, folder: Path, template: Sequence[str], serve: Sequence[str]) -> Iterator[str]:
    """vLLM serving `model` as the two commands say; its URL. Fails where CI has no vLLM, else skips."""
    if not is_installed():
        if os.environ.get("CI"):
            pytest.fail("vLLM is not installed, and CI must run its server")
        pytest.skip("vLLM is not installed: make install brings it")
    assert list(template[-2:]) == [">", "tools.jinja"]
    with (folder / "tools.jinja").open("w") as out:
        printed = [str(model) if part == "MODEL" else part for part in template[1:-2]]
        subprocess.run([sys.executable, *printed], stdout=out, check=True)
    assert list(serve[:3]) == ["vllm", "serve", "MODEL"]
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *serve[3:]]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "4096", "--dtype", "float32"]
    environ = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CONFIGURE_LOGGING": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--enforce-eager"], cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        with contextlib.suppress(ProcessLookupError):  # one that is still loading does not listen; nor do its workers
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def open_direct(request: str | urllib.request.Request) -> Any:
    """Loopback is never behind a proxy."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with open_direct(url):
                return
        except OSError:
            ended = process.poll() is not None or time.monotonic() > deadline
            assert not ended, f"vLLM's server did not start:\n{log.read_text(errors='replace')[-3000:]}"
            time.sleep(0.5)
