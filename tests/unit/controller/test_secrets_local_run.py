"""Credentials planted in the environment of a local run: nothing that it writes, prints or starts holds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from itrain_testing.fakestage import World
from itrain_testing.localruns import LocalWorld, run_document

PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED0001",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+0002",
    "AWS_SESSION_TOKEN": "planted-session-0003",
    "HF_TOKEN": "hf_planted0004",
    "OPENAI_API_KEY": "sk-planted-0005",
}


def holding(texts: dict[str, bytes]) -> list[str]:
    return [name for name, text in texts.items() for value in PLANTED.values() if value.encode() in text]


def written_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_local_run_keeps_them_to_the_environment_of_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    world = LocalWorld(tmp_path, run_document())
    seen = tmp_path / "seen"
    # Before the stand-in for a stage: what it was started with, and that the credentials did reach it.
    script = world.python.read_text().replace(
        "#!/bin/sh\n",
        f'#!/bin/sh\ntr "\\0" " " < /proc/$PPID/cmdline >> {seen}\necho "$@" >> {seen}\ntest -n "$HF_TOKEN"\n',
    )
    world.python.write_text(script)
    done = world.run("--plain")
    assert done.returncode == 0, done.stderr
    assert "itrain_pipeline prepare" in seen.read_text()
    said = world.call("status", str(world.folder))
    texts = written_below(tmp_path) | {"output": (done.stdout + done.stderr + said.stdout + said.stderr).encode()}
    assert len(texts) > 20
    assert not holding(texts)


def test_a_stage_leaves_them_in_no_result_lease_or_message(tmp_path: Path) -> None:
    world = World(tmp_path, environ=dict(PLANTED))
    assert world.run(world.stage_input()) == 0
    texts = written_below(tmp_path)
    assert {"result.json", "lease.json", "termination"} <= {Path(name).name for name in texts}
    assert not holding(texts)
