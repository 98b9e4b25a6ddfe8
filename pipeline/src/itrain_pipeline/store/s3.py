"""S3 as a store: the only module that knows boto3.

Uploads become visible whole or not at all (S3 shows an object only after its put, or its multipart upload, completed)
and carry their sha256 as metadata; downloads are checked against it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.exceptions as aws
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from s3transfer.exceptions import RetriesExceededError

from itrain_contract.stageio import ArtifactRef
from itrain_pipeline.errors import ConfigError, DataError, RetryableError, without_userinfo
from itrain_pipeline.files import atomic_writer, sha256_file

log = logging.getLogger(__name__)

MULTIPART_THRESHOLD_BYTES = 64 << 20
PART_BYTES = 32 << 20
ATTEMPTS = 4
"""Tries of one request, by botocore: its back-off starts at 50 ms, 1 s where the server throttles."""
ROUNDS = 7
"""Tries of a whole operation, each with ATTEMPTS per request: an outage of half a minute to a minute passes unseen."""
FIRST_DELAY_S, MAX_DELAY_S = 1.0, 30.0
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
SHA256_METADATA = "sha256"
BUCKET = re.compile(r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")

REFUSED = frozenset({"AuthorizationHeaderMalformed", "ExpiredToken", "InvalidToken", "XAdminUserNotFound"})
"""Refusals that servers answer with another status than 401 or 403."""
NO_BUCKET = frozenset({"NoSuchBucket", "InvalidBucketName", "PermanentRedirect", "301"})
ABSENT = frozenset({"NoSuchKey", "NotFound", "404"})

T = TypeVar("T")


class S3Store:
    """`Store` on S3 or what speaks its protocol.

    Settings are the AWS names of `environ`: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN (without them
    the process's own identity), AWS_REGION, AWS_ENDPOINT_URL, AWS_CA_BUNDLE, AWS_S3_ADDRESSING_STYLE
    (path | virtual | auto; path where an endpoint is given) and AWS_MAX_ATTEMPTS. With `alone` nothing else of the
    process counts: these are the credentials of one source.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        multipart_threshold_bytes: int = MULTIPART_THRESHOLD_BYTES,
        rounds: int = ROUNDS,
        alone: bool = False,
    ) -> None:
        self._endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or None
        self._client = build_client(environ, self._endpoint, alone=alone)
        self._rounds = rounds
        self._transfer = TransferConfig(
            multipart_threshold=multipart_threshold_bytes,
            multipart_chunksize=min(PART_BYTES, multipart_threshold_bytes),
            max_concurrency=4,
        )

    def put_file(self, path: Path, uri: str) -> ArtifactRef:
        bucket, key = split_uri(uri)
        sha256, size_bytes = sha256_file(path), path.stat().st_size
        metadata = {"Metadata": {SHA256_METADATA: sha256}}

        def upload() -> None:
            with path.open("rb") as data:
                self._client.upload_fileobj(data, bucket, key, ExtraArgs=metadata, Config=self._transfer)

        self._patiently(bucket, upload)
        return ArtifactRef(uri=uri, sha256=sha256, size_bytes=size_bytes)

    def put_bytes(self, data: bytes, uri: str) -> ArtifactRef:
        bucket, key = split_uri(uri)
        sha256 = hashlib.sha256(data).hexdigest()
        metadata = {SHA256_METADATA: sha256}
        self._patiently(bucket, lambda: self._client.put_object(Bucket=bucket, Key=key, Body=data, Metadata=metadata))
        return ArtifactRef(uri=uri, sha256=sha256, size_bytes=len(data))

    def get_file(self, uri: str, path: Path) -> None:
        bucket, key = split_uri(uri)

        def download() -> None:
            head = self._head(bucket, key)
            if head is None:
                raise DataError(f"{uri} does not exist{self._at()}")
            promised = head["Metadata"].get(SHA256_METADATA)
            with atomic_writer(path) as out:
                self._client.download_fileobj(bucket, key, out, Config=self._transfer)
                found = sha256_written(out)
                if promised not in (None, found):
                    raise DataError(f"{uri} has sha256 {found}, its metadata says {promised}{self._at()}")

        self._patiently(bucket, download)

    def get_bytes(self, uri: str) -> bytes | None:
        bucket, key = split_uri(uri)

        def read() -> bytes | None:
            try:
                data: bytes = self._client.get_object(Bucket=bucket, Key=key)["Body"].read()
                return data
            except aws.ClientError as error:
                if error_code(error) in ABSENT:
                    return None
                raise

        return self._patiently(bucket, read)

    def list(self, prefix: str) -> list[str]:
        if not prefix.endswith("/"):
            raise ValueError(f"a prefix ends with '/': {prefix!r}")
        bucket, key = split_uri(prefix)

        def read() -> Sequence[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
            return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

        # Some servers list a folder as an empty object whose key ends with a slash.
        found = self._patiently(bucket, read)
        return sorted(f"s3://{bucket}/{name}" for name in found if not name.endswith("/"))

    def delete(self, uri: str) -> None:
        bucket, key = split_uri(uri)
        self._patiently(bucket, lambda: self._client.delete_object(Bucket=bucket, Key=key))

    def _head(self, bucket: str, key: str) -> dict[str, Any] | None:
        """The object's head, None without one. A HEAD answer tells no reason: a listing does, bucket or identity."""
        try:
            head: dict[str, Any] = self._client.head_object(Bucket=bucket, Key=key)
            return head
        except aws.ClientError as error:
            if error_code(error) not in ABSENT:
                raise
        self._client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        return None

    def _patiently(self, bucket: str, operation: Callable[[], T]) -> T:
        """Run an operation that may be repeated as a whole; connections that break inside a body need it too."""
        for done in range(self._rounds - 1):
            try:
                with self._explained(bucket):
                    return operation()
            except RetryableError as error:
                delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2**done) * random.uniform(0.5, 1.0)
                log.warning("%s: trying again in %.1f s", error, delay_s)
                time.sleep(delay_s)
        with self._explained(bucket):
            return operation()

    @contextmanager
    def _explained(self, bucket: str) -> Iterator[None]:
        """Turns the library's errors into one line that names bucket and endpoint, and never a credential."""
        where = f"bucket {bucket!r}{self._at()}"
        try:
            yield
        except aws.ClientError as error:
            code = error_code(error)
            if code in REFUSED or http_status(error) in (401, 403):
                raise ConfigError(
                    f"S3 refused the credentials for {where} ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
                    "and AWS_REGION in the storage Secret, and what that identity may do in the bucket"
                ) from error
            if code in NO_BUCKET:
                raise ConfigError(self._no_bucket(bucket)) from error
            raise RetryableError(f"S3 answered {code} for {where}") from error
        except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError) as error:
            raise ConfigError(
                f"no usable S3 credentials for {where}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the storage "
                f"Secret, or give the pod an identity ({type(error).__name__})"
            ) from error
        except aws.SSLError as error:
            raise ConfigError(
                f"the certificate was not accepted for {where}: set AWS_CA_BUNDLE to the file of the CA that signed it"
            ) from error
        except aws.EndpointConnectionError as error:
            if not resolves(self._endpoint):
                raise ConfigError(f"the host name cannot be resolved for {where}: check AWS_ENDPOINT_URL") from error
            raise RetryableError(f"cannot connect to S3 for {where}") from error
        except (aws.BotoCoreError, RetriesExceededError, ConnectionError) as error:
            raise RetryableError(f"S3 failed for {where} ({type(error).__name__})") from error

    def _no_bucket(self, bucket: str) -> str:
        return (
            f"bucket {bucket!r} does not exist{self._at()}: create it, or correct the storage URI or AWS_ENDPOINT_URL"
        )

    def _at(self) -> str:
        return f" at {without_userinfo(self._endpoint)}" if self._endpoint else " at AWS"


def sha256_written(out: BinaryIO) -> str:
    """The sha256 of what was written to a temporary file, read back through its own descriptor (read and write).

    Not hashed on the way: parts arrive in any order, and a broken one is written again.
    """
    out.flush()
    with os.fdopen(os.dup(out.fileno()), "rb") as written:
        written.seek(0)
        return hashlib.file_digest(written, "sha256").hexdigest()


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` URI; `ConfigError` for anything that S3 or a reader would take otherwise."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not BUCKET.match(bucket):
        raise ConfigError(f"storage URI {uri!r}: expected s3://bucket/key with a bucket of 3 to 63 of a-z 0-9 . -")
    segments = key.removesuffix("/").split("/") if key else []
    if any(segment in ("", ".", "..") for segment in segments):
        raise ConfigError(f"storage URI {uri!r} has an empty, '.' or '..' segment")
    return bucket, key


def build_client(environ: Mapping[str, str], endpoint: str | None, *, alone: bool = False) -> Any:
    """The boto3 client for the AWS names of `environ`; `ConfigError` names the setting that cannot be.

    `alone`: neither endpoint nor CA bundle come from the process's environment or its AWS configuration files.
    """
    if endpoint and (urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname):
        raise ConfigError(f"AWS_ENDPOINT_URL is {without_userinfo(endpoint)!r}, expected http(s)://host[:port]")
    style = environ.get("AWS_S3_ADDRESSING_STYLE") or ("path" if endpoint else "auto")
    if style not in ("path", "virtual", "auto"):
        raise ConfigError(f"AWS_S3_ADDRESSING_STYLE is {style!r}, allowed are path, virtual and auto")
    bundle = environ.get("AWS_CA_BUNDLE") or None
    if bundle and not Path(bundle).is_file():
        raise ConfigError(f"AWS_CA_BUNDLE names {bundle!r}, which is not a file")
    attempts = environ.get("AWS_MAX_ATTEMPTS") or str(ATTEMPTS)
    if not attempts.isdigit() or int(attempts) < 1:
        raise ConfigError(f"AWS_MAX_ATTEMPTS is {attempts!r}, expected a whole number of at least 1")
    return boto3.session.Session(
        aws_access_key_id=environ.get("AWS_ACCESS_KEY_ID") or None,
        aws_secret_access_key=environ.get("AWS_SECRET_ACCESS_KEY") or None,
        aws_session_token=environ.get("AWS_SESSION_TOKEN") or None,
        region_name=environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1",
    ).client(
        "s3",
        endpoint_url=endpoint,
        verify=bundle or (True if alone else None),
        config=Config(
            retries={"mode": "standard", "total_max_attempts": int(attempts)},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            s3={"addressing_style": style},
            ignore_configured_endpoint_urls=True if alone else None,
        ),
    )


def error_code(error: aws.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def http_status(error: aws.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def resolves(endpoint: str | None) -> bool:
    """Whether the endpoint's host has an address; a resolver that is only busy counts as yes."""
    host = urlsplit(endpoint or "").hostname
    if not host:
        return True
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        return error.errno != socket.EAI_NONAME
    return True
