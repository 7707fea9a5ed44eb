"""Intermediates of benches, kept by content: a key that holds all inputs names a folder made once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from haversack.core import _files


def cache_folder() -> Path:
    """`$HAVERSACK_CACHE`, else the user's cache folder for haversack; not created."""
    named = os.environ.get("HAVERSACK_CACHE")
    return Path(named) if named else _files.cache_folder()


def content_key(inputs: Mapping[str, Any]) -> str:
    """Sixteen hex digits of the SHA-256 over the inputs as canonical JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached(name: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder `bench/NAME-KEY` of the cache, made by `make(folder)` when it is not there yet.

    `inputs` is everything that the content depends on. `make` fills a partial folder that takes the final
    name when it returns; when it raises or the process is killed, nothing of that name exists. Processes
    that want the same folder at once wait for the one that makes it.
    """
    goal = cache_folder() / "bench" / f"{name}-{content_key(inputs)}"
    goal.parent.mkdir(parents=True, exist_ok=True)
    with (goal.parent / f".{goal.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if goal.is_dir():
            return goal
        _files.remove_stale_partials(goal)
        partial = _files.partial_path(goal)
        partial.mkdir()
        try:
            make(partial)
            _files.put_in_place(partial, goal)
        except BaseException:
            _files.remove(partial)
            raise
    return goal
