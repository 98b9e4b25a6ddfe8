"""Trackers never fail a run, are told nothing twice, and no credential of theirs is told to anybody."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from itrain_contract.names import ENV_SECRETS_DIR
from itrain_contract.stageio import RunIdentity, StageInput, StageResult
from itrain_contract.stages import StageKind
from itrain_contract.template import SecretRef
from itrain_contract.tracking import MLflow, Tracking, WandB
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.ports import Store
from itrain_pipeline.store import open_store
from itrain_pipeline.tracking.publish import (
    Published,
    TrackerError,
    check_trackers,
    credentials,
    publish,
    talk_to,
)
from itrain_testing.fakestage import World
from itrain_testing.mountedsecrets import mount_secret
from itrain_testing.stageports import fetch
from itrain_testing.trackedruns import tracked_results

IDENTITY = RunIdentity(name="quick", namespace="team", uid="12345678-aaaa", storage="file:///nowhere")
ALL = Tracking(
    tensorboard=True,
    mlflow=MLflow(uri="http://127.0.0.1:9/ml", secret_ref=SecretRef(name="ml")),
    wandb=WandB(project="p", secret_ref=SecretRef(name="wb")),
)


@dataclasses.dataclass
class Talks:
    """What trackers were told; each may fail with a text."""

    fails: dict[str, str] = dataclasses.field(default_factory=dict)
    jobs: list[tuple[str, str, dict[str, str]]] = dataclasses.field(default_factory=list)

    def __call__(self, tracker: str, file: Path, environ: Mapping[str, str]) -> int:
        self.jobs.append((tracker, file.read_text(), dict(environ)))
        if tracker in self.fails:
            raise TrackerError(self.fails[tracker])
        return 5


def secrets(folder: Path) -> dict[str, str]:
    if not (folder / "secrets").exists():
        _mount(folder)
    return {ENV_SECRETS_DIR: str(folder / "secrets"), "WANDB_API_KEY": "of-the-process", "PATH": "/bin"}


def _mount(folder: Path) -> None:
    mount_secret(folder / "secrets", "ml", MLFLOW_TRACKING_USERNAME="ada", MLFLOW_TRACKING_PASSWORD="planted-pw\n")
    mount_secret(folder / "secrets", "wb", WANDB_API_KEY="planted-key", LD_PRELOAD="evil.so")


def published(
    folder: Path, talk: Talks, tracking: Tracking = ALL, kind: StageKind = StageKind.TRAIN
) -> tuple[Published, Store, str]:
    run = IDENTITY.model_copy(update={"storage": f"file://{folder}/storage"})
    store = open_store(run.storage)
    found = publish(
        tracking,
        run=run,
        kind=kind,
        results=lambda: tracked_results(folder / "results"),
        fetch=fetch,
        store=store,
        environ=secrets(folder),
        talk=talk,
    )
    return found, store, run.layout.root


def test_every_tracker_is_sent_the_points_with_its_own_secret_and_no_other(tmp_path: Path) -> None:
    talk = Talks()
    found, store, root = published(tmp_path, talk)
    assert found == Published(info={"tracking": "tensorboard, mlflow, wandb"})
    assert len(store.list(f"{root}tensorboard/")) == 9
    (first, told, given), (second, _, other) = talk.jobs
    assert (first, second) == ("mlflow", "wandb")
    assert (given["MLFLOW_TRACKING_PASSWORD"], given["PATH"]) == ("planted-pw", "/bin")
    assert other["WANDB_API_KEY"] == "planted-key"
    assert "LD_PRELOAD" not in other
    assert "planted" not in told
    assert '"finished": false' in told


def test_what_fails_is_one_warning_and_stands_in_the_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    talk = Talks(fails={"mlflow": "HTTP 500 for ada:planted-pw\nhere\x1b[2J", "wandb": ""})
    found, _, _ = published(tmp_path, talk)
    assert found.info == {"tracking": "tensorboard, mlflow failed, wandb failed"}
    assert found.counters == {"tracking_failures": 2}
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == [
        "mlflow did not take this run's figures, the run goes on: HTTP 500 for ***:*** here\\x1b[2J",
        "wandb did not take this run's figures, the run goes on: TrackerError",
    ]


def test_event_files_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    only = Tracking(tensorboard=True)
    _, store, root = published(tmp_path, Talks(), only)
    before = {uri: Path(uri.removeprefix("file://")).stat().st_mtime_ns for uri in store.list(root)}
    again, _, _ = published(tmp_path, Talks(), only)
    assert again.info == {"tracking": "tensorboard"}
    assert {uri: Path(uri.removeprefix("file://")).stat().st_mtime_ns for uri in store.list(root)} == before


def test_results_that_cannot_be_read_fail_no_stage(tmp_path: Path) -> None:
    def broken() -> list[StageResult]:
        raise DataError("no such result")

    found = publish(
        Tracking(tensorboard=True),
        run=IDENTITY,
        kind=StageKind.TRAIN,
        results=broken,
        fetch=fetch,
        store=open_store(f"file://{tmp_path}"),
        environ={},
    )
    assert found == Published(info={"tracking": "tensorboard failed"}, counters={"tracking_failures": 1})


def test_wandb_offline_is_left_by_export_alone_and_once(tmp_path: Path) -> None:
    class Writing(Talks):
        def __call__(self, tracker: str, file: Path, environ: Mapping[str, str]) -> int:
            (file.parent / "wandb" / "offline-run-1").mkdir(parents=True)
            (file.parent / "wandb" / "offline-run-1" / "run.wandb").write_text("figures")
            (file.parent / "wandb" / "latest-run").symlink_to("offline-run-1")
            return super().__call__(tracker, file, environ)

    offline, talk = Tracking(wandb=WandB(project="p", mode="offline")), Writing()
    assert published(tmp_path, talk, offline)[0] == Published()
    _, store, root = published(tmp_path, talk, offline, StageKind.EXPORT)
    published(tmp_path, talk, offline, StageKind.EXPORT)
    assert store.list(f"{root}wandb/") == [f"{root}wandb/offline-run-1/run.wandb"]
    assert len(talk.jobs) == 1


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, r"tracking\.mlflow: the Secret 'ml' has no MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW"),
        ({"MLFLOW_TRACKING_USERNAME": "ada"}, r"the Secret 'ml' has no"),
        ({"MLFLOW_TRACKING_TOKEN": "t"}, r"tracking\.wandb: the Secret 'wb' has no WANDB_API_KEY"),
    ],
)
def test_a_credential_that_is_not_there_ends_the_run_in_prepare(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_trackers(ALL, environ)
    check_trackers(ALL, {"MLFLOW_TRACKING_TOKEN": "t", "WANDB_API_KEY": "k"})
    check_trackers(Tracking(wandb=WandB(project="p", mode="offline", secret_ref=SecretRef(name="wb"))), {})


def test_a_package_that_the_image_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"tracking\.wandb needs the package wandb, which this image lacks"):
        check_trackers(Tracking(wandb=WandB(project="p")), {})


def test_without_a_secret_the_process_has_to_do(tmp_path: Path) -> None:
    environ = {"WANDB_API_KEY": "mine", "AWS_SECRET_ACCESS_KEY": "other"}
    assert credentials("wandb", WandB(project="p"), environ) == {"WANDB_API_KEY": "mine"}


def tracked_input(world: World, kind: StageKind, tracking: Tracking) -> StageInput:
    return world.stage_input(kind).model_copy(update={"tracking": tracking})


def test_a_stage_ends_well_without_its_tracker_and_its_result_says_so(tmp_path: Path) -> None:
    """Nothing listens at port 9; the same stage sends its event file, and prepare would have sent nothing."""
    world = World(folder=tmp_path)
    away = Tracking(tensorboard=True, mlflow=MLflow(uri="http://127.0.0.1:9"))
    given = tracked_input(world, StageKind.WARMUP, away)
    world.environ = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    assert world.run(given) == 0
    result = world.result(given)
    assert result is not None
    assert (result.info["tracking"], result.counters["tracking_failures"]) == ("tensorboard, mlflow failed", 1)
    root = world.identity.layout.root
    assert [uri.removeprefix(root) for uri in open_store(world.storage).list(f"{root}tensorboard/")] == [
        "tensorboard/events.out.tfevents.0000-1.i0-warmup"
    ]


def test_prepare_ends_with_a_reason_where_a_tracker_lacks_something(tmp_path: Path) -> None:
    world = World(folder=tmp_path)
    given = tracked_input(world, StageKind.PREPARE, Tracking(wandb=ALL.wandb))
    assert world.run(given) == 64
    assert world.started == 0
    assert "the Secret 'wb' has no WANDB_API_KEY" in world.termination().message


@pytest.mark.parametrize(
    ("body", "timeout_s", "reason"),
    [
        ("import time; time.sleep(60)", 0.5, "no answer within 0.5 s"),
        ("import sys; sys.stderr.write('why\\n'); sys.exit(3)", 60.0, "why"),
        ("import os; os.kill(os.getpid(), 9)", 60.0, "its process ended with -9"),
        ("print('no json')", 60.0, "its process ended without an answer"),
    ],
)
def test_a_process_that_hangs_dies_or_talks_nonsense_is_an_error(
    tmp_path: Path, body: str, timeout_s: float, reason: str
) -> None:
    package = tmp_path / "itrain_pipeline" / "tracking"
    package.mkdir(parents=True)
    (tmp_path / "itrain_pipeline" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(body)
    with pytest.raises(TrackerError, match=f"^{reason}$"):
        talk_to("mlflow", tmp_path / "job.json", {"PYTHONPATH": str(tmp_path)}, timeout_s=timeout_s)
