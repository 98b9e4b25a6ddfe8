"""What Argo CD and Flux make of every status that the planner writes.

Argo CD's health script runs in Lua 5.1 with the base library alone, as in Argo CD. Flux judges by kstatus; its rules
are read here once more, independently: kubernetes-sigs/cli-utils, pkg/kstatus/status/{generic,status}.go, where
1. a deletionTimestamp is Terminating; 2. an observedGeneration that is there and another one is InProgress;
3. the first condition that is `Reconciling` and True is InProgress, or `Stalled` and True is Failed; 4. a `Ready`
condition decides (not True: InProgress); 5. everything else is Current.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import celpy
import pytest
import yaml
from celpy.adapter import json_to_cel
from celpy.evaluation import CELEvalError
from lupa.lua51 import LuaRuntime

from itrain_contract.names import Phase
from itrain_testing.recorded import Moment, lives

DOCS = Path(__file__).parents[3] / "docs"
SCRIPT = (DOCS / "gitops/argocd-health.lua").read_text()
ALLOWED = ("ipairs", "pairs", "next", "type", "tostring", "tonumber", "error", "pcall", "select", "table")
"""What Argo CD opens without `useOpenLibs`."""
HEALTH = {
    "succeeds": ["Progressing", "Healthy"],
    "stops-early": ["Progressing", "Healthy"],
    "queued": ["Progressing", "Healthy"],
    "preempted": ["Progressing", "Healthy"],
    "retried": ["Progressing", "Healthy"],
    "waits-for-nodes": ["Progressing", "Healthy"],
    "suspended": ["Progressing", "Suspended", "Progressing", "Healthy"],
    "configuration": ["Progressing", "Degraded"],
    "retries-exhausted": ["Progressing", "Degraded"],
    "create-forbidden": ["Progressing", "Degraded"],
    "invalid-spec": ["Progressing", "Degraded"],
}
"""What Argo CD shows in the course of a life; no flicker in between."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[Moment]]:
    found = lives()
    assert list(found) == list(HEALTH)
    return found


@pytest.fixture(params=HEALTH)
def life(request: pytest.FixtureRequest, recorded: dict[str, list[Moment]]) -> list[Moment]:
    return recorded[request.param]


def argocd_health(raw: dict[str, Any]) -> tuple[str, str]:
    """Status and message, by the shipped script."""
    lua = LuaRuntime(unpack_returned_tuples=True)
    tables = lua.table_from(raw, recursive=True)
    run = lua.eval("function(script, obj, names) " + SANDBOX + " end")
    found = run(SCRIPT, tables, lua.table_from(ALLOWED))
    return found["status"], found["message"]


SANDBOX = """
  local env = { obj = obj }
  for _, name in ipairs(names) do env[name] = _G[name] end
  return setfenv(assert(loadstring(script)), env)()
"""


def kstatus(raw: dict[str, Any]) -> str:
    metadata, status = raw["metadata"], raw.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if "observedGeneration" in status and status["observedGeneration"] != metadata["generation"]:
        return "InProgress"
    for condition in status.get("conditions") or []:
        if condition["status"] == "True" and condition["type"] in ("Reconciling", "Stalled"):
            return {"Reconciling": "InProgress", "Stalled": "Failed"}[condition["type"]]
    ready = [c for c in status.get("conditions") or [] if c["type"] == "Ready"]
    return "Current" if not ready or ready[0]["status"] == "True" else "InProgress"


def flux_health(raw: dict[str, Any]) -> str:
    """By the shipped expressions, evaluated by CEL in Flux's order (fluxcd.io, "Health check expressions").

    The object's fields are the variables. An expression that fails, as all do while there is no status, is waited for.
    """
    flux = yaml.safe_load((DOCS / "gitops/flux-kustomization.yaml").read_text())
    (check,) = flux["spec"]["healthCheckExprs"]
    assert (check["apiVersion"], check["kind"]) == (raw["apiVersion"], raw["kind"])
    variables = {name: json_to_cel(value) for name, value in raw.items()}
    cel = celpy.Environment()
    for name in ("inProgress", "failed", "current"):
        try:
            if cel.program(cel.compile(check[name])).evaluate(variables):
                return name
        except CELEvalError:
            return "inProgress"
    return "inProgress"


def seen(moment: Moment) -> bool:
    return moment.status.get("observedGeneration") == moment.raw["metadata"]["generation"]


def stalled(moment: Moment) -> bool:
    return any(c["type"] == "Stalled" and c["status"] == "True" for c in moment.status.get("conditions", []))


# --- Argo CD ---


def test_argo_cd_sees_every_status_as_what_it_is(life: list[Moment]) -> None:
    ends = {Phase.SUCCEEDED: "Healthy", Phase.FAILED: "Degraded", Phase.SUSPENDED: "Suspended"}

    def expected(moment: Moment) -> str:
        otherwise = "Degraded" if stalled(moment) else "Progressing"
        return ends.get(moment.status.get("phase"), otherwise) if seen(moment) else "Progressing"

    told = {str(moment): argocd_health(moment.raw)[0] for moment in life}
    assert told == {str(moment): expected(moment) for moment in life}
    course = [health for at, health in enumerate(told.values()) if at == 0 or health != list(told.values())[at - 1]]
    assert course == HEALTH[life[0].life]


def test_the_message_says_where_a_run_is_and_why_it_failed(recorded: dict[str, list[Moment]]) -> None:
    running = next(m for m in recorded["succeeds"] if m.status.get("stage") == "rollout" and "current" in m.status)
    assert argocd_health(running.raw)[1] == "iteration 1/2, rollout: StageRunning: attempt 1 of i1/rollout runs"
    assert argocd_health(recorded["configuration"][-1].raw)[1].startswith("ConfigError: ")
    assert "jobs.batch is forbidden" in argocd_health(recorded["create-forbidden"][-1].raw)[1]


def test_an_edit_that_the_operator_has_not_seen_is_progressing_even_after_a_success(
    recorded: dict[str, list[Moment]],
) -> None:
    done = recorded["succeeds"][-1].raw
    edited = {**done, "metadata": {**done["metadata"], "generation": done["metadata"]["generation"] + 1}}
    assert argocd_health(edited)[0] == "Progressing"
    assert kstatus(edited) == "InProgress"


def test_the_config_map_holds_the_script_as_it_is_shipped() -> None:
    patch = yaml.safe_load((DOCS / "gitops/argocd-cm-patch.yaml").read_text())
    assert patch["data"] == {"resource.customizations.health.itrain.dev_ITrainRun": SCRIPT}


# --- Flux ---


def test_kstatus_never_waits_for_the_end_of_a_run_and_never_misses_a_failure(life: list[Moment]) -> None:
    for moment in life:
        status = kstatus(moment.raw)
        if stalled(moment) and seen(moment):
            assert status == "Failed", moment
        elif moment.status.get("phase") == Phase.SUCCEEDED:
            assert status == "Current", moment
        else:
            assert status in ("InProgress", "Current"), moment


@pytest.mark.parametrize("name", ["succeeds", "queued", "waits-for-nodes", "suspended"])
def test_a_run_is_current_for_kstatus_once_its_first_job_was_seen(name: str, recorded: dict[str, list[Moment]]) -> None:
    moments = recorded[name]
    began = next(at for at, moment in enumerate(moments) if "current" in moment.status)
    running = [m for m in moments[began:] if m.status["phase"] == Phase.RUNNING and seen(m)]
    assert {kstatus(m.raw) for m in running} == {"Current"}
    assert {kstatus(m.raw) for m in moments[1:began]} == {"InProgress"}


def test_flux_waits_for_the_end_of_a_run_and_tells_a_failure(life: list[Moment]) -> None:
    def expected(moment: Moment) -> str:
        if not seen(moment):
            return "inProgress"
        if stalled(moment) or moment.status["phase"] == Phase.FAILED:
            return "failed"
        return "current" if moment.status["phase"] == Phase.SUCCEEDED else "inProgress"

    assert {str(m): flux_health(m.raw) for m in life} == {str(m): expected(m) for m in life}


def test_flux_waits_for_a_run_without_a_status(recorded: dict[str, list[Moment]]) -> None:
    raw = recorded["succeeds"][0].raw
    assert flux_health({name: value for name, value in raw.items() if name != "status"}) == "inProgress"


def test_no_status_has_a_ready_condition(life: list[Moment]) -> None:
    assert {c["type"] for m in life for c in m.status.get("conditions", [])}.isdisjoint({"Ready"})


def test_the_lives_that_failed_and_no_others_end_failed_for_kstatus(life: list[Moment]) -> None:
    assert kstatus(life[-1].raw) == ("Failed" if HEALTH[life[0].life][-1] == "Degraded" else "Current")


@pytest.mark.parametrize("name", sorted(path.name for path in (DOCS / "gitops").glob("*.yaml")))
def test_a_shipped_manifest_is_yaml(name: str) -> None:
    assert yaml.safe_load((DOCS / "gitops" / name).read_text())
