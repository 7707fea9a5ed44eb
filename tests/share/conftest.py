"""Small models to serve, shared with the tests of the engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest


def load(name: str, file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODELS = load("serving_models", Path(__file__).parents[1] / "run" / "conftest.py")
SERVING = load("serving", Path(__file__).parent / "serving.py")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny model without a chat template."""
    folder: Path = MODELS.write_folder(tmp_path_factory.mktemp("served") / "tiny", MODELS.CONFIG)
    return folder


@pytest.fixture(scope="session")
def models() -> Any:
    """tests/run/conftest.py"""
    return MODELS


@pytest.fixture(scope="session")
def serving() -> Any:
    """tests/share/serving.py"""
    return SERVING


@pytest.fixture(scope="session")
def server(tiny: Path) -> Any:
    with SERVING.serving(tiny) as server:
        yield server


@pytest.fixture
def client(server: Any) -> Any:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
