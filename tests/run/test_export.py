"""Exports compute what the engine computes: ONNX in ONNX Runtime, safetensors in transformers; and are whole
or absent.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from haversack.cli import main
from haversack.core.errors import UserError
from haversack.core.pack import PackWriter
from haversack.kernels import Matrix, pack_int4, unpack
from haversack.models import read_architecture
from haversack.run import Engine
from haversack.run._source import open_model
from haversack.run.export import export, formats
from haversack.run.export._onnx_graph import block_of, to_blocks

TOLERANCE = 1e-4
STEPS = 4


class Session:
    """An exported graph in ONNX Runtime, decoding over its own past."""

    def __init__(self, folder: Path, batch: int = 1) -> None:
        onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
        onnx.checker.check_model(str(folder / "model.onnx"))
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = runtime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.past = {
            one.name: np.zeros((batch, one.shape[1], 0, one.shape[3]), np.float32)
            for one in self.session.get_inputs()
            if one.name.startswith("past")
        }

    def step(self, ids: Any, positions: Any, mask: Any) -> np.ndarray:
        """Logits f32 [batch, n, vocabulary]."""
        given = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
        found = self.session.run(
            self.outputs, {name: np.asarray(one, np.int64) for name, one in given.items()} | self.past
        )
        names = (name.replace("present", "past_key_values") for name in self.outputs[1:])
        self.past = dict(zip(names, found[1:], strict=True))
        return found[0]

    def answer(self, prompt: Any, decoded: int) -> tuple[np.ndarray, list[int]]:
        """Logits f32 [prompt + decoded - 1, vocabulary] and greedy tokens."""
        rows: list[np.ndarray] = []
        tokens: list[int] = []
        ids, at = list(prompt), 0
        for _ in range(decoded):
            at += len(ids)
            rows.append(self.step([ids], [range(at - len(ids), at)], [[1] * at])[0])
            tokens.append(int(rows[-1][-1].argmax()))
            ids = tokens[-1:]
        return np.concatenate(rows), tokens


def ours(model: Any, prompt: Any, decoded: int) -> tuple[np.ndarray, list[int]]:
    """What the engine says, on the numbers that the weights stand for."""
    with Engine.open(model, activations="f32") as engine:
        cache = engine.cache(len(prompt) + decoded)
        cache.horizon = len(prompt)
        rows, tokens = [engine.step(prompt, cache=cache, want="all")[0]], []
        for index in range(decoded):
            tokens.append(int(rows[-1][-1].argmax()))
            if index < decoded - 1:
                rows.append(engine.step(tokens[-1:], cache=cache)[0])
    return np.concatenate(rows), tokens


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and float(np.abs(one - other).max() / np.abs(other).max()) <= TOLERANCE


@pytest.fixture(scope="session")
def drawn(
    record: ModuleType, make_folder: Callable[..., Path], tmp_path_factory: Any
) -> Callable[[str], Any]:
    """(checkpoint folder, prompt) of a case of the parity record."""
    root = tmp_path_factory.mktemp("drawn")

    def make(name: str, kind: str = "f32") -> tuple[Path, np.ndarray]:
        config, length = record.CASES[name]
        folder = make_folder(root / f"{name}-{kind}", config, record.seed_of(name), kind)
        return folder, record.draw_prompt(name, length)

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "any_case" in metafunc.fixturenames:
        import importlib.util

        path = Path(__file__).parents[1] / "models" / "record.py"
        spec = importlib.util.spec_from_file_location("record_cases", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        cases = list(module.CASES)
        if "transformers" in metafunc.function.__name__:  # test_export_mixtures.py has another reader
            cases = [name for name in cases if not name.startswith("smallthinker")]
        metafunc.parametrize("any_case", cases)


def test_onnx_computes_what_the_engine_computes(any_case: str, drawn: Any, tmp_path: Path) -> None:
    folder, prompt = drawn(any_case)
    export(open_model(folder), "onnx", tmp_path / "out")
    logits, tokens = Session(tmp_path / "out").answer(prompt, STEPS)
    expected, same = ours(folder, prompt, STEPS)
    assert close(logits, expected) and tokens == same


def test_safetensors_compute_in_transformers_what_the_engine_computes(
    any_case: str, drawn: Any, tmp_path: Path
) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, prompt = drawn(any_case)
    export(open_model(folder), "safetensors", tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    with torch.no_grad():
        said = model(input_ids=torch.from_numpy(prompt.astype(np.int64))[None]).logits[0].numpy()
    assert model.dtype == torch.float32 and close(said, ours(folder, prompt, 1)[0])


def pack_of(path: Path, folder: Path, convert: Callable[[str, np.ndarray], Matrix | None]) -> Path:
    """A pack of the checkpoint `folder` whose matrices `convert` gives (None: f32)."""
    model = open_model(folder)
    with PackWriter(path) as writer:
        for name, entry in model.source.tensors.items():
            values = np.frombuffer(model.source.bytes(name), "<f4").reshape(entry.shape)
            matrix = convert(name, values) if values.ndim == 2 else None
            if matrix is None:
                writer.add_tensor(name, "f32", entry.shape, [values.tobytes()])
            else:
                writer.add_tensor(name, matrix.kind, entry.shape, [matrix.data], matrix.group, matrix.layout)
        writer.add_file("tokenizer.json", folder / "tokenizer.json")
        writer.finish({"architecture": model.source.config, "activations": "int8-dynamic"})
    return path


def grouped_96(values: np.ndarray) -> Matrix:
    """int4 in groups of 96 columns, the last one short."""
    rows, columns = values.shape
    groups = -(-columns // 96)
    padded = np.zeros((rows, groups * 96), np.float32)
    padded[:, :columns] = values
    scales = (np.abs(padded.reshape(rows, groups, 96)).max(axis=2) / 7).astype(np.float16).astype(np.float32)
    codes = np.rint(padded.reshape(rows, groups, 96) / scales[:, :, None]).clip(-8, 7).astype(np.int8)
    return pack_int4(codes.reshape(rows, -1)[:, :columns], scales, 96)


@pytest.mark.parametrize("kind", ["int8", "int4", "int4 in 96", "int3", "f16", "bf16"])
@pytest.mark.parametrize("case", ["qwen2", "llama-biases"])
def test_packed_weights_are_exported_without_rounding(
    kind: str, case: str, drawn: Any, quantize: Any, tmp_path: Path
) -> None:
    """Tied and separate embeddings, widths that are no multiple of a block; in ONNX and as dense numbers."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder, prompt = drawn(case)

    def convert(name: str, values: np.ndarray) -> Matrix:
        if kind in ("f16", "bf16"):
            return Matrix.from_array(values, kind)
        if kind == "int4 in 96":
            return grouped_96(values)
        return quantize(values, kind) if values.shape[1] % 32 == 0 else quantize(values, "int8")

    pack = pack_of(tmp_path / "a.pack", folder, convert)
    expected, same = ours(pack, prompt, STEPS)
    for weights in ("stored", "f32"):
        goal = tmp_path / weights
        done = export(open_model(pack), "onnx", goal, weights=weights, activations="f32")
        logits, tokens = Session(tmp_path / weights).answer(prompt, STEPS)
        assert close(logits, expected) and tokens == same, weights
        graph = (tmp_path / weights / "model.onnx").read_bytes()
        assert (b"com.microsoft" in graph) == (weights == "stored" and kind.startswith("int"))
        assert done.files["model.onnx.data"] > 0
    export(open_model(pack), "safetensors", tmp_path / "dense")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    with torch.no_grad():
        said = model(input_ids=torch.from_numpy(prompt.astype(np.int64))[None]).logits[0].numpy()
    assert close(said, expected[: len(prompt)])
    again = open_model(tmp_path / "dense")  # and our own engine reads it back
    assert close(ours(again, prompt, 1)[0], expected[: len(prompt)])


def test_activations_are_those_of_the_plan_or_asked_for(drawn: Any, quantize: Any, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    folder, prompt = drawn("llama")
    pack = pack_of(tmp_path / "a.pack", folder, lambda name, values: quantize(values, "int8"))
    levels = {}
    for asked in (None, "f32", "int8-dynamic"):
        export(open_model(pack), "onnx", tmp_path / str(asked), activations=asked)
        graph = onnx.load(tmp_path / str(asked) / "model.onnx", load_external_data=False).graph
        products = [node for node in graph.node if node.op_type == "MatMulNBits"]
        levels[asked] = {one.i for node in products for one in node.attribute if one.name == "accuracy_level"}
    assert levels == {None: {4}, "f32": {1}, "int8-dynamic": {4}}  # the pack's plan says int8-dynamic
    exact = ours(pack, prompt, 1)[0]
    with Engine.open(pack, activations="int8-dynamic") as engine:
        own = engine.step(prompt, cache=engine.cache(len(prompt)), want="all")[0]
    rounded = Session(tmp_path / "None").answer(prompt, 1)[0]
    assert 0 < np.abs(rounded - exact).mean() < 2 * np.abs(own - exact).mean()
    with pytest.raises(UserError, match="leave --activations out"):
        export(open_model(pack), "safetensors", tmp_path / "x", activations="f32")
    with pytest.raises(UserError, match="activations=int4 is not supported"):
        export(open_model(pack), "onnx", tmp_path / "x", activations="int4")


@pytest.mark.parametrize("columns", [32, 56, 96, 160])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_blocks_hold_every_integer_and_scale(kind: str, columns: int, quantize: Any) -> None:
    values = np.random.default_rng(columns).standard_normal((21, columns)).astype(np.float32)
    matrix = quantize(values, "int8") if kind == "int8" else grouped_96(values)
    bits, block = (8, block_of(None, columns)) if kind == "int8" else (4, block_of(96, columns))
    stored, scales = to_blocks(matrix, bits, block)
    if bits == 4:
        stored = np.stack([stored & 15, stored >> 4], axis=-1).reshape(21, -1, block)
    back = (stored.astype(np.float32) - (1 << (bits - 1))) * scales[:, :, None]
    assert np.array_equal(back.reshape(21, -1)[:, :columns], unpack(matrix))


def test_a_padded_batch_says_what_each_text_says_alone(drawn: Any, tmp_path: Path) -> None:
    folder, prompt = drawn("mistral")  # with a window
    export(open_model(folder), "onnx", tmp_path / "out")
    texts = [list(prompt[:23]), list(prompt[5:12])]
    session, width = Session(tmp_path / "out", batch=2), 23
    pads = [width - len(text) for text in texts]
    ids = [[0] * pad + text for pad, text in zip(pads, texts, strict=True)]
    places = [[0] * pad + list(range(len(text))) for pad, text in zip(pads, texts, strict=True)]
    mask = [[0] * pad + [1] * len(text) for pad, text in zip(pads, texts, strict=True)]
    first = session.step(ids, places, mask)
    following = [[int(row[-1].argmax())] for row in first]
    second = session.step(following, [[len(text)] for text in texts], [[*one, 1] for one in mask])
    for row, text in enumerate(texts):
        alone, tokens = ours(folder, np.asarray(text, np.int32), 2)
        assert close(first[row][pads[row] :], alone[: len(text)])
        assert close(second[row], alone[len(text) :]) and tokens[0] == following[row][0]


def test_number_types(drawn: Any, tmp_path: Path) -> None:
    folder, prompt = drawn("llama", "f16")
    expected = ours(folder, prompt, 2)[0]
    sizes = {}
    for weights in ("stored", "f32", "f16"):
        done = export(open_model(folder), "onnx", tmp_path / weights, weights=weights)
        assert close(Session(tmp_path / weights).answer(prompt, 2)[0], expected)
        sizes[weights] = done.files["model.onnx.data"]
    assert sizes["stored"] == sizes["f16"] < 0.6 * sizes["f32"]
    for weights, kind in (("stored", "f16"), ("f32", "f32"), ("bf16", "bf16")):
        export(open_model(folder), "safetensors", tmp_path / f"st-{weights}", weights=weights)
        source = open_model(tmp_path / f"st-{weights}").source
        assert {entry.kind for entry in source.tensors.values()} == {kind}
    with pytest.raises(UserError, match="weights=int3 is not supported"):
        export(open_model(folder), "onnx", tmp_path / "x", weights="int3")


def test_a_number_that_f16_cannot_hold_is_named(drawn: Any, tmp_path: Path) -> None:
    folder, _ = drawn("llama")

    def convert(name: str, values: np.ndarray) -> Matrix:
        large = values.copy()
        large[0, 0] = 1e6
        return Matrix.from_array(large)

    pack = pack_of(tmp_path / "a.pack", folder, convert)
    for to in formats():
        if to == "gguf":
            continue
        with pytest.raises(UserError, match=r"holds 1e\+06, which f16 cannot .*--weights f32"):
            export(open_model(pack), to, tmp_path / "out", weights="f16")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pack"]


@dataclass(frozen=True)
class Strange:
    """A layer that no exporter knows."""

    kind: ClassVar[str] = "retention"

    def products(self) -> tuple[()]:
        return ()

    def norms(self) -> tuple[()]:
        return ()


def test_what_has_no_form_is_refused_by_name(drawn: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model = open_model(drawn("llama")[0])
    blocks = model.architecture.blocks
    branch = replace(blocks[1].branches[0], layer=Strange())
    strange = replace(blocks[1], branches=(branch, *blocks[1].branches[1:]))
    other = replace(model, architecture=replace(model.architecture, blocks=(blocks[0], strange, *blocks[2:])))
    with pytest.raises(UserError, match=r"block 1 .* layer of the kind 'retention'"):
        export(other, "onnx", tmp_path / "out")
    feed = blocks[0].branches[1]
    odd = replace(feed, layer=replace(feed.layer, activation="quick"))
    block = replace(blocks[0], branches=(blocks[0].branches[0], odd))
    other = replace(model, architecture=replace(model.architecture, blocks=(block, *blocks[1:])))
    with pytest.raises(UserError, match="activation 'quick'"):
        export(other, "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_new_field_of_a_record_is_refused_not_left_out(drawn: Any, tmp_path: Path) -> None:
    from haversack.run.export import onnx as writer

    model = open_model(drawn("llama")[0])
    kept = dict(writer._WRITTEN)
    for kind in kept:
        names = {field.name for field in fields(kind)}
        refused = set(writer._REFUSED.get(kind, "").split())
        assert names <= set(kept[kind].split()) | refused, f"{kind.__name__} has a field that is not written"
    attention = type(model.architecture.blocks[0].attention)
    writer._WRITTEN[attention] = kept[attention].replace(" rope ", " ")
    try:
        with pytest.raises(UserError, match=r"Attention\.rope=.* no form in ONNX"):
            export(model, "onnx", tmp_path / "out")
    finally:
        writer._WRITTEN.update(kept)


def test_tokenizer_template_and_licence_go_along(drawn: Any, tmp_path: Path) -> None:
    folder, _ = drawn("qwen3")
    for name, text in (("LICENSE", "CC0"), ("tokenizer_config.json", '{"chat_template": "x"}')):
        (folder / name).write_text(text)
    for to in ("onnx", "safetensors"):
        export(open_model(folder), to, tmp_path / to)
        assert (tmp_path / to / "LICENSE").read_text() == "CC0"
        assert json.loads((tmp_path / to / "tokenizer_config.json").read_text())["chat_template"] == "x"
        assert (tmp_path / to / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_the_command(drawn: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = drawn("smollm3")
    goal = tmp_path / "out"
    line = ["export", str(folder), "--to", "onnx", "-o", str(goal)]
    assert main([*line, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["nbytes"] == sum(path.stat().st_size for path in goal.iterdir())
    assert said["ram_mib"]["planned"] > 0 and set(said["files"]) >= {"model.onnx", "model.onnx.data"}
    before = {path.name: path.read_bytes() for path in goal.iterdir()}
    assert main(line) == 2 and "add --overwrite" in capsys.readouterr().err
    assert main([*line, "--overwrite"]) == 0 and "memory: planned" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in goal.iterdir()} == before
    (goal / "notes.txt").write_text("mine")
    assert main([*line, "--overwrite"]) == 2
    assert "holds notes.txt, which no export wrote" in capsys.readouterr().err
    assert main([*line[:3], "onx", *line[4:]]) == 2 and "did you mean onnx" in capsys.readouterr().err
    assert main([*line[:-1], str(tmp_path / "no" / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err
    itself = ["export", str(folder), "--to", "safetensors", "-o", str(folder), "--overwrite"]
    assert main(itself) == 2 and "is the model itself" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert main([*line[:-1], str(tmp_path / "file"), "--overwrite"]) == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_pack_is_not_exported(drawn: Any, tmp_path: Path) -> None:
    pack = pack_of(tmp_path / "a.pack", drawn("llama")[0], lambda name, values: None)
    weights = pack / "weights.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size - 100)
        file.write(b"\xff\xff")
    os.utime(weights, ns=(1, 1))
    with pytest.raises(UserError, match="altered"):
        export(open_model(pack), "safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


WRITE = """
import sys
from pathlib import Path
from haversack.run._source import open_model
from haversack.run.export import export
model = open_model(sys.argv[1])
print("ready", flush=True)
while True:
    export(model, sys.argv[2], Path(sys.argv[3]), overwrite=True)
"""


@pytest.mark.parametrize("to", ["onnx", "safetensors"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_any_moment_the_old_export_or_the_new_is_whole(
    to: str, how: int, drawn: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    folder, _ = drawn("llama")
    goal = tmp_path / "out"
    export(open_model(folder), to, goal)
    whole = {path.name: path.read_bytes() for path in goal.iterdir()}
    moments = random.Random(f"{to}{how}")
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, folder, to, goal], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0.0, 0.3))
        process.send_signal(how)
        process.wait()
        process.stdout.close()
        assert {path.name: path.read_bytes() for path in goal.iterdir()} == whole
    export(open_model(folder), to, goal, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # what the killed ones left is gone


def test_a_full_disk_leaves_nothing(drawn: Any, tmp_path: Path) -> None:
    """In a process whose files may have 64 KiB: what ends a full disk ends this too."""
    folder, _ = drawn("llama")
    program = (
        "import resource, sys; from pathlib import Path; from haversack.core.errors import UserError\n"
        "from haversack.run._source import open_model; from haversack.run.export import export\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try: export(open_model(sys.argv[1]), 'safetensors', Path(sys.argv[2]))\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder, tmp_path / "out"], capture_output=True, text=True
    )
    assert "cannot be written" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


def test_more_weights_take_no_more_memory(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    """Beside the mapped weights an export holds some rows, however large the model is."""
    pytest.importorskip("onnx")
    config = {**BIG, "num_hidden_layers": 1}
    peaks = []
    for layers in (1, 5):
        folder = make_folder(tmp_path / f"m{layers}", config | {"num_hidden_layers": layers}, 1, "f16")
        goal = tmp_path / f"o{layers}"
        line = ["export", folder, "--to", "onnx", "--weights", "f32", "-o", goal, "--json"]
        program = "import sys; from haversack.cli import main; sys.exit(main())"
        done = subprocess.run([sys.executable, "-c", program, *line], capture_output=True, text=True)
        said = json.loads(done.stdout)["ram_mib"]
        mapped = (folder / "model.safetensors").stat().st_size / 2**20
        assert said["measured"] <= said["planned"]
        peaks.append(said["measured"] - mapped)
        shutil.rmtree(goal)
    assert peaks[1] - peaks[0] < 8


BIG = {
    "model_type": "llama",
    "vocab_size": 288,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
}


def test_names_and_architecture_survive(drawn: Any, tmp_path: Path) -> None:
    folder, _ = drawn("qwen3-linear")
    export(open_model(folder), "safetensors", tmp_path / "out")
    one, two = open_model(folder), open_model(tmp_path / "out")
    assert two.architecture == one.architecture == read_architecture(one.source.config)
    for name in one.architecture.tensors():
        assert bytes(one.source.bytes(name)) == bytes(two.source.bytes(name))


@pytest.mark.parametrize("package", ["onnx", "huggingface_hub"])
def test_a_missing_extra_is_one_sentence(package: str, drawn: Any, tmp_path: Path) -> None:
    extra = {"onnx": "onnx", "huggingface_hub": "hub"}[package]
    model = str(drawn("llama")[0]) if package == "onnx" else "owner/name"
    program = f"import sys; sys.modules[{package!r}] = None; from haversack.cli import main; sys.exit(main())"
    line = ["export", model, "--to", "onnx", "-o", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", program, *line], capture_output=True, text=True)
    assert done.returncode == 2 and f"pip install 'haversack[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
