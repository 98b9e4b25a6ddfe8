"""Which node of a training a process is, from its StageInput and its environment. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from itrain_contract.names import ENV_MASTER_ADDR, ENV_MASTER_PORT, ENV_SHARD
from itrain_contract.stageio import StageInput
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.ports import Nodes


def nodes_of(stage_input: StageInput, environ: Mapping[str, str], finished: Callable[[], bool]) -> Nodes:
    """This process among the nodes of its stage. `finished` tells whether the stage's result is written.

    On several nodes the completion index is the rank. Raises ConfigError where the environment does not name it, or
    where node 0 is to be found.
    """
    count = stage_input.spec.get("stage", {}).get("nodes", 1) if stage_input.kind is StageKind.TRAIN else 1
    if count == 1:
        return Nodes()
    rank, address, port = (environ.get(name, "") for name in (ENV_SHARD, ENV_MASTER_ADDR, ENV_MASTER_PORT))
    if not address:
        raise ConfigError(
            f"train.nodes: got {count}, allowed is 1: only in a cluster does {ENV_MASTER_ADDR} name node 0"
        )
    if not rank.isdigit() or int(rank) >= count:
        raise ConfigError(f"{ENV_SHARD} is {rank!r}, train on {count} nodes expects 0 to {count - 1}")
    if not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConfigError(f"{ENV_MASTER_PORT} is {port!r}, expected 1 to 65535")
    session = f"{stage_input.digest[:16]}-a{stage_input.attempt}"
    return Nodes(rank=int(rank), count=count, address=address, port=int(port), session=session, finished=finished)
