"""A short-lived pod that runs one command of the pipeline where a run's volume claim can be mounted.

It is the pod of one of the run's own Jobs (image, mounts, security context, node choice) with another command. It is
bounded three times over: it is deleted when the command here ends, it ends by itself after a deadline, and it belongs
to the run, so that garbage collection takes what a lost connection left.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import copy
import gzip
import hashlib
import uuid

from itrain_contract.names import API_VERSION, KIND, LABEL_RUN, LABEL_RUN_UID
from itrain_operator.clusteraccess import Access, ClusterError, explain
from itrain_operator.clusterruns import ClusterRun
from itrain_operator.kubeapi import JOBS, PODS, ApiError, NotFoundError, Raw, pages
from itrain_operator.podspec import CONTAINER, STORAGE_PATH

DEADLINE_S = 300
"""The pod's own end; this side waits as long."""
POLL_S = 1.0
LIMIT_BYTES = 9 * 1024 * 1024
"""Of the pod's log: below the 10 MiB at which a kubelet rotates it."""
MARK = "itrain-file"
FILE = "/tmp/itrain-fetched"  # noqa: S108  (the pod's own)
RESOURCES = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "2", "memory": "2Gi"}}
SEND = f"""
import base64, gzip, hashlib, subprocess, sys
done = subprocess.run([*sys.argv[1:], "--out", "{FILE}"], stdout=subprocess.DEVNULL)
if done.returncode:
    sys.exit(done.returncode)
data = open("{FILE}", "rb").read()
text = base64.b64encode(gzip.compress(data)).decode()
print("{MARK}", hashlib.sha256(data).hexdigest(), len(text))
for at in range(0, len(text), 4096):
    print(text[at : at + 4096])
print("{MARK}-end", flush=True)
"""
"""Runs the command given as arguments and prints the file that it wrote, so that a log can carry it."""


async def fetch_file(access: Access, run: ClusterRun, arguments: list[str]) -> bytes:
    """The file that a pipeline command writes to `--out`. Raises ClusterError."""
    log = await run_in_pod(access, run, arguments, send=True)
    try:
        return parse_file(log)
    except ValueError as error:
        raise ClusterError(f"the file did not come through the pod's log whole: {error}; try again") from error


def parse_file(log: str) -> bytes:
    """The inverse of `SEND`; raises ValueError for anything that is not whole."""
    before, found, rest = log.partition(f"{MARK} ")
    body, ended, _ = rest.partition(f"{MARK}-end")
    head, _, text = body.partition("\n")
    if not found or not ended or len(head.split()) != 2:
        raise ValueError(f"the log has no whole file in it: {before[-200:]!r}")
    digest, length = head.split()
    joined = text.replace("\n", "")
    if len(joined) != int(length):
        raise ValueError(f"{len(joined)} of {length} characters arrived")
    try:
        data = gzip.decompress(base64.b64decode(joined, validate=True))
    except (binascii.Error, OSError, EOFError) as error:
        raise ValueError(str(error)) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError("its sha256 differs")
    return data


async def run_in_pod(
    access: Access, run: ClusterRun, arguments: list[str], *, send: bool = False, deadline_s: float = DEADLINE_S
) -> str:
    """The command's log; the pod is deleted whatever happens. Raises ClusterError with the command's last words."""
    pod = build_reader(run, await _template(access, run), arguments, send=send)
    name = pod["metadata"]["name"]
    try:
        made = await access.cluster.create(PODS, access.namespace, pod)
    except ApiError as error:
        raise explain(error, access, run.name) from error
    try:
        phase = await _ended(access, name, deadline_s)
        log = await access.cluster.pod_log(access.namespace, name, tail_lines=10_000_000, limit_bytes=LIMIT_BYTES)
    except ApiError as error:
        raise explain(error, access, run.name) from error
    finally:
        await _delete(access, name, made["metadata"]["uid"])
    if phase != "Succeeded":
        last = (log.strip().splitlines() or ["it said nothing"])[-1].removeprefix("itrain: ")
        raise ClusterError(f"the pod that reads the volume failed: {last}")
    return log


def build_reader(run: ClusterRun, template: Raw, arguments: list[str], *, send: bool) -> Raw:
    """The pod, from the pod template of one of the run's Jobs."""
    spec = copy.deepcopy(template["spec"])
    container = next(c for c in spec["containers"] if c["name"] == CONTAINER)
    command = [*container["command"][:-1], *arguments]
    python = command[0] if "python" in command[0].rpartition("/")[2] else "python"
    container["command"] = [python, "-c", SEND, *command] if send else command
    container["resources"] = RESOURCES
    kept = {"storage", "tmp", "home"}
    mounts = [mount for mount in container["volumeMounts"] if mount["name"] in kept]
    read_only = {"readOnly": True} if send else {}
    container["volumeMounts"] = [{**m, **(read_only if m["name"] == "storage" else {})} for m in mounts]
    container.pop("envFrom", None)
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] in kept]
    spec["containers"] = [container]
    spec |= {"restartPolicy": "Never", "activeDeadlineSeconds": DEADLINE_S, "terminationGracePeriodSeconds": 1}
    spec.pop("subdomain", None)
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": run.name, "uid": run.uid}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{run.name}-reader-{uuid.uuid4().hex[:6]}",
            "namespace": run.namespace,
            "labels": {LABEL_RUN: run.name, LABEL_RUN_UID: run.uid},
            "ownerReferences": [{**owner, "controller": False, "blockOwnerDeletion": False}],
        },
        "spec": spec,
    }


async def _template(access: Access, run: ClusterRun) -> Raw:
    """Of the run's newest Job, which knows image and mounts."""
    labels = f"{LABEL_RUN}={run.name},{LABEL_RUN_UID}={run.uid}"
    try:
        found = [
            job async for page in pages(access.cluster, JOBS, access.namespace, labels=labels) for job in page.items
        ]
    except ApiError as error:
        raise explain(error, access, run.name) from error
    if not found:
        claim = run.spec.storage.pvc.claim_name if run.spec is not None and run.spec.storage.pvc is not None else ""
        folder = run.layout.root.removeprefix(f"file://{STORAGE_PATH}/")
        raise ClusterError(
            f"the artifacts of {run.name} lie on the volume claim {claim}, and its Jobs, which knew how to mount it, "
            f"are gone: mount the claim in a pod of yours, they are below {folder}"
        )
    template: Raw = max(found, key=lambda job: job["metadata"]["creationTimestamp"])["spec"]["template"]
    return template


async def _ended(access: Access, name: str, deadline_s: float) -> str:
    """The phase in which the pod ended. Raises ClusterError when it does not end in time."""
    pod: Raw = {}
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                pod = await access.cluster.get(PODS, access.namespace, name)
                phase = str((pod.get("status") or {}).get("phase", ""))
                if phase in ("Succeeded", "Failed"):
                    return phase
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        conditions = (pod.get("status") or {}).get("conditions") or []
        why = next(
            (c["message"] for c in conditions if c.get("status") == "False" and c.get("message")), "no reason given"
        )
        raise ClusterError(f"the pod that reads the volume did not run within {deadline_s:g} s: {why}") from None


async def _delete(access: Access, name: str, uid: str) -> None:
    try:
        await access.cluster.delete(PODS, access.namespace, name, uid=uid)
    except NotFoundError:
        return
    except ApiError as error:
        raise ClusterError(
            f"the pod {name} could not be deleted: {error}; it ends by itself within {DEADLINE_S} s, "
            f"then: kubectl delete pod {name}"
        ) from error
