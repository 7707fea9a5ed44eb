"""Compressing mixtures of experts: routers stay as they are, every expert is fitted to the tokens that chose
it, and one that none chose is rounded to nearest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.conftest import RECORD, MemorySource, draw

from haversack.core.errors import UserError
from haversack.core.pack import Pack, PackWriter, check_pack
from haversack.models import read_architecture
from haversack.plan._enumerate import create_precision
from haversack.plan._predict import Sizes
from haversack.run import Engine
from haversack.run._weights import bind
from haversack.run.export._tensors import numbers
from haversack.shrink._activations import Activations
from haversack.shrink._experts import ExpertInputs, all_alike
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress, memory_plan, stored_kinds, stored_nbytes
from haversack.shrink._precision import HessianSum, calibrated
from haversack.shrink._transforms import pairs_of

TEXTS = np.random.default_rng(5).integers(3, 280, (3, 32)).astype(np.int32)
TEXT = np.random.default_rng(7).integers(3, 280, 40).astype(np.int32)
EXPERT = {"olmoe": "mlp.experts.1.up_proj.weight", "smallthinker": "block_sparse_moe.experts.1.up.weight"}
FAMILIES = ["mixtral", "olmoe", "qwen2_moe-mixed", "qwen3_moe", "smallthinker"]


def source_of(name: str, **changes: Any) -> MemorySource:
    config = {**RECORD.CASES[name][0], **changes}
    return MemorySource(config, draw(config))


def packed(source: MemorySource, goal: Path, choice: str, unreached: list[str] | None = None) -> Pack:
    walk = LanguageWalk(read_architecture(source.config))
    method = create_precision(choice)
    texts = TEXTS if calibrated(method) else None
    with PackWriter(goal) as writer:
        compress(
            *(FileLike(source, goal.parent), walk, method, writer),
            texts=texts,
            policy=Policy(),
            folder=goal.parent,
            unreached=unreached,
        )
        writer.finish({"architecture": source.config, "plan": {"precision": choice}})
    pack = Pack.open(goal)
    if not pack.forms:  # how many outliers there are is not known before
        kinds = stored_kinds(walk, method, Policy())
        assert sum(entry.nbytes for entry in pack.tensors.values()) == stored_nbytes(walk, kinds)
    return pack


def FileLike(source: MemorySource, folder: Path) -> Any:  # noqa: N802
    """The same model in a folder, which is what compression reads."""
    import json

    from haversack.formats.safetensors import HubFolder, write_safetensors

    path = folder / "model"
    path.mkdir(exist_ok=True)
    tensors = [(name, "f32", v.shape, v.tobytes()) for name, v in source.weights.items()]
    write_safetensors(path / "model.safetensors", tensors)
    (path / "config.json").write_text(json.dumps(source.config))
    return HubFolder.open(path)


def logits_of(source: Any, **options: Any) -> np.ndarray:
    with Engine.open(source, **options) as engine:
        logits, _ = engine.step(TEXT, cache=engine.cache(48), want="all")
    assert logits is not None
    return logits


@pytest.mark.parametrize("choice", ["round-to-nearest:bits=8", "gptq:bits=8", "awq:bits=8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_by(name: str, choice: str, tmp_path: Path) -> None:
    source = source_of(name)
    unreached: list[str] = []
    pack = packed(source, tmp_path / "a.pack", choice, unreached)
    assert check_pack(pack.path) == [] and unreached == []
    exact, found = logits_of(source), logits_of(pack.path)
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert error < 0.25, "what is laid out wrongly is off by about 1"
    for way in ("copied", "streamed"):
        assert np.array_equal(logits_of(pack.path, residency=way), found)
    for block in read_architecture(source.config).blocks:
        for linear in () if block.mixture is None else block.mixture.routers():
            assert pack.tensors[linear.weight].kind == "f32"
            held = np.frombuffer(pack.bytes(linear.weight), "<f4")
            assert np.array_equal(held, source.weights[linear.weight].reshape(-1))


@pytest.mark.parametrize("name", ["olmoe", "smallthinker"])
def test_experts_with_outliers_compute_the_numbers_they_stand_for(name: str, tmp_path: Path) -> None:
    """SpQR keeps a matrix in several parts, which lie in the record of their expert."""
    pack = packed(source_of(name), tmp_path / "a.pack", "spqr:bits=4")
    assert check_pack(pack.path) == [] and set(pack.forms) >= {"model.layers.0." + EXPERT[name]}
    config = RECORD.CASES[name][0]
    dense = {tensor: np.concatenate(list(numbers(pack, tensor))) for tensor in draw(config)}
    exact, found = logits_of(MemorySource(config, dense)), logits_of(pack.path)
    assert np.abs(found - exact).max() < 1e-4 * np.abs(exact).max()
    for way in ("copied", "streamed", "streamed:edgemoe"):
        assert np.array_equal(logits_of(pack.path, residency=way), found)


def test_an_expert_sees_the_tokens_that_chose_it(tmp_path: Path) -> None:
    """The second moments of an expert's inputs are those of a pass through the block by hand."""
    source = source_of("qwen2_moe")
    architecture = read_architecture(source.config)
    walk, block = LanguageWalk(architecture), architecture.blocks[1]
    weights = bind(source, block.tensors())
    hidden = [walk.embed(text, bind(source, walk.first)) for text in TEXTS]
    states = Activations(*TEXTS.shape, walk.width, tmp_path)
    for index, one in enumerate(hidden):
        states.write(index, one)
    seen: dict[str, HessianSum] = {}

    def look(name: str, x: np.ndarray) -> None:
        seen.setdefault(name, HessianSum(x.shape[1])).add(x)

    for one in hidden:
        walk.run(1, one, weights, look)
    with ExpertInputs(walk, 1, states, tmp_path, 64) as experts:
        assert block.mixture is not None
        for expert in block.mixture.experts:
            for group in expert.products():
                first = group[0].weight
                found = experts.statistics(first, weights, frozenset({"hessian"}))
                assert found is not None and found.hessian is not None
                assert found.tokens == seen[first].tokens
                assert np.allclose(found.hessian, seen[first].finish().hessian, rtol=1e-6, atol=1e-9)
        assert experts.statistics(block.mixture.router.weight, weights, frozenset()) is None
        assert experts.unreached == []


def test_an_expert_that_no_token_chose_is_rounded_to_nearest(tmp_path: Path) -> None:
    source = source_of("mixtral", num_experts_per_tok=1)
    block = read_architecture(source.config).blocks[2]
    assert block.mixture is not None
    never = block.mixture.experts[3]
    router = source.weights[block.mixture.router.weight]
    router[3] = (router[0] + router[1]) / 2  # its number is never the largest
    unreached: list[str] = []
    fitted = packed(source, tmp_path / "gptq.pack", "gptq:bits=4,group=32", unreached)
    nearest = packed(source, tmp_path / "near.pack", "round-to-nearest:bits=4,group=32,scales=searched")
    assert unreached == ["model.layers.2.block_sparse_moe.experts.3"]
    for linear in (never.gate, never.up, never.down):
        assert linear is not None
        assert bytes(fitted.bytes(linear.weight)) == bytes(nearest.bytes(linear.weight))
    reached = block.mixture.experts[0].up.weight
    assert bytes(fitted.bytes(reached)) != bytes(nearest.bytes(reached))


def test_inputs_that_all_matter_alike() -> None:
    found = all_alike(300, frozenset({"hessian", "inputs", "ranges"}), "x")
    assert found.hessian is not None and found.inputs is not None
    assert np.array_equal(found.hessian, np.eye(300) / 300)
    assert (found.inputs.sum(axis=1) == 1).all()


def test_nothing_is_folded_into_experts() -> None:
    for name in FAMILIES:
        for block in read_architecture(RECORD.CASES[name][0]).blocks:
            if block.mixture is not None:
                inside = {linear.weight for group in block.mixture.products() for linear in group}
                for pair in pairs_of(block):
                    assert not inside & {pair.producer, *pair.consumers}


@pytest.mark.parametrize("choice", ["omniquant", "mobilequant"])
def test_methods_that_learn_through_blocks_refuse_them(choice: str, tmp_path: Path) -> None:
    source = source_of("mixtral")
    with pytest.raises(UserError, match=r"mixture"):
        packed(source, tmp_path / "a.pack", choice)


def test_the_plan_of_memory_has_the_mixture_s_inputs() -> None:
    config = RECORD.CASES["mixtral"][0]
    walk = LanguageWalk(read_architecture(config))
    gptq = dict(memory_plan(walk, create_precision("gptq"), 4096, None).lines)
    dense = LanguageWalk(read_architecture(RECORD.CASES["mistral"][0]))
    plain = dict(memory_plan(dense, create_precision("gptq"), 4096, None).lines)
    states = "hidden states of the calibration text"
    assert gptq[states] == 2 * plain[states]


def test_prediction_counts_the_experts_that_a_token_reads() -> None:
    architecture = read_architecture(RECORD.CASES["olmoe"][0])
    walk = LanguageWalk(architecture)
    kinds = stored_kinds(walk, create_precision("round-to-nearest:bits=8"), Policy())
    sizes = Sizes.of(architecture, kinds)
    for block, nbytes, read, products in zip(
        architecture.blocks, sizes.blocks, sizes.reads, sizes.products, strict=True
    ):
        mixture = block.mixture
        assert mixture is not None
        one = sum(
            kinds[linear.weight].nbytes(linear.outputs, linear.inputs)
            for group in mixture.experts[0].products()
            for linear in group
        )
        assert nbytes - read == (len(mixture.experts) - mixture.top) * one
        assert products == sum(linear.inputs * linear.outputs for linear in block.read_by_one())
