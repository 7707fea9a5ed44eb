"""GGUF files run: the numbers of the file, bit for bit, and the model of the checkpoint they came from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests.run.conftest import END, draw, load_record, tokenizer_json, write_folder

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.memory import run_measured
from haversack.formats._gguf_types import BY_NAME
from haversack.formats.gguf import TensorOut, write_gguf_file
from haversack.formats.safetensors import write_safetensors
from haversack.kernels import Matrix, unpack
from haversack.models._gguf import GgufModel
from haversack.models._gguf_write import write_gguf
from haversack.models._rearranged import Piece
from haversack.run import Engine
from haversack.run._source import open_model
from haversack.run.residency.copied import GAP, PIECE, together

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": END,
    "eos_token_id": END,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied-wide-heads": {"tie_word_embeddings": True, "head_dim": 32},
    "llama-biases": {"attention_bias": True, "mlp_bias": True},
    "llama-llama3": {"rope_scaling": LLAMA3, "head_dim": 32},
    "llama-linear": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama-yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1e6},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 5, "rope_theta": 2e6},
}
COMMAND = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())"]
TOKENS = [5, 9, 250, 3, 77, 100, 11, 287, 1, 42]


def logits(source: Any, activations: str = "f32", **slots: Any) -> np.ndarray:
    with Engine.open(source, activations=activations, **slots) as engine:
        found, _ = engine.step(TOKENS, cache=engine.cache(32), want="all")
        assert found is not None
        return found


@pytest.mark.parametrize("name", CONFIGS)
def test_written_and_read_again_it_is_the_same_model(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "m", {**BASE, **CONFIGS[name]})
    done = write_gguf(open_model(folder), tmp_path / "m.gguf")
    assert done.changes == () or all("tokenizer" in change for change in done.changes)
    assert np.array_equal(logits(tmp_path / "m.gguf"), logits(folder))


CASES = load_record().CASES
EXPRESSED = {
    *("llama", "llama-biases", "llama-linear", "llama-llama3", "llama-yarn", "mistral-whole"),
    *("qwen1.5", "qwen2-yarn", "smollm3", "gemma", "phi", "phi3", "phi3-long", "phi3-switch"),
    *("stablelm", "stablelm-parallel", "gpt2"),
}
"""Parity cases that GGUF can say whole."""
WINDOWED = {"mistral", "qwen2"}
"""Those whose window it leaves out, which is told."""


def case_folder(folder: Path, name: str) -> Path:
    """A parity case as a checkpoint folder, with drawn weights."""
    config, _ = CASES[name]
    weights = load_record().weights_of(name)
    tensors = [(n, "f32", v.shape, np.ascontiguousarray(v).tobytes()) for n, v in weights.items()]
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    return folder


@pytest.mark.parametrize("name", sorted(EXPRESSED | WINDOWED))
def test_every_family_is_the_same_model(tmp_path: Path, name: str) -> None:
    config, length = CASES[name]
    folder = case_folder(tmp_path / "m", name)
    done = write_gguf(open_model(folder), tmp_path / "x.gguf")
    assert any("no window" in change for change in done.changes) == (name in WINDOWED)
    prompt = load_record().draw_prompt(name, length)
    if name in WINDOWED:
        prompt = prompt[: config["sliding_window"]]
    for residency in ("mapped", "streamed"):
        both = []
        for source in (folder, tmp_path / "x.gguf"):
            with Engine.open(source, residency=residency) as engine:
                both.append(engine.step(prompt, cache=engine.cache(len(prompt)), want="all")[0])
        assert np.array_equal(*both)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama-dynamic", "no words for positions of the kind dynamic"),
        ("llama-tied-gelu", "cannot express activation='gelu'"),
        ("llama-yarn-full", "cannot express"),
        ("gemma-biases", "has no name for the tensor|no place for"),
        ("gemma2", "cannot express scale"),
        ("gpt2-scaled", "cannot express"),
        ("opt", "no names for the family opt"),
        ("qwen3-linear", "no name for the tensor .*o_proj.bias"),
    ],
)
def test_what_gguf_cannot_say_is_refused_in_words(tmp_path: Path, name: str, words: str) -> None:
    folder = case_folder(tmp_path / "m", name)
    with pytest.raises(UserError, match=words) as refused:
        write_gguf(open_model(folder), tmp_path / "x.gguf")
    assert "\n" not in str(refused.value) and "partial" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def converted(path: Path, config: dict[str, Any], types: Callable[[str], str]) -> dict[str, np.ndarray]:
    """A llama written by the format's own package as converters do, rows of query and key interleaved;
    returns what was stored, dequantized, under the hub's names."""
    writer = gguf.GGUFWriter(path, "llama")
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    vocabulary = json.loads(tokenizer_json())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    texts = list(vocabulary["vocab"])
    texts += [f"[PAD{n}]" for n in range(len(texts), config["vocab_size"])]
    writer.add_token_list(texts)
    writer.add_token_types([3, *[1] * (len(vocabulary["vocab"]) - 1), *[5] * (len(texts) - 269)])
    writer.add_token_merges(vocabulary["merges"])
    writer.add_bos_token_id(END)
    writer.add_eos_token_id(END)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    stored = {}
    for name, values in draw(config).items():
        given = values.astype(np.float32)
        for module, count in (("q_proj", heads), ("k_proj", kv)):
            if module in name:
                given = given.reshape(count, 2, -1, given.shape[1]).swapaxes(1, 2).reshape(given.shape)
        kind = types(name) if given.ndim == 2 else "F32"
        of_type = gguf.GGMLQuantizationType[kind]
        data = gguf.quants.quantize(np.ascontiguousarray(given), of_type)
        back = gguf.quants.dequantize(data, of_type).reshape(given.shape)
        for module, count in (("q_proj", heads), ("k_proj", kv)):
            if module in name:
                back = back.reshape(count, -1, 2, back.shape[1]).swapaxes(1, 2).reshape(back.shape)
        stored[name] = back
        plain = {"F32": np.float32, "F16": np.float16}
        raw = None if kind in plain else of_type
        writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residency", ["mapped", "copied", "streamed"])
def test_every_number_is_the_file_s(tmp_path: Path, kind: str, residency: str) -> None:
    stored = converted(tmp_path / "x.gguf", BASE, lambda name: kind)
    with Engine.open(tmp_path / "x.gguf", residency=residency) as engine:
        held = dict(engine.held.top)
        for block in engine.architecture.blocks:
            with engine.held.weights(block.index) as weights:
                for name, values in weights.items():
                    held[name] = unpack(values) if isinstance(values, Matrix) else values.copy()
        for first, matrix in engine.held.head():
            values = unpack(matrix)
            assert np.array_equal(values, stored["lm_head.weight"][first : first + len(values)])
        held = {name: value for name, value in held.items() if "lm_head" not in name}
        assert set(held) >= {name for name in stored if "embed" not in name and "lm_head" not in name}
        for name, values in held.items():
            if residency == "streamed" and "embed" in name:
                continue  # read row by row
            found = unpack(values) if isinstance(values, Matrix) else values
            assert np.array_equal(found, stored[name]), name


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_it_computes_what_its_numbers_say(tmp_path: Path, kind: str) -> None:
    stored = converted(tmp_path / "x.gguf", BASE, lambda name: kind)
    folder = write_folder(tmp_path / "m", BASE)
    tensors = [(name, "f32", values.shape, values.tobytes()) for name, values in stored.items()]
    write_safetensors(folder / "model.safetensors", tensors)
    plain = logits(folder)
    assert np.abs(logits(tmp_path / "x.gguf") - plain).max() < 1e-4 * np.abs(plain).max()
    rounded = logits(tmp_path / "x.gguf", "int8-dynamic")
    assert np.corrcoef(rounded.ravel(), plain.ravel())[0, 1] > 0.999


def test_blocks_are_copied_and_the_plan_says_it(tmp_path: Path) -> None:
    converted(tmp_path / "x.gguf", BASE, lambda name: "Q4_0" if "mlp" in name else "F16")
    with Engine.open(tmp_path / "x.gguf") as engine:
        plan = engine.plan
    assert (plan["residency"], plan["activations"]) == ("copied", "int8-dynamic")
    assert plan["precision"] == "as stored (q4_0)"


def test_what_lies_together_is_read_together() -> None:
    def piece(offset: int, count: int) -> Piece:
        return Piece(offset, count, lambda data: None)

    first, second, far, large = piece(100, 50), piece(150, 50), piece(300 + GAP, 10), piece(310 + GAP, PIECE)
    assert together([large, far, second, first]) == [[first, second], [far], [large]]
    assert together([]) == []


def test_a_file_that_became_shorter_ends_in_words(tmp_path: Path) -> None:
    converted(tmp_path / "x.gguf", BASE, lambda name: "Q4_0")
    model = open_model(tmp_path / "x.gguf")
    os.truncate(tmp_path / "x.gguf", (tmp_path / "x.gguf").stat().st_size // 2)
    with pytest.raises(DamagedFileError, match="it ends at byte"):
        Engine.open(model)
    assert not [thread for thread in threading.enumerate() if thread.name == "haversack-copy"]


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_gives_the_same_bits(tmp_path: Path, kind: str) -> None:
    odd = {**BASE, "vocab_size": 293}  # the last rows are no whole block of 16
    converted(tmp_path / "x.gguf", odd, lambda name: kind)
    expected = logits(tmp_path / "x.gguf", residency="copied")
    assert np.array_equal(logits(tmp_path / "x.gguf", residency="streamed"), expected)


def test_types_that_are_not_run_are_named_with_their_tensors(tmp_path: Path) -> None:
    converted(tmp_path / "x.gguf", BASE, lambda name: "Q5_0" if "embed" in name else "Q4_0")
    with pytest.raises(
        UserError, match=r"1 tensor of type Q5_0 \(token_embd.weight\).*--requantize"
    ) as refused:
        open_model(tmp_path / "x.gguf")
    assert refused.value.field == "requantize"


def changed(tmp_path: Path, keys: dict[str, Any] | None = None, shapes: dict[str, Any] | None = None) -> Path:
    """A small f32 llama, its metadata and shapes altered; None leaves out."""
    folder = write_folder(tmp_path / "m", BASE)
    write_gguf(open_model(folder), tmp_path / "good.gguf")
    file = GgufModel.open(tmp_path / "good.gguf").file_format
    names = {bool: "bool", str: "string", int: "u32", float: "f32"}
    metadata: dict[str, Any] = {}
    for key, value in file.metadata.items():
        if type(value) in names:
            metadata[key] = (names[type(value)], value)
        else:
            texts = file.numbers(key)
            metadata[key] = ("[string]", list(file.texts(key))) if texts is None else ("[i32]", texts)
    for key, entry in (keys or {}).items():
        metadata.pop(key, None)
        if entry is not None:
            metadata[key] = entry
    tensors = []
    for name, entry in file.tensors.items():
        shape = (shapes or {}).get(name, entry.shape)
        if shape is not None:
            size = BY_NAME[entry.kind].size(shape)
            tensors.append(TensorOut(name, entry.kind, shape, lambda size=size: [bytes(size)]))
    for name in set(shapes or {}) - set(file.tensors):
        shape = (shapes or {})[name]
        tensors.append(TensorOut(name, "f32", shape, lambda shape=shape: [bytes(4 * int(np.prod(shape)))]))
    write_gguf_file(tmp_path / "bad.gguf", metadata, tensors)
    return tmp_path / "bad.gguf"


@pytest.mark.parametrize(
    ("keys", "shapes", "words"),
    [
        ({"general.architecture": ("string", "lama")}, {}, "'lama' is not known.*the nearest is llama"),
        ({"general.architecture": None}, {}, "no general.architecture"),
        ({"general.architecture": ("u32", 3)}, {}, "no general.architecture"),
        ({"llama.block_count": None}, {}, "it has no llama.block_count"),
        ({"llama.block_count": ("u32", 0)}, {}, "llama.block_count is 0"),
        ({"llama.block_count": ("string", "2")}, {}, "llama.block_count is '2'"),
        ({"llama.block_count": ("u32", 3)}, {}, "blk.2.attn_norm.weight is missing"),
        ({"llama.block_count": ("u32", 1)}, {}, "no place for 9 tensors"),
        ({"llama.attention.head_count": ("u32", 8)}, {}, r"attn_q.weight has the shape \[64, 64\] where"),
        ({"llama.attention.head_count_kv": ("u32", 3)}, {}, "does not divide"),
        ({"llama.attention.head_count_kv": ("[i32]", [2, 1])}, {}, "differs between blocks"),
        ({"llama.attention.layer_norm_rms_epsilon": ("f32", float("inf"))}, {}, "no finite number"),
        ({"llama.expert_count": ("u32", 8)}, {}, "mixture of experts"),
        ({"llama.rope.dimension_count": ("u32", 8)}, {}, "turns a part of a head"),
        ({"llama.rope.scaling.type": ("string", "longer")}, {}, "'longer' is not known"),
        ({"llama.feed_forward_length": ("u32", 2**31)}, {}, "intermediate_size"),
        ({}, {"blk.1.ffn_up.weight": (64, 64)}, r"ffn_up.weight has the shape \[64, 64\].*\[96, 64\]"),
        ({}, {"blk.1.ffn_up.weight": None}, "blk.1.ffn_up.weight is missing"),
        ({}, {"token_embd.weight": None}, "no matrix token_embd.weight"),
        ({}, {"blk.0.ffn_gate_inp.weight": (4, 64)}, "no place for 1 tensor"),
        ({}, {"rope_freqs.weight": (8,)}, "no known scaling"),
        ({}, {"rope_freqs.weight": (5,)}, "no f32 of 8 numbers"),
    ],
)
def test_metadata_that_cannot_be_is_refused_in_words(
    tmp_path: Path, keys: dict[str, Any], shapes: dict[str, Any], words: str
) -> None:
    path = changed(tmp_path, keys, shapes)
    with pytest.raises(UserError, match=words) as refused:
        open_model(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tokenizer.ggml.model": None, "tokenizer.huggingface.json": None}, "has no tokenizer"),
        (
            {"tokenizer.ggml.model": ("string", "bert"), "tokenizer.huggingface.json": None},
            "'bert' is not known",
        ),
        (
            {"tokenizer.ggml.pre": ("string", "qwen22"), "tokenizer.huggingface.json": None},
            "did you|known are",
        ),
        ({"tokenizer.ggml.tokens": None, "tokenizer.huggingface.json": None}, "no list of texts"),
        ({"tokenizer.ggml.merges": None, "tokenizer.huggingface.json": None}, "no list of texts"),
        ({"tokenizer.ggml.merges": ("[string]", ["ab"]), "tokenizer.huggingface.json": None}, "two tokens"),
        ({"tokenizer.ggml.token_type": ("[i32]", [1]), "tokenizer.huggingface.json": None}, "1 token types"),
        (
            {"tokenizer.ggml.tokens": ("[string]", ["a"] * 288), "tokenizer.huggingface.json": None},
            "twice|no tok",
        ),
        ({"tokenizer.huggingface.json": ("string", "{")}, "no tokenizer"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_refused_in_words(
    tmp_path: Path, keys: dict[str, Any], words: str
) -> None:
    path = changed(tmp_path, keys)
    with pytest.raises(UserError, match=words) as refused:
        open_model(path).tokenizer()
    assert "\n" not in str(refused.value)


def test_a_damaged_file_ends_the_command_with_2(tmp_path: Path) -> None:
    path = changed(tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    line = [*COMMAND, "run", str(path), "--prompt", "x"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and str(path) in done.stderr
    with pytest.raises(DamagedFileError):
        open_model(path)


WIDE = {**BASE, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "vocab_size": 4096}


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_a_run_holds_no_more_than_planned(tmp_path: Path, kind: str) -> None:
    converted(tmp_path / "x.gguf", WIDE, lambda name: kind)
    line = [*COMMAND, "run", str(tmp_path / "x.gguf"), "--prompt", "the end", "--json"]
    with (tmp_path / "x.gguf").open("rb") as file:  # what writing left in the page cache is not the run's
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    files = [] if kind == "F16" else [tmp_path / "x.gguf"]
    done = run_measured([*line, "--max-tokens", "8"], files=files)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert done.peak_mib <= record["ram_mib"]["planned"]
    weights = (tmp_path / "x.gguf").stat().st_size / 2**20
    assert done.peak_mib < 70 + 1.5 * weights  # the process, and no second copy


def test_a_large_vocabulary_is_in_the_plan(tmp_path: Path) -> None:
    """The tokenizer is rebuilt from metadata: 60,000 tokens with as many merges."""
    from haversack.models._tokenizer import byte_of_character

    folder = write_folder(tmp_path / "m", {**BASE, "vocab_size": 60_000, "hidden_size": 32})
    write_gguf(open_model(folder), tmp_path / "small.gguf")
    file = GgufModel.open(tmp_path / "small.gguf").file_format
    texts = list(byte_of_character())
    merges = []
    for first in texts[33:126]:
        for second in texts[33:126]:
            merges.append(f"{first} {second}")
    pairs = [merge.replace(" ", "") for merge in merges]
    triples = [f"{pair} {third}" for pair in pairs for third in texts[97:110]]
    merges = (merges + triples)[: 60_000 - len(texts)]
    texts += [merge.replace(" ", "") for merge in merges]
    names = {bool: "bool", str: "string", int: "u32", float: "f32"}
    metadata: dict[str, Any] = {
        key: (names[type(value)], value) for key, value in file.metadata.items() if type(value) in names
    }
    metadata.pop("tokenizer.huggingface.json", None)
    metadata |= {
        "tokenizer.ggml.tokens": ("[string]", texts),
        "tokenizer.ggml.merges": ("[string]", merges),
        "tokenizer.ggml.token_type": ("[i32]", [1] * len(texts)),
    }
    tensors = [
        TensorOut(name, entry.kind, entry.shape, lambda name=name: [file.bytes(name)])
        for name, entry in file.tensors.items()
    ]
    path = tmp_path / "large.gguf"
    write_gguf_file(path, metadata, tensors)
    line = [*COMMAND, "run", str(path), "--prompt", "the end", "--json", "--max-tokens", "4"]
    done = run_measured(line)
    assert done.returncode == 0, done.stderr
    assert done.peak_mib <= json.loads(done.stdout)["ram_mib"]["planned"]


def test_the_command_exports_and_tells_what_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from haversack.cli import main

    goal = tmp_path / "code.gguf"
    assert main(["export", "code", "--to", "gguf", "-o", str(goal), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["nbytes"] == goal.stat().st_size and record["to"] == "gguf"
    assert any("no name for how it cuts" in note for note in record["notes"])
    assert main(["export", "code", "--to", "gguf", "-o", str(goal), "--json"]) == 2
    assert "--overwrite" in json.loads(capsys.readouterr().out)["error"]
    assert main(["run", str(goal), "--prompt", "def f(", "--max-tokens", "4", "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    assert main(["run", "code", "--prompt", "def f(", "--max-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == ours["text"]
