"""`haversack train cura`: tables of numbers, classes, texts, pictures and series; packs; bad tables."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from haversack.cli import main
from haversack.cli._records import OUTPUTS

FAST = ["--steps", "300", "--restarts", "2"]


def table(path: Path, kind: str) -> Path:
    random = np.random.default_rng(0)
    x = random.standard_normal((120, 2))
    colour = np.where(x[:, 0] > 0, "red", "blue")
    if kind == "regress":
        rows = [f"{a:.4f},{c},{a * b + (c == 'red'):.4f}" for (a, b), c in zip(x, colour, strict=True)]
        rows = [f"{b:.4f},{row}" for (_, b), row in zip(x, rows, strict=True)]
        text = "b,a,colour,y\n"
    elif kind == "classify":
        rows = [f"{a:.4f},{b:.4f},{'in' if a * a + b * b < 1 else 'out'}" for a, b in x]
        text = "a,b,y\n"
    elif kind == "text":
        words = {"weather": ["rain", "wind", "cloud", "storm"], "kitchen": ["pan", "salt", "oven", "soup"]}
        rows = [
            f"the {random.choice(words[name])} and the {random.choice(words[name])},{name}"
            for name in random.choice(list(words), 120)
        ]
        text = "line,y\n"
    elif kind == "image":
        pictures = random.random((120, 36)) * 0.3
        label = random.integers(0, 2, 120)
        pictures[label == 1, :18] += 0.5
        rows = [
            ",".join(f"{p:.3f}" for p in one) + f",{'top' if up else 'none'}"
            for one, up in zip(pictures, label, strict=True)
        ]
        text = ",".join(f"p{at}" for at in range(36)) + ",y\n"
    else:
        wave = np.sin(np.arange(300) * 2 * np.pi / 24) + 0.05 * random.standard_normal(300)
        rows = [f"{at},{value:.4f}" for at, value in enumerate(wave)]
        text = "t,y\n"
    path.write_text(text + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("task", ["regress", "classify", "text", "image", "forecast"])
def test_every_task_beats_no_model_and_its_pack_says_the_same(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, pack = table(tmp_path / "t.csv", task), tmp_path / "m.pack"
    budget = "800" if task == "forecast" else "500"
    line = ["train", "cura", str(path), "--target", "y", "--task", task, "--budget-params", budget, *FAST]
    assert main([*line, "-o", str(pack), "--c", str(tmp_path / "m.c"), "--json"]) == 0
    out = capsys.readouterr().out
    msgspec.json.decode(out, type=OUTPUTS["train-cura"])
    found = json.loads(out)
    better = (
        found["test"] > found["naive"]
        if task in ("classify", "text", "image")
        else found["test"] < found["naive"]
    )
    assert better, (found["test"], found["naive"])
    assert (
        found["counts"]["learned"] <= int(budget) and found["files"]["pack"]["nbytes"] == pack.stat().st_size
    )
    assert main(["train", "cura", str(path), "--predict", str(pack), "--json"]) == 0
    out = capsys.readouterr().out
    msgspec.json.decode(out, type=OUTPUTS["train-cura-predict"])
    made = json.loads(out)["predictions"]
    assert len(made) == (24 if task == "forecast" else 120)
    if task in ("classify", "text", "image"):
        truth = [line.rpartition(",")[2] for line in path.read_text().splitlines()[1:]]
        assert np.mean(np.array(made) == np.array(truth)) > 0.85
    assert main(["check", str(pack)]) == 0


@pytest.mark.parametrize(
    ("task", "more", "field", "said"),
    [
        ("regress", ["--target", "z"], "target", "'z' is not known"),
        ("regress", [], "target", "add --target"),
        ("regress", ["--target", "y", "--budget-params", "20"], "budget_params", "too small for 4 inputs"),
        ("regress", ["--target", "y", "--task", "guess"], "task", "task=guess"),
        ("regress", ["--target", "colour"], "colour", "is no number"),
        ("regress", ["--target", "y", "--clip", "cos"], "clip", "clip=cos"),
        (
            "forecast",
            ["--target", "y", "--task", "forecast", "--horizon", "200"],
            "horizon",
            "allowed 1 to half",
        ),
        ("classify", ["--target", "y", "--task", "image"], "task", "make no square picture"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    task: str, more: list[str], field: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path / "t.csv", task)
    assert main(["train", "cura", str(path), *more, *FAST, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert said in error["error"] and error["field"] == field


def test_gaps_and_unseen_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, pack = table(tmp_path / "t.csv", "regress"), tmp_path / "m.pack"
    assert main(["train", "cura", str(path), "--target", "y", *FAST, "-o", str(pack), "--json"]) == 0
    capsys.readouterr()
    lines = path.read_text().splitlines()
    (tmp_path / "gap.csv").write_text("\n".join([*lines[:40], ",1,red,2", *lines[40:]]))
    assert main(["train", "cura", str(tmp_path / "gap.csv"), "--target", "y", *FAST]) == 2
    assert "missing or not finite" in capsys.readouterr().err
    (tmp_path / "new.csv").write_text("\n".join([*lines[:12], "1,1,green,2"]))
    assert main(["train", "cura", str(tmp_path / "new.csv"), "--predict", str(pack)]) == 2
    assert "'green' in the column colour was never seen" in capsys.readouterr().err
    (tmp_path / "one.csv").write_text("a,y\n" + "1,x\n" * 20)
    assert (
        main(["train", "cura", str(tmp_path / "one.csv"), "--target", "y", "--task", "classify", *FAST]) == 2
    )
    assert "has one class" in capsys.readouterr().err
