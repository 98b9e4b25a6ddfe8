"""Why a stage ends, and with which exit code.

    StageError
    ├── ConfigError      64  the spec asks for something that cannot be      (never retried)
    ├── DataError        65  an input row, file or artifact is wrong         (never retried)
    ├── PermanentError   70  this shard cannot succeed; divergence           (never retried)
    ├── RetryableError   75  the next attempt may succeed
    └── Interrupted     143  asked to stop; work is saved

Everything that is not a StageError ends with 75 after its traceback is logged (API document, "Storage rules"), but a
package that cannot be imported with 64: the next attempt has the same packages.
"""

from __future__ import annotations

import re
from typing import ClassVar

from itrain_contract.names import ExitCode


class StageError(Exception):
    """A stage ended for a known reason; `str(error)` is one line for the user, with the remedy."""

    exit_code: ClassVar[ExitCode] = ExitCode.RETRYABLE


class ConfigError(StageError):
    exit_code: ClassVar[ExitCode] = ExitCode.CONFIG


class DataError(StageError):
    exit_code: ClassVar[ExitCode] = ExitCode.DATA


class PermanentError(StageError):
    exit_code: ClassVar[ExitCode] = ExitCode.PERMANENT


class RetryableError(StageError):
    exit_code: ClassVar[ExitCode] = ExitCode.RETRYABLE


class Interrupted(StageError):  # noqa: N818  (a request that was met, not an error)
    exit_code: ClassVar[ExitCode] = ExitCode.INTERRUPTED


def without_userinfo(text: str) -> str:
    """A text with addresses, without the names and passwords that may stand in them."""
    return re.sub(r"//[^/@\s]+@", "//…@", text)
