"""Speech models give what `transformers` gave: tracked recordings, and live where PyTorch is installed.

The bar: max |difference| <= 1e-4 x max |value| of states and logits; the same tokens, greedily and with
beams; the same segments.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.models import read_speech
from haversack.models.audio._fields import ACTIVATIONS
from haversack.models.audio._generation import read_rules
from haversack.run._speech import Speech
from haversack.run._transcribe import Asked, Transcript, listen

BAR = 1e-4


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "record_speech", Path(__file__).with_name("record_speech.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


record_speech = _module()
NAMES = sorted(record_speech.CASES)


def write_case(folder: Path, name: str, weights: dict[str, np.ndarray]) -> Path:
    """A case as a checkpoint folder of the hub."""
    from haversack.formats.safetensors import write_safetensors

    config, writing = record_speech.CASES[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(writing))
    tensors = [(key, "f32", one.shape, one.data) for key, one in weights.items()]
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def answer(speech: Speech, name: str, sound: np.ndarray) -> dict[str, Any]:
    """What the engine gives of a case's sound."""
    config, writing = record_speech.CASES[name]
    window = sound[: record_speech.SAMPLES]
    rows = record_speech.rows_of(config, window)
    rows = rows if rows.ndim == 2 else rows.reshape(-1, 1)
    found: dict[str, Any] = {"states": speech.forward.states(rows, speech.weights)}
    heard = speech.hear(rows)
    ids = [writing["decoder_start_token_id"], *record_speech.TOKENS]
    cache = speech.cache(len(ids))
    found["logits"] = speech.forward.write(ids, cache, heard.listened, speech.weights, every=True)
    language = None if speech.rules.languages.get("<|en|>") is None else speech.language_of(heard)
    prompt = [language if token is None else token for token in speech.rules.prompt(False)]
    for beams in record_speech.BEAMS:
        found[f"text-{beams}"] = prompt + speech.write(heard, prompt, beams=beams)
        if config["model_type"] == "whisper":
            asked = Asked(times=True, beams=beams)
            found[f"segments-{beams}"] = list(listen(speech, sound, asked, Transcript()))
    return found


def check(found: dict[str, Any], stored: Any, name: str, whole: bool) -> None:
    """`found` against a recording, or a live answer that is `whole`."""
    for key in ("states", "logits"):
        values = found[key] if whole else record_speech.kept(found[key])
        largest = np.abs(stored[key]).max() if whole else stored[f"{key}_largest"]
        assert np.abs(values - stored[key]).max() <= BAR * largest, key
    end = record_speech.CASES[name][1]["eos_token_id"]
    for beams in record_speech.BEAMS:
        text = stored[f"text-{beams}"].tolist()
        assert found[f"text-{beams}"] == (text[:-1] if text[-1] == end else text), beams
        if f"bounds-{beams}" in stored:
            ours = found[f"segments-{beams}"]
            bounds = np.array([[one.start, one.end] for one in ours])
            assert bounds.shape == stored[f"bounds-{beams}"].shape
            assert np.allclose(bounds, stored[f"bounds-{beams}"], atol=1e-9)
            for one, row in zip(ours, stored[f"said-{beams}"].tolist(), strict=True):
                assert list(one.tokens) == [token for token in row if token >= 0]


def test_every_case_is_recorded() -> None:
    assert sorted(path.stem for path in record_speech.RECORDINGS.glob("*.npz")) == NAMES
    for name in NAMES:
        stored = np.load(record_speech.RECORDINGS / f"{name}.npz")
        assert json.loads(stored["config"].tobytes()) == json.loads(json.dumps(record_speech.CASES[name]))
    assert sum(path.stat().st_size for path in record_speech.RECORDINGS.iterdir()) < 2**17


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("residency", ["mapped", "copied"])
def test_recording(name: str, residency: str, tmp_path: Path) -> None:
    weights, sound = record_speech.draw(name)
    with Speech.open(write_case(tmp_path / name, name, weights), residency=residency) as speech:
        found = answer(speech, name, sound)
    check(found, np.load(record_speech.RECORDINGS / f"{name}.npz"), name, whole=False)


@pytest.mark.parametrize("name", NAMES)
def test_live(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="live parity needs PyTorch")
    pytest.importorskip("transformers", reason="live parity needs transformers")
    weights, sound = record_speech.draw(name, salt="live")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        said = record_speech.reference(name, weights, sound)
    finally:
        torch.set_num_threads(threads)
    with Speech.open(write_case(tmp_path / name, name, weights)) as speech:
        check(answer(speech, name, sound), said, name, whole=True)


def test_a_bare_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    """WhisperModel saves names without their first part."""
    weights, sound = record_speech.draw("whisper")
    bare = {name.removeprefix("model."): values for name, values in weights.items()}
    with (
        Speech.open(write_case(tmp_path / "whole", "whisper", weights)) as whole,
        Speech.open(write_case(tmp_path / "bare", "whisper", bare)) as other,
    ):
        rows = record_speech.rows_of(record_speech.WHISPER, sound[:16000])
        assert np.array_equal(
            whole.forward.states(rows, whole.weights), other.forward.states(rows, other.weights)
        )


@pytest.mark.parametrize("activations", ["f32", "int8-dynamic"])
def test_a_step_does_not_depend_on_its_neighbours(activations: str, tmp_path: Path) -> None:
    """Tokens read at once, one by one and beside other texts give the same bits."""
    weights, sound = record_speech.draw("moonshine")
    folder = write_case(tmp_path / "moonshine", "moonshine", weights)
    with Speech.open(folder, activations=activations) as speech:
        heard = speech.hear(speech.rows(sound[:16000]))
        together = speech.forward.write(
            [1, 9, 11], speech.cache(3), heard.listened, speech.weights, every=True
        )
        cache = speech.cache(8)
        alone = [
            speech.forward.write([token], cache, heard.listened, speech.weights)[0] for token in (1, 9, 11)
        ]
        assert np.array_equal(together, np.stack(alone))
        cache.truncate(1)
        mask = np.array([[1, 1, 0], [1, 0, 1]], np.bool_)
        positions = np.ones(2, np.int32)
        beside = speech.forward.write(
            [9, 20], cache, heard.listened, speech.weights, every=True, positions=positions, mask=mask
        )
        assert np.array_equal(beside[0], together[1])


FIELDS_REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("whisper", {"d_model": 50}, "encoder_attention_heads"),
    ("whisper", {"scale_embedding": True}, "scale_embedding"),
    ("whisper", {"use_weighted_layer_sum": True}, "use_weighted_layer_sum"),
    ("whisper", {"activation_function": "elu"}, "activation_function"),
    ("whisper", {"architectures": ["WhisperForAudioClassification"]}, "architectures"),
    ("whisper", {"architectures": ["WhisperForCausalLM"]}, "architectures"),
    ("whisper", {"is_encoder_decoder": False}, "is_encoder_decoder"),
    ("whisper", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("whisper", {"num_mel_bins": 0}, "num_mel_bins"),
    ("whisper", {"encoder_ffn_dim": "80"}, "encoder_ffn_dim"),
    ("moonshine", {"encoder_num_key_value_heads": 2}, "encoder_num_key_value_heads"),
    ("moonshine", {"decoder_num_attention_heads": 3}, "decoder_num_attention_heads"),
    ("moonshine", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type"),
    ("moonshine", {"partial_rotary_factor": 0.6}, "partial_rotary_factor"),
    ("moonshine", {"head_dim": 16}, "head_dim"),
]


@pytest.mark.parametrize(("name", "fields", "field"), FIELDS_REFUSED)
def test_a_field_that_is_not_computed_is_refused_by_name(
    name: str, fields: dict[str, Any], field: str
) -> None:
    config = {**record_speech.CASES[name][0], **fields}
    with pytest.raises(UserError) as caught:
        read_speech(config)
    assert caught.value.field == field and str(caught.value).count("\n") == 0


# What only matters in training, what a checkpoint repeats for its tokenizer, and how others lay memory out.
IGNORED = {
    *("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"),
    *("init_std", "initializer_range", "use_cache", "classifier_proj_size", "apply_spec_augment"),
    *("mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_feature_prob"),
    *("mask_feature_length", "mask_feature_min_masks", "median_filter_width"),
    *("pad_token_id", "bos_token_id", "pad_head_dim_to_multiple_of"),
}
READ_BESIDE = {"decoder_start_token_id", "suppress_tokens", "begin_suppress_tokens"}


@pytest.mark.parametrize("name", ["whisper", "moonshine"])
def test_every_field_of_the_reference_is_read_ignored_or_refused(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the fields are those of transformers")
    import dataclasses

    kind = {"whisper": transformers.WhisperConfig, "moonshine": transformers.MoonshineConfig}[name]
    inherited = {field.name for field in dataclasses.fields(transformers.PretrainedConfig)}
    own = {field.name for field in dataclasses.fields(kind)} - inherited
    folder = Path(importlib.import_module("haversack.models.audio").__file__ or "").parent
    text = (folder / f"{name}.py").read_text() + (folder / "_fields.py").read_text()
    text += (folder / "../_rope_config.py").read_text()
    sides = {f"{side}_{rest}" for side in ("encoder", "decoder") for rest in ("attention_heads", "ffn_dim")}
    for field in own - IGNORED - READ_BESIDE:
        assert f'"{field}"' in text or field in sides, field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"),
        ({"do_sample": True}, "do_sample"),
        ({"decoder_start_token_id": 92}, "decoder_start_token_id"),
        ({"forced_decoder_ids": [[2, 5]]}, "forced_decoder_ids"),
        ({"forced_decoder_ids": [[1, 5], [2, None]]}, "forced_decoder_ids"),
        ({"forced_decoder_ids": 3}, "forced_decoder_ids"),
        ({"lang_to_id": {"<|en|>": "x"}}, "<|en|>"),
        ({"task_to_id": {"translate": 35}}, "task_to_id"),
        ({"suppress_tokens": [1000]}, "suppress_tokens"),
        ({"length_penalty": "much"}, "length_penalty"),
        ({"num_beams": 0}, "num_beams"),
        ({"language": ["en"]}, "language"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    architecture = read_speech(record_speech.WHISPER)
    with pytest.raises(UserError) as caught:
        read_rules(record_speech.WHISPER, {**record_speech.WRITING, **fields}, architecture)
    assert caught.value.field == field


def test_what_a_text_begins_with() -> None:
    architecture = read_speech(record_speech.WHISPER)
    rules = read_rules(record_speech.WHISPER, record_speech.WRITING, architecture)
    assert rules.prompt(False) == [31, None, 39] and rules.prompt(True) == [31, None]
    assert rules.prompt(False, rules.language_token("German")) == [31, 33, 34, 39]
    assert rules.prompt(False, rules.language_token("<|en|>"), "translate") == [31, 32, 35, 39]
    assert rules.prompt(True, None, "translate") == [31, None, 35]
    for wrong, field in (("klingon", "language"), ("germen", "language")):
        with pytest.raises(UserError, match="german") as caught:
            rules.language_token(wrong)
        assert caught.value.field == field
    with pytest.raises(UserError, match="transcribe, translate"):
        rules.prompt(False, None, "sing")
    forced = {**record_speech.WRITING, "forced_decoder_ids": [[1, None], [2, 34], [3, 39]]}
    assert read_rules(record_speech.WHISPER, forced, architecture).prompt(False) == [31, None, 34, 39]
    english = read_rules(*record_speech.CASES["whisper-english"], architecture)
    assert english.prompt(False) == [31, 39] and english.prompt(True) == [31]
    for asked in ({"language": 5}, {"task": "translate"}):
        with pytest.raises(UserError, match="this model"):
            if "task" in asked:
                english.prompt(False, None, "translate")
            else:
                english.language_token("en")
    # Older checkpoints keep the rules in config.json.
    old = read_rules({**record_speech.WHISPER, "forced_decoder_ids": [[1, 39]]}, {}, architecture)
    assert old.prompt(False) == [31, 39] and old.ends == (30,)


def test_names_of_activations_are_the_kernels() -> None:
    from haversack.models._architecture import ACTIVATIONS as KNOWN

    assert set(ACTIVATIONS.values()) == set(KNOWN)


def test_records_of_the_real_sizes() -> None:
    """Whisper tiny and Moonshine tiny have as many parameters as their papers say."""
    whisper = {
        **record_speech.WHISPER,
        **{"vocab_size": 51865, "d_model": 384, "encoder_layers": 4, "decoder_layers": 4},
        **{"encoder_attention_heads": 6, "decoder_attention_heads": 6},
        **{"encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536},
        **{"max_source_positions": 1500, "max_target_positions": 448},
    }
    moonshine = {"model_type": "moonshine", "encoder_num_attention_heads": 8, "eos_token_id": 2}
    for config, millions in ((whisper, 37.8), (copy.deepcopy(moonshine), 27.1)):
        shapes = read_speech(config).tensors()
        assert abs(sum(int(np.prod(shape)) for shape in shapes.values()) / 1e6 - millions) < 0.1
    assert read_speech(whisper).encoder.frames(3000) == 1500
    assert read_speech(moonshine).encoder.frames(16000) == 40
