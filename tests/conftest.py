"""What all tests share: isolation from the user's own folders, shared data, a count of skips."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ABSENT_DATA = "shared data absent"
MAY_SKIP = (ABSENT_DATA, "this processor lacks")
"""How the reasons begin for which a test may skip in CI."""
settings.register_profile("haversack", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("haversack")  # what is slow here may be the files of tests beside
_skipped: Counter[str] = Counter()
_folders: list[Path] = []


def pytest_configure(config: pytest.Config) -> None:
    """Profiles and caches of the person who runs the tests are neither read nor written.

    Ctrl-C works in the processes that tests start even where a shell started the tests with it ignored.
    Threads of PyTorch that wait let the cores go: files of tests run side by side.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="haversack-tests-"))
    _folders.append(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.environ["XDG_DATA_HOME"] = str(folder / "data")
    os.environ.pop("HAVERSACK_CACHE", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    for folder in _folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of this test alone, also for the processes that it starts."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("HAVERSACK_CACHE", str(folder))
    yield folder


@pytest.fixture
def data() -> Callable[[str], Path]:
    """`data("ecg/file.csv")`: a path in the folder that HAVERSACK_DATA names; skips where it is absent."""

    def find(name: str) -> Path:
        folder = os.environ.get("HAVERSACK_DATA")
        path = Path(folder or "", name)
        if not folder or not path.exists():
            pytest.skip(f"{ABSENT_DATA}: {name}")
        return path

    return find


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped[_reason(report.longrepr)] += 1


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped[_reason(report.longrepr)] += 1


def _reason(longrepr: object) -> str:
    said = str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)
    return " ".join(said.removeprefix("Skipped: ").split())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI only shared data or an instruction set that is absent may skip: any other reason fails the run.

    Asked once: a process that runs a part of the files reports what it skipped to the one that began it.
    """
    if hasattr(session.config, "workerinput"):
        return
    unexpected = [reason for reason in _skipped if not reason.startswith(MAY_SKIP)]
    if os.environ.get("HAVERSACK_CI") == "1" and unexpected and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _skipped:
        return
    terminalreporter.write_line(f"{sum(_skipped.values())} skipped:")
    for reason, count in sorted(_skipped.items()):
        wrong = os.environ.get("HAVERSACK_CI") == "1" and not reason.startswith(MAY_SKIP)
        terminalreporter.write_line(
            f"  {count} x {reason}" + (" (not allowed to skip in CI)" if wrong else ""), red=wrong
        )
