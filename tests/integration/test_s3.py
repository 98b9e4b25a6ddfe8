"""The S3 store against a real server: the shared suite, and everything that goes wrong on the way."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from itrain_contract.stageio import StageInput
from itrain_contract.stages import StageKind
from itrain_pipeline.errors import ConfigError, DataError, RetryableError, StageError
from itrain_pipeline.ports import Ports, StageOutput
from itrain_pipeline.store import open_store, purge
from itrain_pipeline.store.s3 import S3Store
from itrain_pipeline.upstream import StoreUpstream
from itrain_testing.daemons import free_port
from itrain_testing.fakestage import DyingStore, Killed, World, adapter_stage, as_upstream
from itrain_testing.faultproxy import Fault, FaultProxy, Request, running_proxy
from itrain_testing.gotools import ToolMissingError
from itrain_testing.s3server import (
    SECRET_KEY,
    S3Server,
    admin,
    aws_environ,
    running_server,
    self_signed,
)
from itrain_testing.store_suite import STORE_SUITE, Bench, Case, case_name

PART = 5 << 20
"""The smallest part S3 takes: multipart uploads without large files."""
QUICK = {"AWS_MAX_ATTEMPTS": "2"}


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with running_proxy(server.port) as running:
        yield running


@pytest.fixture
def bucket(server: S3Server, request: pytest.FixtureRequest) -> str:
    """A fresh bucket's URI, ending with `/`."""
    return server.create_bucket("b" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20])


def name_of(bucket: str) -> str:
    return bucket.removeprefix("s3://").rstrip("/")


def large(folder: Path, parts: float = 2.4) -> tuple[Path, bytes]:
    data = os.urandom(int(PART * parts))
    path = folder / "model.safetensors"
    path.write_bytes(data)
    return path, data


@pytest.mark.parametrize("case", STORE_SUITE, ids=case_name)
def test_s3_is_a_store(case: Case, server: S3Server, bucket: str, tmp_path: Path) -> None:
    root = bucket + "team/runs/"
    case(Bench(store=open_store(root, server.environ), root=root, folder=tmp_path))


def test_a_file_above_the_threshold_goes_up_in_parts_and_comes_back_whole(
    server: S3Server, bucket: str, tmp_path: Path
) -> None:
    store = S3Store(server.environ, multipart_threshold_bytes=PART)
    path, data = large(tmp_path)
    ref = store.put_file(path, bucket + "model.safetensors")
    assert (ref.sha256, ref.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    head = admin(server.environ).head_object(Bucket=name_of(bucket), Key="model.safetensors")
    assert head["ETag"].strip('"').endswith("-3")  # S3 writes the number of parts behind the ETag
    assert head["Metadata"] == {"sha256": ref.sha256}
    store.get_file(ref.uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_a_listing_of_more_than_one_page_is_complete(server: S3Server, bucket: str) -> None:
    client = admin(server.environ)
    for number in range(1005):  # a page holds 1,000
        client.put_object(Bucket=name_of(bucket), Key=f"trees/{number:05d}", Body=b"")
    listed = open_store(bucket, server.environ).list(bucket + "trees/")
    assert listed == [f"{bucket}trees/{number:05d}" for number in range(1005)]


def test_bytes_that_are_not_those_promised_are_refused(server: S3Server, bucket: str, tmp_path: Path) -> None:
    ref = open_store(bucket, server.environ).put_bytes(b"right", bucket + "k")
    admin(server.environ).put_object(Bucket=name_of(bucket), Key="k", Body=b"wrong", Metadata={"sha256": ref.sha256})
    with pytest.raises(DataError, match="its metadata says"):
        open_store(bucket, server.environ).get_file(ref.uri, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def every_operation(environ: dict[str, str], bucket: str, folder: Path) -> list[StageError]:
    """The error of each operation on a store that none can work on."""
    store, path = S3Store(environ, rounds=1), folder / "file"
    path.write_bytes(b"1")
    errors = []
    for operation in (
        lambda: store.put_bytes(b"1", bucket + "k"),
        lambda: store.put_file(path, bucket + "k"),
        lambda: store.get_bytes(bucket + "k"),
        lambda: store.get_file(bucket + "k", folder / "copy"),
        lambda: store.list(bucket),
        lambda: store.delete(bucket + "k"),
    ):
        with pytest.raises(StageError) as raised:
            operation()
        errors.append(raised.value)
    return errors


@pytest.mark.parametrize(
    "planted",
    [
        {"AWS_SECRET_ACCESS_KEY": "planted-wrong-secret"},
        {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "planted-wrong-secret"},
    ],
)
def test_wrong_credentials_are_one_clear_error_that_names_bucket_and_endpoint_and_no_secret(
    server: S3Server, bucket: str, tmp_path: Path, planted: dict[str, str]
) -> None:
    for error in every_operation({**server.environ, **planted}, bucket, tmp_path):
        assert isinstance(error, ConfigError)
        assert "refused the credentials" in str(error)
        assert name_of(bucket) in str(error)
        assert server.endpoint in str(error)
        assert "planted-wrong-secret" not in str(error)
        assert SECRET_KEY not in str(error)
        assert "\n" not in str(error)


def test_a_missing_bucket_is_a_configuration_error_and_not_an_empty_store(server: S3Server, tmp_path: Path) -> None:
    errors = every_operation(server.environ, "s3://nobody-made-this/", tmp_path)
    assert {type(error) for error in errors} == {ConfigError}
    assert all("bucket 'nobody-made-this' does not exist at http" in str(error) for error in errors)


def test_an_endpoint_where_nobody_listens_is_retryable_and_named(server: S3Server, tmp_path: Path) -> None:
    environ = {**aws_environ(f"http://127.0.0.1:{free_port()}"), **QUICK}
    for error in every_operation(environ, "s3://itrain/", tmp_path):
        assert isinstance(error, RetryableError)
        assert f"cannot connect to S3 for bucket 'itrain' at {environ['AWS_ENDPOINT_URL']}" in str(error)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"AWS_ENDPOINT_URL": "s3.example:9000"}, "AWS_ENDPOINT_URL is 's3.example:9000'"),
        ({"AWS_S3_ADDRESSING_STYLE": "paths"}, "allowed are path, virtual and auto"),
        ({"AWS_CA_BUNDLE": "/missing/ca.pem"}, "AWS_CA_BUNDLE names '/missing/ca.pem'"),
        ({"AWS_MAX_ATTEMPTS": "many"}, "AWS_MAX_ATTEMPTS is 'many'"),
    ],
)
def test_a_setting_that_cannot_be_is_named(setting: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_store("s3://itrain/runs", {**aws_environ("http://127.0.0.1:9"), **setting})


@pytest.mark.parametrize(
    "uri", ["s3://", "s3:///key", "s3://Bucket_/k", "s3://b/k", "s3://itrain//k", "s3://itrain/a/../b"]
)
def test_a_malformed_s3_uri_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="storage URI"):
        S3Store(aws_environ("http://127.0.0.1:9")).get_bytes(uri)


def test_virtual_addressing_puts_the_bucket_into_the_host_name(tmp_path: Path) -> None:
    environ = {**aws_environ("http://s3.itrain.invalid"), **QUICK, "AWS_S3_ADDRESSING_STYLE": "virtual"}
    with pytest.raises(ConfigError, match=r"host name cannot be resolved .* at http://s3\.itrain\.invalid"):
        S3Store(environ).get_bytes("s3://itrain/k")


@pytest.mark.parametrize("fault", ["503", "slow-down", "429", "reset"])
def test_a_passing_fault_in_every_request_is_not_seen(
    server: S3Server, proxy: FaultProxy, bucket: str, tmp_path: Path, fault: Fault
) -> None:
    proxy.plan = lambda request: fault if request.nth == 1 else None
    store = S3Store(aws_environ(proxy.endpoint), multipart_threshold_bytes=PART)
    path, data = large(tmp_path, parts=1.5)
    ref = store.put_file(path, bucket + "large")
    small = store.put_bytes(b"small", bucket + "small")
    store.get_file(ref.uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert store.get_bytes(small.uri) == b"small"
    assert store.list(bucket) == [ref.uri, small.uri]
    store.delete(small.uri)
    assert S3Store(server.environ).list(bucket) == [ref.uri]
    # create, two parts, complete; small; head, two ranges; small again; list; delete
    assert proxy.faults[fault] >= 10


def test_a_body_that_breaks_off_is_read_again(server: S3Server, proxy: FaultProxy, bucket: str, tmp_path: Path) -> None:
    def plan(request: Request) -> Fault | None:
        return "truncate" if request.method == "GET" and request.nth == 1 else None

    path, data = large(tmp_path, parts=0.3)
    S3Store(server.environ).put_file(path, bucket + "file")
    proxy.plan = plan
    store = S3Store(aws_environ(proxy.endpoint))
    assert store.get_bytes(bucket + "file") == data
    proxy.requests.clear()
    store.get_file(bucket + "file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert proxy.faults["truncate"] == 2


@pytest.mark.parametrize(("fault", "said"), [("503", "503|ServiceUnavailable"), ("slow-down", "SlowDown")])
def test_a_fault_that_does_not_pass_is_a_retryable_error_and_leaves_nothing(
    server: S3Server, proxy: FaultProxy, bucket: str, tmp_path: Path, fault: Fault, said: str
) -> None:
    proxy.plan = lambda request: fault
    for error in every_operation({**aws_environ(proxy.endpoint), **QUICK}, bucket, tmp_path):
        assert isinstance(error, RetryableError)
        assert name_of(bucket) in str(error)
    with pytest.raises(RetryableError, match=said):
        S3Store({**aws_environ(proxy.endpoint), **QUICK}, rounds=1).put_bytes(b"1", bucket + "k")
    assert S3Store(server.environ).list(bucket) == []
    assert not (tmp_path / "copy").exists()


def killed_in_the_second_part(proxy: FaultProxy, server: S3Server) -> threading.Event:
    """Kills the server when the second part of a multipart upload arrives; the event tells that it happened."""
    dead = threading.Event()

    def plan(request: Request) -> Fault | None:
        # Requests are decided one at a time: the event cannot be seen before the server is gone.
        if "partNumber=2" in request.path and not dead.is_set():
            server.kill()
            dead.set()
        return None

    proxy.plan = plan
    return dead


@pytest.fixture
def own_server(server: S3Server, tmp_path: Path) -> Iterator[S3Server]:
    """A server of the test's own, to be killed."""
    with running_server(tmp_path / "own-s3") as running:
        yield running


def test_an_upload_whose_server_dies_and_stays_away_fails_cleanly_and_works_after_its_return(
    own_server: S3Server, tmp_path: Path
) -> None:
    bucket = own_server.create_bucket()
    path, data = large(tmp_path)
    with running_proxy(own_server.port) as proxy:
        dead = killed_in_the_second_part(proxy, own_server)
        store = S3Store({**aws_environ(proxy.endpoint), **QUICK}, multipart_threshold_bytes=PART, rounds=1)
        with pytest.raises(RetryableError, match="bucket 'itrain' at http"):
            store.put_file(path, bucket + "model.safetensors")
        assert dead.is_set()
        own_server.start()
        assert store.get_bytes(bucket + "model.safetensors") is None
        assert store.list(bucket) == []
        store.put_file(path, bucket + "model.safetensors")
        store.get_file(bucket + "model.safetensors", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_an_upload_whose_server_dies_and_comes_back_is_retried(own_server: S3Server, tmp_path: Path) -> None:
    bucket = own_server.create_bucket()
    path, data = large(tmp_path)
    with running_proxy(own_server.port) as proxy:
        dead = killed_in_the_second_part(proxy, own_server)
        store = S3Store(aws_environ(proxy.endpoint), multipart_threshold_bytes=PART)
        with ThreadPoolExecutor(1) as uploader:
            upload = uploader.submit(store.put_file, path, bucket + "model.safetensors")
            assert dead.wait(60)
            own_server.start()
            assert upload.result().size_bytes == len(data)
        store.get_file(bucket + "model.safetensors", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_tls_needs_the_ca_of_the_secret_and_says_so_without_it(
    server: S3Server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        certificate = self_signed(tmp_path)
    except ToolMissingError as error:
        pytest.skip(str(error))
    with running_server(tmp_path / "tls-s3", certificate) as secure:
        bucket = secure.create_bucket()
        path, data = large(tmp_path)
        ref = S3Store(secure.environ, multipart_threshold_bytes=PART).put_file(path, bucket + "model.safetensors")
        S3Store(secure.environ).get_file(ref.uri, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data
        stranger = {"AWS_CA_BUNDLE": str(self_signed(tmp_path_factory.mktemp("stranger")).file)}
        with pytest.raises(ConfigError, match=r"certificate was not accepted .* set AWS_CA_BUNDLE"):
            S3Store({**secure.environ, **stranger}).list(bucket)


@pytest.fixture
def world(server: S3Server, bucket: str, tmp_path: Path) -> World:
    return World(folder=tmp_path, storage=bucket + "team", environ=dict(server.environ))


@pytest.mark.parametrize("survived", [1, 3, 4, 5, 6])
def test_a_stage_killed_between_two_writes_to_s3_leaves_nothing_half_and_finishes_next_time(
    world: World, server: S3Server, survived: int
) -> None:
    stage_input = world.stage_input()
    store = open_store(world.storage, server.environ)
    with pytest.raises(Killed):
        world.run(stage_input, wrap=lambda inner: DyingStore(inner, survives=survived))
    assert store.get_bytes(stage_input.output_prefix + "result.json") is None
    assert world.run(stage_input) == 0
    upstream = StoreUpstream(store, [as_upstream(stage_input)], cache=world.folder / "reader")
    (result,) = upstream.results(StageKind.WARMUP)
    folder = upstream.fetch_folder(result, "adapter/")
    assert (folder / "adapter_model.safetensors").read_bytes() == b"weights " * 1000
    assert world.run(world.stage_input(attempt=2)) == 0
    assert world.started == (1 if survived == 6 else 2)


def test_the_work_area_on_s3_gives_back_what_an_earlier_attempt_put(world: World) -> None:
    def dies(given: StageInput, ports: Ports) -> StageOutput:
        adapter_stage(given, ports)
        raise RuntimeError("out of luck")

    seen = []

    def looks(given: StageInput, ports: Ports) -> StageOutput:
        found = ports.work.get("checkpoint/weights")
        seen.append((ports.work.names("checkpoint/"), found and found.read_text(), ports.work.get("checkpoint/none")))
        return StageOutput()

    assert world.run(world.stage_input(attempt=1), dies) == 75
    assert world.run(world.stage_input(attempt=2), looks) == 0
    assert seen == [(["checkpoint/done", "checkpoint/weights"], "checkpoint/weights", None)]


def test_a_stage_with_wrong_credentials_ends_with_64_and_one_line(world: World) -> None:
    world.environ["AWS_SECRET_ACCESS_KEY"] = "planted-wrong-secret"
    assert world.run(world.stage_input()) == 64
    message = world.termination().message
    assert "refused the credentials" in message
    assert "planted" not in message
    assert world.started == 0


def test_a_damaged_cache_is_found_out_and_filled_again(world: World, server: S3Server) -> None:
    stage_input = world.stage_input()
    world.run(stage_input)
    store = open_store(world.storage, server.environ)

    def reader() -> StoreUpstream:
        return StoreUpstream(store, [as_upstream(stage_input)], cache=world.folder / "reader")

    (result,) = reader().results(StageKind.WARMUP)
    ref = result.outputs["adapter/adapter_config.json"]
    reader().fetch(ref).write_text("[]")
    with pytest.raises(DataError, match="has sha256"):
        reader().fetch(ref)
    assert reader().fetch(ref).read_text() == "{}"


def test_purge_empties_a_runs_prefix_and_nothing_beside_it(world: World, server: S3Server) -> None:
    world.run(world.stage_input())
    store = open_store(world.storage, server.environ)
    beside = store.put_bytes(b"1", world.storage + "/quick-87654321/report.html")
    assert purge(world.identity.layout.root, server.environ) == 7
    assert store.list(world.storage + "/") == [beside.uri]
