"""The one merge of a run: adapter into base in fp32, gated on the difference of logits (method document, section 4).

What is measured is what is written: where the weights are stored in half precision, their rounded values are compared
with the unmerged fp32 form. A form that fails the gate is not written; fp32 is tried after the base model's own type.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itrain_pipeline.errors import ConfigError, PermanentError

if TYPE_CHECKING:
    import torch

PROBE_POSITIONS = 64
"""Last positions of a probe row whose logits are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """`max_difference` and `mean_difference` are of |Δlogit| over all probe positions.

    `refused` holds the largest difference of each storage type that failed the gate before this one.
    """

    dtype: str
    max_difference: float
    mean_difference: float
    probe_rows: int
    probe_positions: int
    same_greedy: float
    """Share of probe positions with the same most likely next token."""
    refused: Mapping[str, float] = field(default_factory=dict)


def merge_adapter(
    model_dir: Path,
    adapter_dir: Path,
    out: Path,
    *,
    probes: Sequence[Sequence[int]],
    max_difference: float,
    trust_remote_code: bool = False,
) -> MergeReport:
    """Write the merged model, its tokenizer and its generation configuration to `out` as safetensors.

    `probes` are token ids of whole rows (prompt and answer); a row longer than the model's context is cut on the left.
    Raises ConfigError without a probe, PermanentError with the figures when no form stays within `max_difference`.
    """
    if not any(probes):
        raise ConfigError("the merge needs at least one probe row to be checked on")
    refused: dict[str, float] = {}
    for dtype in storage_dtypes(model_dir):
        model, report = _merge(model_dir, adapter_dir, dtype, probes, trust_remote_code)
        if report.max_difference <= max_difference:
            _write(model, model_dir, out, dtype, trust_remote_code)
            return dataclasses.replace(report, refused=refused)
        refused[dtype] = report.max_difference
    figures = ", ".join(f"{difference:.4g} stored as {dtype}" for dtype, difference in refused.items())
    raise PermanentError(
        f"the merged model's logits differ from the adapter's by up to {figures}; allowed is {max_difference:g} "
        "(stages.export.maxLogitDifference). Raise the limit, or set stages.export.merge: false"
    )


def storage_dtypes(model_dir: Path) -> tuple[str, ...]:
    """Types to store the merged weights in, in order: the base model's own, then fp32 as the exact form."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    own = config.get("dtype") or config.get("torch_dtype") or "float32"
    return ("float32",) if own not in ("float16", "bfloat16") else (own, "float32")


def _merge(
    model_dir: Path, adapter_dir: Path, dtype: str, probes: Sequence[Sequence[int]], trust_remote_code: bool
) -> tuple[Any, MergeReport]:
    """The merged model, weights rounded to `dtype` but held in fp32, and its distance from the unmerged form."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(
        str(model_dir),
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
    )
    model = peft.PeftModel.from_pretrained(base, str(adapter_dir), torch_device="cpu").eval()
    limit = int(base.config.get_text_config().max_position_embeddings)
    rows = [list(ids)[-limit:] for ids in probes if ids]
    reference = [probe_logits(model, ids) for ids in rows]
    merged = model.merge_and_unload(safe_merge=True).eval()
    with torch.no_grad():
        for tensor in merged.state_dict().values():  # what is stored: rotary tables, for one, are not
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(getattr(torch, dtype)))
    largest, total, count, same, positions = 0.0, 0.0, 0, 0, 0
    for ids, before in zip(rows, reference, strict=True):
        after = probe_logits(merged, ids)
        difference = (after - before).abs()
        if not bool(torch.isfinite(difference).all()):
            raise PermanentError(f"the model's logits are not finite, stored as {dtype}: the weights are damaged")
        largest = max(largest, float(difference.max()))
        total, count = total + float(difference.sum(dtype=torch.float64)), count + difference.numel()
        same += int((after.argmax(-1) == before.argmax(-1)).sum())
        positions += len(after)
    report = MergeReport(
        dtype=dtype,
        max_difference=largest,
        mean_difference=total / count,
        probe_rows=len(rows),
        probe_positions=positions,
        same_greedy=same / positions,
    )
    return merged, report


def probe_logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits [positions, vocabulary] of the last positions of one row, in fp32."""
    import torch

    with torch.inference_mode():
        keep = min(PROBE_POSITIONS, len(ids))
        logits: torch.Tensor = model(input_ids=torch.tensor([list(ids)]), logits_to_keep=keep).logits
        return logits[0, -keep:].float()


def _write(model: Any, model_dir: Path, out: Path, dtype: str, trust_remote_code: bool) -> None:
    """Everything that `from_pretrained` reads; the tokenizer and its chat template as the base model has them."""
    import torch
    from transformers import AutoTokenizer

    model.to(getattr(torch, dtype))
    model.config.dtype = dtype
    model.save_pretrained(str(out), safe_serialization=True)
    tokenizer = AutoTokenizer.from_pretrained(
        str(model_dir), local_files_only=True, trust_remote_code=trust_remote_code
    )
    tokenizer.save_pretrained(str(out))
