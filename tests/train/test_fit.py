"""Versions of a target: the anchor's bytes stay, what would touch it is refused, merged equals adapter."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.formats.safetensors import HubFolder
from haversack.models import read_architecture
from haversack.models._adapter import merged_tensors, read_adapter, require_above
from haversack.models._family import anchor_sha256, declared_family, family_of
from haversack.run import Engine, Limits, generate
from haversack.train._texts import Texts
from haversack.train._training import Learning
from haversack.train.fit import fit

pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")


@pytest.fixture(scope="module")
def version(
    base: Path, draft: Path, texts: Texts, quick: Learning, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`base` adapted in the draft's family."""
    goal = tmp_path_factory.mktemp("fit") / "t1"
    done = fit(base, texts, goal, family=draft, learning=replace(quick, rate=0.01))
    assert done is not None and done.blocks == (1, 2, 3)
    return goal


def test_the_anchor_keeps_its_bytes(base: Path, draft: Path, version: Path) -> None:
    before, after = HubFolder.open(base), HubFolder.open(version)
    architecture = read_architecture(after.config)
    changed = {
        name for name in architecture.tensors() if bytes(before.bytes(name)) != bytes(after.bytes(name))
    }
    matrices = {linear.weight for block in architecture.blocks[1:] for linear in block.matrices()}
    assert changed == matrices
    family = family_of(after, architecture)
    assert family == declared_family(HubFolder.open(draft))
    assert family is not None and family.anchor_sha256 == anchor_sha256(before, architecture, 1)


def test_it_learns(base: Path, draft: Path, texts: Texts, tmp_path: Path) -> None:
    learning = Learning(steps=80, rows=4, length=32, rate=0.02, threads=1)
    done = fit(base, texts, tmp_path / "t1", family=draft, parameters="lora:rank=16", learning=learning)
    assert done is not None
    assert done.report.loss[1] < done.report.loss[0] - 0.1
    assert done.report.held_out["loss"] < done.report.held_out["loss_before"]


def test_an_adapter_merges_to_the_merged_version(
    base: Path, draft: Path, version: Path, texts: Texts, quick: Learning, tmp_path: Path
) -> None:
    goal = tmp_path / "adapter"
    done = fit(base, texts, goal, family=draft, form="adapter", learning=replace(quick, rate=0.01))
    assert done is not None
    source = HubFolder.open(base)
    architecture = read_architecture(source.config)
    adapter = read_adapter(goal, architecture)
    require_above(adapter, 1, "t0")
    assert adapter.layers_to_transform == (1, 2, 3)
    assert declared_family(adapter) == done.family
    theirs = HubFolder.open(version)
    for name, _, _, _, pieces in merged_tensors(source, architecture, adapter.pairs):
        assert b"".join(bytes(piece) for piece in pieces()) == bytes(theirs.bytes(name)), name


def test_adapters_are_written_as_peft_writes_them(
    base: Path, texts: Texts, quick: Learning, tmp_path: Path
) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    goal = tmp_path / "adapter"
    parameters = "lora:rank=4,alpha=6,first=3,modules=attention"
    assert fit(base, texts, goal, parameters=parameters, form="adapter", learning=quick) is not None
    tensors = safetensors.load_file(goal / "adapter_model.safetensors")
    names = {f"{part}_proj.lora_{half}.weight" for part in "qkvo" for half in "AB"}
    assert set(tensors) == {f"base_model.model.model.layers.3.self_attn.{name}" for name in names}
    at = "base_model.model.model.layers.3.self_attn.k_proj"
    assert tensors[f"{at}.lora_A.weight"].shape == (4, 64)
    assert tensors[f"{at}.lora_B.weight"].shape == (32, 4)
    config = json.loads((goal / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["bias"]) == ("LORA", "CAUSAL_LM", "none")
    assert (config["r"], config["lora_alpha"], config["layers_to_transform"]) == (4, 6.0, [3])
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_versions_follow_one_another(version: Path, texts: Texts, quick: Learning, tmp_path: Path) -> None:
    """The second needs no --family: the first carries it."""
    done = fit(version, texts, tmp_path / "t2", learning=replace(quick, seed=4))
    assert done is not None and done.family == declared_family(HubFolder.open(version))
    assert done.blocks == (1, 2, 3)


def test_a_draft_serves_every_version_with_the_versions_own_tokens(
    base: Path, draft: Path, version: Path
) -> None:
    prompt = [5, 70, 7, 31, 16]
    for target in (base, version):
        said = []
        for decode in ("one-by-one", "linear-draft:length=4"):
            with Engine.open(
                target, decode=decode, draft=None if decode == "one-by-one" else draft
            ) as engine:
                answer = generate(engine, prompt, Limits(max_tokens=40, end=()))
                said.append([token.id for token in answer if token.id is not None])
        assert said[0] == said[1] and len(said[0]) == 40


def test_what_would_touch_the_anchor_is_refused(
    base: Path, draft: Path, texts: Texts, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="first=0 is a block of the anchor"):
        fit(base, texts, tmp_path / "t1", family=draft, parameters="lora:first=0")
    assert list(tmp_path.iterdir()) == []


def test_a_target_of_another_family_is_refused(
    draft: Path, texts: Texts, tmp_path: Path, make_base: Any
) -> None:
    other = make_base(tmp_path / "other", 8)
    with pytest.raises(UserError, match="has another anchor"):
        fit(other, texts, tmp_path / "t1", family=draft)
    with pytest.raises(UserError, match="belongs to no family"):
        fit(other, texts, tmp_path / "t1", family=other)


def test_a_fine_tune_of_everything_that_kept_its_family_file_is_refused(
    version: Path, texts: Texts, tmp_path: Path, make_base: Any
) -> None:
    other = make_base(tmp_path / "other", 8)
    shutil.copy(version / "family.json", other)
    with pytest.raises(UserError, match="has another anchor"):
        fit(other, texts, tmp_path / "t1")


def test_without_a_family_every_block_may_change(
    base: Path, texts: Texts, quick: Learning, tmp_path: Path
) -> None:
    done = fit(base, texts, tmp_path / "t1", learning=quick, parameters="lora:modules=attention,rank=2")
    assert done is not None and done.family is None and done.blocks == (0, 1, 2, 3)
    assert not (tmp_path / "t1" / "family.json").exists()
    assert json.loads((tmp_path / "t1" / "fit.json").read_text())["parameters"] == (
        "lora:rank=2,modules=attention"
    )


def test_an_interrupted_training_goes_on_to_the_same_bits(
    base: Path, draft: Path, version: Path, texts: Texts, quick: Learning, tmp_path: Path
) -> None:
    goal, learning = tmp_path / "t1", replace(quick, rate=0.01)
    assert fit(base, texts, goal, family=draft, learning=learning, stop_after=7) is None
    assert fit(base, texts, goal, family=draft, learning=learning) is not None
    for name in ("model.safetensors", "family.json", "fit.json"):
        assert (goal / name).read_bytes() == (version / name).read_bytes(), name


def test_another_form_is_refused(base: Path, texts: Texts, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="allowed merged, adapter"):
        fit(base, texts, tmp_path / "t1", form="patch")


def test_numbers_of_a_half_precision_base_are_rounded_once(
    base: Path, texts: Texts, quick: Learning, tmp_path: Path
) -> None:
    from haversack.formats.safetensors import write_safetensors

    source = HubFolder.open(base)
    half = tmp_path / "half"
    half.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(base / name, half)
    tensors = [
        (e.name, "f16", e.shape, np.frombuffer(source.bytes(e.name), "<f4").astype("<f2").tobytes())
        for e in source.tensors.values()
    ]
    write_safetensors(half / "model.safetensors", tensors)
    for form in ("merged", "adapter"):
        assert fit(half, texts, tmp_path / form, form=form, learning=quick) is not None
    architecture = read_architecture(source.config)
    pair = read_adapter(tmp_path / "adapter", architecture).pairs["model.layers.3.mlp.up_proj.weight"]
    found = HubFolder.open(tmp_path / "merged")
    assert {entry.kind for entry in found.tensors.values()} == {"f16"}
    plain = np.frombuffer(HubFolder.open(half).bytes(pair.name), "<f2").reshape(96, 64).astype(np.float64)
    exact = plain + pair.scale * pair.second.astype(np.float64) @ pair.first
    stored = np.frombuffer(found.bytes(pair.name), "<f2").reshape(96, 64)
    assert np.abs(stored - exact).max() <= 2**-10 * np.abs(exact).max()
