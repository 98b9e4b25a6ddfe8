"""The chart renders what the API servers accept and what the operator reads, and refuses the rest by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from itrain_operator.app import ENV_NAMESPACE, ENV_POD_UID
from itrain_operator.metrics import Metrics
from itrain_operator.settings import OperatorSettings
from itrain_operator.settingsfile import ENV_CONFIG, load_settings
from itrain_testing.chart import CHART, CI_VALUES, ROOT, ChartError, Object, notes, of_kind, problems, render, the
from itrain_testing.podsecurity import violations

pytestmark = pytest.mark.usefixtures("chart_tools")

IDS = [file.name.removesuffix("-values.yaml") for file in CI_VALUES]
RENDERED: dict[Path, list[Object]] = {}
METRIC = re.compile(r"\bitrain_[a-z_]+")
GROUPED = re.compile(r"\bby \(([^)]*)\)")
SELECTED = re.compile(r"[{,]\s*([a-z_]+)\s*=")
GIVEN_BY_PROMETHEUS = {"namespace", "pod", "le"}


@pytest.fixture(params=CI_VALUES, ids=IDS)
def objects(request: pytest.FixtureRequest, chart_tools: None) -> list[Object]:
    return rendered(request.param)


def rendered(file: Path) -> list[Object]:
    if file not in RENDERED:
        RENDERED[file] = render(file)
    return RENDERED[file]


def with_values(name: str) -> list[Object]:
    return rendered(CHART / f"ci/{name}-values.yaml")


def pod_specs(objects: list[Object]) -> Iterator[Object]:
    for found in objects:
        if "template" in found.get("spec", {}):
            yield found["spec"]["template"]["spec"]


def settings_of(objects: list[Object], folder: Path) -> OperatorSettings:
    """What the operator in this pod would read: the file that its environment names, out of the volume's ConfigMap."""
    (pod,) = pod_specs(objects)
    (container,) = pod["containers"]
    named = next(v["value"] for v in container["env"] if v["name"] == ENV_CONFIG)
    (mount,) = [m for m in container["volumeMounts"] if named.startswith(m["mountPath"] + "/")]
    (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    data = the(objects, "ConfigMap", volume["configMap"]["name"])["data"]
    file = folder / "operator.yaml"
    file.write_text(data[named.removeprefix(mount["mountPath"] + "/")], encoding="utf-8")
    return load_settings({ENV_CONFIG: str(file)})


def test_every_object_is_one_that_its_api_accepts(objects: list[Object]) -> None:
    # The resource itself is held against a real API server in tests/integration, and here once.
    checked = [found for found in objects if found["kind"] != "CustomResourceDefinition"]
    assert [text for found in checked for text in problems(found)] == []
    assert len({(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects}) == len(objects)


def test_an_unknown_field_in_an_object_would_be_found() -> None:
    deployment = json.loads(json.dumps(the(with_values("default"), "Deployment")))
    deployment["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    monitor = json.loads(json.dumps(the(with_values("monitoring"), "ServiceMonitor")))
    monitor["spec"]["endpoints"][0]["intervall"] = "30s"
    assert "livenessProb" in "".join(problems(deployment))
    assert "intervall" in "".join(problems(monitor))


def test_the_crd_is_the_one_that_kubectl_applies() -> None:
    applied = yaml.safe_load((ROOT / "crds/itrainruns.itrain.dev.yaml").read_text(encoding="utf-8"))
    crd = the(with_values("default"), "CustomResourceDefinition", applied["metadata"]["name"])
    assert problems(crd) == []
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert crd["spec"] == applied["spec"]
    assert "annotations" not in of_kind(with_values("single"), "CustomResourceDefinition")[0]["metadata"]
    assert of_kind(with_values("namespaced"), "CustomResourceDefinition") == []


def test_the_operator_reads_its_settings(objects: list[Object], tmp_path: Path) -> None:
    settings = settings_of(objects, tmp_path)
    (pod,) = pod_specs(objects)
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"health": settings.health_port, "metrics": settings.metrics_port}
    for service in of_kind(objects, "Service"):
        assert service["spec"]["ports"][0]["port"] == settings.metrics_port
    leases = [r for r in of_kind(objects, "Role") if r["metadata"]["name"].endswith("-lease")]
    assert bool(leases) == settings.lease.enabled
    for role in leases:
        assert role["rules"][0]["resourceNames"] == [settings.lease.name]
        assert role["metadata"]["namespace"] == (settings.lease.namespace or "itrain-system")
    roles = {r["metadata"]["namespace"] for r in of_kind(objects, "Role") if r not in leases}
    assert roles == set(settings.namespaces)


def test_every_setting_that_a_user_writes_arrives(tmp_path: Path) -> None:
    settings = settings_of(with_values("volta"), tmp_path)
    assert settings.default_pool == "volta"
    assert settings.pools.volta.precision_default == "fp16"
    assert [t.key for t in settings.pools.volta.tolerations] == ["nvidia.com/gpu", "dedicated"]
    assert settings.pools.volta.affinity == OperatorSettings().pools.volta.affinity
    assert settings.images.cpu.pipeline == "registry.example/itrain/pipeline:0.1.0-cpu"
    assert settings.default_resources.training.requests == {"cpu": 8, "memory": "64Gi"}


def test_large_numbers_stay_numbers(tmp_path: Path) -> None:
    user = 1_000_680_000
    objects = render(extra={"settings": {"podSecurity": {"runAsUser": user}, "apiQps": 0.5}})
    settings = settings_of(objects, tmp_path)
    assert (settings.pod_security.run_as_user, settings.api_qps) == (user, 0.5)


def test_a_changed_setting_restarts_the_operator() -> None:
    def template(values: Object) -> Object:
        return the(render(extra=values), "Deployment")["spec"]["template"]

    assert template({}) == template({"metrics": {"dashboard": {"enabled": True}}})
    assert template({}) != template({"settings": {"workers": 9}})


def test_the_pod_knows_itself() -> None:
    (pod,) = pod_specs(with_values("default"))
    env = {v["name"]: v for v in pod["containers"][0]["env"]}
    assert env[ENV_NAMESPACE]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace"
    assert env[ENV_POD_UID]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.uid"
    assert pod["enableServiceLinks"] is False


def test_every_pod_is_restricted_and_cannot_write_its_root(objects: list[Object]) -> None:
    (pod,) = pod_specs(objects)
    assert violations(pod) == []
    assert all(c["securityContext"]["readOnlyRootFilesystem"] for c in pod["containers"])
    assert all(c["resources"]["requests"] and c["resources"]["limits"] for c in pod["containers"])


def test_nothing_secret_is_in_it(objects: list[Object]) -> None:
    assert of_kind(objects, "Secret") == []
    for role in [*of_kind(objects, "Role"), *of_kind(objects, "ClusterRole")]:
        for rule in role["rules"]:
            assert not {"secrets", "*"} & {*rule["resources"], *rule["apiGroups"], *rule["verbs"]}


def test_selectors_find_the_pods_and_nothing_else_changes_them(objects: list[Object]) -> None:
    (deployment,) = of_kind(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]["matchLabels"]]
    selectors += [found["spec"]["selector"] for found in of_kind(objects, "Service")]
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        selectors += [found["spec"]["selector"]["matchLabels"] for found in of_kind(objects, kind)]
    selectors += [found["spec"]["podSelector"]["matchLabels"] for found in of_kind(objects, "NetworkPolicy")]
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert all(selector == selectors[0] for selector in selectors)
    for monitor in of_kind(objects, "ServiceMonitor"):
        (service,) = of_kind(objects, "Service")
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


# What the schema refuses -----------------------------------------------------------------------------------------

REFUSED: list[tuple[Object, str]] = [
    ({"image": {"repository": ""}}, 'image.repository: got ""'),
    ({"replica": 3}, "'replica'"),
    ({"replicas": "two"}, "/replicas"),
    ({"replicas": -1}, "/replicas"),
    ({"image": {"digest": "latest"}}, "/image/digest"),
    ({"image": {"repository": "itrain/operator:1.0"}}, "/image/repository"),
    ({"logLevel": "trace"}, "/logLevel"),
    ({"crds": {"keep": "yes"}}, "/crds/keep"),
    ({"crds": {"install": True}}, "'install'"),
    ({"podSecurity": {"runAsUser": 0}}, "/podSecurity/runAsUser"),
    ({"extraEnv": [{"name": "ITRAIN_WORKERS", "value": "3"}]}, "/extraEnv/0/name"),
    ({"tolerations": [{"key": "gpu", "effect": "NoScedule"}]}, "/tolerations/0/effect"),
    ({"metrics": {"serviceMonitor": {"interval": "30"}}}, "/metrics/serviceMonitor/interval"),
    ({"networkPolicy": {"apiServerPorts": [70000]}}, "/networkPolicy/apiServerPorts/0"),
    ({"settings": {"worker": 3}}, "'worker'"),
    ({"settings": {"workers": 0}}, "/settings/workers"),
    ({"settings": {"defaultPool": "hopper"}}, "/settings/defaultPool"),
    ({"settings": {"pools": {"hopper": {}}}}, "'hopper'"),
    ({"settings": {"namespaces": ["Team A"]}}, "/settings/namespaces/0"),
    ({"settings": {"images": {"current": {"trainer": 5}}}}, "/settings/images/current/trainer"),
    ({"settings": {"lease": {"durationSeconds": 60}}}, "/settings/lease/durationSeconds"),
    ({"settings": {"healthPort": 9090}}, "settings.metricsPort: got 9090"),
]


@pytest.mark.parametrize(("values", "named"), REFUSED, ids=[json.dumps(values) for values, _ in REFUSED])
def test_a_wrong_value_is_refused_by_its_name(values: Object, named: str) -> None:
    with pytest.raises(ChartError, match=re.escape(named)):
        render(extra=values)


def test_every_value_is_in_the_schema_and_every_object_of_it_is_closed() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def undocumented(value: Any, below: Object, path: str) -> list[str]:
        if not isinstance(value, dict) or "properties" not in below or path == ".affinity":
            return []  # affinity is empty by default: its fields are Kubernetes'
        assert below["additionalProperties"] is False, path
        missing = [f"{path}.{name}" for name in below["properties"] if name not in value]
        deeper = [undocumented(value[n], s, f"{path}.{n}") for n, s in below["properties"].items() if n in value]
        return missing + [text for texts in deeper for text in texts]

    del schema["properties"]["settings"], schema["properties"]["global"]
    assert undocumented(values, schema, "") == []


# Metrics ---------------------------------------------------------------------------------------------------------


def exposed() -> dict[str, set[str]]:
    """Every series of the operator with its labels, as its own registry writes them down."""
    metrics = Metrics(phases=dict, queue_depth=float, resync_age_s=float, leading=float)
    for labelled in (metrics.stage_seconds, metrics.retries, metrics.gpu_seconds):
        labelled.labels(stage="train")
    metrics.pass_seconds.labels(result="ok")
    metrics.errors.labels(kind="ApiError")
    metrics.request("GET", "200")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> dict[str, str]:
    """Every PromQL expression that the chart ships, by the alert or panel that it belongs to."""
    objects = with_values("monitoring")
    rules = [rule for group in the(objects, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
    dashboard = json.loads(the(objects, "ConfigMap", "itrain-dashboard")["data"]["itrain.json"])
    found = {rule["alert"]: rule["expr"] for rule in rules}
    for panel in dashboard["panels"]:
        found |= {f"{panel['title']} {t['refId']}": t["expr"] for t in panel["targets"]}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found[variable["name"]] = variable["query"]
    return found


def test_alerts_and_panels_ask_for_metrics_that_the_operator_has() -> None:
    known = exposed()
    asked = {name: set(METRIC.findall(text)) for name, text in expressions().items()}
    assert all(asked.values())
    assert {name: series - set(known) for name, series in asked.items() if series - set(known)} == {}


def test_alerts_and_panels_group_by_labels_that_the_metrics_have() -> None:
    known = exposed()
    for name, text in expressions().items():
        named = {label.strip() for group in GROUPED.findall(text) for label in group.split(",")}
        named |= set(SELECTED.findall(text))
        has = set().union(*(known[series] for series in METRIC.findall(text)))
        assert named <= has | GIVEN_BY_PROMETHEUS, name


def test_the_dashboard_shows_every_metric() -> None:
    shown = {series for text in expressions().values() for series in METRIC.findall(text)}
    families = {re.sub(r"_(bucket|sum|count|created|total)$", "", series) for series in exposed()}
    assert families - {re.sub(r"_(bucket|total)$", "", series) for series in shown} == set()


def test_alert_labels_reach_every_alert() -> None:
    (group,) = the(with_values("monitoring"), "PrometheusRule")["spec"]["groups"]
    assert all(rule["labels"]["team"] == "platform" for rule in group["rules"])
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"]) >= 6


# What people read ------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs/installing.md").read_text(encoding="utf-8")
SHOWN_VALUES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("shown", SHOWN_VALUES)
def test_values_that_the_page_shows_are_ones_that_the_chart_takes(shown: str, tmp_path: Path) -> None:
    objects = render(extra=yaml.safe_load(shown))
    assert settings_of(objects, tmp_path).images.volta.trainer is not None or of_kind(objects, "ClusterRole") == []


def test_notes_name_what_is_missing_and_the_next_command() -> None:
    bare, complete = notes(CHART / "ci/default-values.yaml"), notes(CHART / "ci/volta-values.yaml")
    for text in (bare, complete):
        assert "kubectl -n itrain-system rollout status deployment/itrain\n" in text
    assert "settings.images.current.trainer" in bare
    assert "settings.images" not in complete
    assert "kubectl apply -f run.yaml" in complete
    assert "watches the namespaces team-a, team-b." in notes(CHART / "ci/namespaced-values.yaml")
