"""MLflow's own file store behind the routes of its REST API that a client of runs and metrics asks, on loopback.

The real server needs Flask and a database; what it does with these requests is what the store does.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

API = "/api/2.0/mlflow/"
USER, PASSWORD = "ada", "planted-pw"


@dataclass
class MLflowServer:
    """`requests` are the routes that were asked, in order. `broken` answers everything with 500 while it is set."""

    store: Any
    port: int = 0
    requests: list[str] = field(default_factory=list)
    broken: bool = False

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, route: str, asked: Mapping[str, Any]) -> Any:
        """The response message of a route; None for one that is not there."""
        from mlflow.entities import Metric, RunStatus, RunTag, ViewType
        from mlflow.protos import service_pb2 as pb

        store = self.store

        def experiment() -> Any:
            found = store.get_experiment_by_name(asked["experiment_name"])
            return None if found is None else pb.GetExperimentByName.Response(experiment=found.to_proto())

        def search() -> Any:
            found = store.search_runs(
                asked["experiment_ids"], asked.get("filter", ""), ViewType.ACTIVE_ONLY, int(asked["max_results"])
            )
            return pb.SearchRuns.Response(runs=[run.to_proto() for run in found])

        def create() -> Any:
            tags = [RunTag(tag["key"], tag["value"]) for tag in asked.get("tags", ())]
            made = store.create_run(
                asked["experiment_id"], asked.get("user_id", ""), int(asked["start_time"]), tags, asked.get("run_name")
            )
            return pb.CreateRun.Response(run=made.to_proto())

        def log() -> Any:
            metrics = [
                Metric(m["key"], float(m["value"]), int(m["timestamp"]), int(m["step"])) for m in asked["metrics"]
            ]
            store.log_batch(asked["run_id"], metrics, [], [])
            return pb.LogBatch.Response()

        def tag() -> Any:
            store.set_tag(asked["run_id"], RunTag(asked["key"], asked["value"]))
            return pb.SetTag.Response()

        def update() -> Any:
            status = RunStatus.from_string(asked["status"])
            info = store.update_run_info(asked["run_id"], status, int(asked["end_time"]), None)
            return pb.UpdateRun.Response(run_info=info.to_proto())

        def history() -> Any:
            found = store.get_metric_history(asked["run_id"], asked["metric_key"])
            return pb.GetMetricHistory.Response(metrics=[metric.to_proto() for metric in found])

        routes: Mapping[str, Callable[[], Any]] = {
            "experiments/get-by-name": experiment,
            "experiments/create": lambda: pb.CreateExperiment.Response(
                experiment_id=store.create_experiment(asked["name"], None, [])
            ),
            "runs/search": search,
            "runs/create": create,
            "runs/log-batch": log,
            "runs/set-tag": tag,
            "runs/update": update,
            "metrics/get-history": history,
        }
        return routes[route]() if route in routes else None


def _handler(server: MLflowServer) -> type[BaseHTTPRequestHandler]:
    key = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(dict(parse_qsl(urlsplit(self.path).query)))

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, asked: Mapping[str, Any]) -> None:
            from mlflow.utils.proto_json_utils import message_to_json

            route = urlsplit(self.path).path.removeprefix(API)
            if self.headers.get("Authorization") != key:
                return self._send(401, json.dumps({"error_code": "UNAUTHENTICATED", "message": "who are you?"}))
            server.requests.append(route)
            if server.broken:
                return self._send(500, json.dumps({"error_code": "INTERNAL_ERROR", "message": "out of order"}))
            found = server.answer(route, asked)
            if found is None:
                return self._send(404, json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": route}))
            return self._send(200, message_to_json(found))

        def _send(self, code: int, text: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def running_mlflow(folder: Path) -> Iterator[MLflowServer]:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.store.tracking.file_store import FileStore

    server = MLflowServer(store=FileStore(str(folder)))
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    server.port = http.server_port
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
