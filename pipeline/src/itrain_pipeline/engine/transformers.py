"""The engine on transformers: one Hugging Face causal language model on CPU or GPU, PEFT adapters by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from itrain_pipeline.engine.adapters import check_servable
from itrain_pipeline.engine.batching import BatchingEngine
from itrain_pipeline.engine.devices import choose_dtype, cuda_capability
from itrain_pipeline.engine.kvcache import DecodeView, KvSlab, PrefillView
from itrain_pipeline.errors import ConfigError

if TYPE_CHECKING:
    import torch

CPU_BATCH_TOKENS = 32_768
GPU_MEMORY_SHARE = 0.35
"""Share of the free GPU memory for the rows being decoded; as much again holds known prefixes."""


class ModelRunner:
    """One model, its adapters and the slab: prefill one row, decode one token in many."""

    def __init__(self, model: Any, *, max_model_len: int) -> None:
        import torch

        config = model.config.get_text_config()
        self._model: Any = model
        self._peft: Any = None
        self._device: torch.device = model.device
        self.max_model_len = max_model_len
        self.vocabulary_size = int(config.vocab_size)
        self.eos_token_ids = eos_token_ids(model.generation_config, model.config)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.token_bytes = 2 * config.num_hidden_layers * heads * dim * model.dtype.itemsize
        self.slab = KvSlab(
            layers=config.num_hidden_layers, heads=heads, dim=dim, dtype=model.dtype, device=self._device
        )
        self._inference = torch.inference_mode

    def prefill(self, tokens: Sequence[int], *, row: int, start: int) -> torch.Tensor:
        """Compute `tokens`, which stand at positions start… of a row whose earlier ones are known. Logits [V]."""
        import torch

        stop = start + len(tokens)
        with self._inference():
            positions_1T = torch.arange(start, stop, device=self._device)[None]
            mask_11TL = torch.arange(stop, device=self._device)[None, :] <= positions_1T[0, :, None]
            out = self._model(
                input_ids=torch.tensor([tokens], device=self._device),
                position_ids=positions_1T,
                attention_mask=mask_11TL[None, None],
                past_key_values=PrefillView(self.slab, row, start, stop),
                use_cache=True,
                logits_to_keep=1,
            )
            return out.logits[0, -1]

    def decode(self, tokens_B: list[int], positions_B: list[int]) -> torch.Tensor:
        """One step for rows 0 … B-1, whose newest tokens stand at `positions_B`. Logits [B, V]."""
        import torch

        width = max(positions_B) + 1
        with self._inference():
            positions = torch.tensor(positions_B, device=self._device)
            mask_BL = torch.arange(width, device=self._device)[None, :] <= positions[:, None]
            rows = torch.arange(len(tokens_B), device=self._device)
            out = self._model(
                input_ids=torch.tensor(tokens_B, device=self._device)[:, None],
                position_ids=positions[:, None],
                attention_mask=mask_BL[:, None, None],
                past_key_values=DecodeView(self.slab, rows, positions, width),
                use_cache=True,
                logits_to_keep=1,
            )
            return out.logits[:, -1]

    def load_adapter(self, name: str, folder: Path | None) -> None:
        """Switch to a PEFT LoRA folder, or to the bare model for None. The adapter before it is dropped."""
        if folder is None:
            if self._peft is not None:
                self._peft.base_model.disable_adapter_layers()
            return
        import peft

        check_servable(folder)
        if self._peft is None:
            self._peft = peft.PeftModel.from_pretrained(self._model, str(folder), adapter_name=name)
        else:
            old = self._peft.active_adapter
            self._peft.load_adapter(str(folder), adapter_name=name)
            self._peft.set_adapter(name)
            self._peft.delete_adapter(old)
            self._peft.base_model.enable_adapter_layers()
        self._peft.eval()


def open_transformers_engine(
    model_dir: Path, *, dtype: str, max_batch_tokens: int, max_model_len: int, trust_remote_code: bool
) -> BatchingEngine:
    """Load a model folder. 0 for `max_batch_tokens` or `max_model_len` takes what memory or the model allows."""
    import torch
    import transformers

    capability = cuda_capability()
    device = torch.device("cpu" if capability is None else "cuda")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(model_dir),
        dtype=getattr(torch, choose_dtype(dtype, capability)),
        attn_implementation="sdpa",
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
    )
    model = model.to(device).eval().requires_grad_(False)
    limit = _context_limit(model.config.get_text_config())
    if max_model_len > limit:
        raise ConfigError(f"max_model_len {max_model_len} exceeds the model's context of {limit}")
    runner = ModelRunner(model, max_model_len=max_model_len or limit)
    tokens = max_batch_tokens or _batch_tokens(runner, device)
    return BatchingEngine(runner, max_batch_tokens=tokens, prefix_cache_tokens=tokens)


def _context_limit(config: Any) -> int:
    """Positions the model was built for; a model with windows or recurrent layers only within its first window."""
    limit = int(config.max_position_embeddings)
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layers <= {"full_attention"}:
        return limit
    if layers <= {"full_attention", "sliding_attention"}:
        return min(limit, int(config.sliding_window))  # within one window, sliding attention is full attention
    raise ConfigError(f"the transformers engine serves attention layers only, the model has {sorted(layers)}")


def eos_token_ids(generation_config: Any, config: Any) -> tuple[int, ...]:
    """What ends an answer where the request names nothing: the generation config's ids, else the model's."""
    eos = generation_config.eos_token_id if generation_config else None
    eos = config.eos_token_id if eos is None else eos
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)


def _batch_tokens(runner: ModelRunner, device: torch.device) -> int:
    import torch

    if device.type == "cpu":
        return CPU_BATCH_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    return max(int(free * GPU_MEMORY_SHARE) // runner.token_bytes, runner.max_model_len)
