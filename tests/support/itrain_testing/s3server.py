"""A real S3 server (versitygw) on a free loopback port and a temporary folder.

    PYTHONPATH=tests/support python -m itrain_testing.s3server --run itrain run FILE --local

The binary is the one on PATH, or it is built once with Go from tests/support/tools/versitygw (pinned by go.sum) into
~/.cache/itrain/tools, or $ITRAIN_TOOLS_DIR.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itrain_testing.daemons import Daemon, free_port, listens
from itrain_testing.gotools import ToolMissingError, go_tool

PACKAGE = "github.com/versity/versitygw/cmd/versitygw"
LOOPBACK = "127.0.0.1"
BUCKET = "itrain"
ACCESS_KEY = "itrain-test-access"
SECRET_KEY = "itrain-test-secret"  # of a server that lives on loopback for one test


def versitygw() -> Path:
    """The server's binary, built when there is none (two minutes, once)."""
    installed = shutil.which("versitygw")
    if installed:
        return Path(installed)
    return go_tool("versitygw", PACKAGE, takes="about two minutes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Self-signed, for 127.0.0.1: `file` is also the CA that has to be trusted."""

    file: Path
    key: Path


def self_signed(folder: Path) -> Certificate:
    """Made by openssl; `ToolMissingError` without it."""
    if shutil.which("openssl") is None:
        raise ToolMissingError("openssl is not installed: no certificate to test with")
    made = Certificate(file=folder / "cert.pem", key=folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=itrain test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(made.key), "-out", str(made.file)], capture_output=True, check=True)
    return made


class S3Server:
    """One server on one folder. `kill` and `start` again keep port and data. With `certificate`, over TLS.

    At another `address` than loopback pods reach it too.
    """

    def __init__(self, folder: Path, certificate: Certificate | None = None, *, address: str = LOOPBACK) -> None:
        self._data, self._meta = folder / "data", folder / "meta"
        self._certificate = certificate
        self._address, self.port = address, free_port(address)
        command = [str(versitygw()), "--quiet", "--port", f"{address}:{self.port}"]
        if certificate:
            command += ["--cert", str(certificate.file), "--key", str(certificate.key)]
        self._daemon = Daemon(
            "versitygw",
            [*command, "posix", "--sidecar", str(self._meta), str(self._data)],
            log=folder / "server.log",
            ready=lambda: listens(self.port, address),
            env={"ROOT_ACCESS_KEY_ID": ACCESS_KEY, "ROOT_SECRET_ACCESS_KEY": SECRET_KEY},
        )

    @property
    def data(self) -> Path:
        """Where it keeps objects, as files below a folder for each bucket."""
        return self._data

    @property
    def endpoint(self) -> str:
        return f"{'https' if self._certificate else 'http'}://{self._address}:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """The AWS names that a storage Secret would hold."""
        trusted = {"AWS_CA_BUNDLE": str(self._certificate.file)} if self._certificate else {}
        return aws_environ(self.endpoint) | trusted

    def start(self) -> None:
        for folder in (self._data, self._meta):
            folder.mkdir(parents=True, exist_ok=True)
        self._daemon.start()

    def kill(self) -> None:
        """End it at once, as a crash would; only the process that `start` started."""
        self._daemon.kill()

    def create_bucket(self, name: str = BUCKET) -> str:
        """The bucket's URI, ending with `/`."""
        admin(self.environ).create_bucket(Bucket=name)
        return f"s3://{name}/"


def aws_environ(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_S3_ADDRESSING_STYLE": "path",
    }


def admin(environ: dict[str, str]) -> Any:
    """A plain boto3 client: the second opinion beside the store under test."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=environ["AWS_ENDPOINT_URL"],
        region_name=environ["AWS_REGION"],
        aws_access_key_id=environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environ["AWS_SECRET_ACCESS_KEY"],
        verify=environ.get("AWS_CA_BUNDLE"),
    )


@contextmanager
def running_server(
    folder: Path, certificate: Certificate | None = None, *, address: str = LOOPBACK
) -> Iterator[S3Server]:
    server = S3Server(folder, certificate, address=address)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=f"Run a command beside a real S3 server with a bucket {BUCKET!r}.")
    parser.add_argument(
        "--run",
        nargs=argparse.REMAINDER,
        required=True,
        metavar="CMD",
        help="the command with its arguments",
    )
    command = parser.parse_args().run
    with tempfile.TemporaryDirectory(prefix="itrain-s3-") as folder, running_server(Path(folder)) as server:
        bucket = server.create_bucket()
        print(f"S3 at {server.endpoint}, storage {bucket}", file=sys.stderr, flush=True)
        return subprocess.run(command, env={**os.environ, **server.environ}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
