"""Which device computes in what, and what it refuses."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from itrain_pipeline.errors import ConfigError
from itrain_pipeline.learn.precision import Device, PrecisionName, choose_precision, detect_device
from itrain_testing.docs import ROOT

PAGE = ROOT / "docs/precision.md"
CPU = Device(kind="cpu")
VOLTA = Device(kind="cuda", capability=(7, 0), name="V100")
AMPERE = Device(kind="cuda", capability=(8, 0), name="A100")
HOPPER = Device(kind="cuda", capability=(9, 0), name="H100")


@pytest.mark.parametrize(("device", "expected"), [(CPU, "fp32"), (VOLTA, "fp16"), (AMPERE, "bf16"), (HOPPER, "bf16")])
def test_auto_picks_what_the_device_is_good_at(device: Device, expected: str) -> None:
    assert choose_precision("auto", device) == expected


def test_what_a_device_can_do_is_granted() -> None:
    assert choose_precision("fp32", VOLTA) == "fp32"
    assert choose_precision("fp16", HOPPER) == "fp16"
    assert choose_precision("bf16", CPU) == "bf16"


def test_fp16_on_a_cpu_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match="got fp16 on a CPU, allowed there are auto, fp32 and bf16"):
        choose_precision("fp16", CPU)


def test_bf16_on_volta_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"got bf16 on V100 \(sm_70\).*allowed are auto, fp16 and fp32"):
        choose_precision("bf16", VOLTA)


def test_this_machine_can_do_what_auto_picks_for_it() -> None:
    device = detect_device()
    assert choose_precision(choose_precision("auto", device), device) == choose_precision("auto", device)


def test_a_node_pool_may_prefer_another_precision_for_auto_on_its_gpus() -> None:
    hopper = Device(kind="cuda", capability=(9, 0), name="H100", preferred="fp16")
    assert choose_precision("auto", hopper) == "fp16"
    assert choose_precision("bf16", hopper) == "bf16"
    with pytest.raises(ConfigError, match="got bf16 on V100"):
        choose_precision("auto", Device(kind="cuda", capability=(7, 0), name="V100", preferred="bf16"))
    assert choose_precision("auto", Device(kind="cpu", preferred="fp16")) == "fp32"


def test_a_preference_that_is_no_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="ITRAIN_PRECISION_DEFAULT: got 'fp8', allowed are auto, fp16, bf16, fp32"):
        detect_device({"ITRAIN_PRECISION_DEFAULT": "fp8"})


def test_the_documentations_table_is_what_happens() -> None:
    """Every device with every precision, the messages word for word."""
    rows = re.findall(
        r"^\| (\S+)(?: \(sm_\d+\))? \| `(\w+)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )[1:]
    devices = {"CPU": CPU, "V100": VOLTA, "A100": AMPERE}
    assert {row[:2] for row in rows} == {(name, precision) for name in devices for precision in get_args(PrecisionName)}
    for name, precision, told in rows:
        try:
            found = choose_precision(precision, devices[name])
        except ConfigError as error:
            found = f"refused: {error}"
        assert found == told
