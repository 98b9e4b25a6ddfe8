"""Model folders and adapters whose author means harm: code, pickles, links, templates, headers that lie."""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from itrain_contract.spec import DataSpec, ModelSpec, ResumeFrom
from itrain_contract.stageio import ArtifactRef, StageResult
from itrain_contract.stages import StageKind
from itrain_pipeline.data import rendering
from itrain_pipeline.data.rendering import Renderer
from itrain_pipeline.errors import ConfigError, DataError
from itrain_pipeline.files import sha256_file
from itrain_pipeline.learn.loading import load_model
from itrain_pipeline.loraconfig import check_foreign_adapter, tensor_shapes
from itrain_pipeline.stages.modelfiles import Model, check_weights, find_model, stage_model
from itrain_pipeline.stages.prepare import load_renderer
from itrain_pipeline.stages.resume import find_adapter
from itrain_pipeline.store import open_store
from itrain_testing.tiny_model import build_tokenizer, write_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def find(folder: Path, **spec: Any) -> Model:
    store = open_store(f"file://{folder.parent}/storage")
    return find_model(ModelSpec(uri=str(folder), **spec), store, folder.parent / "scratch")


def change(folder: Path, name: str, **fields: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_pickles_and_code_are_neither_staged_nor_run(model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Config: pass\nclass Tok: pass\n"
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt", "optimizer.pth", "last.ckpt"):
        (model / name).write_bytes(pickle.dumps(Payload()))
    for name in (
        "modeling_evil.py",
        "configuration_evil.py",
        "tokenization_evil.py",
        "__init__.py",
        "sitecustomize.py",
    ):
        (model / name).write_text(code)
    change(
        model, "config.json", auto_map={"AutoConfig": "configuration_evil.Config", "AutoModel": "modeling_evil.Config"}
    )
    change(model, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Tok", None]})
    found = find(model)
    assert not [name for name in found.files if name.endswith((".py", ".bin", ".pt", ".pth", ".ckpt"))]
    check_weights(found)
    with contextlib.suppress(ConfigError):  # the tokenizer of this class, or that it cannot be loaded without code
        load_renderer(found, ModelSpec(uri=str(model)), DataSpec(uri="/rows"))
    with pytest.raises(ConfigError, match="names code of its own"):
        load_model(model, precision="fp32")
    (model / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="pickled"):
        find(model)
    assert not mark.exists()


def test_a_link_out_of_a_model_is_not_staged(model: Path, tmp_path: Path) -> None:
    """Before, `prepare` copied what it led to into the storage: a Secret of the pod, for one."""
    secret = tmp_path / "AWS_SECRET_ACCESS_KEY"
    secret.write_text("planted")
    (model / "vocab.txt").symlink_to(secret)
    with pytest.raises(ConfigError, match=r"vocab\.txt is a link out of the folder"):
        find(model)
    (model / "vocab.txt").unlink()
    (model / "vocab.txt").symlink_to("config.json")
    assert "vocab.txt" in find(model).files


def test_names_that_lead_elsewhere_in_a_storage_are_left_out(model: Path, tmp_path: Path) -> None:
    for name in (
        "%2e%2e%2f%2e%2e%2fup.json",
        "a b\\c.json",
        ".hidden.json",
        "staged.json",
        "x\n.txt",
        "ü.json",
        "-rf (1).txt",
    ):
        (model / name).write_text("{}")
    found = find(model)
    assert set(found.files) == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} | {
        name for name in ("tokenizer_config.json", "chat_template.jinja") if (model / name).is_file()
    }
    prefix = f"file://{tmp_path}/storage/run-1/model/abc/"
    staged = stage_model(found, prefix, open_store(f"file://{tmp_path}/storage"))
    assert {name.removeprefix("model/") for name in staged} == set(found.files)
    assert not list(tmp_path.rglob("up.json"))


@pytest.mark.parametrize("text", ["[]", "null", "1", "{", "[" * 100_000, '{"a":' * 100_000, "\ud800"])
def test_a_configuration_that_is_none_is_named(text: str, model: Path) -> None:
    (model / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=r"config\.json is"):
        find(model)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "[" * 100_000, '{"version": "1.0", "model": {"type": "Evil"}}', "\x00" * 100]
)
def test_a_tokenizer_that_is_none_is_named(text: str, model: Path) -> None:
    (model / "tokenizer.json").write_text(text)
    with pytest.raises(ConfigError, match="its tokenizer cannot be loaded"):
        load_renderer(find(model), ModelSpec(uri=str(model)), DataSpec(uri="/rows"))


HEADERS: dict[str, bytes] = {
    "no header": b"",
    "a header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "a header of all memory": struct.pack("<Q", (1 << 64) - 1),
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "nested": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "a tensor behind the end": b'{"a": {"dtype": "F32", "shape": [1024], "data_offsets": [0, 4096]}}',
    "a tensor of another size": b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}',
    "a size that overflows": b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}}',
    "two tensors in one place": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
    b'"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    "offsets that run backwards": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_weights_whose_header_lies_are_refused_before_a_gpu_is_asked_for(name: str, model: Path) -> None:
    header = HEADERS[name]
    framed = header if not header.startswith(b"{") else struct.pack("<Q", len(header)) + header + b"\0" * 4
    (model / "model.safetensors").write_bytes(framed)
    with pytest.raises(DataError, match=r"model\.safetensors is no whole safetensors file"):
        check_weights(find(model))


# Chat templates ------------------------------------------------------------------------------------------------------

TEMPLATES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "code": "{{ cycler.__init__.__globals__.os.system('touch %s') }}",
    "import": "{% import 'os' as os %}{{ os.system('touch %s') }}",
    "include": "{% include '/etc/passwd' %}",
    "format": "{{ '{0.__class__}'.format(messages) }}{{ messages.append(1) }}",
    "division": "{{ 1 / 0 }}",
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "syntax": "{% for %}",
    "raise": "{{ raise_exception('no') }}",
    "type": "{{ messages + 1 }}",
}


def tokenizer_with(template: str) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_leaves_its_sandbox_or_fails_is_a_configuration_error(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    with pytest.raises(ConfigError, match="the chat template"):
        Renderer(tokenizer_with(TEMPLATES[name].replace("%s", str(mark))))
    assert not mark.exists()


@pytest.mark.timeout(120)
def test_a_template_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "TEMPLATE_SECONDS", 1.0)
    loop = "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4
    started = time.monotonic()
    with pytest.raises(ConfigError, match="TimeLimitError: longer than 1 s"):
        Renderer(tokenizer_with(loop))
    assert time.monotonic() - started < 20


# Adapters ------------------------------------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}


def adapter(folder: Path, shape: tuple[int, ...] = (4, 8), **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **config}))
    weights = {
        "q_proj.lora_A.weight": np.zeros(shape, np.float32),
        "q_proj.lora_B.weight": np.zeros((8, 4), np.float32),
    }
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    "config",
    [
        *({"r": rank} for rank in (0, -1, 10**9, "4", 4.0, True, None, [])),
        *({"rank_pattern": pattern} for pattern in ({"q": 10**12}, [1], "x", {"(a+)+$": 4})),
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"auto_mapping": {"base_model_class": "X", "parent_library": "os"}},
        {"target_modules": "(a+)+$"},
        {"target_modules": {"a": 1}},
        {"target_modules": None},
        {"layers_pattern": "(a+)+$"},
        {"layer_replication": [[0, 10**6]]},
        {"init_lora_weights": "pissa"},
        {"loftq_config": {"loftq_bits": 4}},
        {"trainable_token_indices": [1]},
        {"modules_to_save": ["lm_head"]},
        {"use_dora": True},
        {"bias": "all"},
        {"peft_type": "PREFIX_TUNING"},
        {"peft_type": ["LORA"]},
        {"unheard_of": "x"},
    ],
)
def test_an_adapter_from_elsewhere_is_a_plain_lora(config: dict[str, Any], tmp_path: Path) -> None:
    check_foreign_adapter(adapter(tmp_path / "fine"))
    with pytest.raises(DataError, match=r"adapter_config\.json"):
        check_foreign_adapter(adapter(tmp_path / "adapter", **config))


def test_an_adapter_has_the_shapes_of_its_rank_and_a_file_that_is_whole(tmp_path: Path) -> None:
    for shape in ((5, 8), (4,), (1_000_000, 1), (4, 1, 1)):
        with pytest.raises(DataError, match="has shape"):
            check_foreign_adapter(adapter(tmp_path / "adapter", shape))
    folder = adapter(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(DataError, match="no whole safetensors file"):
        check_foreign_adapter(folder)
    for text in ("[]", "null", "{", "[" * 100_000):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(DataError, match=r"adapter_config\.json is"):
            check_foreign_adapter(folder)


@pytest.mark.parametrize("name", ["../../escaped.py", "/escaped.py", "../escaped.safetensors"])
def test_a_foreign_run_cannot_write_beside_its_adapter(name: str, tmp_path: Path) -> None:
    """Before, `resumeFrom` wrote whatever a foreign result.json named, to wherever it named."""
    run = tmp_path / "foreign/run-abc/i0/warmup/a1"
    payload = run / "payload"
    folder = adapter(run / "adapter")
    payload.write_text("print('owned')")

    def ref(path: Path) -> ArtifactRef:
        return ArtifactRef(uri=f"file://{path}", sha256=sha256_file(path), size_bytes=path.stat().st_size)

    outputs = {f"adapter/{path.name}": ref(path) for path in folder.iterdir()} | {f"adapter/{name}": ref(payload)}
    result = StageResult(kind=StageKind.WARMUP, iteration=0, attempt=1, digest="d" * 64, outputs=outputs)
    (run / "result.json").write_text(result.model_dump_json(by_alias=True))
    scratch = tmp_path / "scratch/deep/er"
    store = open_store(f"file://{tmp_path}/storage")
    origin = ResumeFrom(uri=f"file://{tmp_path}/foreign/run-abc")
    taken = find_adapter(origin, f"file://{tmp_path}/storage", "rev", store, scratch)
    assert sorted(path.name for path in taken.folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert not list(tmp_path.rglob("escaped*"))
    assert tensor_shapes(taken.folder / "adapter_model.safetensors")["q_proj.lora_A.weight"] == [4, 8]
