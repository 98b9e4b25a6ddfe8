"""`hf://` addresses: a repository at one commit as a local folder, through huggingface_hub.

Names and revisions are resolved to a commit first, so that what was read can be read again. Credentials, endpoint,
cache and offline mode are huggingface_hub's own environment (`HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from itrain_pipeline.errors import ConfigError, RetryableError, without_userinfo

_REVISION = re.compile(r"[\w+@=-]+(?:[./][\w+@=-]+)*", re.ASCII)
RepoType = Literal["model", "dataset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddress:
    """`hf://[datasets/]org/name[/file][?revision=…]`."""

    repo: str
    file: str
    revision: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Files of one commit; `folder` also holds what was not asked for, if it was there before."""

    folder: Path
    commit: str


def parse_address(uri: str) -> HubAddress:
    """Raises `ConfigError` for an address without organisation and name, or with another query."""
    parts = urlsplit(uri)
    segments = [part for part in f"{parts.netloc}{parts.path}".split("/") if part]
    if segments[:1] in (["datasets"], ["models"]):
        segments = segments[1:]
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme != "hf" or len(segments) < 2 or ".." in segments or set(query) - {"revision"}:
        raise ConfigError(f"{uri!r}: expected hf://org/name, hf://org/name/file or hf://org/name?revision=…")
    return HubAddress(repo="/".join(segments[:2]), file="/".join(segments[2:]), revision=query.get("revision"))


def fetch_snapshot(
    repo: str,
    repo_type: RepoType,
    revision: str | None,
    patterns: Sequence[str],
    *,
    token: str | None = None,
    endpoint: str | None = None,
) -> Snapshot:
    """The files of a repository that match `patterns`, at the commit that `revision` (default: main) stands for.

    `token` and `endpoint` go before the environment's.
    Raises `ConfigError` for a repository, revision or file that is not there or not allowed, `RetryableError` when
    the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"hf://{repo}" + (f" at {revision}" if revision else "")
    if revision and not _REVISION.fullmatch(revision):  # it is a part of a path, here and at the hub
        raise ConfigError(f"{name}: the revision {revision!r} is no branch, tag or commit")
    try:
        found = snapshot_download(
            repo,
            repo_type=repo_type,
            revision=revision,
            allow_patterns=list(patterns),
            token=token,
            endpoint=endpoint,
        )
    except GatedRepoError as error:
        raise ConfigError(f"{name} is gated: accept its terms on the hub and give a token (HF_TOKEN)") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"{name}: no such {repo_type}, or no right to read it; check the name and the token (HF_TOKEN)"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise RetryableError(f"{name} could not be fetched: {without_userinfo(str(error)).splitlines()[0]}") from error
    # The cache names the folder of a snapshot after its commit.
    return Snapshot(folder=Path(found), commit=Path(found).name)
