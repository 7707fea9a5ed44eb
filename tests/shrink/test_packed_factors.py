"""Factors in packs: what is stored is what was said, fitted to what calibration gives, and listed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.conftest import CONFIG, write_folder

from haversack.core.errors import UserError
from haversack.core.memory import run_measured
from haversack.core.pack import Pack, PackWriter, check_pack
from haversack.formats.safetensors import HubFolder
from haversack.kernels import unpack
from haversack.models import read_architecture
from haversack.plan._structure import Structures, create_structure, full_structure, summary, takes
from haversack.run import Engine
from haversack.run._forms import bound
from haversack.run._weights import bind
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress, memory_plan, stored_kinds, stored_nbytes
from haversack.shrink._precision import HessianSum, InputStatistics
from haversack.shrink._source import read_tensor
from haversack.shrink.precision.keep import Keep
from haversack.shrink.precision.round_to_nearest import RoundToNearest
from haversack.shrink.structure._packed import (
    Factored,
    refitted,
    relative,
    share_lost,
    spectrum,
    through,
)
from haversack.shrink.structure.low_rank import LowRank

WIDE: dict[str, Any] = {**CONFIG, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
TEXTS = np.random.default_rng(1).integers(0, 280, (16, 64)).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hub") / "wide", WIDE)


def packed(folder: Path, goal: Path, precision: str, structure: str) -> tuple[Pack, Factored]:
    source = HubFolder.open(folder)
    walk = LanguageWalk(read_architecture(source.config))
    method: Any = Structures(walk, source).compression(precision, structure)
    with PackWriter(goal) as writer:
        texts = TEXTS if method.needs else None
        compress(source, walk, method, writer, texts=texts, policy=Policy(), folder=goal.parent)
        writer.add_file("tokenizer.json", folder / "tokenizer.json")
        plan = {"precision": precision, "structure": structure}
        writer.finish({"architecture": source.config, "plan": plan})
    return Pack.open(goal), method


CHOICES = [
    ("keep:kind=f32", "low-rank:rank=0.5"),
    ("keep:kind=f16", "low-rank:rank=20,solver=whitened"),
    ("keep:kind=bf16", "low-rank:rank=0.5,solver=snmf,n_iter=5"),
    ("round-to-nearest:bits=8", "low-rank:rank=0.4"),
    ("round-to-nearest:bits=4,group=32", "low-rank:rank=0.5,solver=whitened"),
    ("gptq:bits=4,group=32", "low-rank:rank=0.6"),
    ("gptq:bits=8", "low-rank:energy=0.8,weights=0.7"),
]


@pytest.mark.parametrize(("precision", "structure"), CHOICES)
def test_what_is_stored_is_what_was_said(
    precision: str, structure: str, folder: Path, tmp_path: Path
) -> None:
    pack, method = packed(folder, tmp_path / "a.pack", precision, structure)
    assert check_pack(pack.path) == []
    source = HubFolder.open(folder)
    walk = LanguageWalk(read_architecture(source.config))
    kinds = stored_kinds(walk, method, Policy())  # type: ignore[arg-type]
    assert sum(entry.nbytes for entry in pack.tensors.values()) == stored_nbytes(walk, kinds)
    assert [layer.name for layer in method.layers] == [
        name for block in range(walk.blocks) for group in walk.products(block) for name in group
    ]
    assert any(layer.rank is not None for layer in method.layers)
    for layer in method.layers:
        assert (layer.rank is None) == (layer.name not in pack.forms) == (layer.kept is not None)
        if layer.rank is None:
            assert layer.name in pack.tensors and layer.after == layer.before
            continue
        assert layer.after < layer.before
        assert pack.forms[layer.name]["rank"] == layer.rank
        parts = [pack.tensors[f"{layer.name}.{part}"].nbytes for part in ("first", "second")]
        assert sum(parts) == layer.after
        weight = read_tensor(source, layer.name)
        stored = bind(pack, [layer.name])[layer.name].dense()
        assert layer.error == pytest.approx(relative(weight - stored, weight, None), rel=1e-3)
    with Engine.open(pack.path) as engine, Engine.open(folder) as plain:
        found, exact = (one.step(TEXTS[0], cache=one.cache(64), want="all")[0] for one in (engine, plain))
        assert np.isfinite(found).all()
        assert np.linalg.norm(found - exact) < 1.3 * np.linalg.norm(exact)
    again, _ = packed(folder, tmp_path / "b.pack", precision, structure)
    assert all(bytes(again.bytes(name)) == bytes(pack.bytes(name)) for name in pack.tensors)


def test_svd_has_the_best_error_there_is(folder: Path, tmp_path: Path) -> None:
    """The best rank-r error is the root of the squared singular values left out."""
    _, method = packed(folder, tmp_path / "a.pack", "keep:kind=f32", "low-rank:rank=0.5")
    source = HubFolder.open(folder)
    for layer in method.layers:
        if layer.rank is not None:
            best = np.sqrt(share_lost(spectrum(read_tensor(source, layer.name)), layer.rank))
            assert layer.error == pytest.approx(best, rel=1e-3)


def test_whitening_gives_better_outputs(folder: Path, tmp_path: Path) -> None:
    sides = {}
    for solver in ("svd", "whitened"):
        structure = f"low-rank:rank=0.5,solver={solver}"
        sides[solver] = packed(folder, tmp_path / f"{solver}.pack", "gptq:bits=8", structure)[1].layers
    pairs = [pair for pair in zip(*sides.values(), strict=True) if pair[0].rank is not None]
    assert np.mean([b.output_error < a.output_error for a, b in pairs]) > 0.9  # type: ignore[operator]


def test_energy_gives_each_matrix_its_own_rank_within_the_weights(folder: Path) -> None:
    source = HubFolder.open(folder)
    walk = LanguageWalk(read_architecture(source.config))
    method: Any = Structures(walk, source).compression("keep", "low-rank:energy=0.9,weights=0.6")
    assert len({rank for rank in method.ranks.values() if rank}) > 1
    shapes = {name: walk.shape(name) for name in method.ranks}
    dense = sum(rows * columns for rows, columns in shapes.values())
    held = sum(
        shapes[name][0] * shapes[name][1] if rank is None else rank * sum(shapes[name])
        for name, rank in method.ranks.items()
    )
    assert held <= 0.6 * dense


def test_what_a_second_factor_sees_is_what_its_first_gives() -> None:
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((500, 48)) @ rng.standard_normal((48, 48))).astype(np.float32)
    first = rng.standard_normal((12, 48)).astype(np.float32)
    total = HessianSum(48)
    total.add(x)
    seen = x @ first.T
    assert np.allclose(through(total.finish().hessian, first), seen.T @ seen / len(x), rtol=1e-3, atol=1e-1)


def test_the_refitted_second_factor_is_the_best_beside_its_first() -> None:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((40, 48)).astype(np.float32)
    mixing = rng.standard_normal((48, 48))
    hessian = mixing @ mixing.T / 48
    first = RoundToNearest(bits=4, group=32).quantize({"a": rng.standard_normal((16, 48), np.float32)}, None)
    stored = np.asarray(unpack(first["a"].packed()))
    for known in (None, hessian):
        second = refitted(weight, stored, known)
        best = relative(weight - second @ stored, weight, known)
        for _ in range(5):
            other = second + 0.02 * rng.standard_normal(second.shape).astype(np.float32)
            assert relative(weight - other @ stored, weight, known) > best


def test_refitting_makes_good_what_rounding_loses(folder: Path) -> None:
    """With 4 bits in both, the product is nearer than that of factors rounded as they came."""
    source = HubFolder.open(folder)
    weight = read_tensor(source, "model.layers.0.mlp.up_proj.weight")
    inner = RoundToNearest(bits=4, group=32)
    method = Factored(LowRank(rank=40), inner, {"up": 40})
    form = method.quantize({"up": weight}, None)["up"]
    parts = {f"up.{part}": value.packed() for part, value in form.parts().items()}  # type: ignore[union-attr]
    entry = {**form.form, "shape": list(weight.shape)}  # type: ignore[union-attr]
    found = bound("up", entry, parts).dense()
    second, first = LowRank(rank=40).factors(weight) or (weight, weight)
    plain = [np.asarray(unpack(inner.quantize({"x": one}, None)["x"].packed())) for one in (second, first)]
    assert relative(weight - found, weight, None) < relative(weight - plain[0] @ plain[1], weight, None)


def test_a_matrix_whose_factors_save_no_bytes_stays(folder: Path, tmp_path: Path) -> None:
    """By weights rank 31 saves; stored with 64 inputs under a scale, the second factor takes 64."""
    pack, method = packed(
        folder, tmp_path / "a.pack", "round-to-nearest:bits=4,group=128", "low-rank:rank=60"
    )
    kept = [layer for layer in method.layers if layer.rank is None]
    assert kept and all("save nothing" in layer.kept or "as stored" in layer.kept for layer in kept)  # type: ignore[operator]
    assert all(layer.name in pack.tensors for layer in kept)


# What is refused


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("low-rank:rank=0", "rank=0 is no rank"),
        ("low-rank:rank=-3", "rank=-3 is no rank"),
        ("low-rank:rank=nan", "rank=nan is no rank"),
        ("low-rank:rank=1.5", "rank=1.5 is no rank"),
        ("low-rank:solver=random", "random factors would know nothing"),
        ("low-rank:solver=qr", "solver=qr is not supported"),
        ("low-rank:energy=1.5", "energy=1.5 is no share"),
        ("low-rank:energy=nan", "energy=nan is no share"),
        ("low-rank:energy=0.9,weights=0", "weights=0.0 is no share"),
        ("lowrank", "low-rank"),
    ],
)
def test_a_bad_choice_is_refused(choice: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        create_structure(choice)
    assert said in str(error.value)


def test_nmf_of_signed_weights_names_the_matrix_and_snmf(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"q_proj.weight: nmf needs weights that are not negative.*snmf"):
        packed(folder, tmp_path / "a.pack", "keep", "low-rank:solver=nmf")
    assert not (tmp_path / "a.pack").exists()


def test_a_rank_that_saves_nothing_anywhere_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rank=1000,solver=svd saves nothing in any of the 14 matrices"):
        packed(folder, tmp_path / "a.pack", "keep", full_structure("low-rank:rank=1000"))


def test_weights_that_are_not_finite_are_refused_by_name(folder: Path) -> None:
    weight = np.full((64, 64), np.nan, np.float32)
    with pytest.raises(UserError, match="up: these weights are not all finite"):
        Factored(LowRank(rank=4), Keep(), {"up": 4}).quantize({"up": weight}, None)


def test_a_precision_that_asks_for_more_than_mean_squares_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a second factor is given only the mean square is known; the search leaves such pairs out."""
    assert takes("low-rank", "keep:kind=f16") and takes("low-rank", "gptq")
    assert not takes("low-rank", "awq") and takes("none", "awq")
    monkeypatch.setattr(RoundToNearest, "needs", frozenset({"inputs"}))
    source = HubFolder.open(folder)
    structures = Structures(LanguageWalk(read_architecture(source.config)), source)
    with pytest.raises(UserError, match="round-to-nearest looks at whole layers"):
        structures.compression("round-to-nearest:bits=8", "low-rank")


def test_a_full_name_says_what_a_pack_is() -> None:
    assert full_structure(None) == full_structure("none") == "none"
    assert full_structure("low-rank") == "low-rank:rank=0.4,solver=svd"
    assert full_structure("low-rank:energy=0.95") == "low-rank:energy=0.95,solver=svd"
    assert (
        full_structure("low-rank:rank=256,solver=snmf,n_iter=3") == "low-rank:rank=256,solver=snmf,n_iter=3"
    )


def test_the_summary_names_the_worst(folder: Path, tmp_path: Path) -> None:
    _, method = packed(folder, tmp_path / "a.pack", "keep", "low-rank:rank=30")
    worst = max(method.layers, key=lambda layer: layer.error or 0.0)
    assert worst.name in summary(tuple(method.layers)) and "relative error" in summary(tuple(method.layers))


# Memory

CHILD = """
import sys
from pathlib import Path
import numpy as np
from haversack.core.pack import PackWriter
from haversack.formats.safetensors import HubFolder
from haversack.models import read_architecture
from haversack.plan._structure import Structures
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress

folder = Path(sys.argv[1])
source = HubFolder.open(folder)
walk = LanguageWalk(read_architecture(source.config))
texts = np.random.default_rng(1).integers(0, 3000, (6, 128)).astype(np.int32)
method = Structures(walk, source).compression("gptq:bits=4", "low-rank:rank=0.5,solver=whitened")
with PackWriter(folder.parent / "a.pack") as writer:
    compress(source, walk, method, writer, texts=texts, policy=Policy(), folder=folder.parent)
    writer.finish({})
"""


def test_the_peak_stays_below_the_plan(tmp_path: Path) -> None:
    config = {**CONFIG, "vocab_size": 3000, "hidden_size": 384, "intermediate_size": 1024}
    config |= {"num_hidden_layers": 1, "max_position_embeddings": 256}
    folder = write_folder(tmp_path / "hub", config, kind="f16")
    done = run_measured(
        [sys.executable, "-c", CHILD, str(folder)],
        files=[folder / "model.safetensors"],
        env={"OPENBLAS_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    walk = LanguageWalk(read_architecture(config))
    source = HubFolder.open(folder)
    method = Structures(walk, source).compression("gptq:bits=4", "low-rank:rank=0.5,solver=whitened")
    plan = memory_plan(walk, method, 6 * 128, None)
    assert "factors of its largest matrix" in dict(plan.lines)
    assert done.peak_mib <= plan.total_mib
    with pytest.raises(UserError, match="work_ram_mib"):
        memory_plan(walk, method, 6 * 128, 100)


def test_the_second_factor_is_calibrated_too(folder: Path) -> None:
    """A precision method is given, for each second factor, the statistics of its own input."""
    seen: dict[str, tuple[int, ...]] = {}

    class Watching(RoundToNearest):
        needs = frozenset({"hessian"})

        def quantize(self, weights: Any, inputs: InputStatistics | None) -> Any:
            assert inputs is not None
            for name, weight in weights.items():
                assert weight.shape[1] == len(inputs.hessian)
                seen[name] = weight.shape
            found = super().quantize(weights, inputs)
            inputs.hessian[:] = 0.0  # a method may overwrite it
            return found

    source = HubFolder.open(folder)
    weight = read_tensor(source, "model.layers.0.mlp.up_proj.weight")
    total = HessianSum(weight.shape[1])
    total.add(np.random.default_rng(0).standard_normal((300, weight.shape[1])).astype(np.float32))
    method = Factored(LowRank(rank=24), Watching(bits=8), {"up": 24})
    method.quantize({"up": weight, "other": weight}, total.finish())
    assert seen == {"other": (256, 128), "up.first": (24, 128), "up.second": (256, 24)}
    assert method.layers[0].output_error is not None
    assert json.dumps([layer.record() for layer in method.layers])
