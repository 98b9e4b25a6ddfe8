"""Credentials of single sources: a folder per Secret, a file per key, as Kubernetes mounts them.

Two sources may need other values under the same AWS names, so a Secret's keys are read one by one and stand alone:
nothing of the process's own credentials is mixed into them. Locally the same folder may come from ITRAIN_SECRETS_DIR.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from itrain_contract.names import ENV_SECRETS_DIR
from itrain_pipeline.errors import ConfigError
from itrain_pipeline.ports import SourceAccess
from itrain_pipeline.store import open_source_store

READ = re.compile(r"^(AWS_[A-Z0-9_]+|HF_TOKEN|HF_ENDPOINT)$")
LIMIT_BYTES = 1 << 20


def source_opener(environ: Mapping[str, str], storage: str) -> Callable[[str], SourceAccess] | None:
    """What opens a source by its Secret's name; None without a folder of Secrets, where the environment has to do."""
    named = environ.get(ENV_SECRETS_DIR)
    if not named:
        return None
    root = Path(named)

    def open_source(secret: str) -> SourceAccess:
        values = read_secret(root, secret)
        return SourceAccess(
            store=open_source_store(storage, values, secret),
            hub_token=values.get("HF_TOKEN"),
            hub_endpoint=values.get("HF_ENDPOINT"),
        )

    return open_source


def read_secret(root: Path, name: str, wanted: re.Pattern[str] = READ) -> dict[str, str]:
    """The `wanted` keys of one Secret, by default those that sources are read with; line ends around a value go.

    Raises ConfigError for a Secret that is not there, naming it and never a value.
    """
    folder = root / name
    if name in ("", ".", "..") or "/" in name or not folder.is_dir():
        raise ConfigError(f"the Secret {name!r} is not there: expected a folder {name!r} with a file per key in {root}")
    values = {}
    for path in sorted(folder.iterdir()):
        if not wanted.fullmatch(path.name) or not path.is_file():
            continue
        if path.stat().st_size > LIMIT_BYTES:
            raise ConfigError(f"the Secret {name!r}: {path.name} is larger than {LIMIT_BYTES} bytes")
        try:
            values[path.name] = path.read_text(encoding="utf-8").strip("\r\n")
        except UnicodeDecodeError as error:
            raise ConfigError(f"the Secret {name!r}: {path.name} is no UTF-8 text") from error
    return {key: value for key, value in values.items() if value}
