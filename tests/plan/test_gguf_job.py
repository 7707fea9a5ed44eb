"""Packing GGUF files: numbers kept as stored, only what does not run requantized, refusals in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.test_gguf import BASE, converted, logits

from haversack.cli import main
from haversack.core.errors import UserError
from haversack.core.pack import Pack
from haversack.kernels import Matrix, unpack
from haversack.plan._gguf_job import GgufJob, round_int8
from haversack.run._weights import bind

WIDE = {**BASE, "hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 512}


def mixed(name: str) -> str:
    """The usual Q4_0 file: the embedding and the output matrix in Q5_0 (Q6_K in the wild)."""
    return "Q5_0" if "embed" in name or "lm_head" in name else "Q4_0"


def numbers(pack: Pack) -> dict[str, np.ndarray]:
    found = bind(pack, pack.tensors)
    return {name: unpack(one) if isinstance(one, Matrix) else one for name, one in found.items()}


def test_kept_numbers_are_the_file_s(tmp_path: Path) -> None:
    stored = converted(tmp_path / "x.gguf", BASE, lambda name: "Q8_0" if "lm_head" in name else "Q4_0")
    job = GgufJob.of(str(tmp_path / "x.gguf"), None, None)
    assert job.kept
    pack = job.write(tmp_path / "x.pack", origin=True)
    found = numbers(pack)
    assert all(np.array_equal(found[name], values) for name, values in stored.items())
    assert pack.check() == []
    assert np.array_equal(logits(tmp_path / "x.pack"), logits(tmp_path / "x.gguf"))


@pytest.mark.parametrize("requantize", ["int8", "f16"])
def test_only_what_does_not_run_is_requantized(tmp_path: Path, requantize: str) -> None:
    stored = converted(tmp_path / "x.gguf", WIDE, mixed)
    job = GgufJob.of(str(tmp_path / "x.gguf"), None, requantize)
    origin = numbers(job.write(tmp_path / "o.pack", origin=True))
    assert all(np.array_equal(origin[name], values) for name, values in stored.items())
    pack = job.write(tmp_path / "x.pack", origin=False)
    found = numbers(pack)
    for name, values in stored.items():
        if "embed" in name or "lm_head" in name:
            assert pack.tensors[name].kind == requantize
            error = np.abs(found[name] - values).max() / np.abs(values).max()
            assert 0 < error < 0.005
        else:
            assert np.array_equal(found[name], values)
    kinds = job.kinds()
    for name, entry in pack.tensors.items():
        rows, columns = entry.shape if len(entry.shape) == 2 else (1, entry.shape[0])
        assert kinds[name].nbytes(rows, columns) == entry.nbytes


def test_a_precision_reads_what_the_numbers_stand_for(tmp_path: Path) -> None:
    stored = converted(tmp_path / "x.gguf", BASE, mixed)
    job = GgufJob.of(str(tmp_path / "x.gguf"), "round-to-nearest", "f16")
    assert not job.kept
    pack = job.write(tmp_path / "o.pack", origin=True)
    assert {entry.kind for entry in pack.tensors.values()} == {"f32"}
    assert all(np.array_equal(values, stored[name]) for name, values in numbers(pack).items())


def test_int8_in_groups_is_within_half_a_step() -> None:
    values = np.random.default_rng(0).standard_normal((7, 96)).astype(np.float32)
    values[2, 32:64] = 0
    codes, scales = round_int8(values)
    back = codes.reshape(7, 3, 32) * scales[:, :, None]
    assert np.abs(back - values.reshape(7, 3, 32)).max() <= 0.51 * scales.max()
    assert not codes[2, 32:64].any()


@pytest.mark.parametrize(
    ("types", "precision", "requantize", "words"),
    [
        (mixed, None, None, "2 tensors of type Q5_0 .*--requantize int8"),
        (mixed, None, "int4", "requantize=int4"),
        ("Q4_0", None, "int8", "nothing to requantize"),
        ("F16", None, "int8", "nothing to requantize"),
        ("F16", "gptq", "f16", "nothing to requantize"),
        ("Q4_0", "gptq", None, "is quantized already.*leave --precision out"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    tmp_path: Path, types: Any, precision: str | None, requantize: str | None, words: str
) -> None:
    converted(tmp_path / "x.gguf", BASE, types if callable(types) else lambda name: types)
    with pytest.raises(UserError, match=words) as refused:
        GgufJob.of(str(tmp_path / "x.gguf"), precision, requantize)
    assert "\n" not in str(refused.value)


def test_the_command_packs_and_runs_a_mixed_file(tmp_path: Path, capsys: Any) -> None:
    converted(tmp_path / "x.gguf", BASE, mixed)
    text = tmp_path / "text.txt"
    text.write_text("the a on at the " * 600)
    line = ["pack", str(tmp_path / "x.gguf"), "--device", "laptop", "-o", str(tmp_path / "x.pack"), "--json"]
    assert main(line) == 2
    assert json.loads(capsys.readouterr().out)["field"] == "requantize"
    line += ["--requantize", "int8", "--effort", "0.1", "--evaluation", str(text)]
    assert main(line) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["plan"]["precision"] == "as-stored"
    measured = [one for one in record["candidates"] if one["source"] == "measured"]
    assert abs(measured[0]["quality"]["loss"]) < 0.01
    assert main(["run", str(tmp_path / "x.pack"), "--prompt", "the", "--max-tokens", "4", "--json"]) == 0


def test_requantize_is_for_gguf(tmp_path: Path, capsys: Any) -> None:
    line = [
        "pack",
        "code",
        "--device",
        "laptop",
        "-o",
        str(tmp_path / "x.pack"),
        "--requantize",
        "int8",
        "--json",
    ]
    assert main(line) == 2
    assert "is for GGUF files" in json.loads(capsys.readouterr().out)["error"]
