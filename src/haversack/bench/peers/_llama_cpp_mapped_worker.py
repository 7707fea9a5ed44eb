"""Runs inside the peer's own environment: `_llama_cpp_worker.py serve`, but weights stay as the mapped file
has them. llama.cpp otherwise repacks Q4_0 into memory of its own, as large as the file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def _worker() -> Any:
    path = Path(__file__).with_name("_llama_cpp_worker.py")
    spec = importlib.util.spec_from_file_location("llama_cpp_worker", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = _worker()
_bindings = worker._bindings


def _as_mapped() -> Any:
    api = _bindings()
    given = api.llama_model_default_params

    def parameters() -> Any:
        found = given()
        found.use_extra_bufts = False
        return found

    api.llama_model_default_params = parameters
    return api


if __name__ == "__main__":
    worker._bindings = _as_mapped
    worker.serve()
