"""Which run a command means: one on this machine or one in the cluster.

1. `--local` means this machine; `-n`, `--context` and `--kubeconfig` mean the cluster, and so does `kubectl itrain`.
2. Otherwise a state folder that exists (DIR, or a name in `.itrain/`) means this machine, any other name the cluster.
3. A bare name that could mean two runs is an error that says what to write: never the wrong one by luck.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from itrain_contract.names import RUN_NAME_PATTERN
from itrain_operator.cli_inspect import RUNS, find_folder, folders_named
from itrain_operator.clusteraccess import Where
from itrain_operator.localstate import LocalRunError, StateFolder

InCluster = Callable[[str], str]
"""Where the cluster holds a run of this name (`namespace team`); empty when it does not, or cannot be asked quickly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterName:
    """A run in the cluster."""

    name: str
    guessed: bool = False
    """No option said so: there is just no such state folder."""


def choose_place(named: str | None, where: Where, in_cluster: InCluster) -> StateFolder | ClusterName:
    """Raises LocalRunError for what is ambiguous, contradictory or nowhere."""
    if where.local:
        if where.cluster and not where.plugin:
            raise LocalRunError("--local means this machine; -n, --context and --kubeconfig a cluster: leave one out")
        return find_folder(named)
    if where.cluster:
        if named is None:
            raise LocalRunError("name the run: `itrain list` shows them")
        return ClusterName(name=named)
    if named is None:
        return find_folder(None)
    found = folders_named(named)
    bare = re.match(RUN_NAME_PATTERN, named) is not None
    if not found:
        return ClusterName(name=named, guessed=True) if bare else find_folder(named)
    if len(found) > 1:
        raise LocalRunError(f"{named} means two state folders: write ./{named} or {RUNS / named}")
    place = in_cluster(named) if bare else ""
    if place:
        raise LocalRunError(
            f"{named} is a run on this machine ({found[0].path}) and one in the cluster ({place}): "
            f"write --local for the first, -n for the second"
        )
    return found[0]
