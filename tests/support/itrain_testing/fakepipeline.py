"""A stand-in for `python -m itrain_pipeline <stage>` that starts in milliseconds; run by path, standard library only.

Like the real one it believes only a result.json that carries its input's digest, writes it last and atomically, skips
done work, and saves and exits 143 on SIGTERM. Its script (ITRAIN_FAKE_SCRIPT) is JSON: by stage (`rollout`) or by stage
and iteration (`i1/rollout`), `{"seconds", "exits": [codes of the first executions], "exits_of_shard", "metrics",
"counters", "ignore_term", "grandchild"}`. Each execution appends lines `<event> <ref> <shard> <attempt> <pid>` to
the file ITRAIN_FAKE_LEDGER. `fetch` copies an output, as the real one does.
"""
# ruff: noqa: PTH103, PTH105, PTH120, PTH123 -- started hundreds of times; pathlib would double the time that takes

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

STEP_S = 0.02


def main() -> int:
    if sys.argv[3] == "fetch":
        return fetch(dict(zip(sys.argv[4::2], sys.argv[5::2], strict=True)))
    with open(os.environ["ITRAIN_STAGE_INPUT"], encoding="utf-8") as file:
        stage_input = json.load(file)
    ref = f"i{stage_input['iteration']}/{stage_input['kind']}"
    assert sys.argv[1:] == ["-m", "itrain_pipeline", stage_input["kind"]], sys.argv
    script = json.loads(os.environ.get("ITRAIN_FAKE_SCRIPT", "{}"))
    behaviour = {**script.get("default", {}), **script.get(stage_input["kind"], {}), **script.get(ref, {})}
    shard = os.environ.get("JOB_COMPLETION_INDEX")
    attempt = os.environ["ITRAIN_ATTEMPT"]

    def note(event: str) -> None:
        line = f"{event} {ref} {shard or '-'} {attempt} {os.getpid()}\n"
        with open(os.environ["ITRAIN_FAKE_LEDGER"], "ab", buffering=0) as ledger:
            ledger.write(line.encode())

    below = "" if shard is None else f"shard-{shard}/"
    places = [path_of(stage_input[prefix] + below) for prefix in ("outputPrefix", "workPrefix")]
    for place in places:
        found = read(f"{place}result.json")
        if found and json.loads(found)["digest"] == stage_input["digest"]:
            write(f"{places[0]}result.json", found)
            note("skip")
            return finish(stage_input, 0, json.loads(found))
    # From its first line on it can be stopped: a test that reads the line may do so at once.
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour.get("ignore_term") else stop)
    try:
        note("start")
        print(f"{ref} starts", flush=True)
        executions = begin(behaviour, places[1], f"{ref} {shard or '-'} {attempt}")
        work(behaviour.get("seconds", 0.0))
    except SystemExit:
        note("saved")
        return finish(stage_input, 143, {})
    exits = behaviour.get("exits_of_shard", {}).get(shard, behaviour.get("exits", []))
    if executions < len(exits) and exits[executions] != 0:
        note(f"exit{exits[executions]}")
        print(f"{ref} fails on purpose", flush=True)
        return finish(stage_input, exits[executions], {"message": "scripted failure"})
    result = {
        "kind": stage_input["kind"],
        "iteration": stage_input["iteration"],
        "attempt": int(attempt),
        "shard": None if shard is None else int(shard),
        "digest": stage_input["digest"],
        "metrics": behaviour.get("metrics", {}),
        "counters": behaviour.get("counters", {}),
        "seconds": 0.5,
        "outputs": {},
    }
    if stage_input["kind"] == "export":
        page = b"<html></html>"
        write(f"{places[0]}report.html", page)
        uri = stage_input["outputPrefix"] + "report.html"
        result["outputs"] = {
            "report.html": {"uri": uri, "sha256": hashlib.sha256(page).hexdigest(), "sizeBytes": len(page)}
        }
    data = json.dumps(result).encode()
    write(f"{places[1]}result.json", data)
    write(f"{places[0]}result.json", data)
    note("done")
    return finish(stage_input, 0, result)


def begin(behaviour: dict[str, object], place: str, who: str) -> int:
    """Count this execution, with a process of its own if the script wants one; how many there were before."""
    if behaviour.get("grandchild"):
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(300)"])
        with open(os.environ["ITRAIN_FAKE_LEDGER"], "ab", buffering=0) as ledger:
            ledger.write(f"grandchild {who} {child.pid}\n".encode())
    executions = int(read(f"{place}executions") or b"0")
    write(f"{place}executions", str(executions + 1).encode())
    return executions


def fetch(options: dict[str, str]) -> int:
    result = json.loads(read(f"{path_of(options['--prefix'])}result.json") or b"{}")
    if options["--name"] not in result.get("outputs", {}):
        sys.stderr.write(f"itrain: {options['--prefix']} has no output {options['--name']}\n")
        return 65
    write(options["--out"], read(path_of(result["outputs"][options["--name"]]["uri"])) or b"")
    return 0


def path_of(uri: str) -> str:
    assert uri.startswith("file:///"), uri
    return uri.removeprefix("file://")


def stop(number: int, frame: object) -> None:
    raise SystemExit


def work(seconds: float) -> None:
    steps = max(1, round(seconds / STEP_S))
    for step in range(steps):
        temp = f"{os.environ['ITRAIN_PROGRESS_FILE']}.tmp"
        with open(temp, "w", encoding="utf-8") as out:
            json.dump({"done": step, "total": steps, "text": "working", "updated": time.time()}, out)
        os.replace(temp, os.environ["ITRAIN_PROGRESS_FILE"])
        if seconds:
            time.sleep(STEP_S)


def finish(stage_input: dict[str, object], code: int, result: dict[str, object]) -> int:
    summary = {"digest": stage_input["digest"], "exitCode": code}
    summary |= {key: result[key] for key in ("metrics", "counters", "message", "seconds") if key in result}
    with open(os.environ["ITRAIN_TERMINATION_LOG"], "w", encoding="utf-8") as out:
        json.dump(summary, out)
    return code


def read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temp = tempfile.mkstemp(dir=os.path.dirname(path))
    with os.fdopen(handle, "wb") as out:
        out.write(data)
    os.replace(temp, path)


if __name__ == "__main__":
    sys.exit(main())
