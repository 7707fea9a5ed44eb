"""Packs with outliers: what a method made runs as the numbers it stands for, wherever the weights live."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.conftest import CONFIG, draw, tokenizer_json, write_folder

from haversack.cli import main
from haversack.core import index
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, PackWriter
from haversack.formats.safetensors import HubFolder
from haversack.kernels._native import native
from haversack.models import read_architecture
from haversack.run import Engine
from haversack.run._forms import bound
from haversack.run._source import open_model
from haversack.run._weights import bind
from haversack.run.export import export
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress

TEXT = np.random.default_rng(3).integers(3, 280, 40).astype(np.int32)
TEXTS = np.random.default_rng(1).integers(3, 280, (6, 48)).astype(np.int32)
WAYS = ["mapped", "copied", "streamed", "streamed:keep=1"]
CHOICES = {
    "spqr": "f32",
    "spqr:bits=4,order=activation": "f32",
    "quik": "int8-dynamic",
    "quik:bits=4": "int8-dynamic",
}
"""Method -> the activations it is for."""
UP = "model.layers.1.mlp.up_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("outliers")
    source = HubFolder.open(write_folder(folder / "small", CONFIG))
    found = {}
    for number, (choice, activations) in enumerate(CHOICES.items()):
        found[choice] = folder / f"{number}.pack"
        method: Any = index.create("shrink", "precision", choice)
        with PackWriter(found[choice]) as writer:
            walk = LanguageWalk(read_architecture(source.config))
            compress(source, walk, method, writer, texts=TEXTS, policy=Policy(), folder=folder)
            writer.add_file("tokenizer.json", tokenizer_json().encode())
            plan = {"precision": choice, "activations": activations}
            writer.finish({"architecture": source.config, "plan": plan, "activations": activations})
    return found


def logits_of(engine: Engine) -> np.ndarray:
    cache = engine.cache(50)
    rows = [engine.step(TEXT[:30], cache=cache, want="all")[0]]
    rows += [engine.step(TEXT[at : at + 1], cache=cache)[0] for at in range(30, 40)]
    return np.concatenate(rows)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_pack_runs_as_the_numbers_it_stands_for(
    choice: str, packs: dict[str, Path], tmp_path: Path
) -> None:
    pack = Pack.open(packs[choice])
    assert {str(entry["form"]) for entry in pack.forms.values()} == {
        "sparse-outliers" if choice.startswith("spqr") else "outlier-columns"
    }
    export(open_model(str(packs[choice])), "safetensors", tmp_path / "dense", weights="f32")
    with Engine.open(tmp_path / "dense", activations="f32") as engine:
        expected = logits_of(engine)
    with Engine.open(packs[choice]) as engine:
        assert engine.activations == CHOICES[choice]
        found = logits_of(engine)
    assert (
        np.abs(found - expected).max() < (1e-4 if CHOICES[choice] == "f32" else 0.1) * np.abs(expected).max()
    )
    for way in WAYS:
        with Engine.open(packs[choice], residency=way) as engine:
            assert np.array_equal(logits_of(engine), found), way


@pytest.mark.skipif(native() is None, reason="programs are native")
@pytest.mark.parametrize("choice", ["spqr", "quik:bits=4"])
def test_a_program_has_the_bits_of_the_layers(choice: str, packs: dict[str, Path]) -> None:
    with Engine.open(packs[choice]) as engine:
        ran = logits_of(engine)
        with engine.held.weights(0) as weights:
            programs = list(weights.programs.values())  # type: ignore[attr-defined]
        assert len(programs) == 1 and hasattr(programs[0], "run")
        engine.forward.programs._space = None
        assert np.array_equal(logits_of(engine), ran)


def test_many_rows_equal_single_ones(packs: dict[str, Path]) -> None:
    for choice in ("spqr", "quik"):
        with Engine.open(packs[choice]) as engine:
            together, _ = engine.step(TEXT, cache=engine.cache(50), want="all")
            cache = engine.cache(50)
            single = [engine.step(TEXT[at : at + 1], cache=cache)[0] for at in range(len(TEXT))]
        assert together is not None and np.array_equal(together, np.concatenate(single))


def test_the_last_matrix_of_a_block_has_8_bits(packs: dict[str, Path]) -> None:
    tensors = Pack.open(packs["quik:bits=4"]).tensors
    assert tensors[f"{UP}.rest"].kind == "int4" and tensors[f"{DOWN}.rest"].kind == "int8"


@pytest.mark.parametrize(
    ("choice", "activations", "said"),
    [
        (
            "spqr",
            "int8-dynamic",
            "stored as sparse-outliers, which takes f32 activations, not int8-dynamic; use f32",
        ),
        ("quik", "f32", "stored as outlier-columns, which takes int8-dynamic activations, not f32"),
    ],
)
def test_activations_that_are_not_defined_are_refused(
    choice: str, activations: str, said: str, packs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=said):
        Engine.open(packs[choice], activations=activations)
    assert main(["run", str(packs[choice]), "--prompt", "a", "--activations", activations]) == 2
    capsys.readouterr()
    words = [
        "pack",
        str(packs["quik"].parent / "small"),
        "-d",
        "raspberry-pi-5",
        "-o",
        "never.pack",
        "--json",
    ]
    assert main([*words, "--precision", choice, "--activations", activations]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["field"] == "activations" and f"precision {choice}" in answer["error"]


def test_a_structure_beside_parts_is_refused(
    packs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "pack",
        str(packs["quik"].parent / "small"),
        "-d",
        "raspberry-pi-5",
        "-o",
        "never.pack",
        "--json",
    ]
    assert main([*words, "--precision", "spqr", "--structure", "low-rank:rank=0.5"]) == 2
    assert (
        "spqr looks at whole layers and cannot compress the factors"
        in json.loads(capsys.readouterr().out)["error"]
    )


def parts_of(pack: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    source = Pack.open(pack)
    tensors = bind(source, [name])  # the whole
    assert tensors[name].dense().shape == tuple(source.forms[name]["shape"])
    from haversack.run._weights import tensor

    inside = {part: entry for part, entry in source.tensors.items() if part.startswith(f"{name}.")}
    return dict(source.forms[name]), {
        part: tensor(entry, source.bytes(part)) for part, entry in inside.items()
    }


def test_outliers_that_cannot_be_are_refused_by_name(packs: dict[str, Path]) -> None:
    entry, parts = parts_of(packs["spqr"], UP)
    for part, broken in (
        ("columns", np.full_like(parts[f"{UP}.columns"], 255)),
        ("starts", parts[f"{UP}.starts"][::-1].copy()),
    ):
        with pytest.raises(DamagedFileError, match="outliers: starts, at and values do not fit"):
            bound(UP, entry, {**parts, f"{UP}.{part}": broken})
    entry, parts = parts_of(packs["quik"], UP)
    kept = parts[f"{UP}.kept_columns"]
    for broken in (kept[::-1].copy(), kept + 1000, kept - 1000):
        with pytest.raises(DamagedFileError, match="kept columns must rise from 0 to 63"):
            bound(UP, entry, {**parts, f"{UP}.kept_columns": broken})
    with pytest.raises(ValueError, match="kept is 64, not a whole number from 1 to 63"):
        bound(UP, {**entry, "kept": 64}, parts)


def test_the_drawn_model_is_the_one_packed(packs: dict[str, Path]) -> None:
    values = draw(CONFIG)[UP]
    for choice, most in (
        ("spqr", 0.35),
        ("spqr:bits=4,order=activation", 0.15),
        ("quik", 0.03),
        ("quik:bits=4", 0.2),
    ):
        dense = bind(Pack.open(packs[choice]), [UP])[UP].dense()
        assert np.linalg.norm(dense - values) < most * np.linalg.norm(values)
