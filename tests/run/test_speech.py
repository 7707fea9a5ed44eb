"""The speech engine beyond parity: sound longer than a window, bounds on what is written, kinds of weights,
damaged checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.run.speech import sound, write_speech

from haversack.core.budget import Budget, BudgetError
from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.safetensors import HubFolder, write_safetensors
from haversack.run._beams import beam_search
from haversack.run._speech import Speech
from haversack.run._speech_source import open_speech
from haversack.run._times import Segment, allow_times, segments
from haversack.run._transcribe import Asked, quiet, transcribe


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("speech")
    return {family: write_speech(at / family, family) for family in ("whisper", "moonshine")}


def changed(folder: Path, goal: Path, file: str, **fields: Any) -> Path:
    """A copy of `folder` with other fields in one of its JSON files; None takes one away."""
    shutil.copytree(folder, goal)
    table = json.loads((goal / file).read_text()) | fields
    (goal / file).write_text(json.dumps({name: value for name, value in table.items() if value is not None}))
    return goal


def test_long_sound_without_times_is_cut_where_it_is_quiet(folders: dict[str, Path]) -> None:
    """Each window is what a run of that part alone writes; parts lie end to end over all of the sound."""
    spoken = np.concatenate([sound(26.0, 1), np.zeros(16000, np.float32), sound(9.0, 2)])
    with Speech.open(folders["moonshine"]) as speech:
        found = transcribe(speech, spoken)
        assert found.windows == 2
        bounds = [(segment.start, segment.end) for segment, _ in found.segments]
        assert bounds[0][0] == 0.0 and bounds[0][1] == bounds[1][0] and bounds[1][1] == 36.0
        assert 26.0 < bounds[0][1] < 27.0
        cut = round(bounds[0][1] * 16000)
        parts = [transcribe(speech, part).tokens for part in (spoken[:cut], spoken[cut:])]
        assert [list(segment.tokens) for segment, _ in found.segments] == parts


def test_a_window_without_times_is_as_long_as_the_encoder_s(folders: dict[str, Path], tmp_path: Path) -> None:
    """A Whisper without tokens for times hears its own windows, one after the other."""
    folder = changed(
        folders["whisper"], tmp_path / "it", "generation_config.json", no_timestamps_token_id=None
    )
    with Speech.open(folder) as speech:
        assert speech.window == 100
        found = transcribe(speech, sound(2.5))
        assert found.windows >= 3
        ends = [segment.end for segment, _ in found.segments]
        assert ends[-1] == 2.5 and all(0 < b - a <= 1.0 for a, b in zip([0.0, *ends], ends, strict=False))
        with pytest.raises(UserError, match="no tokens for times"):
            transcribe(speech, sound(0.5), Asked(times=True))


def test_quiet_places() -> None:
    samples = sound(30.0) + np.float32(0.1)
    samples[27 * 16000 : 27 * 16000 + 3200] = 0
    assert 27 * 16000 < quiet(samples, 0, 30 * 16000) < 27 * 16000 + 3200
    with pytest.raises(UserError):
        quiet(samples, 0, 1000)


def test_how_much_is_written_follows_the_sound(folders: dict[str, Path]) -> None:
    """Moonshine writes at most 6.5 tokens a second (8 of the shortest), and never beyond its bounds."""
    with Speech.open(folders["moonshine"]) as speech:
        lengths = [
            speech.room(1, speech.hear(speech.rows(sound(seconds)), seconds))
            for seconds in (0.2, 1.0, 4.0, 20)
        ]
        assert lengths == [8, 8, 26, 63]
        heard = speech.hear(speech.rows(sound(4.0)), 4.0)
        assert speech.room(1, heard, 5) == 5 and len(speech.write(heard, [31], most=5)) <= 5
    with Speech.open(folders["whisper"]) as speech:
        heard = speech.hear(speech.rows(sound(0.5)), 0.5)
        assert speech.room(3, heard) == 21


def test_the_same_sound_gives_the_same_text_in_every_residency(folders: dict[str, Path]) -> None:
    samples = sound(0.9)
    texts = []
    for residency in ("mapped", "copied"):
        for threads in (1, 2):
            with Speech.open(folders["whisper"], residency=residency, threads=threads) as speech:
                states = speech.forward.states(speech.rows(samples)[:100], speech.weights)
                texts.append((transcribe(speech, samples, Asked(beams=3)).tokens, states))
    assert all(tokens == texts[0][0] for tokens, _ in texts)
    assert np.array_equal(texts[0][1], texts[1][1]) and np.array_equal(texts[2][1], texts[3][1])


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_checkpoints_in_half_precision(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    source = HubFolder.open(folders["moonshine"])
    tensors = []
    for name, entry in source.tensors.items():
        values = np.frombuffer(source.bytes(name), np.float32).reshape(entry.shape)
        half = (
            values.astype(np.float16) if kind == "f16" else (values.view(np.uint32) >> 16).astype(np.uint16)
        )
        tensors.append((name, kind, entry.shape, np.ascontiguousarray(half).data))
    shutil.copytree(folders["moonshine"], tmp_path / "half")
    write_safetensors(tmp_path / "half" / "model.safetensors", tensors)
    with Speech.open(folders["moonshine"]) as exact, Speech.open(tmp_path / "half") as speech:
        rows = exact.rows(sound(0.7))
        ours = speech.forward.states(rows, speech.weights)
        wanted = exact.forward.states(rows, exact.weights)
        assert 0 < np.abs(ours - wanted).max() < (0.02 if kind == "f16" else 0.2) * np.abs(wanted).max()


@pytest.mark.parametrize("cache_type", ["f16", "int8"])
def test_smaller_caches(cache_type: str, folders: dict[str, Path]) -> None:
    with (
        Speech.open(folders["whisper"]) as exact,
        Speech.open(folders["whisper"], cache_type=cache_type) as speech,
    ):
        rows = exact.rows(sound(0.7))[:100]
        ids = [31, 32, 34, 39, 4, 5]
        logits = [
            one.forward.write(ids, one.cache(6), one.hear(rows).listened, one.weights, every=True)
            for one in (exact, speech)
        ]
        assert 0 < np.abs(logits[0] - logits[1]).max() < 0.1 * np.abs(logits[0]).max()
        assert speech.memory_plan(5.0).total_mib < exact.memory_plan(5.0).total_mib


def test_a_budget_that_is_too_small(folders: dict[str, Path]) -> None:
    with pytest.raises(BudgetError) as caught:
        Speech.open(folders["whisper"], budget=Budget(ram_mib=10))
    with Speech.open(folders["whisper"], budget=Budget(ram_mib=float(caught.value.nearest) + 1)):
        pass


def test_a_closed_model_says_so(folders: dict[str, Path]) -> None:
    speech = Speech.open(folders["whisper"])
    speech.close()
    with pytest.raises(UserError, match="closed"):
        speech.hear(speech.rows(sound(0.5)))


def test_sound_too_short_for_a_state(folders: dict[str, Path]) -> None:
    with Speech.open(folders["moonshine"]) as speech, pytest.raises(UserError, match="too short"):
        transcribe(speech, sound(0.03))


Damage = Callable[[dict[str, Any]], None]


def without(name: str) -> Damage:
    return lambda tensors: tensors.pop(name)


def other(name: str, shape: tuple[int, ...]) -> Damage:
    return lambda tensors: tensors.update({name: np.ones(shape, np.float32)})


def spoiled(name: str) -> Damage:
    return lambda tensors: tensors[name].fill(np.nan)


@pytest.mark.parametrize(
    ("family", "damage", "said"),
    [
        ("whisper", without("model.encoder.conv1.weight"), "conv1.weight is missing"),
        ("whisper", without("model.decoder.layers.1.encoder_attn.v_proj.bias"), "v_proj.bias is missing"),
        ("whisper", other("model.encoder.conv1.weight", (64, 80, 5)), "conv1.weight has the shape"),
        ("whisper", other("model.encoder.conv2.weight", (64, 192)), ""),
        ("whisper", other("model.encoder.embed_positions.weight", (49, 64)), "has the shape"),
        ("whisper", other("model.encoder.layers.0.self_attn.k_proj.bias", (64,)), "no such bias"),
        ("moonshine", without("model.decoder.layers.0.mlp.fc1.weight"), "fc1.weight is missing"),
        ("moonshine", other("model.decoder.layers.0.mlp.fc1.weight", (96, 64)), "has the shape"),
        ("moonshine", spoiled("model.encoder.layers.1.mlp.fc2.weight"), "not finite"),
    ],
)
def test_damaged_checkpoints(
    family: str, damage: Damage, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    source = HubFolder.open(folders[family])
    tensors = {
        name: np.frombuffer(source.bytes(name), np.float32).reshape(entry.shape).copy()
        for name, entry in source.tensors.items()
    }
    damage(tensors)
    shutil.copytree(folders[family], tmp_path / "it")
    write_safetensors(
        tmp_path / "it" / "model.safetensors", [(n, "f32", v.shape, v.data) for n, v in tensors.items()]
    )
    if not said:  # a convolution kept as the matrix that it is
        Speech.open(tmp_path / "it").close()
        return
    with pytest.raises(UserError, match=said), Speech.open(tmp_path / "it") as speech:
        transcribe(speech, sound(0.5))


@pytest.mark.parametrize(
    ("file", "fields", "field"),
    [
        ("preprocessor_config.json", {"sampling_rate": 8000}, "sampling_rate"),
        ("preprocessor_config.json", {"feature_size": 128}, "feature_size"),
        ("preprocessor_config.json", {"n_fft": 512}, "n_fft"),
        ("preprocessor_config.json", {"do_normalize": True}, "do_normalize"),
        ("generation_config.json", {"no_repeat_ngram_size": 2}, "no_repeat_ngram_size"),
        ("generation_config.json", {"decoder_start_token_id": -1}, "decoder_start_token_id"),
        ("config.json", {"encoder_attention_heads": 5}, "encoder_attention_heads"),
    ],
)
def test_files_that_ask_for_something_else(
    file: str, fields: dict[str, Any], field: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    (folders["whisper"] / "preprocessor_config.json").write_text('{"chunk_length": 30, "hop_length": 160}')
    open_speech(folders["whisper"])
    folder = changed(folders["whisper"], tmp_path / "it", file, **fields)
    with pytest.raises(UserError) as caught:
        open_speech(folder)
    assert caught.value.field == field
    (folder / file).write_text("[1]" if file != "config.json" else "{")
    with pytest.raises(DamagedFileError):
        open_speech(folder)


def test_another_model_s_tokenizer(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "it"
    shutil.copytree(folders["moonshine"], folder)
    shutil.copy(folders["whisper"] / "tokenizer.json", folder / "tokenizer.json")
    with Speech.open(folder) as speech, pytest.raises(UserError, match="belongs to another model"):
        transcribe(speech, sound(0.5))


def test_segments_of_a_text_with_times(folders: dict[str, Path]) -> None:
    rules = open_speech(folders["whisper"]).rules
    first = rules.first_time
    assert first == 40
    # Two times beside one another end a segment; what follows the last pair is left for the next window.
    assert segments([40, 1, 2, 50, 50, 3, 60, 60, 9], rules, 0, 100) == (
        [Segment(0.0, 0.2, (1, 2)), Segment(0.2, 0.4, (3,))],
        40,
    )
    # A single time at the end: nothing more is said in this window.
    assert segments([40, 1, 50, 50, 3, 60], rules, 200, 80) == (
        [Segment(2.0, 2.2, (1,)), Segment(2.2, 2.4, (3,))],
        80,
    )
    assert segments([1, 2], rules, 100, 60) == ([Segment(1.0, 1.6, (1, 2))], 60)
    assert segments([41, 2, 45], rules, 0, 60) == ([Segment(0.0, 0.1, (2,))], 60)
    assert segments([], rules, 0, 60) == ([Segment(0.0, 0.6, ())], 60)


def test_times_stand_in_pairs_and_never_go_back(folders: dict[str, Path]) -> None:
    rules = open_speech(folders["whisper"]).rules
    rng = np.random.default_rng(0)
    for _ in range(200):
        written: list[int] = []
        for _ in range(12):
            scores = rng.normal(size=91).astype(np.float32)
            allow_times(scores, written, rules)
            token = int(scores.argmax())
            assert np.isfinite(scores[token])
            if token in rules.ends:
                break
            written.append(token)
        times = [token for token in written if token >= 40]
        assert written[0] >= 40 and 39 not in written and times == sorted(times)
        runs = "".join("t" if token >= 40 else "x" for token in written)
        assert "ttt" not in runs


def test_beams_find_the_likeliest_text() -> None:
    """With as many beams as there are texts, the search is exhaustive."""
    rng = np.random.default_rng(3)
    table = rng.normal(size=(4, 4, 4, 4)).astype(np.float32) * 2  # logits after each text of up to 3 tokens
    table[..., 0] -= 1  # 0 ends a text

    def logits(text: tuple[int, ...]) -> np.ndarray:
        padded = (*text, 0, 0, 0)[:3]
        return table[padded] + np.float32(len(text))

    texts = {(): 0.0}
    finished: dict[tuple[int, ...], float] = {}
    for length in range(1, 4):
        longer = {}
        for text, score in texts.items():
            rows = logits(text)
            chances = rows - np.log(np.exp(rows).sum())
            for token in range(4):
                whole = score + float(chances[token])
                if token == 0 or length == 3:
                    finished[(*text, token)] = whole / length
                else:
                    longer[(*text, token)] = whole
        texts = longer
    best = max(finished, key=lambda text: finished[text])
    running: list[tuple[int, ...]] = [()] * 64

    def step(parents: Any, tokens: Any) -> np.ndarray:
        running[:] = [(*running[parent], token) for parent, token in zip(parents, tokens, strict=True)]
        return np.stack([logits(text) for text in running])

    found = beam_search(logits(()), step, lambda scores, written: None, beams=64, ends=(0,), room=3)
    assert (*found, *((0,) if best[-1] == 0 else ())) == best
