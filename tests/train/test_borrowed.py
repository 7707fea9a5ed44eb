"""A draft without its anchor: read out of the bundled target, run, packed, and refused where it cannot be."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import DamagedFileError
from haversack.formats.safetensors import HubFolder, write_safetensors
from haversack.models import read_architecture
from haversack.models._borrowed import BRIDGE_FILE, FIELD, INDEX_FILE, open_folder
from haversack.models._bundled import bundled_names, model_folder
from haversack.models._family import family_json, family_of, make_family
from haversack.run import Engine
from haversack.train.draft import draft_config

if "code" not in bundled_names():
    pytest.skip("the bundled model `code` is not installed", allow_module_level=True)

TOKENS = np.random.default_rng(3).integers(1, 5000, 20).astype(np.int32)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A draft of `code` whole, its bridge being the second block, and the same without the anchor."""
    source = HubFolder.open(model_folder("code"))
    family = make_family(source, read_architecture(source.config), 1, "code")
    folder = tmp_path_factory.mktemp("borrowed")
    whole, bridge = folder / "whole", folder / "bridge"
    architecture = read_architecture(draft_config(source.config, 1))
    tensors = [
        (name, "f16", source.tensors[name].shape, source.bytes(name)) for name in architecture.tensors()
    ]
    for goal in (whole, bridge):
        goal.mkdir()
        (goal / "config.json").write_text(json.dumps(draft_config(source.config, 1)))
        shutil.copy(model_folder("code") / "tokenizer.json", goal)
    write_safetensors(whole / "model.safetensors", tensors)
    (whole / "family.json").write_text(family_json(family))
    own = [each for each in tensors if each[0].startswith("model.layers.1.")]
    write_safetensors(bridge / BRIDGE_FILE, own)
    names = {name: BRIDGE_FILE for name, *_ in own}
    (bridge / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (bridge / "family.json").write_text(family_json(family, **{FIELD: "code"}))
    return whole, bridge


@pytest.mark.parametrize("residency", ["mapped", "copied", "streamed"])
def test_the_engine_gives_the_same_bits(both: tuple[Path, Path], residency: str) -> None:
    found = []
    for folder in both:
        with Engine.open(folder, residency=residency) as engine:
            rows, _ = engine.step(TOKENS, cache=engine.cache(32), want="all")
            found.append(rows)
    assert found[0] is not None and np.array_equal(*found)


def test_nothing_is_stored_twice(both: tuple[Path, Path]) -> None:
    whole, bridge = both
    view = open_folder(bridge)
    assert list(view.tensors) != [] and set(view.tensors) == set(HubFolder.open(whole).tensors)
    assert {path.parent for path in view.files} == {bridge, model_folder("code")}
    assert sum(path.stat().st_size for path in bridge.iterdir()) < 5_000_000
    source: Any = view
    assert family_of(view, read_architecture(source.config)) is not None


def test_its_pack_is_whole(both: tuple[Path, Path], tmp_path: Path) -> None:
    from haversack.core.pack import PackWriter
    from haversack.shrink._language import LanguageWalk
    from haversack.shrink._pipeline import Policy, compress
    from haversack.shrink.precision.keep import Keep

    made = []
    for folder in both:
        source: Any = open_folder(folder)
        with PackWriter(tmp_path / f"{folder.name}.pack") as writer:
            walk = LanguageWalk(read_architecture(source.config))
            compress(source, walk, Keep(kind="f16"), writer, texts=None, policy=Policy(), folder=tmp_path)
            writer.finish({"architecture": source.config})
        made.append((tmp_path / f"{folder.name}.pack" / "weights.safetensors").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("no-such-model", "is no bundled model"),
        ("../code", "is no bundled model"),
        ("digits", "is in neither"),
    ],
)
def test_anchors_that_are_not_there(both: tuple[Path, Path], tmp_path: Path, field: str, said: str) -> None:
    shutil.copytree(both[1], tmp_path / "d")
    family = json.loads((tmp_path / "d" / "family.json").read_text())
    (tmp_path / "d" / "family.json").write_text(json.dumps({**family, FIELD: field}))
    with pytest.raises(DamagedFileError, match=said):
        open_folder(tmp_path / "d")


def test_the_script_stores_only_the_bridge(both: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs PyTorch (pip install haversack[workshop])")
    reference = Path(__file__).resolve().parents[2] / "reference"
    sys.path.insert(0, str(reference))
    try:
        import train_flex_draft
    finally:
        sys.path.remove(str(reference))
    whole = tmp_path / "whole"
    shutil.copytree(both[0], whole)
    for name in ("generation_config.json", "tokenizer_config.json"):
        shutil.copy(model_folder("code") / name, whole)
    train_flex_draft.without_anchor(whole, tmp_path / "out", "code")
    ours: Any = open_folder(tmp_path / "out")
    theirs = HubFolder.open(whole)
    assert all(bytes(ours.bytes(name)) == bytes(theirs.bytes(name)) for name in theirs.tensors)
    assert {path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".safetensors"} == {
        BRIDGE_FILE
    }
