"""System 21: equality before times, forced results, a trap that is caught, and everything its specification
refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.run.encoders import write_encoder

from haversack.bench.mlx_transformers_benchmark._backends import (
    BACKENDS,
    DEFAULT,
    backend,
    read_checkpoint,
)
from haversack.bench.mlx_transformers_benchmark._grid import (
    Cell,
    ParityError,
    Ready,
    batch_of,
    gate,
    measure_cell,
    open_backends,
    slope,
    slopes,
    speed_up,
    suspicious,
)
from haversack.bench.mlx_transformers_benchmark._lazy import Node
from haversack.bench.mlx_transformers_benchmark._models import BERT_BASE, PARAMETERS
from haversack.bench.mlx_transformers_benchmark._reference import erf
from haversack.bench.mlx_transformers_benchmark.grid import furthest
from haversack.cli import main
from haversack.cli._records import OUTPUTS
from haversack.core.errors import DamagedFileError, UserError
from haversack.models import read_encoder
from haversack.run._encoder import Encoder

TEXT = "the old cat sees a dog . the big red house and the small blue river . a tree or a new stone "
RUNNABLE = [name for name in BACKENDS if backend(name).unavailable() is None and name != "torch-compiled"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = write_encoder(
        tmp_path_factory.mktemp("compared") / "bert",
        "bert",
        hidden_size=128,
        intermediate_size=256,
        max_position_embeddings=160,
    )
    return made


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path / "cache"))


def test_the_speed_up_formula() -> None:
    assert round(speed_up(0.76, 0.47)) == 62
    assert math.floor(speed_up(0.76, 0.47)) == 61
    assert speed_up(2.0, 1.0) == 100.0 and speed_up(1.0, 2.0) == -50.0


def test_bert_base_has_its_published_parameters() -> None:
    shapes = read_encoder(BERT_BASE).tensors().values()
    assert sum(math.prod(shape) for shape in shapes) == PARAMETERS == 109_482_240


@pytest.mark.parametrize("power", [0.0, 0.5, 0.9, 1.0, 1.2, 1.6])
def test_the_slope_is_the_power_and_is_judged(power: float) -> None:
    tokens = [11.0, 23.0, 47.0, 120.0]
    found = slope(tokens, [3.0 * count**power for count in tokens])
    assert abs(found - power) < 1e-9
    assert (suspicious(found) is None) == (0.8 <= power <= 1.3)


def test_the_error_function() -> None:
    x = np.linspace(-5, 5, 2001).astype(np.float32)
    exact = np.array([math.erf(float(value)) for value in x])
    assert np.abs(erf(x) - exact).max() < 6e-7


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_every_backend_here_computes_the_same(family: str, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / family, family)
    opened = open_backends(folder, RUNNABLE, TEXT, threads=2, characters=40)
    assert set(opened.ready) == set(RUNNABLE) and not opened.skipped
    for name, one in opened.ready.items():
        if one.backend.exact:
            assert one.difference <= 1e-4, name
        else:
            assert one.difference > 1e-4 and one.cosine > 0.99, name


def test_lazy_computes_nothing_until_it_is_asked() -> None:
    calls: list[int] = []

    def one(value: int) -> int:
        calls.append(value)
        return value + 1

    node = Node(one, 0)
    for _ in range(5000):  # deeper than the interpreter's stack
        node = Node(one, node)
    assert calls == []
    assert node.value() == 5001 and node.value() == 5001
    assert len(calls) == 5001


def test_the_trap_is_caught(folder: Path) -> None:
    opened = open_backends(folder, ["lazy", "lazy-unsynchronised"], TEXT, threads=1, characters=40)
    cells = []
    for characters in (40, 80, 400):
        cells += measure_cell(opened, TEXT, characters, 16, 5)
    found = slopes(cells, 16)
    assert suspicious(found["lazy-unsynchronised"]) is not None
    assert found["lazy-unsynchronised"] < found["lazy"]
    last = {cell.backend: cell for cell in cells if cell.characters == 400}
    assert last["lazy"].median_ms > 5 * last["lazy-unsynchronised"].median_ms
    # Its work is done when the result is fetched, outside the timer.
    assert last["lazy-unsynchronised"].copy_ms > 5 * last["lazy-unsynchronised"].median_ms


def test_two_runs_are_compared_place_by_place() -> None:
    def cell(name: str, characters: int, median_ms: float) -> Cell:
        return Cell(name, characters, 1, 20.0, 24, 0.0, median_ms, 0.0, 0.0, 0.0)

    first = [cell("ours", 50, 10.0), cell("ours", 200, 40.0), cell("other", 200, 80.0)]
    worst, where = furthest(first, [cell("ours", 200, 44.0), cell("other", 200, 79.0)])
    assert worst == pytest.approx(4 / 42)
    assert where == "ours at 200 characters, batch 1"
    assert furthest(first, [cell("ours", 50, 10.0)]) == (0.0, "")


def test_a_backend_that_computes_something_else_is_not_timed(folder: Path, tmp_path: Path) -> None:
    other = write_encoder(
        tmp_path / "other", "bert", hidden_size=128, intermediate_size=256, max_position_embeddings=160,
        layer_norm_eps=3e-3,
    )  # fmt: skip
    checkpoint, wrong = read_checkpoint(folder), read_checkpoint(other)
    with Encoder.open(folder) as encoder:
        batch = batch_of(encoder, TEXT, 40, 3)
    reference = backend("numpy").load(checkpoint, 1)
    hidden = reference.array(reference.run(batch))
    one = backend("haversack")
    gate(Ready(one, one.load(checkpoint, 1)), hidden, batch, 1e-4)
    with pytest.raises(ParityError, match="no times are taken"):
        gate(Ready(one, one.load(wrong, 1)), hidden, batch, 1e-4)


def test_nan_is_not_equal(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    tensors = {name: np.full_like(values, np.nan) for name, values in checkpoint.tensors.items()}
    damaged = type(checkpoint)(checkpoint.folder, checkpoint.architecture, checkpoint.config, tensors)
    with Encoder.open(folder) as encoder:
        batch = batch_of(encoder, TEXT, 40, 2)
    one = backend("numpy")
    hidden = one.load(checkpoint, 1).run(batch)
    with pytest.raises(ParityError):
        gate(Ready(one, one.load(damaged, 1)), hidden, batch, 1e9)


def compared(capsys: pytest.CaptureFixture[str], *line: str, code: int = 0) -> Any:
    assert main(["compare", *line, "--json"]) == code
    said = capsys.readouterr().out
    if code == 0:
        msgspec.json.decode(said.encode(), type=OUTPUTS["compare"])
    return json.loads(said)


GRID = ("--lengths", "30,90", "--batches", "1,3", "--iters", "3")


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20)
    page = tmp_path / "report.md"
    names = "numpy,haversack,torch-cuda,lazy-unsynchronised"
    line = [str(folder), "--backends", names, "--text", str(text), *GRID, "--markdown", str(page)]
    (model,) = compared(capsys, *line)["models"]
    places = {(cell["backend"], cell["characters"], cell["batch"]) for cell in model["cells"]}
    here = [name for name in names.split(",") if name not in model["skipped"]]
    assert places == {(name, n, b) for name in here for n in (30, 90) for b in (1, 3)}
    assert all(cell["iterations"] == 3 and cell["median_ms"] > 0 for cell in model["cells"])
    assert all(cell["p90_ms"] >= cell["median_ms"] and cell["first_ms"] > 0 for cell in model["cells"])
    assert model["cells"][0]["mean_tokens"] < model["cells"][-1]["mean_tokens"]
    written = page.read_text()
    assert "## Every cell" in written and "**flagged**" in written
    for name, reason in model["skipped"].items():  # torch-cuda where there is no such device
        assert reason and f"{name}: not measured; {reason}" in written


def test_a_failed_gate_prints_no_times(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(folder), "--backends", "haversack", "--atol", "1e-12", *GRID]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "no times are taken" in said.err


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (["--iters", "2"], "iters"),
        (["--lengths", "0"], "lengths"),
        (["--lengths", "ten"], "lengths"),
        (["--lengths", "2000", "--batches", "1"], "lengths"),
        (["--batches", "-1"], "batches"),
        (["--backends", "numpi"], "backends"),
        (["--text", "/no/such/file"], "text"),
    ],
)
def test_what_is_refused(
    line: list[str], field: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = compared(capsys, str(folder), "--backends", "haversack", *line, code=2)
    assert said["field"] == field and "\n" not in said["error"]


def test_missing_tensors_and_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    from haversack.formats.safetensors import HubFolder, write_safetensors

    less = tmp_path / "less"
    less.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (less / name).write_bytes((folder / name).read_bytes())
    source = HubFolder.open(folder)
    kept = [name for name in source.tensors if "layer.1.output.dense.weight" not in name]
    write_safetensors(
        less / "model.safetensors",
        [(name, "f32", source.tensors[name].shape, source.bytes(name)) for name in kept],
    )
    with pytest.raises(DamagedFileError, match=r"layer\.1\.output\.dense\.weight"):
        read_checkpoint(less)
    (less / "model.safetensors").unlink()
    with pytest.raises(UserError):
        read_checkpoint(less)


def test_unknown_and_absent_backends_give_their_reason() -> None:
    with pytest.raises(UserError, match="did you mean onnxruntime"):
        backend("onnxruntim")
    for name in DEFAULT:
        reason = backend(name).unavailable()
        assert reason is None or "install" in reason or "compiler" in reason
