"""What the operator asks of the API server, read from its source: the rights that it needs.

Every request goes through a `Cluster` (operator/…/kubeapi.py) whose methods name the verb, or through kopf's watches of
the kinds that have a handler. A method or a decorator that is not known here is an error, not an oversight.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from itrain_contract.names import GROUP, PLURAL, VERSION
from itrain_operator import kubeapi

SOURCES = Path(kubeapi.__file__).parent
ENTRY = "__main__"
THE_CLIENT_ITSELF = {"kube", "kubeapi"}
VERBS = {"get": "get", "list": "list", "create": "create", "replace": "update", "merge_patch": "patch"} | {
    "delete": "delete"
}
STREAMS = {"pages": "list", "watch": "watch"}
RESOURCES = {name: value for name, value in vars(kubeapi).items() if isinstance(value, kubeapi.Resource)}
KOPF_WITHOUT_REQUESTS = {"startup", "cleanup", "login"}
NAMES = {"GROUP": GROUP, "VERSION": VERSION, "PLURAL": PLURAL}

Rights = dict[tuple[str, str], set[str]]
"""(API group, resource or resource/subresource) to verbs."""

LEASE = ("coordination.k8s.io", "leases")
RIGHTS: Rights = {
    ("itrain.dev", "itrainruns"): {"get", "list", "watch"},
    ("itrain.dev", "itrainruns/status"): {"patch"},
    ("batch", "jobs"): {"get", "list", "watch", "create", "delete"},
    ("", "configmaps"): {"get", "create", "delete"},
    ("", "services"): {"get", "create", "delete"},
    ("", "pods"): {"list", "watch"},
    ("", "pods/log"): {"get"},
    ("", "events"): {"get", "list", "create", "patch"},
    LEASE: {"get", "create", "update"},
}
"""All that the operator may do in the namespaces that it serves.

Whoever changes this changes what a cluster's owner has to grant.
"""
QUEUE_RIGHTS: Rights = {("kueue.x-k8s.io", "workloads"): {"list", "patch"}}
"""What comes to them where `kueue.enabled` is set."""


def rights_in_code() -> Rights:
    """All requests of `python -m itrain_operator`."""
    found: Rights = defaultdict(set)
    for module, tree in operator_modules().items():
        if module in THE_CLIENT_ITSELF:
            continue
        for right, verb in _requests(tree):
            found[right].add(verb)
    return dict(found)


def operator_modules() -> dict[str, ast.Module]:
    """The modules that the operator's process imports: those of the command line alone are none of them."""
    found: dict[str, ast.Module] = {}
    waiting = [ENTRY]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = ast.parse((SOURCES / f"{name}.py").read_text(encoding="utf-8"))
        waiting += _imported(found[name])
    return found


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        package, _, module = (node.module or "").partition(".")
        if package == "itrain_operator":
            names = [module] if module else [alias.name for alias in node.names]
            yield from (name for name in names if (SOURCES / f"{name}.py").is_file())


def _requests(tree: ast.Module) -> Iterator[tuple[tuple[str, str], str]]:
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = call.func
        if isinstance(function, ast.Name) and function.id in STREAMS:
            yield from ((right, STREAMS[function.id]) for right in _asked(tree, call.args[1]))
        elif isinstance(function, ast.Attribute) and _is_cluster(function.value):
            yield from _of_method(tree, call, function.attr)
        elif isinstance(function, ast.Attribute) and ast.unparse(function.value) == "kopf.on":
            yield from _of_kopf(call, function.attr)


def _is_cluster(node: ast.expr) -> bool:
    return ast.unparse(node).rpartition(".")[2] in ("_cluster", "cluster")


def _of_method(tree: ast.Module, call: ast.Call, method: str) -> Iterator[tuple[tuple[str, str], str]]:
    if method == "close":
        return
    if method == "pod_log":
        yield ("", "pods/log"), "get"
        return
    if method not in VERBS:
        raise LookupError(f"no verb is known for a cluster's method {method!r}: {ast.unparse(call)}")
    below = next((ast.literal_eval(word.value) for word in call.keywords if word.arg == "subresource"), "")
    for group, resource in _asked(tree, call.args[0]):
        yield (group, f"{resource}/{below}" if below else resource), VERBS[method]


def _asked(tree: ast.Module, node: ast.expr) -> Iterator[tuple[str, str]]:
    """The resource of a request; where that is a variable, every resource that its module names."""
    named = {inner.id for inner in ast.walk(tree) if isinstance(inner, ast.Name)} & set(RESOURCES)
    if isinstance(node, ast.Name) and node.id in RESOURCES:
        named = {node.id}
    for name in named:
        yield RESOURCES[name].api_version.rpartition("/")[0], RESOURCES[name].plural


def _of_kopf(call: ast.Call, decorator: str) -> Iterator[tuple[tuple[str, str], str]]:
    if decorator in KOPF_WITHOUT_REQUESTS:
        return
    if decorator != "event":
        raise LookupError(f"kopf.on.{decorator} writes to the objects that it handles: which rights does it need?")
    group, _, plural = (NAMES[a.id] if isinstance(a, ast.Name) else ast.literal_eval(a) for a in call.args)
    yield from (((group, plural), verb) for verb in ("list", "watch"))
