"""`pack --compare`: which methods under which settings, what is written, what an interrupt leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest
from tests.cli.test_pack import checkpoint  # noqa: F401 - a fixture

from haversack.cli import main
from haversack.cli._records import OUTPUTS
from haversack.core import index
from haversack.core.budget import Budget
from haversack.core.device import device
from haversack.core.errors import UserError
from haversack.core.pack import Pack
from haversack.core.progress import progress
from haversack.models._calibration import default_text
from haversack.plan import Job, Policy
from haversack.plan._compare import SETTINGS, compare, ways
from haversack.plan._enumerate import create_precision, packing_seconds
from haversack.plan._sides import side_of

SHORT = ("--calibration-tokens", "2048", "--effort", "600")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A little more than quality needs."""
    path = tmp_path_factory.mktemp("text") / "evaluation.py"
    path.write_text(default_text("evaluation")[:6000])
    return path


def job(model, goal, **changes):
    base = dict(device=device("raspberry-pi-5"), budget=Budget(), calibration_tokens=2048, effort_s=600.0)
    return Job(str(model), goal, **(base | changes))


def planned(model, folder, **changes):
    asked = job(model, folder / "x.pack", **changes)
    with progress("") as bar:
        return list(ways(asked, side_of(asked, folder, bar)))


def test_every_method_comes_under_every_setting_that_it_has(checkpoint, tmp_path):  # noqa: F811
    found = planned(checkpoint, tmp_path)
    names = {entry.name for entry in index.methods("shrink", "precision")} - {"keep", "mixed"}
    assert {way.plan.precision.partition(":")[0] for way in found} == names | {"keep"}
    assert found[0].setting == "w16a16"
    by_method = {}
    for way in found:
        by_method.setdefault(way.plan.precision.partition(":")[0], set()).add(way.setting)
    assert by_method["gptq"] == by_method["awq"] == {one.name for one in SETTINGS}
    assert by_method["smoothquant"] == {"w8a8", "w4a8"}, "smoothing is for integer activations"
    static = [way for way in found if way.plan.precision.startswith("mobilequant")]
    assert {way.setting for way in static} == {"w8a8", "w4a8"}
    assert {way.plan.activations for way in static} == {"int8-static"}, "its ranges are learned to be used"
    for way in found:
        if way.plan.precision.startswith(("omniquant", "tesseraq")):
            assert f"activations={way.plan.activations}" in way.plan.precision, (
                "fitted for what it is run with"
            )
        integers = way.plan.activations != "f32"
        assert integers == way.setting.endswith("a8")
    assert any(way.plan.structure.startswith("low-rank") for way in found)


def test_what_is_fixed_stays(checkpoint, tmp_path):  # noqa: F811
    one = planned(checkpoint, tmp_path, precision="gptq:bits=4,order=activation", activations="f32")
    assert [way.plan.precision for way in one[1:]] == ["gptq:bits=4,group=64,order=activation"]
    assert {way.plan.activations for way in one} == {"f32"}


def test_bits_by_layer_are_a_row_where_they_are_named(checkpoint, tmp_path):  # noqa: F811
    found = planned(checkpoint, tmp_path, precision="mixed:layers=4444.4444", activations="int8-dynamic")
    assert [(way.setting, way.plan.precision) for way in found[1:]] == [
        ("as named", "mixed:layers=4444.4444")
    ]
    assert found[1].plan.activations == "int8-dynamic"


def test_what_would_take_too_long_or_cannot_be_taken_says_so(checkpoint, tmp_path):  # noqa: F811
    short = planned(checkpoint, tmp_path, effort_s=1e-3)
    reasons = {way.plan.precision.partition(":")[0]: way.reason for way in short}
    assert "more than --effort" in reasons["gptq"] and reasons["round-to-nearest"] is None


def test_what_learns_takes_longer_than_what_does_not(checkpoint, tmp_path):  # noqa: F811
    """Forward and back is three times forward, and again for every epoch or step."""
    with progress("") as bar:
        walk = side_of(job(checkpoint, tmp_path / "x.pack"), tmp_path, bar).walk
    once, awq, omniquant, twice, mobilequant, tesseraq = (
        packing_seconds(walk, create_precision(name), 32_768)
        for name in ("gptq", "awq", "omniquant:epochs=5", "omniquant:epochs=10", "mobilequant", "tesseraq")
    )
    assert 0 < once < awq < mobilequant < omniquant < tesseraq
    assert twice - omniquant == pytest.approx(15 * once / 4)
    assert packing_seconds(walk, create_precision("mobilequant:mode=nearest"), 32_768) < mobilequant


def run(capsys, *arguments):
    code = main(["pack", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_table_and_nothing_written(capsys, checkpoint, text, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = run(
        capsys, checkpoint, "--compare", *SHORT, "--precision", "smoothquant:bits=8", "--evaluation", text
    )
    assert code == 0, err
    assert "w16a16" in out and "w8a8" in out and "smoothquant:bits=8" in out and "0.25" in out
    assert list(tmp_path.iterdir()) == []


def test_the_best_is_packed_where_a_name_is_given(capsys, checkpoint, text, tmp_path):  # noqa: F811
    goal = tmp_path / "best.pack"
    code, out, err = run(
        capsys, checkpoint, "--compare", *SHORT, "--precision", "round-to-nearest",
        "--device", "raspberry-pi-5", "-o", goal, "--objective", "size", "--evaluation", text, "--json",
    )  # fmt: skip
    assert code == 0, err
    record = json.loads(out)
    msgspec.json.decode(out, type=OUTPUTS["pack-compare"])
    rows = {row["setting"]: row for row in record["rows"]}
    assert set(rows) == {"w16a16", "w8a8", "w4a16", "w3a16", "w4a8"}
    plain = rows["w16a16"]["bit_operations"]["matrices"]
    shares = {name: row["bit_operations"]["matrices"] / plain for name, row in rows.items()}
    assert shares == {"w16a16": 1, "w8a8": 0.25, "w4a16": 0.25, "w3a16": 3 / 16, "w4a8": 0.125}
    for row in rows.values():
        assert row["measured"]["source"] == "measured" and row["reason"] is None
        took = row["packing"]
        assert took["seconds"] > 0 and 20 < took["ram_mib"]["measured"] <= took["ram_mib"]["planned"]
    sizes = {name: round(row["measured"]["storage_mib"], 1) for name, row in rows.items()}
    (chosen,) = [name for name, row in rows.items() if row["plan"] == record["chosen"]]
    assert sizes[chosen] == min(sizes.values()) < sizes["w16a16"]
    assert record["chosen"] == Pack.open(goal).record.plan
    assert Pack.open(goal).check() == []
    assert [path.name for path in tmp_path.iterdir()] == ["best.pack"]


def test_a_method_that_fails_is_a_row_with_its_reason(checkpoint, text, tmp_path):  # noqa: F811
    """The text is refused in the other process; the float model's row stands."""
    (tmp_path / "short.txt").write_text("def f(x):\n    return x\n")
    asked = job(
        checkpoint, tmp_path / "x.pack", precision="gptq:bits=4", activations="f32",
        calibration=tmp_path / "short.txt", evaluation=text, policy=Policy(),
    )  # fmt: skip
    found = compare(asked, write=False)
    assert found.rows[0].reason is None
    assert found.rows[1].candidate is None and "too short" in found.rows[1].reason
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_interrupted_it_prints_what_it_has(checkpoint, text, tmp_path):  # noqa: F811
    program = "import sys; from haversack.cli import main; sys.exit(main())"
    argv = [sys.executable, "-c", program, "pack", str(checkpoint), "--compare", *SHORT, "--json"]
    argv += ["--evaluation", str(text), "--precision", "awq"]
    process = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not any(tmp_path.glob("*/way-1*")):
        time.sleep(0.05)  # until the second method compresses
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    record = json.loads(out)
    assert record["interrupted"] and record["pack"] is None
    assert record["rows"] and record["rows"][0]["measured"] is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "field", "said"),
    [
        (["--compare", "-o", "a.pack"], "device", "give --device"),
        ([], "device", "give --device"),
        (["--compare", "--precision", "awwq"], "precision", "did you mean awq"),
        (["--compare", "--precision", "awq:bits=5"], "bits", "use bits="),
        (["--compare", "--precision", "smoothquant", "--activations", "f32"], "activations", "smoothquant"),
    ],
)
def test_mistakes_are_named(capsys, checkpoint, tmp_path, monkeypatch, line, field, said):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, checkpoint, *line, "--json")
    record = json.loads(out)
    assert code == 2 and record["field"] == field and said in record["error"]
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_not_compared_are_named(tmp_path):
    with pytest.raises(UserError, match="original checkpoint"):
        (tmp_path / "x.gguf").write_bytes(b"GGUF")
        with progress("") as bar:
            side_of(job(tmp_path / "x.gguf", tmp_path / "a.pack"), tmp_path, bar)
