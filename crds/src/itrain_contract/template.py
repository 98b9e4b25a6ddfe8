"""Pod settings of a run and of a stage: where pods run and what they carry. Merged stage over run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from itrain_contract.base import Rule, SpecModel

Name = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=316)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]
Text = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
Quantity = Annotated[
    int | str,
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]

Pool = Literal["volta", "current", "cpu"]


class SecretRef(SpecModel):
    """A Secret in the run's own namespace."""

    name: Name
    """Of the Secret."""


class Resources(SpecModel):
    """Requests and limits of the stage's container; `nvidia.com/gpu` comes from `gpus`."""

    requests: Annotated[dict[LabelKey, Quantity], Field(max_length=16)] = {}
    """What the scheduler keeps free, as in `{cpu: 4, memory: 32Gi}`."""
    limits: Annotated[dict[LabelKey, Quantity], Field(max_length=16)] = {}
    """What the container may use, as in `{memory: 48Gi}`."""


class Toleration(SpecModel):
    key: Annotated[str, StringConstraints(max_length=316)] | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Annotated[int, Field(ge=0, le=604800)] | None = None


class SelectorRequirement(SpecModel):
    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: Annotated[list[LabelValue], Field(max_length=64)] = []


class NodeSelectorTerm(SpecModel):
    match_expressions: Annotated[list[SelectorRequirement], Field(min_length=1, max_length=16)]


class RequiredNodes(SpecModel):
    node_selector_terms: Annotated[list[NodeSelectorTerm], Field(min_length=1, max_length=8)]


class PreferredNodes(SpecModel):
    weight: Annotated[int, Field(ge=1, le=100)]
    preference: NodeSelectorTerm


class NodeAffinity(SpecModel):
    required_during_scheduling_ignored_during_execution: RequiredNodes | None = None
    preferred_during_scheduling_ignored_during_execution: Annotated[list[PreferredNodes], Field(max_length=8)] = []


class LabelSelector(SpecModel):
    match_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = {}


class PodAffinityTerm(SpecModel):
    topology_key: LabelKey
    label_selector: LabelSelector


class PreferredPods(SpecModel):
    weight: Annotated[int, Field(ge=1, le=100)]
    pod_affinity_term: PodAffinityTerm


class PodAffinity(SpecModel):
    required_during_scheduling_ignored_during_execution: Annotated[list[PodAffinityTerm], Field(max_length=8)] = []
    preferred_during_scheduling_ignored_during_execution: Annotated[list[PreferredPods], Field(max_length=8)] = []


class Affinity(SpecModel):
    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


class EnvVar(SpecModel):
    """A literal environment variable. Credentials come by `secretRef`, never as a value here."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: Text = ""


class Template(SpecModel):
    """What the pods of a run, or of one stage, ask of the cluster."""

    node_pool: Pool | None = None
    """Image set, precision default and scheduling preset, from the operator's configuration."""
    service_account_name: Name | None = None
    """Whom the pods are to the cloud; its token is never mounted."""
    image_pull_secrets: Annotated[list[SecretRef], Field(max_length=8)] = []
    """Secrets with which the images are pulled."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = []
    """Variables of the stages, as in `[{name: NCCL_DEBUG, value: INFO}]`; no credentials."""
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] = {}
    """Labels that a node must have, as in `{nvidia.com/gpu.product: Tesla-V100-SXM2-32GB}`."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Taints that the pods tolerate, beside those of the node pool."""
    affinity: Affinity | None = None
    """Nodes and neighbours that the pods need or prefer."""
    priority_class_name: Name | None = None
    """PriorityClass of the pods."""
    runtime_class_name: Name | None = None
    """RuntimeClass of the pods, as in `nvidia`."""
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] = {}
    """Further labels of the pods."""
    annotations: Annotated[dict[LabelKey, Text], Field(max_length=32)] = {}
    """Further annotations of the pods."""

    RULES = (
        Rule(
            cel="!has(self.labels) || self.labels.all(k, !k.startsWith('itrain.dev/'))",
            message="labels may not use the prefix itrain.dev/: it belongs to the operator",
            holds=lambda t: not any(key.startswith("itrain.dev/") for key in t.labels),
            field="labels",
        ),
    )


def merge_templates(run: Template | None, stage: Template | None) -> Template:
    """The stage's template over the run's: scalars replace, maps merge by key, lists replace when not empty."""
    if run is None or stage is None:
        return stage or run or Template()
    merged: dict[str, object] = {}
    for name in Template.model_fields:
        low, high = getattr(run, name), getattr(stage, name)
        if isinstance(low, dict):
            merged[name] = {**low, **high}
        else:
            merged[name] = high if high not in (None, []) else low
    return Template.model_validate(merged)
