"""`haversack run` of encoders: what follows from the head, as text and as the record of its schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.run.encoders import write_encoder, write_pooling

from haversack.cli import main
from haversack.cli._records import OUTPUTS
from haversack.run._encoder import Encoder


def record(capsys: pytest.CaptureFixture[str], *line: str) -> Any:
    assert main(["run", *line, "--json"]) == 0
    said = capsys.readouterr().out
    msgspec.json.decode(said.encode(), type=OUTPUTS["run-encoder"])
    return json.loads(said)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    at = tmp_path_factory.mktemp("encoders")
    heads = {
        "embed": "Model",
        "fill": "ForMaskedLM",
        "classify": "ForSequenceClassification",
        "label": "ForTokenClassification",
    }
    made = {task: write_encoder(at / task, "bert", head) for task, head in heads.items()}
    write_pooling(made["embed"], "mean_tokens", normalize=True)
    return {task: str(folder) for task, folder in made.items()}


def test_an_embedding(folders: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with Encoder.open(folders["embed"]) as encoder:
        wanted = encoder.embed(["the cat", "a dog"])
    said = record(capsys, folders["embed"], "the cat")
    assert said["task"] == "embed" and said["tokens"] == 4
    assert np.array_equal(np.float32(said["results"][0]["embedding"]), wanted[0])
    assert said["ram_mib"]["planned"] > 0 and said["plan"]["pooling"] == "mean, normalized"
    file = tmp_path / "texts.txt"
    file.write_text("the cat\n\na dog\n")
    assert main(["run", folders["embed"], str(file), "--lines"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert np.array_equal(np.float32(printed), wanted)


def test_masks_classes_and_labels(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    filled = record(capsys, folders["fill"], "--prompt", "the [MASK] sees", "--top-k", "2")
    (mask,) = filled["results"][0]["masks"]
    assert filled["task"] == "fill" and len(mask) == 2 and mask[0]["score"] >= mask[1]["score"]
    assert main(["run", folders["fill"], "the [MASK] sees"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    classes = record(capsys, folders["classify"], "the cat", "--pair", "a dog")["results"][0]["classes"]
    assert {one["label"] for one in classes} == {"joy", "fear", "none"}
    labels = record(capsys, folders["label"], "the cat sees")["results"][0]["labels"]
    assert [one["token"] for one in labels] == ["the", "cat", "sees"]
    vector = record(capsys, folders["fill"], "the cat", "--embed")
    assert vector["task"] == "embed" and len(vector["results"][0]["embedding"]) == 64


@pytest.mark.parametrize(
    ("task", "line", "field"),
    [
        ("embed", [""], "texts"),
        ("embed", ["the " * 40], "texts"),
        ("embed", ["a", "--temperature", "1"], "temperature"),
        ("embed", ["a", "--draft", "code"], "draft"),
        ("embed", ["a", "--ram-mib", "3"], "ram_mib"),
        ("fill", ["no mask"], "texts"),
        ("fill", ["a [MASK]", "--top-k", "9999"], "top_k"),
        ("label", ["a", "--pair", "b"], "pair"),
        ("embed", ["a", "--prompt", "b"], "prompt"),
        ("embed", ["a", "--activations", "int3"], "activations"),
    ],
)
def test_what_is_refused(
    task: str, line: list[str], field: str, folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", folders[task], *line, "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["field"] == field and "\n" not in said["error"]


def test_a_text_that_is_too_long_can_be_cut(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert record(capsys, folders["embed"], "the " * 40, "--truncate")["tokens"] == 24


def test_encoders_options_are_refused_for_decoders(tmp_path: Path) -> None:
    from tests.run.conftest import CONFIG, write_folder

    folder = write_folder(tmp_path / "decoder", CONFIG)
    assert main(["run", str(folder), "--prompt", "the one", "--embed"]) == 2
