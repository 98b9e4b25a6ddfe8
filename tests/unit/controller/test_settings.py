"""The operator's settings: read whole, or refused with field, value and what is allowed."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from itrain_contract.loading import SpecError
from itrain_operator.settings import OperatorSettings
from itrain_operator.settingsdoc import PAGE, settings_page
from itrain_operator.settingsfile import ENV_CONFIG, load_settings, override_names, parse_settings


def problems(text: str = "", **environ: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse_settings(text, environ, source="operator.yaml")
    return str(caught.value).splitlines()


def test_without_a_file_everything_has_its_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = parse_settings("", {})
    assert found == OperatorSettings()
    assert (found.workers, found.resync_seconds, found.request_timeout_seconds) == (16, 300, 30)
    assert found.command == ["python", "-m", "itrain_pipeline"]
    assert found.lease.duration_seconds <= 10


def test_a_file_and_the_environment_over_it(tmp_path: Path) -> None:
    path = tmp_path / "operator.yaml"
    path.write_text("workers: 2\nnamespaces: [a, b]\nlease: {name: other}\nimages: {cpu: {pipeline: one}}\n")
    environ = {
        ENV_CONFIG: str(path),
        "ITRAIN_WORKERS": "8",
        "ITRAIN_LEASE_ENABLED": "false",
        "ITRAIN_API_QPS": "2.5",
        "ITRAIN_IMAGES_CPU_TRAINER": "two",
        "ITRAIN_POOLS_VOLTA_RUNTIME_CLASS_NAME": "nvidia",
        "ITRAIN_THREADS": "not one of ours",
    }
    found = load_settings(environ)
    assert (found.workers, found.namespaces, found.api_qps) == (8, ["a", "b"], 2.5)
    assert (found.lease.enabled, found.lease.name) == (False, "other")
    assert (found.images.cpu.pipeline, found.images.cpu.trainer) == ("one", "two")
    assert found.pools.volta.runtime_class_name == "nvidia"


def test_a_preset_of_which_one_field_is_set_keeps_the_others() -> None:
    found = parse_settings("", {"ITRAIN_POOLS_VOLTA_PRECISION_DEFAULT": "fp16"})
    assert found.pools.volta.tolerations == OperatorSettings().pools.volta.tolerations
    assert found.pools.volta.affinity == OperatorSettings().pools.volta.affinity


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("worker: 3", "operator.yaml: line 1: worker: got an unknown field, allowed: apiBurst,"),
        ("workers: 0", "operator.yaml: line 1: workers: got 0, allowed: at least 1; change workers"),
        ("lease: {durationSeconds: 15}", "lease.durationSeconds: got 15, allowed: at most 10"),
        ("lease:\n  renewSeconds: 1", "line 2: lease.renewSeconds: got 1, allowed: at least 2"),
        ("lease: {renewSeconds: 2}", "retrySeconds < renewSeconds < durationSeconds must hold"),
        ("metricsPort: 8080", "settings: got {'metricsPort': 8080}, allowed: metricsPort and healthPort must differ"),
        ("podSecurity: {runAsUser: 0}", "podSecurity.runAsUser: got 0, allowed: at least 1"),
        ("cacheMountPath: cache", "cacheMountPath: got 'cache', allowed: text that matches ^/"),
        ("command: []", "command: got [], allowed: at least 1 items"),
        ("images: {v100: {}}", "images.v100: got an unknown field, allowed: cpu, current, stages, volta"),
        (
            "images: {stages: {train: gpu}}",
            "images.stages.train: got 'gpu', allowed: 'pipeline', 'trainer' or 'rollout'",
        ),
        ("pools: {cpu: {env: [{value: x}]}}", "pools.cpu.env[0].name: got nothing, allowed: a value"),
        ("namespaces: [Team]", "namespaces[0]: got 'Team', allowed: text that matches"),
        ("workers: 1\nworkers: 2", "YAML: got key 'workers' stands twice, allowed: well-formed YAML"),
        ("- workers", "YAML: got list, allowed: a mapping of settings"),
        ("workers: 1\n---\nworkers: 2", "YAML: got 2 documents, allowed: at most one"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(text: str, said: str) -> None:
    assert any(said in line for line in problems(text)), problems(text)


def test_a_wrong_variable_is_named_itself() -> None:
    assert problems(ITRAIN_WORKERS="many") == [
        "operator.yaml: ITRAIN_WORKERS: got 'many', allowed: a whole number; change workers"
    ]


def test_every_problem_is_told_at_once() -> None:
    assert len(problems("workers: 0\nresyncSeconds: 1", ITRAIN_API_BURST="0")) == 3


def test_what_kubernetes_puts_there_for_a_service_is_no_setting() -> None:
    found = parse_settings("", {"ITRAIN_METRICS_PORT": "tcp://10.0.0.1:9090"})
    assert found.metrics_port == OperatorSettings().metrics_port


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"ITRAIN_OPERATOR_CONFIG: got '.*absent.yaml', allowed: a file; there"):
        load_settings({ENV_CONFIG: str(tmp_path / "absent.yaml")})


def test_every_scalar_has_one_variable_and_none_is_a_stage_processes() -> None:
    found = [name for _, name in override_names()]
    assert len(found) == len(set(found))
    own = {value for name, value in inspect.getmembers(__import__("itrain_contract.names").names) if name[:4] == "ENV_"}
    assert own.isdisjoint(found)


def test_the_reference_of_the_settings_is_fresh() -> None:
    page = Path(__file__).parents[3] / PAGE
    assert page.read_text(encoding="utf-8") == settings_page(), "run make generate"
