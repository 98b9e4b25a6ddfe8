"""`itrain` against a real API server; the statuses are the planner's, stored as the operator stores them."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from itrain_operator.cli import main
from itrain_testing.cluster.access import Access, eventually
from itrain_testing.cluster.controlplane import ControlPlane
from itrain_testing.docs import ROOT, shown_blocks
from itrain_testing.recorded import Moment, lives

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[Moment]]:
    return lives()


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """`itrain` in a namespace of its own, and the hand of an operator."""

    cluster: Access
    namespace: str
    folder: Path

    @property
    def place(self) -> list[str]:
        return ["--kubeconfig", str(self.cluster.kubeconfig), "-n", self.namespace]

    def file(self, raw: dict[str, Any], name: str = "run", **spec: Any) -> Path:
        """A file with the run of a recorded life under a name."""
        document = {
            "apiVersion": raw["apiVersion"],
            "kind": raw["kind"],
            "metadata": {"name": name},
            "spec": {**raw["spec"], **spec},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def run(self, name: str = "run") -> dict[str, Any]:
        return self.cluster.get("itr", name, namespace=self.namespace)

    def write_status(self, moment: Moment, name: str = "run") -> None:
        if moment.status:
            patch = json.dumps([{"op": "add", "path": "/status", "value": moment.status}])
            where = ["--type=json", "--subresource=status", "-p", patch]
            self.cluster.kubectl("patch", "itr", name, *where, namespace=self.namespace)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(BIN / "itrain"), *arguments, *self.place],
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@pytest.fixture
def here(cluster: Access, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.chdir(tmp_path)
    return Here(cluster=cluster, namespace=namespace, folder=tmp_path)


Call = Callable[..., Said]


@pytest.fixture
def itrain(here: Here, capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*arguments: str | Path, place: bool = True) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), *(here.place if place else [])])
        gc.collect()  # a connection that was left open is this call's failure, not a later test's
        out, err = capsys.readouterr()
        return Said(code=int(ended.value.code or 0), out=out, err=err)

    return call


def later(seconds: float, do: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, do)
    timer.start()
    return timer


# --- submit and list ---


def test_submit_creates_then_leaves_alone_then_changes(here: Here, itrain: Call, recorded: Any) -> None:
    raw = recorded["succeeds"][0].raw
    file = here.file(raw)
    assert itrain("submit", file).out.startswith(f"itrainrun/run created in namespace {here.namespace}\n")
    assert "unchanged" in itrain("submit", file).out
    assert "configured" in itrain("submit", here.file(raw, historyLimit=5)).out
    managers = {m["manager"]: m["operation"] for m in self_managed(here)}
    assert managers == {"itrain": "Apply"}
    assert here.run()["metadata"]["generation"] == 2


def self_managed(here: Here) -> list[dict[str, Any]]:
    text = here.cluster.kubectl("get", "itr", "run", "-o", "json", "--show-managed-fields", namespace=here.namespace)
    found: list[dict[str, Any]] = json.loads(text)["metadata"]["managedFields"]
    return found


def test_a_file_that_validate_refuses_never_reaches_the_server(here: Here, itrain: Call, recorded: Any) -> None:
    good, bad = recorded["succeeds"][0].raw, {**recorded["succeeds"][0].raw, "kind": "Run"}
    said = itrain("submit", here.file(good, "good"), here.file(bad, "bad"))
    assert said.code == 64
    assert "bad.yaml: line 2: kind: got 'Run'" in said.err
    assert here.cluster.get("itr", namespace=here.namespace)["items"] == []


def test_a_folder_is_no_storage_for_a_cluster(here: Here, itrain: Call, recorded: Any) -> None:
    said = itrain("submit", here.file(recorded["succeeds"][0].raw, storage={"uri": "./artifacts"}))
    assert said.code == 64
    assert "spec.storage.uri: got './artifacts', allowed: s3://…, or spec.storage.pvc" in said.err


def test_an_edit_of_what_defines_the_run_is_refused_by_its_field(here: Here, itrain: Call, recorded: Any) -> None:
    raw = recorded["succeeds"][0].raw
    itrain("submit", here.file(raw))
    said = itrain("submit", here.file(raw, seed=7, iterations={"max": 1}))
    assert said.code == 64
    assert [line.split(": got ")[0].rpartition(": ")[2] for line in said.err.splitlines()] == [
        "spec.seed",
        "spec.iterations.max",
    ]


def test_a_field_that_somebody_else_set_is_a_conflict_until_it_is_taken_over(
    here: Here, itrain: Call, recorded: Any
) -> None:
    raw = recorded["succeeds"][0].raw
    itrain("submit", here.file(raw))
    assert itrain("suspend", "run").code == 0
    said = itrain("submit", here.file(raw, suspend=False))
    assert (said.code, "spec.suspend: got another value than itrain-cli set" in said.err) == (64, True)
    assert "--force-conflicts" in said.err
    assert itrain("submit", here.file(raw, suspend=False), "--force-conflicts").code == 0
    assert here.run()["spec"]["suspend"] is False


def test_a_dry_run_stores_nothing(here: Here, itrain: Call, recorded: Any) -> None:
    assert "(dry run)" in itrain("submit", here.file(recorded["succeeds"][0].raw), "--dry-run").out
    assert here.cluster.get("itr", namespace=here.namespace)["items"] == []


def test_list_shows_each_run_in_a_line(here: Here, itrain: Call, recorded: Any) -> None:
    assert "no runs in namespace" in itrain("list").err
    for name in ("succeeds", "configuration", "queued"):
        itrain("submit", here.file(recorded[name][0].raw, name))
    here.write_status(recorded["succeeds"][-1], "succeeds")
    here.write_status(recorded["configuration"][-1], "configuration")
    waiting = next(m for m in recorded["queued"] if m.status.get("reason") == "WaitingForQuota")
    here.write_status(waiting, "queued")
    rows = [line.split() for line in itrain("list").out.splitlines()]
    assert rows[0] == ["name", "phase", "iter", "stage", "progress", "best", "age"]
    assert rows[1][:5] == ["configuration", "Failed", "0/2", rows[1][3], "ConfigError:"]
    assert (rows[2][:2], rows[2][5:8]) == (["queued", "Pending"], ["waiting", "for", "quota:"])
    assert rows[3][:4] == ["succeeds", "Succeeded", "2/2", "0.600"]
    assert json.loads(itrain("list", "-o", "json").out)["kind"] == "List"
    assert here.namespace in itrain("list", "-A").out


# --- status ---


def test_the_server_stores_every_kind_of_status_as_it_is_and_status_shows_it(
    here: Here, itrain: Call, recorded: Any
) -> None:
    written = [m for life in recorded.values() for m in life if m.status and m.raw["metadata"]["generation"] == 1]
    kinds = {(m.status["phase"], m.status["reason"], "current" in m.status): m for m in written}
    assert len(kinds) >= 12
    itrain("submit", here.file(recorded["queued"][0].raw))
    for moment in kinds.values():
        here.write_status(moment)
        assert here.run()["status"] == moment.status
        said = itrain("status", "run")
        assert (said.code, said.err) == (0, "")
        assert f"run  {moment.status['phase']}" in said.out


def test_status_tells_stages_curve_and_failure(here: Here, itrain: Call, recorded: Any) -> None:
    itrain("submit", here.file(recorded["succeeds"][0].raw))
    here.write_status(recorded["succeeds"][-1])
    said = itrain("status", "run")
    assert "✓ 2 · rollout" in said.out
    assert "iteration 2    0.600 ± 0.010" in said.out
    points = json.loads(itrain("status", "run", "-o", "json").out)["points"]
    assert [point["point"] for point in points] == ["base", "iteration_1", "iteration_2"]


def test_what_is_not_there_is_one_line_that_says_where_to_look(here: Here, itrain: Call) -> None:
    for command in (["status"], ["watch"], ["wait"], ["suspend"], ["logs"], ["report"], ["purge", "--yes"]):
        said = itrain(*command, "nobody")
        assert said.code == 64
        assert said.err == (
            f"itrain: no run nobody in namespace {here.namespace}: `itrain list -A` shows what is there; "
            "another namespace: -n\n"
        )


# --- suspend, resume, wait ---


def test_suspend_and_resume_change_one_field_and_nothing_else(here: Here, itrain: Call, recorded: Any) -> None:
    itrain("submit", here.file(recorded["succeeds"][0].raw))
    before = here.run()["spec"]
    assert "is being suspended" in itrain("suspend", "run").out
    assert here.run()["spec"] == {**before, "suspend": True}
    assert "goes on" in itrain("resume", "run").out
    assert here.run()["spec"] == {**before, "suspend": False}


def test_suspending_what_git_applies_warns(here: Here, itrain: Call, recorded: Any) -> None:
    itrain("submit", here.file(recorded["succeeds"][0].raw))
    mark = "argocd.argoproj.io/tracking-id=experiments:itrain.dev/ITrainRun:ns/run"
    here.cluster.kubectl("annotate", "itr", "run", mark, namespace=here.namespace)
    assert "Argo CD applies this run and may undo this: commit `suspend: true`" in itrain("suspend", "run").err


@pytest.mark.parametrize(
    ("name", "goal", "code"),
    [
        ("succeeds", "succeeded", 0),
        ("succeeds", "finished", 0),
        ("succeeds", "failed", 70),
        ("configuration", "succeeded", 64),
        ("configuration", "finished", 64),
        ("configuration", "failed", 0),
        ("retries-exhausted", "succeeded", 75),
    ],
)
def test_wait_ends_with_the_run_and_its_code(
    name: str, goal: str, code: int, here: Here, itrain: Call, recorded: Any
) -> None:
    itrain("submit", here.file(recorded[name][0].raw))
    timer = later(0.5, lambda: here.write_status(recorded[name][-1]))
    assert itrain("wait", "run", "--for", goal, "--timeout", "30").code == code
    timer.join()


def test_wait_for_a_suspension_needs_the_operator_to_have_seen_it(here: Here, itrain: Call, recorded: Any) -> None:
    itrain("submit", here.file(recorded["suspended"][0].raw))
    itrain("suspend", "run")
    said = itrain("wait", "run", "--for", "suspended", "--timeout", "0.5")
    assert said.code == 124
    assert said.err == "run is not suspended after 0.5 s: it is Pending (RunPending)\n"
    calm = [m for m in recorded["suspended"] if m.status.get("phase") == "Suspended" and "current" not in m.status]
    here.write_status(next(m for m in calm if m.status["observedGeneration"] == 2))
    assert itrain("wait", "run", "--for", "suspended", "--timeout", "30").code == 0


def test_wait_of_a_deleted_run_ends(here: Here, itrain: Call, recorded: Any) -> None:
    itrain("submit", here.file(recorded["succeeds"][0].raw))
    timer = later(0.5, lambda: void(here.cluster.kubectl("delete", "itr", "run", namespace=here.namespace)))
    said = itrain("wait", "run", "--timeout", "30")
    assert (said.code, said.err) == (70, "run was deleted\n")
    timer.join()


def void(_: object) -> None:
    return None


# --- watch ---


def test_watch_tells_each_transition_once_though_the_server_restarts(
    here: Here, itrain: Call, recorded: Any, control_plane: ControlPlane
) -> None:
    life = recorded["succeeds"]
    itrain("submit", here.file(life[0].raw))
    here.write_status(life[2])
    watching = here.start("watch", "run", "--plain")
    assert watching.stderr is not None
    first = watching.stderr.readline()
    half = len(life) // 2
    for moment in life[3:half]:
        here.write_status(moment)
    control_plane.apiserver.restart()
    for moment in life[half:]:
        here.write_status(moment)
    out, err = watching.communicate(timeout=60)
    assert watching.returncode == 0, err
    assert "Traceback" not in err
    lines = [first.rstrip(), *err.splitlines()]
    assert [line for line in lines if line.startswith("run: export: done")] == ["run: export: done in 10s"]
    assert len(lines) == len(set(lines)), err
    assert "iteration 2    0.600 ± 0.010" in out
    assert "report  itrain report run" in out


def test_watch_in_json_is_a_line_for_each_version(here: Here, itrain: Call, recorded: Any) -> None:
    life = recorded["configuration"]
    itrain("submit", here.file(life[0].raw))
    here.write_status(life[-2])
    watching = here.start("watch", "run", "-o", "json")
    assert watching.stdout is not None
    first = json.loads(watching.stdout.readline())
    here.write_status(life[-1])
    out, _ = watching.communicate(timeout=30)
    assert first["status"]["phase"] == "Running"
    assert [json.loads(line)["status"]["phase"] for line in out.splitlines()] == ["Failed"]
    assert watching.returncode == 64


def test_ctrl_c_leaves_the_run_alone(here: Here, itrain: Call, recorded: Any) -> None:
    itrain("submit", here.file(recorded["succeeds"][0].raw))
    watching = here.start("watch", "run")
    assert watching.stderr is not None
    assert watching.stderr.readline() != ""
    watching.send_signal(2)
    _, err = watching.communicate(timeout=30)
    assert watching.returncode == 130
    assert "Traceback" not in err
    assert here.run()["spec"]["suspend"] is False


# --- people without rights, servers that are away, kubectl ---


def test_no_permission_is_one_line(here: Here, control_plane: ControlPlane, itrain: Call) -> None:
    nobody = control_plane.access_for("nobody")
    said = itrain("list", "--kubeconfig", str(nobody.kubeconfig), "-n", here.namespace, place=False)
    assert said.code == 64
    assert said.err.startswith('itrain: not allowed: itrainruns.itrain.dev is forbidden: User "nobody" cannot list')
    assert len(said.err.splitlines()) == 1


def test_a_server_that_is_away_is_one_line(here: Here, itrain: Call) -> None:
    config = yaml.safe_load(here.cluster.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    away = here.folder / "away"
    away.write_text(yaml.safe_dump(config))
    said = itrain("list", "--kubeconfig", str(away), place=False)
    assert (said.code, len(said.err.splitlines())) == (75, 1)
    assert said.err.startswith("itrain: the API server cannot be reached: ")


def test_kubectl_finds_the_plugin(here: Here, itrain: Call, recorded: Any) -> None:
    itrain("submit", here.file(recorded["succeeds"][0].raw))
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(here.cluster.kubectl_binary), "itrain", "status", "run", *here.place],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "run  Pending" in done.stdout


def test_a_name_that_means_two_runs_is_refused_until_it_is_told(
    here: Here, itrain: Call, recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load(here.cluster.kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = here.namespace
    own = here.folder / "kubeconfig"
    own.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(own))
    itrain("submit", here.file(recorded["succeeds"][0].raw, "twice"))
    state = here.folder / ".itrain/twice"
    state.mkdir(parents=True)
    stored = {
        "name": "twice",
        "uid": "0f1e2d3c",
        "created": "2026-03-01T12:00:00Z",
        "spec": recorded["succeeds"][0].raw["spec"],
    }
    (state / "run.json").write_text(json.dumps(stored))
    said = itrain("status", "twice", place=False)
    assert said.code == 64
    assert said.err == (
        f"itrain: twice is a run on this machine (.itrain/twice) and one in the cluster (namespace {here.namespace}): "
        "write --local for the first, -n for the second\n"
    )
    assert "nothing works on it now" in itrain("status", "twice", "--local", place=False).out
    assert f"namespace {here.namespace}" in itrain("status", "twice", "-n", here.namespace, place=False).out


# --- GitOps ---


def test_kubectl_waits_for_the_condition(here: Here, itrain: Call, recorded: Any) -> None:
    itrain("submit", here.file(recorded["succeeds"][0].raw))
    timer = later(0.5, lambda: here.write_status(recorded["succeeds"][-1]))
    here.cluster.kubectl("wait", "itr/run", "--for=condition=Succeeded", "--timeout=30s", namespace=here.namespace)
    timer.join()


@pytest.mark.parametrize("way", ["--server-side=false", "--server-side"])
def test_applied_again_and_again_while_statuses_are_written_nothing_changes(
    way: str, here: Here, recorded: Any
) -> None:
    life = recorded["succeeds"]
    file = str(here.file({**life[0].raw, "spec": minimal(life[0].raw["spec"])}))
    here.cluster.kubectl("apply", way, "-f", file, namespace=here.namespace)
    spec = here.run()["spec"]
    for moment in life[1::4] + life[-1:]:
        here.write_status(moment)
        version = here.run()["metadata"]["resourceVersion"]
        here.cluster.kubectl("diff", way, "-f", file, namespace=here.namespace)
        here.cluster.kubectl("apply", way, "-f", file, namespace=here.namespace)
        found = here.run()
        assert (found["metadata"]["resourceVersion"], found["metadata"]["generation"]) == (version, 1)
        assert (found["status"], found["spec"]) == (moment.status, spec)


def minimal(spec: dict[str, Any]) -> dict[str, Any]:
    """As a person writes it: without the defaults."""
    return {key: spec[key] for key in ("model", "data", "storage", "iterations")}


# --- the documentation ---


def test_the_commands_of_the_cluster_page_print_what_it_shows(here: Here, itrain: Call, recorded: Any) -> None:
    """With the statuses that an operator would have written: under way before `status`, ended before `wait`."""
    (here.folder / "crds").symlink_to(ROOT / "crds")
    shown = shown_blocks(ROOT / "docs/cluster.md")
    under_way = next(moment for moment in recorded["succeeds"] if moment.status.get("stage") == "rollout")
    written = {"status": under_way, "wait": recorded["succeeds"][-1]}
    ran = []
    for block in shown:
        printed = ""
        for command in block.commands:
            program, *words = command.split()
            assert program == "itrain"
            if words[0] in written:
                here.write_status(written[words[0]], words[1])
            said = itrain(*words)
            assert said.code == 0, f"{command}: {said.err}"
            printed += said.out + said.err
            ran.append(words[0])
        assert block.output is not None
        assert block.printed_by(printed), f"{block.commands} printed\n{printed}"
    assert ran == ["submit", "list", "status", "suspend", "resume", "wait"]


def test_a_deleted_and_recreated_run_is_another_one_for_a_watch(here: Here, itrain: Call, recorded: Any) -> None:
    itrain("submit", here.file(recorded["succeeds"][0].raw))
    watching = here.start("watch", "run", "--plain")
    assert watching.stderr is not None
    assert watching.stderr.readline() != ""
    here.cluster.kubectl("delete", "itr", "run", namespace=here.namespace)
    itrain("submit", here.file(recorded["succeeds"][0].raw))
    _, err = watching.communicate(timeout=30)
    assert watching.returncode == 70
    assert "run was deleted" in err
    assert eventually(lambda: here.run()["metadata"]["generation"] == 1)
