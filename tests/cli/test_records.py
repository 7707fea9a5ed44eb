"""What commands print under `--json` is what docs/schemas/ says, field by field."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from haversack.cli import main
from haversack.cli._app import command_names
from haversack.cli._records import OUTPUTS, BenchOutput, ErrorRecord, RunOutput, SystemsOutput
from haversack.models._bundled import bundled_names


def fits(name: str, capsys: pytest.CaptureFixture[str]) -> msgspec.Struct:
    """What was printed, as the record `name`; a field too many or too few is an error."""
    said = capsys.readouterr()
    assert said.err == ""
    return msgspec.json.decode(said.out, type=OUTPUTS[name])


def test_every_command_has_a_record() -> None:
    verbs = {
        "collect": ("edge", "server", "enrol", "push", "process", "export", "forget", "validate"),
        "devices": ("list", "measure"),
        "embed": ("control", "build", "verify"),
        "sense": ("ecg", "forecast", "pipeline"),
        "share": (
            *("route", "learn", "collaborate", "ledger", "episodes", "learn-steps"),
            *(f"split-{verb}" for verb in ("train", "halve", "bench-device", "serve", "run", "evaluate")),
            *("coded", "codec-train", "codec-show", "codec-pair"),
        ),
        "train": ("cura", "draft", "fit", "apply", "remove"),
    }
    for name in command_names():
        for record in [f"{name}-{verb}" for verb in verbs.get(name, ())] or [name]:
            assert record in OUTPUTS, f"describe what `{name} --json` prints in cli/_records.py"


def test_systems(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "--json"]) == 0
    record = fits("systems", capsys)
    assert isinstance(record, SystemsOutput)
    assert [system.number for system in record.systems] == list(range(1, 59))
    assert main(["systems", "--json", "--state", "works"]) == 0
    some = fits("systems", capsys)
    assert isinstance(some, SystemsOutput)
    assert all(system.state == "works" for system in some.systems)


def test_devices_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "list", "--json"]) == 0
    fits("devices-list", capsys)


@pytest.mark.parametrize(
    "line", [["systems", "--state", "x"], ["no-such"], ["bench", "99"], ["check", "/no/such"], ["pack"]]
)
def test_errors(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line, "--json"]) == 2
    fits("error", capsys)


def test_a_refused_budget_is_an_error_with_its_failures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if "code" not in bundled_names():
        pytest.skip("the weights of code are not in this checkout")
    line = ["pack", "code", "--device", "raspberry-pi-zero-2w", "--ram-mib", "1"]
    assert main([*line, "-o", str(tmp_path / "no.pack"), "--json"]) == 2
    record = fits("error", capsys)
    assert isinstance(record, ErrorRecord)
    assert record.failures and record.failures[0].field == "ram_mib"
    assert list(tmp_path.iterdir()) == []


def test_pack_check_and_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if "code" not in bundled_names():
        pytest.skip("the weights of code are not in this checkout")
    pack = str(tmp_path / "code.pack")
    plan = ["--precision", "round-to-nearest:bits=8", "--residency", "mapped", "--cache-type", "f16"]
    assert main(["pack", "code", "-d", "laptop", "-o", pack, "--effort", "1", *plan, "--json"]) == 0
    fits("pack", capsys)
    assert main(["check", pack, "--json"]) == 0
    fits("check", capsys)
    line = ["run", pack, "--prompt", "def add(a, b):", "--max-tokens", "8", "--ignore-end"]
    for more in ([], ["--log-probabilities"]):
        assert main([*line, *more, "--json"]) == 0
        record = fits("run", capsys)
        assert isinstance(record, RunOutput)
        assert record.tokens == 8
    assert len(record.log_probabilities) == 8


def test_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from haversack.bench import Bar, Bench, Outcome, Outcomes, Row, Run, Unavailable, _store, run_bench

    monkeypatch.setattr(_store, "PACKAGE", tmp_path)
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))
    bench = Bench(slug="sizes", watches=())

    @bench.measure(
        Row("size", "smaller", unit="B", kind="bytes", bar=Bar("<=", 1.0), quick=True),
        Row("more", "unknown", unit="B", kind="bytes", bar=Bar("in", (0.0, 1.0))),
        seconds=1,
        quick_seconds=1,
    )
    def sizes(run: Run) -> Outcomes:
        return {"size": Outcome.single(1.0, 2.0, against="twice"), "more": Unavailable("not here")}

    for quick in (False, True):
        document = json.dumps(run_bench(bench, quick=quick))
        record = msgspec.json.decode(document, type=BenchOutput)
        assert record.rows[0].holds is True


def test_the_schemas_say_no_to_other_fields() -> None:
    for name, kind in OUTPUTS.items():
        (definition,) = [
            each for each in msgspec.json.schema(kind)["$defs"].values() if each["title"] == kind.__name__
        ]
        assert definition["additionalProperties"] is False, name
