"""Small models to serve, shared with the tests of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.run import conftest as run_models
from tests.share import serving as servers


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny model without a chat template."""
    folder: Path = run_models.write_folder(tmp_path_factory.mktemp("served") / "tiny", run_models.CONFIG)
    return folder


@pytest.fixture(scope="session")
def models() -> Any:
    """tests/run/conftest.py"""
    return run_models


@pytest.fixture(scope="session")
def serving() -> Any:
    """tests/share/serving.py"""
    return servers


@pytest.fixture(scope="session")
def server(tiny: Path) -> Any:
    with servers.serving(tiny) as server:
        yield server


@pytest.fixture
def client(server: Any) -> Any:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
