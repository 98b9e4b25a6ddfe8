"""Engines from elsewhere: `package.module:factory` (docs/extending.md)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from itrain_pipeline.errors import ConfigError, PermanentError, StageError
from itrain_pipeline.ports import Engine


def open_plugin_engine(name: str, model_dir: Path, **settings: Any) -> Engine:
    """What the factory of that name makes of the model folder and `open_engine`'s settings.

    Raises ConfigError for a factory that cannot be imported or makes no Engine, PermanentError for one that fails by
    itself: it would again.
    """
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"engine {name!r} cannot be imported here: {error}") from error
    if not callable(factory):
        raise ConfigError(f"engine {name!r} is a {type(factory).__name__}, expected a factory of engines")
    try:
        made = factory(model_dir, **settings)
    except (StageError, OSError):
        raise
    except Exception as error:
        raise PermanentError(f"engine {name!r} cannot be opened: {type(error).__name__}: {error}") from error
    if not isinstance(made, Engine):
        raise ConfigError(f"engine {name!r}: its factory made a {type(made).__name__}, which lacks an Engine's parts")
    return made
