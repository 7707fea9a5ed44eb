"""What the room needs beside the light install, imported when it is used."""

from __future__ import annotations

import importlib
from typing import Any

from haversack.core.errors import MissingExtraError


def need(module: str, job: str = "haversack collect") -> Any:
    """The module, imported. Raises MissingExtraError with the line that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(job, module.partition(".")[0], "collect") from error
