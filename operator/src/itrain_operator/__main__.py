"""`python -m itrain_operator`: the operator, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys

import kopf

from itrain_contract.loading import SpecError
from itrain_operator import handlers
from itrain_operator.app import App, own_identity, own_namespace
from itrain_operator.kube import NoClusterError, load_configuration
from itrain_operator.settings import OperatorSettings
from itrain_operator.settingsfile import DEFAULT_CONFIG, ENV_CONFIG, load_settings

LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=arguments.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # a line for every event of every object
    environ = dict(os.environ) | ({ENV_CONFIG: arguments.config} if arguments.config else {})
    try:
        settings = load_settings(environ)
        who = {"namespace": own_namespace(environ), "identity": own_identity(environ)}
        return asyncio.run(operate(settings, kubeconfig=arguments.kubeconfig, **who))
    except (SpecError, NoClusterError) as error:
        print(error, file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m itrain_operator", description="The operator of ITrainRuns.")
    parser.add_argument("--config", help=f"the settings file; default: ${ENV_CONFIG}, else {DEFAULT_CONFIG}")
    parser.add_argument(
        "--kubeconfig", help="default: $KUBECONFIG, else the pod's service account, else ~/.kube/config"
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser


async def operate(settings: OperatorSettings, *, kubeconfig: str | None, namespace: str, identity: str) -> int:
    """Run until a signal (0) or until a part of the operator broke down (1). Raises NoClusterError."""
    app = App(settings, await load_configuration(kubeconfig), namespace=namespace, identity=identity)
    await kopf.operator(
        registry=kopf.get_default_registry(),
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        memo=kopf.Memo(app=app),
        stop_flag=app.stopped,
    )
    return 0 if app.failure is None else 1


if __name__ == "__main__":
    assert handlers.start  # importing the handlers registered them
    sys.exit(main())
