"""Model files: only safetensors, only what is needed, at one revision wherever they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from itrain_contract.spec import ModelSpec
from itrain_pipeline.data.hub import Snapshot
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.stages.modelfiles import Model, find_model, stage_model
from itrain_pipeline.store import open_store

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def model_folder(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or FILES:
        (folder / name).write_text("{}")
    return folder


def find(uri: str, tmp_path: Path, fetch: Any = None, **spec: Any) -> Model:
    more = {"fetch": fetch} if fetch else {}
    store = open_store(f"file://{tmp_path}/storage")
    return find_model(ModelSpec(uri=uri, **spec), store, tmp_path / "scratch", **more)


def test_the_revision_of_a_folder_is_its_content_not_its_place(tmp_path: Path) -> None:
    first = find(str(model_folder(tmp_path / "a")), tmp_path)
    second = find(f"file://{model_folder(tmp_path / 'b')}", tmp_path)
    assert first.revision == second.revision
    (tmp_path / "b" / "config.json").write_text('{"x": 1}')
    assert find(str(tmp_path / "b"), tmp_path).revision != first.revision


def test_only_what_a_model_needs_is_staged(tmp_path: Path) -> None:
    folder = model_folder(
        tmp_path / "a", *FILES, "README.md", "pytorch_model.bin", "modeling_x.py", "chat_template.jinja"
    )
    model_folder(folder / "original")
    assert set(find(str(folder), tmp_path).files) == {*FILES, "chat_template.jinja"}
    assert "modeling_x.py" in find(str(folder), tmp_path, trust_remote_code=True).files


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ("config.json", "pytorch_model.bin", "tokenizer.json"),
            "pickled (pytorch_model.bin), which can run code; convert",
        ),
        (("config.json", "tokenizer.json"), "there are no weights"),
        (("model.safetensors", "tokenizer.json"), "no config.json"),
        (("config.json", "model.safetensors"), "no tokenizer files"),
    ],
)
def test_what_is_no_usable_model_is_refused_with_the_remedy(
    names: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        find(str(model_folder(tmp_path / "a", *names)), tmp_path)
    assert reason in str(caught.value)


def test_missing_folders_and_unknown_builtins_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        find(str(tmp_path / "none"), tmp_path)
    with pytest.raises(ConfigError, match="the only built-in model is builtin://toolworld"):
        find("builtin://llama", tmp_path)


def test_a_hub_model_is_resolved_to_its_commit(tmp_path: Path) -> None:
    asked: list[Any] = []

    def fetch(*wanted: Any) -> Snapshot:
        asked.append(wanted)
        return Snapshot(folder=model_folder(tmp_path / "snap"), commit="c0ffee" * 6)

    assert find("hf://org/name", tmp_path, fetch, revision="v2").revision == "c0ffee" * 6
    assert asked[0][:3] == ("org/name", "model", "v2")
    assert "*.safetensors" in asked[0][3]
    assert not {"*.bin", "*.py"} & set(asked[0][3])


def test_a_model_in_a_store_is_found_below_its_prefix_and_weights_that_run_code_never_loaded(tmp_path: Path) -> None:
    class Bucket:
        files = {f"s3://b/m/{name}": b"{}" for name in FILES} | {"s3://b/m/x/config.json": b"", "s3://b/m/a.md": b""}

        def __init__(self) -> None:
            self.read: list[str] = []

        def list(self, prefix: str) -> list[str]:
            return sorted(self.files)

        def get_file(self, uri: str, path: Path) -> None:
            self.read.append(uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.files[uri])

    bucket: Any = Bucket()
    model = find_model(ModelSpec(uri="s3://b/m"), bucket, tmp_path / "scratch")
    assert set(model.files) == set(FILES)
    assert model.revision == find(str(model_folder(tmp_path / "a")), tmp_path).revision
    bucket.files = {"s3://b/m/config.json": b"{}", "s3://b/m/model.bin": b"x", "s3://b/m/tokenizer.json": b"{}"}
    with pytest.raises(ConfigError, match=r"pickled \(model\.bin\)"):
        find_model(ModelSpec(uri="s3://b/m"), bucket, tmp_path / "other")
    assert "s3://b/m/model.bin" not in bucket.read


def test_a_broken_list_of_staged_files_is_not_believed(tmp_path: Path) -> None:
    store, prefix = open_store(f"file://{tmp_path}/storage"), f"file://{tmp_path}/storage/model/x/"
    model = find(str(model_folder(tmp_path / "a")), tmp_path)
    first = stage_model(model, prefix, store)
    for broken in (b"{", b"[]", b'{"config.json": 3}'):
        store.put_bytes(broken, prefix + "staged.json")
        assert stage_model(model, prefix, store) == first
