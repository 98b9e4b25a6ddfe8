"""Which number format an engine computes in, from plain facts (method document, "Precision and hardware")."""

from __future__ import annotations

from itrain_pipeline.errors import ConfigError

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Our names and torch's."""
AMPERE = (8, 0)
"""The first compute capability with bf16."""


def choose_dtype(name: str, capability: tuple[int, int] | None) -> str:
    """torch's name of a number format. `capability` is CUDA's (sm_70 is (7, 0)), None on a CPU.

    `auto` is float32 on a CPU, float16 before Ampere and bfloat16 from there on. Raises ConfigError for a name that is
    unknown, and for bf16 on a GPU that has none: it would be emulated, several times slower.
    """
    if name == "auto":
        if capability is None:
            return DTYPES["fp32"]
        return DTYPES["bf16" if capability >= AMPERE else "fp16"]
    if name not in DTYPES:
        raise ConfigError(f"precision {name!r} is unknown, allowed are auto, {', '.join(DTYPES)}")
    if name == "bf16" and capability is not None and capability < AMPERE:
        raise ConfigError(f"precision bf16 on a GPU of capability {capability[0]}.{capability[1]}: allowed is fp16")
    return DTYPES[name]


def has_code_for(arch_list: list[str], capability: tuple[int, int]) -> bool:
    """Whether binaries (`sm_90`: same major, no newer minor) or PTX (`compute_90`: not newer) run on the device."""
    major, minor = capability
    for arch in arch_list:
        kind, _, digits = arch.partition("_")
        number = int(digits.rstrip("af"))
        if kind == "sm" and number // 10 == major and number % 10 <= minor:
            return True
        if kind == "compute" and number <= 10 * major + minor:
            return True
    return False


def cuda_capability() -> tuple[int, int] | None:
    """The compute capability of the GPU that this process uses, None where there is none.

    Raises ConfigError when the installed torch has no code for it: now, rather than when the first kernel fails.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    capability = torch.cuda.get_device_capability()
    if not has_code_for(torch.cuda.get_arch_list(), capability):
        raise ConfigError(
            f"the GPU has compute capability {capability[0]}.{capability[1]}, for which the installed torch"
            f" {torch.__version__} has no code: use an image made for it"
        )
    return capability
