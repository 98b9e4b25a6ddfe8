"""Credentials of single sources: which Secret reads what, and that nothing is mixed or told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from itrain_contract.names import ENV_SECRETS_DIR
from itrain_contract.template import SecretRef
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.ports import Ports, SourceAccess
from itrain_pipeline.secretfiles import read_secret, source_opener
from itrain_pipeline.store.s3 import build_client
from itrain_testing.mountedsecrets import mount_secret
from itrain_testing.stageports import folder_ports

PAIR = {"AWS_ACCESS_KEY_ID": "AKDATA", "AWS_SECRET_ACCESS_KEY": "data-secret"}


def ports(folder: Path, secrets: Path) -> Ports:
    opener = source_opener({ENV_SECRETS_DIR: str(secrets)}, f"file://{folder}/storage")
    return dataclasses.replace(folder_ports(folder, []), open_source=opener)


def test_a_secret_gives_its_known_keys_without_line_ends(tmp_path: Path) -> None:
    mount_secret(tmp_path, "data", AWS_ACCESS_KEY_ID="AKDATA\n", HF_TOKEN="hf_x", LD_PRELOAD="evil.so", AWS_REGION="")
    assert read_secret(tmp_path, "data") == {"AWS_ACCESS_KEY_ID": "AKDATA", "HF_TOKEN": "hf_x"}


@pytest.mark.parametrize("name", ["absent", "..", "", "a/b"])
def test_a_secret_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"the Secret '.*' is not there: expected a folder"):
        read_secret(tmp_path, name)


def test_two_sources_are_read_with_other_values_under_the_same_names(tmp_path: Path) -> None:
    mount_secret(tmp_path / "secrets", "model", HF_TOKEN="hf_model", HF_ENDPOINT="https://hub.example")
    mount_secret(tmp_path / "secrets", "data", HF_TOKEN="hf_data")
    here = ports(tmp_path, tmp_path / "secrets")
    model = here.source(SecretRef(name="model"), "hf://org/model")
    data = here.source(SecretRef(name="data"), "hf://datasets/org/rows")
    assert (model.hub_token, model.hub_endpoint) == ("hf_model", "https://hub.example")
    assert (data.hub_token, data.hub_endpoint) == ("hf_data", None)


def test_a_source_without_a_secret_and_one_on_disk_use_what_the_process_has(tmp_path: Path) -> None:
    here = ports(tmp_path, tmp_path / "secrets")
    assert here.source(None, "s3://bucket/rows.json") == SourceAccess(store=here.store)
    assert here.source(SecretRef(name="absent"), "/itrain/storage/rows.json") == SourceAccess(store=here.store)


def test_without_a_folder_of_secrets_the_environment_has_to_do(tmp_path: Path) -> None:
    assert source_opener({}, "file:///storage") is None
    here = folder_ports(tmp_path, [])
    assert here.source(SecretRef(name="data"), "s3://bucket/rows.json") == SourceAccess(store=here.store)


def test_a_secret_without_the_key_that_its_source_needs_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    mount_secret(tmp_path / "secrets", "data", AWS_ACCESS_KEY_ID="AKDATA", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    here = ports(tmp_path, tmp_path / "secrets")
    with pytest.raises(ConfigError, match="the Secret 'data' has no AWS_SECRET_ACCESS_KEY, which S3 sources need"):
        here.source(SecretRef(name="data"), "s3://bucket/rows.json").store.list("s3://bucket/")
    with pytest.raises(ConfigError, match="hf://org/model is to be read with the Secret 'data', which has no HF_TOKEN"):
        here.source(SecretRef(name="data"), "hf://org/model")


def test_a_source_with_a_secret_takes_nothing_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://storage.example:9000",
        "AWS_ENDPOINT_URL_S3": "http://storage.example:9000",
        "AWS_SESSION_TOKEN": "of-the-storage",
        "AWS_CA_BUNDLE": "/storage/ca.crt",
        "AWS_ACCESS_KEY_ID": "AKSTORAGE",
        "AWS_SECRET_ACCESS_KEY": "storage-secret",
    }.items():
        monkeypatch.setenv(name, value)
    client = build_client(PAIR, None, alone=True)
    credentials = client._request_signer._credentials
    assert (credentials.access_key, credentials.secret_key, credentials.token) == ("AKDATA", "data-secret", None)
    assert "storage.example" not in client.meta.endpoint_url
    assert client._endpoint.http_session._verify is True


def test_a_source_store_still_writes_only_below_the_storage(tmp_path: Path) -> None:
    mount_secret(tmp_path / "secrets", "data", **PAIR)
    store = ports(tmp_path, tmp_path / "secrets").source(SecretRef(name="data"), "s3://bucket/rows.json").store
    with pytest.raises(ConfigError, match="lies outside of the storage"):
        store.put_bytes(b"", "s3://bucket/rows.json")
