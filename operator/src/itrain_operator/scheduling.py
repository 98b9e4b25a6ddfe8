"""Where a stage's pods run and what they ask for: pool preset, run template, stage template, resources. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from itrain_contract.spec import ITrainRunSpec
from itrain_contract.stages import StageKind, stage_spec
from itrain_contract.template import Pool, Resources, Template, merge_templates
from itrain_operator.settings import OperatorSettings, PoolPreset

GPU_RESOURCE = "nvidia.com/gpu"
SCHEDULING_FIELDS = (
    "serviceAccountName",
    "imagePullSecrets",
    "priorityClassName",
    "runtimeClassName",
    "nodeSelector",
    "tolerations",
    "affinity",
)
CPU_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(m?)$")


class ManifestError(ValueError):
    """A Job cannot be built: a setting or a field of the spec is missing or cannot hold in a cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Templates merged over the preset of the node pool."""

    pool: Pool
    preset: PoolPreset
    template: Template


def place(spec: ITrainRunSpec, kind: StageKind, settings: OperatorSettings) -> Placement:
    """The stage's template over the run's over the pool's preset.

    Tolerations add up (one more never keeps a pod away); env is merged by name where it is built.
    """
    block = stage_spec(spec, kind)
    asked = merge_templates(spec.template, block.template)
    pool = asked.node_pool or settings.default_pool
    preset = settings.pools.pool(pool)
    here = preset.applies_to == "allPods" or block.gpus > 0
    below = Template(
        node_selector=preset.node_selector if here else {},
        affinity=preset.affinity if here else None,
        runtime_class_name=preset.runtime_class_name if here else None,
        priority_class_name=preset.priority_class_name,
    )
    tolerations = [*preset.tolerations, *(t for t in asked.tolerations if t not in preset.tolerations)]
    merged = merge_templates(below, asked).model_copy(update={"tolerations": tolerations, "node_pool": pool})
    return Placement(pool=pool, preset=preset, template=merged)


def scheduling_fields(template: Template) -> dict[str, Any]:
    """The pod fields that a template decides; what it leaves open is absent."""
    dumped = template.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {name: dumped[name] for name in SCHEDULING_FIELDS if dumped.get(name)}


def stage_image(spec: ITrainRunSpec, kind: StageKind, pool: Pool, settings: OperatorSettings) -> str:
    """The stage's own image, or the pool's for the stage; ManifestError when there is neither."""
    own = stage_spec(spec, kind).image
    image_kind = settings.images.kind(kind)
    found = own or settings.images.pool(pool).image(image_kind)
    if not found:
        raise ManifestError(
            f"no image for {kind} on node pool {pool}: set stages.{kind}.image, or images.{pool}.{image_kind} in the "
            "operator's settings"
        )
    return found


def stage_resources(spec: ITrainRunSpec, kind: StageKind, settings: OperatorSettings) -> Resources:
    """Requests and limits of the container; GPUs come from `gpus` alone.

    A resource that the stage names, as a request or a limit, takes nothing from the defaults: a default request above
    the stage's limit would be refused.
    """
    block = stage_spec(spec, kind)
    own = block.resources or Resources()
    named = {*own.requests, *own.limits, GPU_RESOURCE}
    default = settings.default_resources.stage(kind)
    requests = {name: value for name, value in default.requests.items() if name not in named}
    limits = {name: value for name, value in default.limits.items() if name not in named}
    requests |= {name: value for name, value in own.requests.items() if name != GPU_RESOURCE}
    limits |= {name: value for name, value in own.limits.items() if name != GPU_RESOURCE}
    if block.gpus:
        requests[GPU_RESOURCE] = limits[GPU_RESOURCE] = str(block.gpus)
    return Resources(requests=requests, limits=limits)


def cpu_threads(resources: Resources, kind: StageKind) -> int | None:
    """Whole CPUs of the container, at least 1: its limit, else its request; None when it names neither."""
    quantity = resources.limits.get("cpu", resources.requests.get("cpu"))
    if quantity is None:
        return None
    found = CPU_QUANTITY.match(str(quantity))
    if found is None:
        raise ManifestError(f"stages.{kind}.resources: cpu is {quantity!r}, allowed are numbers as in 4, 0.5 and 500m")
    cpus = float(found.group(1)) / (1000 if found.group(2) else 1)
    return max(1, int(cpus))
