"""A data source with a Secret of its own, on a real server: its keys, not those of the storage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from itrain_contract.names import ENV_SECRETS_DIR
from itrain_contract.spec import DataSpec
from itrain_contract.stagespec import PrepareStage
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.secretfiles import source_opener
from itrain_pipeline.stages.prepare import read_sources
from itrain_pipeline.store import open_store
from itrain_testing.s3server import S3Server
from itrain_testing.stageports import folder_ports

ROWS = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}]


@pytest.mark.parametrize("wrong", ["process", "secret"])
def test_prepare_reads_a_source_with_its_own_secret(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    right = server.environ
    bad = {**right, "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    uri = server.create_bucket(f"rows-{wrong}") + "rows.json"
    open_store(uri.rpartition("/")[0], right).put_bytes(json.dumps(ROWS).encode(), uri)
    for name, value in (bad if wrong == "process" else right).items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "secrets" / "data"
    folder.mkdir(parents=True)
    for name, value in (right if wrong == "process" else bad).items():
        (folder / name).write_text(value)
    storage = f"file://{tmp_path}/storage"
    opener = source_opener({ENV_SECRETS_DIR: str(tmp_path / "secrets")}, storage)
    ports = dataclasses.replace(folder_ports(tmp_path, []), store=open_store(storage), open_source=opener)
    data = DataSpec.model_validate({"uri": uri, "format": "messages", "secretRef": {"name": "data"}})
    if wrong == "secret":
        with pytest.raises(ConfigError, match="S3 refused the credentials") as caught:
            read_sources(data, PrepareStage(), ports)
        assert "nothing" not in str(caught.value)
        return
    assert len(read_sources(data, PrepareStage(), ports).train) == 1
