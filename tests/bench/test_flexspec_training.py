"""The bench of families: what it counts as accepted, learned and downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.bench._rows import Unavailable
from haversack.bench.flexspec import bench
from haversack.bench.flexspec import training as rows
from haversack.bench.flexspec._texts import Corpus, corpora, house_style, prompts
from haversack.core.pack import PackWriter
from haversack.formats.safetensors import HubFolder, write_safetensors
from haversack.models import read_architecture
from haversack.models._bundled import bundled_names, model_folder
from haversack.models._family import family_json, make_family


def test_the_house_style_is_the_same_code_in_other_tokens() -> None:
    source = "# a note\ndef read_all_lines(a_path):\n    # another\n    if a_path:\n        return __file__\n"
    assert house_style(source) == "def readAllLines(aPath):\n\tif aPath:\n\t\treturn __file__\n"


def test_shares_are_of_all_tokens_drafted() -> None:
    found = rows.Accepted((100, 50), (300, 60), 0)
    assert (found.share("general"), found.share("shifted"), found.share()) == (0.5, 0.2, 0.275)
    assert rows.Accepted((0, 0), (0, 0), 0).share() == 0


def test_prompts_are_drawn_from_what_nothing_learned() -> None:
    corpus = Corpus(np.arange(1000, dtype=np.int32), np.arange(5000, 6000, dtype=np.int32))
    found = prompts(corpus, 5, 3)
    assert all(len(one) == 64 and one[0] >= 5000 and one[-1] < 6000 for one in found)
    assert all(np.array_equal(a, b) for a, b in zip(found, prompts(corpus, 5, 3), strict=True))
    assert not np.array_equal(found[0], prompts(corpus, 5, 4)[0])


def test_absent_texts_are_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAVERSACK_DATA", str(tmp_path))
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match="tiny-shakespeare is absent"):
        corpora(tmp_path)


def test_only_another_anchor_is_downloaded(tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    shapes = read_architecture(config).tensors()

    def write(name: str, changed: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        values = {
            each: np.full(shape, 2.0 if each == changed else 1.0, np.float32)
            for each, shape in shapes.items()
        }
        tensors = [(each, "f32", array.shape, array.data) for each, array in values.items()]
        write_safetensors(folder / "model.safetensors", tensors)
        return folder

    base = write("t0", "")
    source = HubFolder.open(base)
    (base / "family.json").write_text(family_json(make_family(source, read_architecture(config), 1)))
    with PackWriter(tmp_path / "draft.pack") as writer:
        writer.add_tensor("a", "f32", (1024,), [bytes(4096)])
        writer.finish({})
    pack = tmp_path / "draft.pack"
    kept = write("t1", "model.layers.2.mlp.up_proj.weight")
    trained = write("t2", "model.layers.0.mlp.up_proj.weight")
    assert rows.downloaded(base, pack, [kept, kept]) == 0
    assert rows.downloaded(base, pack, [kept, trained]) > 4096


def test_acceptance_is_counted_beside_the_target_s_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    if not {"code", "code-draft"} <= set(bundled_names()):
        pytest.skip("the bundled models are not installed")
    monkeypatch.setattr(rows, "TOKENS", 12)
    target, draft = model_folder("code"), model_folder("code-draft")
    asked: Any = {"general": [[5, 9, 200, 31]], "shifted": [[700, 41, 8]]}
    plain = {kind: rows.answers(target, None, given) for kind, given in asked.items()}
    found = rows.accepted(target, draft, asked, plain)
    assert found.wrong == 0 and found.general[0] > 0 and 0 <= found.general[1] <= found.general[0]
    plain["general"][0][0][3] += 1
    assert rows.accepted(target, draft, asked, plain).wrong == 1


def test_every_bar_of_the_training_half_has_a_row() -> None:
    bars = {row.id: (row.bar.op, row.bar.value) for row in bench.rows if row.bar is not None}
    assert bars["kept"] == (">=", 0.85) and bars["against-stale"] == (">=", 1.1)
    assert bars["versions-exact"] == bars["sync-bytes"] == ("==", 0)
