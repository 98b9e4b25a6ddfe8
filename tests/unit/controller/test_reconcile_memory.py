"""What an operator keeps of runs that are gone: nothing that names them."""

from __future__ import annotations

import gc
from types import FunctionType, ModuleType

import pytest

from itrain_operator.kubeapi import RUNS
from itrain_testing.clusterruns import run_manifest, start_run
from itrain_testing.fakecluster import FakeServer
from itrain_testing.fakejobs import JobWorld
from itrain_testing.fakeoperator import FakeOperator


def reachable_texts(*roots: object) -> set[str]:
    """Every string that can be reached, the server's and its world's excepted."""
    left, seen, texts = list(roots), set[int](), set[str]()
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, FakeServer | JobWorld | ModuleType | type | FunctionType):
            continue
        seen.add(id(thing))
        if isinstance(thing, str):
            texts.add(thing)
        elif isinstance(thing, bytes):
            texts.add(thing.decode(errors="replace"))
        else:
            left.extend(gc.get_referents(thing))
    return texts


def naming(operator: FakeOperator, name: str) -> set[str]:
    return {text[:80] for text in reachable_texts(*operator.memory()) if name in text}


@pytest.mark.parametrize("ticks", [200, 9, 3], ids=["succeeded", "half way", "just begun"])
def test_of_a_run_that_was_deleted_nothing_is_kept(ticks: int) -> None:
    operator = start_run()
    for number in range(3):
        name = f"gone-{number}-x"
        operator.server.add(RUNS, run_manifest(name))
        operator.live(ticks)
        assert naming(operator, name)
        operator.server.remove(RUNS, operator.run(name))
        operator.live(20)
        assert not naming(operator, name)
