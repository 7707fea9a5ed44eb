"""`haversack pack` and `haversack run` on folders of an encoder with a decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.cli.said import refused, said
from tests.run.text_to_text import CASES, SWITCH, write_folder

from haversack.core.pack import Pack
from haversack.formats.safetensors import write_safetensors
from haversack.models import read_architecture
from haversack.run._paths import PROFILE_NAME, Profile

WORDS = "a dog and a cat. the sun was up, and all of it was red. "
ASKED = ("--prompt", "a <extra_id_0> and a cat <extra_id_1> red", "--max-tokens", 10, "--ignore-end")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hub") / "switch")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    rng = np.random.default_rng(1)
    words = WORDS.split()
    path.write_text(" ".join(rng.choice(words, 1500)))
    return path


def packed(capsys: Any, folder: Path, goal: Path, text: Path, *options: object) -> Any:
    given = ("--calibration", text, "--evaluation", text, "--calibration-tokens", 1024, "--effort", 1)
    return said(capsys, "pack", folder, "--device", "laptop", "-o", goal, *given, *options, schema="pack")


def test_experts_at_bits_of_their_own(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = tmp_path / "switch.pack"
    options = ("--precision", "edgemoe:importance=error,max_loss=0.2", "--activations", "f32")
    assert packed(capsys, folder, goal, text, *options)["plan"]["precision"].startswith("edgemoe")
    pack = Pack.open(goal)
    assert pack.record.architecture == json.loads((folder / "config.json").read_text())
    assert set(pack.tensors) == set(read_architecture(SWITCH, reader=True).tensors())
    kinds = {name: pack.tensors[name].kind for name in pack.tensors}
    assert {kind for name, kind in kinds.items() if "router" in name or "relative" in name} == {"f32"}
    assert {kind for name, kind in kinds.items() if ".experts." in name} & {"int2", "int4", "int8"}
    profile = Profile.of_bytes(pack.read_file(PROFILE_NAME))
    assert (profile.layers, profile.first) == (4, 2) and not profile.frequencies[:2].any()
    answers = {
        said(capsys, "run", goal, *ASKED, "--activations", "f32", "--residency", way, schema="run")["text"]
        for way in ("mapped", "copied", "streamed", "streamed:edgemoe", "streamed:edgemoe:buffer_kib=0")
    }
    assert len(answers) == 1


@pytest.mark.parametrize("name", ["switch-everywhere", "t5-gated"])
def test_calibrated_packs(name: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, goal = write_folder(tmp_path / name, CASES[name]), tmp_path / "small.pack"
    found = packed(capsys, source, goal, text, "--precision", "gptq:bits=8", "--residency", "mapped")
    assert found["plan"]["precision"].startswith("gptq:bits=8")
    ours, theirs = (one["value"] for one in Pack.open(goal).record.measurements[0]["quality"])
    assert abs(ours / theirs - 1) < 0.02  # eight bits lose little, of drawn weights too
    texts = [said(capsys, "run", one, *ASKED)["text"] for one in (goal, goal, source)]
    assert texts[0] == texts[1]


def test_a_budget_is_kept_and_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = said(capsys, "run", folder, *ASKED, "--ram-mib", 300)
    assert answer["ram_mib"]["planned"] <= 300 and answer["prompt_tokens"] > 5
    assert refused(capsys, "run", folder, *ASKED, "--ram-mib", 20)["field"] == "ram_mib"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("run", "{}", "--prompt", "a", "--chat"), "chat template"),
        (("run", "{}", "--prompt", "a", "--attention", "sliding:window=4"), "encoder-decoder"),
        (("serve", "{}"), "an encoder with a decoder"),
        (("export", "{}", "--to", "onnx", "-o", "x.onnx"), "an encoder with a decoder"),
        (("pack", "{}", "--device", "laptop", "-o", "x.pack", "--precision", "omniquant"), "has an encoder"),
        (("pack", "{}", "--device", "laptop", "-o", "x.pack", "--structure", "cats"), "is for decoders"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...],
    part: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert part in refused(capsys, *(str(folder) if one == "{}" else one for one in arguments))["error"]


def test_a_missing_expert_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.run.text_to_text import draw

    broken = write_folder(tmp_path / "broken")
    gone = "encoder.block.3.layer.1.mlp.experts.expert_1.wi.weight"
    tensors = [(n, "f32", v.shape, v.tobytes()) for n, v in draw(SWITCH).items() if n != gone]
    write_safetensors(broken / "model.safetensors", tensors)
    for command in (("run", broken, *ASKED), ("pack", broken, "--device", "laptop", "-o", tmp_path / "p")):
        assert gone in refused(capsys, *command)["error"]
