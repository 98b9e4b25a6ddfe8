"""The process that talks to one tracker: `python -m itrain_pipeline.tracking mlflow|wandb FILE`.

A library that hangs, prints or dies takes no stage with it. FILE is the JSON that `publish` wrote; the answer is one
line of JSON, or an exit code other than 0 with the reason as the last line of standard error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from itrain_contract.tracking import MLflow, WandB
from itrain_pipeline.tracking.points import from_json


def main(argv: list[str]) -> int:
    tracker, file = argv[0], Path(argv[1])
    job = json.loads(file.read_text(encoding="utf-8"))
    points = from_json(job["points"])
    try:
        if tracker == "mlflow":
            from itrain_pipeline.tracking import mlflowlog

            sent = mlflowlog.send(MLflow(**job["settings"]), job["run"], points, finished=job["finished"])
        else:
            from itrain_pipeline.tracking import wandblog

            sent = wandblog.send(WandB(**job["settings"]), job["run"], points, folder=file.parent)
    except Exception as error:  # noqa: BLE001  (a library's own, told to the process that waits)
        sys.stderr.write(f"\n{type(error).__name__}: {' '.join(str(error).split())[:1000]}\n")
        return 1
    sys.stdout.write(f"\n{json.dumps({'sent': sent})}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
