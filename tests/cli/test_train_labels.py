"""`haversack train fit` on labelled rows from outside: kills, refusals, deltas over and off their base."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.cli.said import refused, said

from haversack.cli import main
from haversack.cli._records import OUTPUTS

torch = pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")

MAIN = "import sys; from haversack.cli import main; sys.exit(main())"
FAST = ("--epochs", "2", "--batch", "8", "--threads", "1", "--json", "-o")
HEAD = ("--parameters", "head", "--gradient", "backprop:rule=adam", "--precision", "f32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `net`, a small language model, and `t.csv`, texts of two classes."""
    found = tmp_path_factory.mktemp("labels")
    path = Path(__file__).parents[1] / "conformance" / "conftest.py"
    spec = importlib.util.spec_from_file_location("conformance_conftest", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_checkpoint(found / "net", 3, 2)
    drawn = random.Random(0)
    with (found / "t.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(40):
            words = ["late", "lost", "broken"] if number % 2 else ["fine", "good", "quick"]
            said = " ".join(drawn.choice(words) for _ in range(4))
            rows.writerow([f"{said} {number}", "bad" if number % 2 else "well"])
    return found


@pytest.fixture(scope="module")
def delta(folder: Path) -> Path:
    """What `net` learned of `t.csv` by LoRA."""
    line = [
        "train",
        "fit",
        str(folder / "net"),
        "--data",
        str(folder / "t.csv"),
        "--parameters",
        "lora:rank=2",
    ]
    line += ["--gradient", "backprop:rule=adam", "--precision", "f32", "--rate", "0.01", "--epochs", "8"]
    assert main([*line, "--batch", "8", "--threads", "1", "-o", str(folder / "delta")]) == 0
    return folder / "delta"


def digest(folder: Path) -> str:
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file())
    ).hexdigest()


def test_it_learns_prints_its_record_and_writes_a_small_delta(
    folder: Path, delta: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ("train", "fit", folder / "net", "--data", folder / "t.csv", *HEAD, "--rate", "0.02")
    record = said(
        capsys, *line, "--epochs", "20", "--batch", "8", "--threads", "1", "--json", "-o", tmp_path / "d"
    )
    found = msgspec.convert(record, OUTPUTS["train-fit-labels"])
    assert (
        record["classes"] == ["bad", "well"]
        and record["new_head"]
        and record["slots"]["parameters"] == "head"
    )
    assert record["held_out"]["after"]["loss"] < record["held_out"]["before"]["loss"]
    assert record["saved_mib"]["measured"] > 0 and found.steps == 20 * (record["rows"]["learned"] // 8)
    assert record["delta"]["nbytes"] < 40_000
    assert said(capsys, "check", tmp_path / "d", "--json")["whole"]
    assert record["ram_mib"]["measured"] > 0


def test_a_delta_runs_over_its_base(
    folder: Path, delta: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ("run", folder / "net", "--delta", delta, "--prompt", "late lost broken late 3", "--json")
    record = said(capsys, *line)
    msgspec.convert(record, OUTPUTS["run-network"])
    assert [each["name"] for each in record["classes"]] == ["bad", "well"]
    assert sum(each["probability"] for each in record["classes"]) == pytest.approx(1, abs=1e-5)
    applied = said(capsys, "train", "apply", folder / "net", delta, "-o", tmp_path / "applied", "--json")
    msgspec.convert(applied, OUTPUTS["train-apply"])
    again = said(capsys, "run", tmp_path / "applied", "--prompt", "late lost broken late 3", "--json")
    assert again["classes"] == record["classes"]
    back = said(capsys, "train", "remove", tmp_path / "applied", "-o", tmp_path / "back", "--json")
    assert back["files_sha256"] == applied["files_sha256"]
    assert digest(tmp_path / "back") == digest(folder / "net")


def test_an_applied_network_learns_further(
    folder: Path, delta: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said(capsys, "train", "apply", folder / "net", delta, "-o", tmp_path / "applied", "--json")
    line = ("train", "fit", tmp_path / "applied", "--data", folder / "t.csv", *HEAD, *FAST, tmp_path / "d2")
    record = said(capsys, *line)
    assert not record["new_head"] and record["held_out"]["before"]["accuracy"] >= 0.5
    error = refused(capsys, "run", folder / "net", "--delta", tmp_path / "d2", "--prompt", "x", "--json")
    assert error["field"] == "delta"
    assert said(capsys, "run", tmp_path / "applied", "--delta", tmp_path / "d2", "--prompt", "x", "--json")


def test_a_label_beyond_the_head_is_refused_with_the_classes(
    folder: Path, delta: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said(capsys, "train", "apply", folder / "net", delta, "-o", tmp_path / "applied", "--json")
    (tmp_path / "t.csv").write_text(
        "text,label\n" + "".join(f"{n},{['well', 'odd'][n % 2]}\n" for n in range(9))
    )
    line = ("train", "fit", tmp_path / "applied", "--data", tmp_path / "t.csv", *HEAD)
    error = refused(capsys, *line, *FAST, tmp_path / "d")["error"]
    assert "the label odd is beyond the head of applied, whose classes are bad, well" in error
    assert said(capsys, *line, "--head", "new", *FAST, tmp_path / "d")["classes"] == ["odd", "well"]


def test_a_loss_that_is_not_finite_stops_with_the_step_and_a_lower_rate_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ("train", "fit", folder / "net", "--data", folder / "t.csv", "--parameters", "all")
    line = (*line, "--gradient", "backprop", "--precision", "f32")
    error = refused(capsys, *line, "--rate", "1e30", *FAST, tmp_path / "d")
    assert error["field"] == "rate" and "loss of step" in error["error"] and "lower --rate" in error["error"]
    assert not (tmp_path / "d").exists() and (tmp_path / "d.training" / "state.npz").is_file()
    assert (
        refused(capsys, *line, "--rate", "0.1", "--epochs", "3", *FAST[2:], tmp_path / "d")["field"]
        == "epochs"
    )
    record = said(capsys, *line, "--rate", "1e-30", *FAST, tmp_path / "d")
    assert record["steps"] == 2 * (record["rows"]["learned"] // 8)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_delta_of_another_base_is_refused(
    folder: Path, delta: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from haversack.models._bundled import bundled_names

    if "code" not in bundled_names():
        pytest.skip("the weights of code are not in this checkout")
    error = refused(capsys, "run", "code", "--delta", delta, "--prompt", "x", "--json")
    assert error["field"] == "delta" and "was made for net" in error["error"]
    error = refused(capsys, "train", "apply", "code", delta, "-o", tmp_path / "a", "--json")
    assert error["field"] == "delta" and list(tmp_path.iterdir()) == []
    error = refused(capsys, "run", folder / "net", "--delta", folder / "net", "--prompt", "x", "--json")
    assert error["field"] == "pack"
    assert "delta pack" in refused(capsys, "run", delta, "--prompt", "x", "--json")["error"]


def test_a_training_that_is_killed_anywhere_ends_with_the_same_bytes(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ["train", "fit", str(folder / "net"), "--data", str(folder / "t.csv"), "--epochs", "12"]
    line += [
        "--parameters",
        "all",
        "--gradient",
        "backprop:momentum=0.9",
        "--precision",
        "f32",
        "--batch",
        "4",
    ]
    line += ["--threads", "1", "--checkpoint-seconds", "0", "--json", "-o"]
    said(capsys, *line, tmp_path / "whole")
    drawn, kills = random.Random(), 0
    for number in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *line, str(tmp_path / "broken")], stdout=subprocess.DEVNULL
        )
        state = tmp_path / "broken.training" / "state.npz"
        limit = time.monotonic() + 60
        while number == 0 and not state.is_file() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.002)
        try:
            process.wait(drawn.uniform(0.0, 0.3) if number == 0 else drawn.uniform(1.2, 2.6))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.wait()
        if (tmp_path / "broken").exists():
            break
    assert kills
    said(capsys, *line, tmp_path / "broken")
    assert digest(tmp_path / "broken") == digest(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "whole"]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (("--data", "none.csv"), "data"),
        (("--data", "t.csv", "--label-column", "mark"), "label-column"),
        (("--data", "t.csv", "--steps", "5"), "steps"),
        (("--data", "t.csv", "--as", "adapter"), "form"),
        (("--data", "t.csv", "--epochs", "0"), "epochs"),
        (("--data", "t.csv", "--rate", "-1"), "rate"),
        (("--data", "t.csv", "--head", "keep"), "head"),
        (("--data", "t.csv", "--head", "old"), "head"),
        (("--data", "t.csv", "--parameters", "heads"), "parameters"),
        (("--data", "t.csv", "--gradient", "backprop:momentum=2"), "momentum"),
        (("--data", "t.csv", "--precision", "f16"), "precision"),
        (("--data", "t.csv", "--ram-mib", "3"), "ram_mib"),
        (("--data", "empty"), "data"),
        (("--data", "t.csv", "--data", "t.csv"), "data"),
        (("--data", "t.csv", "--compare", "--epochs", "0"), "epochs"),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, line: Any, field: str
) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    given = [str(folder / part) if part in ("t.csv", "none.csv", "empty") else part for part in line]
    record = refused(capsys, "train", "fit", folder / "net", *given, "--json", "-o", tmp_path / "goal")
    assert record["field"] == field, record
    assert list(tmp_path.iterdir()) == []


def test_plain_texts_do_not_take_options_of_labels(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = tmp_path / "a.txt"
    text.write_text("x")
    for option in ("--epochs", "--batch"):
        line = ("train", "fit", folder / "net", "--data", text, option, "3", "--json", "-o", tmp_path / "g")
        assert "is for labelled data" in refused(capsys, *line)["error"]


def test_a_plan_says_what_would_be_trained_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ("train", "fit", folder / "net", "--data", folder / "t.csv", "--plan")
    record = said(capsys, *line, "--json")
    found = msgspec.convert(record, OUTPUTS["train-fit-plan"])
    assert found.ram_mib == pytest.approx(sum(record["plan_mib"].values()), abs=0.1)
    assert len(found.schemes) > 5 and record["slots"]["aggregation"] == "alone"
    assert main([*map(str, line)]) == 0 and "planned" in capsys.readouterr().out
    long = said(capsys, *line, *HEAD[2:], "--parameters", "all", "--length", "64", "--json")
    short = said(capsys, *line, *HEAD[2:], "--parameters", "all", "--length", "16", "--json")
    saved = "saved for the way back"
    assert long["plan_mib"][saved] == pytest.approx(4 * short["plan_mib"][saved], rel=0.02)
    text = tmp_path / "t.txt"
    text.write_text("late lost broken " * 400)
    plain = said(capsys, "train", "fit", folder / "net", "--data", text, "--plan", "--json")
    msgspec.convert(plain, OUTPUTS["train-fit-plan-texts"])
    few = ("train", "fit", folder / "net", "--data", folder / "t.csv", "--gradient", "zeroqat", "--plan")
    assert msgspec.convert(said(capsys, *few, "--json"), OUTPUTS["train-fit-plan-texts"]).ram_mib > 40
    error = refused(capsys, *line, "--ram-mib", "45", "--json")
    assert "ram_mib is 45 MiB" in error["error"]
    assert "no name" in refused(capsys, *line[:-1], "--json")["error"]
    assert "leave --compare out" in refused(capsys, *line, "--compare", "--json")["error"]
    assert not list(folder.glob("*.training"))


def test_as_much_of_a_text_is_read_as_is_asked_for_within_the_context(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    start = "same " * 5
    with (tmp_path / "long.csv").open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for number in range(24):
            file.write(f"{start}{'zz' if number % 2 else 'qq'}{number},{number % 2}\n")
    line = ("train", "fit", folder / "net", "--data", tmp_path / "long.csv", *HEAD, *FAST)
    said(capsys, *line, tmp_path / "long", "--length", "64")
    short = said(capsys, *line, tmp_path / "short", "--length", "10")
    assert short["held_out"]["after"]["accuracy"] == 0.5  # it reads the same of both classes
    run = ("run", folder / "net", "--json", "--delta")
    ends = [
        said(capsys, *run, tmp_path / "short", "--prompt", start + end)["classes"] for end in ("zz", "qq")
    ]
    assert ends[0] == ends[1]
    ends = [said(capsys, *run, tmp_path / "long", "--prompt", start + end)["classes"] for end in ("zz", "qq")]
    assert ends[0] != ends[1]
    said(capsys, "train", "apply", folder / "net", tmp_path / "short", "-o", tmp_path / "applied", "--json")
    found = [
        said(capsys, "run", tmp_path / "applied", "--prompt", start + end, "--json")["classes"]
        for end in ("zz", "qq")
    ]
    assert found[0] == found[1]
    error = refused(capsys, *line, tmp_path / "e", "--length", "100000")
    assert error["field"] == "length" and error["nearest"] == 96


def test_weights_alone_beyond_the_budget_are_refused_before_they_are_read(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    net = tmp_path / "net"
    net.mkdir()
    for path in (folder / "net").iterdir():
        (net / path.name).write_bytes(path.read_bytes())
    weights = net / "model.safetensors"
    head, _, _ = weights.read_bytes()[8:].partition(b"}}")
    shapes = json.loads(head + b"}}")
    numbers = 1 << 28  # a gigabyte of floats that the file does not have on the disk
    end = max(entry["data_offsets"][1] for name, entry in shapes.items() if name != "__metadata__")
    shapes["more"] = {"dtype": "F32", "shape": [numbers], "data_offsets": [end, end + 4 * numbers]}
    new = json.dumps(shapes).encode()
    with weights.open("wb") as file:
        file.write(len(new).to_bytes(8, "little") + new)
        file.truncate(8 + len(new) + end + 4 * numbers)
    error = refused(
        capsys,
        "train",
        "fit",
        net,
        "--data",
        folder / "t.csv",
        "--ram-mib",
        "900",
        "--json",
        "-o",
        tmp_path / "d",
    )
    assert "opening" in error["error"] and error["nearest"] > 1024


def test_a_budget_chooses_and_one_too_small_names_the_bytes(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ("train", "fit", folder / "net", "--data", folder / "t.csv")
    error = refused(capsys, *line, "--ram-mib", "45", *FAST, tmp_path / "d")
    assert "opening" in error["error"] and error["failures"]
    record = said(capsys, *line, "--ram-mib", str(4 * error["nearest"]), *FAST, tmp_path / "d")
    assert record["ram_mib"]["planned"] <= 4 * error["nearest"]
    assert "schemes fit" in record["why"] and record["slots"]["gradient"].startswith("backprop")


def test_rates_are_tried_on_rows_to_learn_from(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ("train", "fit", folder / "net", "--data", folder / "t.csv", *HEAD, "--rate", "0.01", "--tune")
    record = said(capsys, *line, *FAST, tmp_path / "d")
    assert min(abs(record["rate"] / rate - 1) for rate in (0.01 / 3, 0.01, 0.03)) < 1e-9
    assert said(capsys, *line, *FAST, tmp_path / "e")["rate"] == record["rate"]
    assert digest(tmp_path / "d") == digest(tmp_path / "e")


def test_a_full_disk_ends_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    line = [
        "train",
        "fit",
        str(folder / "net"),
        "--data",
        str(folder / "t.csv"),
        *HEAD,
        *FAST,
        str(tmp_path / "d"),
    ]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    program = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " + MAIN
    done = subprocess.run(
        [sys.executable, "-c", program, *line], capture_output=True, text=True, preexec_fn=limit
    )
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    assert "cannot be written" in json.loads(done.stdout)["error"]
    assert not (tmp_path / "d").exists() and not list(tmp_path.glob("**/*.partial-*"))


def test_methods_and_plain_fine_tuning_stand_on_one_front(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = ("train", "fit", folder / "net", "--data", folder / "t.csv", "--compare", "--parameters", "head")
    line = (*line, "--rate", "0.01", "--epochs", "1", "--batch", "8", "--threads", "1", "--json")
    record = said(capsys, *line, "-o", tmp_path / "front.html")
    msgspec.convert(record, OUTPUTS["train-fit-compare"])
    arms = record["arms"]
    assert arms[0]["plain"] and {arm["parameters"] for arm in arms} == {"all", "head"}
    assert any(arm["front"] for arm in arms) and all(arm["ram_mib"]["measured"] > 0 for arm in arms)
    page = (tmp_path / "front.html").read_text(encoding="utf-8")
    assert page.count('<svg viewBox="0 0 760') == 2 and "<script" not in page and "http" not in page
    assert [path.name for path in tmp_path.iterdir()] == ["front.html"]


def test_an_applied_network_that_was_altered_is_refused(
    folder: Path, delta: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said(capsys, "train", "apply", folder / "net", delta, "-o", tmp_path / "a", "--json")
    weights = tmp_path / "a" / "base" / "net" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    assert said(capsys, "check", tmp_path / "a", "--json")["whole"]
    weights.unlink()
    weights.write_bytes(data)
    (finding,) = said(capsys, "check", tmp_path / "a", "--json", code=2)["findings"]
    assert finding["file"] == "base/net"
    assert (
        "SHA-256"
        in refused(capsys, "train", "remove", tmp_path / "a", "-o", tmp_path / "b", "--json")["error"]
    )
    (tmp_path / "a" / "applied.json").write_text('{"format": 1, "base": "../../x", "files_sha256": ""}')
    assert refused(capsys, "run", tmp_path / "a", "--prompt", "x", "--json")
    assert not (tmp_path / "b").exists()
