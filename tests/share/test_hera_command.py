"""`haversack share episodes` and `learn-steps`, as a person types them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from haversack.cli import _share_hera, main
from haversack.cli._records import OUTPUTS
from haversack.share._hera_episodes import read_traces


def said(name: str, line: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert main(["share", *line, "--json"]) == 0
    return msgspec.json.decode(capsys.readouterr().out, type=OUTPUTS[name])


def refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["share", *line, "--json"]) == 2
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


@pytest.fixture(scope="module", autouse=True)
def quick_device() -> Iterator[None]:
    """The small agent learns of few houses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_share_hera, "GAMES", 6)
        yield


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cloud's episodes with both actions, and mixed ones."""
    path = tmp_path_factory.mktemp("episodes") / "steps.jsonl"
    line = ["share", "episodes", "household", "--count", "6", "-o", str(path), "--json"]
    assert main([*line, "--router", "cloud", "--record", "both"]) == 0
    assert main([*line, "--router", "random:0.5", "--sample", "--rollouts", "4"]) == 0
    return path


def test_record_learn_and_play(traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    router = tmp_path / "steps.router"
    learned = said("share-learn-steps", ["learn-steps", str(traces), "-o", str(router)], capsys)
    steps = read_traces(traces)
    assert learned.steps == len(steps) and learned.episodes == 30
    assert learned.imitation.differ < learned.imitation.steps
    assert learned.outcomes.states > 0
    assert learned.cloud_share == pytest.approx(0.45, abs=0.1)
    played = said(
        "share-episodes", ["episodes", "--count", "4", "--first", "900", "--router", str(router)], capsys
    )
    assert played.threshold == pytest.approx(learned.threshold)
    assert 0 < played.cloud_share < 1
    whole = said(
        "share-episodes", ["episodes", "--count", "4", "--first", "900", "--router", "cloud"], capsys
    )
    assert whole.cloud_share == 1.0
    assert whole.spent.cost_usd == pytest.approx(0.001 * whole.steps * 4)


def test_the_function_that_share_learn_calls(
    traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from haversack.cli._share_hera import learn

    capsys.readouterr()
    learn(traces, tmp_path / "r", seed=1, json=True)
    record = msgspec.json.decode(capsys.readouterr().out, type=OUTPUTS["share-learn-steps"])
    assert record.file.nbytes == (tmp_path / "r").stat().st_size  # type: ignore[attr-defined]


def test_budgets_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["episodes", "--count", "3", "--router", "cloud", "--ledger", str(tmp_path / "l")]
    capped = said("share-episodes", [*line, "--cost-usd", "0.005"], capsys)
    assert capped.spent.cost_usd == pytest.approx(0.005) and capped.capped_steps > 0
    stopped = said("share-episodes", [*line, "--cost-usd", "0.005", "--exhausted", "stop"], capsys)
    assert stopped.stopped == 3 and stopped.steps == 0
    offline = said(
        "share-episodes", ["episodes", "--count", "2", "--router", "cloud", "--cloud", "none"], capsys
    )
    assert offline.offline_steps == offline.steps * 2 and offline.cloud_share == 0


def test_rounds_of_play(traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["learn-steps", str(traces), "--online", "household", "--count", "4", "-o", str(tmp_path / "r")]
    learned = said(
        "share-learn-steps", [*line, "--method", "hera:rounds=2,rollouts=2,reward=penalised"], capsys
    )
    assert len(learned.rounds) == 2 and learned.outcomes.states > 0


def test_a_language_model_as_router(
    traces: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(traces.read_text().splitlines()[:20]) + "\n")
    line = [
        "learn-steps",
        str(short),
        "--model",
        str(tiny),
        "--method",
        "hera:imitation_epochs=1,stages=imitation",
    ]
    learned = said("share-learn-steps", [*line, "-o", str(tmp_path / "lm")], capsys)
    assert learned.imitation.steps > 0 and learned.outcomes is None
    played = said(
        "share-episodes",
        ["episodes", "--count", "1", "--router", str(tmp_path / "lm"), "--tau", "0"],
        capsys,
    )
    assert played.cloud_share == 1.0
    assert refused([*line], capsys)["field"] == "output"


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (["episodes", "chess"], "world"),
        (["episodes", "--router", "random:2"], "router"),
        (["episodes", "--router", "/no/such"], "path"),
        (["episodes", "--record", "all"], "record"),
        (["episodes", "--exhausted", "wait"], "when_spent"),
        (["episodes", "--games", "/tmp"], "games"),
        (["learn-steps", "/no/such"], "traces"),
    ],
)
def test_mistakes_are_named(line: list[str], field: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(line, capsys)["field"] == field


def test_empty_and_one_sided_traces(traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").write_text("")
    assert "no step" in refused(["learn-steps", str(tmp_path / "none")], capsys)["error"]
    one = tmp_path / "one.jsonl"
    assert main(["share", "episodes", "--count", "1", "--router", "device", "-o", str(one), "--json"]) == 0
    assert "--record both" in refused(["learn-steps", str(one)], capsys)["error"]
