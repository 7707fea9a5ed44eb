"""Packing encoders: the pack runs, keeps how vectors are pooled, and loses what it says it lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.run.encoders import WORDS, write_encoder, write_pooling

from haversack.cli import main
from haversack.cli._records import OUTPUTS
from haversack.core.pack import Pack
from haversack.plan._encoder_quality import masked, mean_cosine
from haversack.run._encode import Tokens
from haversack.run._encoder import Encoder


def texts(path: Path) -> Path:
    rng = np.random.default_rng(5)
    path.write_text("\n".join(" ".join(rng.choice(WORDS, 12)) for _ in range(160)))
    return path


def packed(capsys: pytest.CaptureFixture[str], folder: Path, goal: Path, *line: str, code: int = 0) -> Any:
    text = str(texts(folder.parent / "text.txt"))
    base = ["pack", str(folder), "-d", "raspberry-pi-zero-2w", "-o", str(goal), "--effort", "0"]
    options = ["--evaluation", text, "--calibration", text, "--calibration-tokens", "2000", "--json"]
    assert main([*base, *options, *line]) == code
    said = capsys.readouterr().out
    if code == 0:
        msgspec.json.decode(said.encode(), type=OUTPUTS["pack"])
    return json.loads(said)


@pytest.mark.parametrize("precision", ["round-to-nearest:bits=8", "gptq:bits=4,group=32"])
def test_a_sentence_encoder_as_a_pack(
    precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_encoder(tmp_path / "bert", "bert")
    write_pooling(folder, "cls_token", normalize=True, longest=20)
    record = packed(capsys, folder, tmp_path / "it.pack", "--precision", precision)
    measured = [one for one in record["candidates"] if one["source"] == "measured"]
    assert measured and all(one["quality"]["bits_per_byte"] is None for one in measured)
    lines = texts(tmp_path / "text.txt").read_text().splitlines()[:40]
    with Encoder.open(tmp_path / "it.pack") as encoder, Encoder.open(folder) as plain:
        assert encoder.pooling == plain.pooling and encoder.longest == 20
        assert encoder.activations == record["plan"]["activations"]
        cosine = mean_cosine(encoder.embed(lines), plain.embed(lines))
    lost = 1 - cosine
    assert lost < (0.002 if "bits=8" in precision else 0.15)
    assert 0.2 * lost < max(one["quality"]["loss"] for one in measured) < 5 * max(lost, 1e-4)
    assert main(["check", str(tmp_path / "it.pack")]) == 0
    capsys.readouterr()
    assert main(["run", str(tmp_path / "it.pack"), lines[0], "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["plan"]["pooling"] == "cls, normalized" and said["plan"]["precision"] == precision


def test_a_masked_language_head_is_judged_by_its_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_encoder(tmp_path / "roberta", "roberta", "ForMaskedLM")
    packed(capsys, folder, tmp_path / "it.pack", "--precision", "round-to-nearest:bits=8")
    (measurement,) = Pack.open(tmp_path / "it.pack").record.measurements
    assert "masked token" in measurement["quality"][0]["name"]
    with Encoder.open(tmp_path / "it.pack") as encoder:
        assert encoder.architecture.tied
        assert (
            encoder.encode(["the <mask>"], want=("head",)).head[0].shape[1] == encoder.architecture.vocabulary
        )


def test_what_is_masked_is_the_same_for_every_plan() -> None:
    ids = np.arange(40, dtype=np.int32)
    text = Tokens(ids, np.zeros_like(ids), ids)
    (one,), (places,) = masked([text], 99, 1, 7)
    (again,), _ = masked([text], 99, 1, 7)
    assert (one.ids == again.ids).all() and len(places) == 6
    assert (one.ids[places] == 99).all() and 0 not in places and 39 not in places
    assert (np.delete(one.ids, places) == np.delete(ids, places)).all()


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (["--cache-type", "f16"], "cache_type"),
        (["--residency", "streamed"], "residency"),
        (["--activations", "int8-static"], "activations"),
        (["--ram-mib", "3"], "ram_mib"),
        (["--precision", "keep:kind=f32", "--activations", "int8-dynamic"], "activations"),
    ],
)
def test_what_is_refused(
    line: list[str], field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_encoder(tmp_path / "bert", "bert")
    said = packed(capsys, folder, tmp_path / "it.pack", *line, code=2)
    assert said["field"] == field
    assert not (tmp_path / "it.pack").exists()
