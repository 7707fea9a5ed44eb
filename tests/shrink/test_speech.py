"""A speech model as compression walks it: the blocks in turn are the engine, folding changes nothing, every
precision method makes packs that run as they were calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.speech import sound, write_speech

from haversack.core import index
from haversack.core.pack import Pack, PackWriter, check_pack
from haversack.kernels import Matrix
from haversack.run._speech import Speech
from haversack.run._speech_source import SpeechModel, open_speech
from haversack.shrink._pipeline import Policy, compress, stored_kinds, stored_nbytes
from haversack.shrink._precision import calibrated
from haversack.shrink._source import read_tensor
from haversack.shrink._speech import HEADER, Piece, Pieces, SpeechWalk, joined, split
from haversack.shrink._transforms import fold

FAMILIES = ("whisper", "moonshine")
TOKENS = np.array([31, 4, 9, 2, 2, 17], np.int32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SpeechModel]:
    at = tmp_path_factory.mktemp("speech")
    return {family: open_speech(write_speech(at / family, family)) for family in FAMILIES}


def pieces(model: SpeechModel, count: int = 3) -> Pieces:
    """Windows of different lengths, with texts of different lengths."""
    found = []
    with Speech.open(model, residency="mapped") as speech:
        for seed in range(count):
            rows = speech.rows(sound(0.6 + 0.15 * seed, seed))[: speech.window]
            found.append(Piece(rows, np.roll(TOKENS, seed)[: len(TOKENS) - seed % 2]))
    return Pieces(model.architecture, found)


def held(walk: SpeechWalk, tensors: dict[str, Any]) -> dict[str, Any]:
    return {n: Matrix.from_array(v) if walk.is_matrix(n) else v for n, v in tensors.items()}


def plain(model: SpeechModel, walk: SpeechWalk, block: int) -> dict[str, Any]:
    return {name: read_tensor(model.source, name) for name in walk.names(block)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_blocks_in_turn_are_the_engine(family: str, models: dict[str, SpeechModel]) -> None:
    """Stem, blocks and the encoder's last norm, one after the other, give the engine's states and logits."""
    model = models[family]
    walk = SpeechWalk(model.architecture, model.source)
    first = {name: Matrix.from_array(read_tensor(model.source, name)) for name in walk.first}
    calibration = pieces(model)
    with Speech.open(model, residency="mapped") as speech:
        for piece, length in calibration:
            hidden = walk.embed((piece, length), first)
            assert hidden.shape == (calibration.shape[1], walk.width)
            for block in range(walk.blocks):
                hidden = walk.run(block, hidden, held(walk, plain(model, walk, block)), None)
            heard, said = split(hidden)
            states = speech.forward.states(piece.rows, speech.weights)
            assert np.array_equal(hidden[heard], states)
            listened = speech.forward.listen(states, speech.weights)
            cache = speech.cache(len(piece.tokens))
            logits = speech.forward.write(piece.tokens, cache, listened, speech.weights, every=True)
            normal = speech.forward._decoder.finish(np.ascontiguousarray(hidden[said]), speech.weights)
            assert np.array_equal(speech.forward.logits(normal, speech.weights), logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_walked_once(family: str, models: dict[str, SpeechModel]) -> None:
    model = models[family]
    walk = SpeechWalk(model.architecture, model.source)
    names = [*walk.first, *walk.last, *(name for b in range(walk.blocks) for name in walk.names(b))]
    names += [] if walk.output in names else [walk.output]
    assert sorted(names) == sorted(model.architecture.tensors())
    for block in range(walk.blocks):
        groups = walk.products(block)
        assert [name for group in groups for name in group if not walk.is_matrix(name)] == []
        matrices = {name for name in walk.names(block) if walk.is_matrix(name)}
        assert {name for group in groups for name in group} == matrices
        if block >= walk.encoders:  # keys and values of the encoder's states are their own group
            assert any(all("encoder_attn" in name for name in group) and len(group) == 2 for group in groups)


@pytest.mark.parametrize("family", FAMILIES)
def test_taps_see_the_inputs_of_products(family: str, models: dict[str, SpeechModel]) -> None:
    model = models[family]
    walk = SpeechWalk(model.architecture, model.source)
    first = {name: Matrix.from_array(read_tensor(model.source, name)) for name in walk.first}
    (given,) = list(pieces(model, 1))
    hidden = walk.embed(given, first)
    for block in range(walk.blocks):
        seen: dict[str, Any] = {}
        weights = held(walk, plain(model, walk, block))
        after = walk.run(block, hidden, weights, lambda name, x: seen.update({name: x.copy()}))  # noqa: B023
        assert set(seen) == {name for group in walk.products(block) for name in group}
        for group in walk.products(block):
            rows = [seen[name] for name in group]
            assert all(np.array_equal(x, rows[0]) and x.shape[1] == walk.shape(group[0])[1] for x in rows)
            cross = "encoder_attn.k_proj" in group[0] or block < walk.encoders
            heard, said = split(hidden)
            part = heard if cross else said
            assert len(rows[0]) == part.stop - part.start
        hidden = after


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_changes_no_output(family: str, models: dict[str, SpeechModel]) -> None:
    model = models[family]
    walk = SpeechWalk(model.architecture, model.source)
    first = {name: Matrix.from_array(read_tensor(model.source, name)) for name in walk.first}
    (given,) = list(pieces(model, 1))
    hidden = walk.embed(given, first)
    rng = np.random.default_rng(4)
    for block in range(walk.blocks):
        before = plain(model, walk, block)
        changed = {name: values.copy() for name, values in before.items()}
        pairs = walk.pairs(block)
        kinds = [pair.kind for pair in pairs]
        assert kinds.count("norm") == (2 if block < walk.encoders else 3)
        assert kinds.count("linear") == (1 if block < walk.encoders else 2)
        assert kinds.count("gate") == (family == "moonshine" and block >= walk.encoders)
        for pair in pairs:
            channels = len(changed[pair.producer])
            shift = rng.normal(size=channels) if pair.shifts else None
            fold(changed, pair, np.exp(0.5 * rng.normal(size=channels)), shift)
            x = rng.normal(size=(5, channels)).astype(np.float32)
            if pair.kind == "norm":
                assert walk.inspect(block, pair, x, held(walk, before)).shape[0] == 5
        exact = walk.run(block, hidden, held(walk, before), None)
        found = walk.run(block, hidden, held(walk, changed), None)
        assert np.abs(found - exact).max() <= 1e-4 * np.abs(exact).max()
        hidden = exact


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "choice",
    [
        "keep:kind=bf16",
        "round-to-nearest:bits=8",
        "gptq:bits=4,group=32",
        "awq",
        "omniquant:epochs=2,activations=int8-dynamic",
        "tesseraq:steps=2",
    ],
)
def test_a_pack_runs_as_it_was_calibrated(
    family: str, choice: str, models: dict[str, SpeechModel], tmp_path: Path
) -> None:
    if choice.startswith(("omniquant", "tesseraq")):
        pytest.importorskip("torch", reason="learning needs PyTorch")
    model = models[family]
    walk = SpeechWalk(model.architecture, model.source)
    method: Any = index.create("shrink", "precision", choice)
    goal = tmp_path / "it.pack"
    texts: Any = pieces(model) if calibrated(method) else None
    with PackWriter(goal, "speech") as writer:
        compress(model.source, walk, method, writer, texts=texts, policy=Policy(), folder=tmp_path)
        for name in ("tokenizer.json", "generation_config.json"):
            writer.add_file(name, model.path / name)
        writer.finish({"architecture": dict(model.config), "plan": {"precision": choice}})
    assert not check_pack(goal)
    pack = Pack.open(goal)
    assert pack.record.kind == "speech" and set(pack.tensors) == set(model.architecture.tensors())
    nbytes = sum(entry.nbytes for entry in pack.tensors.values())
    assert nbytes == stored_nbytes(walk, stored_kinds(walk, method, Policy()))
    samples = sound(0.8, 9)
    with Speech.open(model) as plain_speech, Speech.open(goal) as speech:
        for activations in ("f32", "int8-dynamic"):
            if choice.startswith("keep") and activations != "f32":
                continue
            with Speech.open(goal, activations=activations, cache_type="f16") as small:
                rows = small.rows(samples)[: small.window]
                ours = small.forward.states(rows, small.weights)
                exact = plain_speech.forward.states(rows, plain_speech.weights)
                error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
                assert error < (0.02 if "keep" in choice else 0.06 if "bits=8" in choice else 0.6)
                heard = small.hear(rows)
                together = small.forward.write(
                    TOKENS, small.cache(9), heard.listened, small.weights, every=True
                )
                cache = small.cache(9)
                alone = [small.forward.write([t], cache, heard.listened, small.weights)[0] for t in TOKENS]
                assert np.array_equal(together, np.stack(alone))
        assert speech.rules == plain_speech.rules


def test_counts_survive_half_precision() -> None:
    width = 8
    for frames, tokens in ((1, 1), (1500, 448), (3001, 7), (60000, 12)):
        piece = np.zeros((HEADER, width), np.float32)
        piece[0] = joined(
            np.zeros((frames, width), np.float32), np.zeros((tokens, width), np.float32), 70000
        )[0]
        heard, said = split(piece.astype(np.float16).astype(np.float32))
        assert (heard.start, heard.stop, said.stop) == (HEADER, HEADER + frames, HEADER + frames + tokens)
