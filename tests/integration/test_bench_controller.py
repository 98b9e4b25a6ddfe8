"""The operator's bench measures what it says, on a few runs and for a few seconds."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from itrain_bench.controller.audit import AuditTail
from itrain_bench.controller.ledger import Ledger, percentile
from itrain_bench.controller.load import Scale
from itrain_bench.controller.measure import measure
from itrain_bench.controller.statusbytes import largest_status
from itrain_contract.status import STATUS_LIMIT_BYTES, size_bytes
from itrain_operator.kubeapi import Raw
from itrain_testing.cluster import binaries, sessions


def job(run: str, stage: str, *, complete: bool = False) -> Raw:
    conditions = [{"type": "Complete", "status": "True"}] if complete else []
    labels = {"itrain.dev/run": run, "itrain.dev/stage": stage}
    return {"metadata": {"name": f"{run}-{stage}", "labels": labels}, "status": {"conditions": conditions}}


def test_a_transition_lasts_from_the_first_sight_of_complete_to_the_first_sight_of_the_next_job() -> None:
    ledger = Ledger()
    for at, seen in (
        (1.0, job("a", "prepare")),
        (2.0, job("a", "prepare", complete=True)),
        (2.5, job("a", "prepare", complete=True)),
        (3.0, job("b", "prepare")),
        (3.5, job("a", "warmup")),
        (4.0, job("a", "warmup")),
        (5.0, job("b", "prepare", complete=True)),
    ):
        ledger.see(seen, at)
    assert [(t.run, t.seconds) for t in ledger.between(0, 10)] == [("a", 1.5), ("b", math.inf)]
    assert [t.run for t in ledger.waiting()] == ["b"]
    assert ledger.made_between(3.0, 4.0) == 2


def test_the_last_child_of_a_run_waits_for_no_successor() -> None:
    ledger = Ledger()
    ledger.see(job("a", "export", complete=True), 1.0)
    assert ledger.transitions == []


def test_percentiles_are_values_that_were_measured() -> None:
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 0.99)] == [1.0, 2.0, 3.0]
    assert math.isnan(percentile([], 0.5))


def test_the_audit_log_is_counted_once_and_a_half_line_later(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    patch = (
        '{"verb":"patch","objectRef":{"resource":"itrainruns","subresource":"status"},"responseStatus":{"code":409}}'
    )
    lease = '{"verb":"update","objectRef":{"resource":"leases"},"responseStatus":{"code":200}}'
    log.write_text(f"{patch}\n{lease}\n{lease[:9]}")
    tail = AuditTail(log)
    first = tail.read()
    assert (first.writes("itrainruns/status"), first.writes_beside("leases"), dict(first.refused)) == (1, 1, {409: 1})
    with log.open("a") as more:
        more.write(lease[9:] + "\n")
    assert dict(tail.read().counts) == {("update", "leases"): 1}


def test_the_largest_status_of_a_run_with_many_shards_is_within_its_budget() -> None:
    small = largest_status(shards=10, iterations=2)
    assert 1000 < size_bytes(small) < size_bytes(largest_status(shards=1000, iterations=4)) <= STATUS_LIMIT_BYTES


@pytest.mark.timeout(300)
def test_a_few_runs_are_measured_on_a_control_plane(tmp_path: Path) -> None:
    if reason := binaries.missing():
        sessions.unavailable(reason)
    figures = asyncio.run(measure(Scale(runs=3, seconds=5.0, floor=True), tmp_path / "bench", lambda text: None))
    assert figures["transitions"] > 0
    assert figures["transitions_without_successor"] == figures["reconciles_failed"] == 0
    assert 0 < figures["transition_p50_s"] <= figures["transition_p99_s"] < 30
    assert figures["writes_per_transition"] > 0
    assert figures["rss_mib"] > 10
    assert 0 < figures["cores_operator"] < 2
    assert figures["floor_children_per_s"] > 0
    assert 0 < figures["floor_transition_p50_s"] <= figures["floor_transition_p99_s"] < 30
