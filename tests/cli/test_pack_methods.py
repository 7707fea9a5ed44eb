"""`haversack pack --precision awq|smoothquant` from outside: a pack that runs as planned, refusals."""

import json

import numpy as np
import pytest
from tests.cli.test_pack import BOARD, QUICK, checkpoint, refused, run  # noqa: F401 - a fixture among them

from haversack.cli import main
from haversack.core.pack import Pack
from haversack.formats.safetensors import HubFolder, write_safetensors
from haversack.models._calibration import default_text

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "evaluation.py"
    path.write_text(default_text("evaluation")[:6000])
    return path


@pytest.mark.parametrize(
    ("precision", "kinds", "activations"),
    [
        ("awq:bits=4,group=32", {"int4", "int8", "f32"}, None),
        ("awq:bits=3,group=64", {"int3", "int8", "f32"}, "f32"),
        ("smoothquant:alpha=0.8", {"int8", "f32"}, None),
    ],
)
def test_a_pack_that_runs_as_planned(capsys, checkpoint, text, tmp_path, precision, kinds, activations):  # noqa: F811
    goal = tmp_path / "a.pack"
    fixed = ["--activations", activations] if activations else []
    code, out, err = run(
        capsys, checkpoint, *BOARD, "-o", goal, *QUICK, "--precision", precision, *fixed,
        "--evaluation", text, "--json",
    )  # fmt: skip
    assert code == 0, (out, err)
    record = json.loads(out)
    types = {one["plan"]["activations"] for one in record["candidates"]}
    assert types == ({"int8-dynamic"} if "smooth" in precision else {activations} if activations else types)
    pack = Pack.open(goal)
    assert pack.check() == [] and {entry.kind for entry in pack.tensors.values()} == kinds
    assert pack.record.activations == record["plan"]["activations"]
    assert precision.partition(":")[0] in (goal / "report.html").read_text()
    source = HubFolder.open(checkpoint)
    norms = [name for name in pack.tensors if "layernorm" in name]
    before = np.concatenate([np.frombuffer(source.bytes(name), "<f2") for name in norms])
    after = np.concatenate([np.frombuffer(pack.bytes(name), "<f4") for name in norms])
    assert not np.allclose(before, after, rtol=1e-3), "scales are folded in"
    assert main(["run", str(goal), "--prompt", "def f(x):", "--max-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"  \n", "is empty"),
        ("short.txt", b"def f(x):\n    return x\n", "too short"),
        ("latin.txt", "caf\u00e9 ".encode("latin-1") * 4000, "not UTF-8"),
        (
            "foreign.txt",
            "\u4e2d\u6587\u5b57\u7b26\u0629\u0635 \U0001f600".encode() * 2000,
            "tokenizer does not know",
        ),
        ("beyond.npy", np.arange(4096) + 50_000, "another tokenizer"),
        ("below.npy", np.arange(4096) - 1, "another tokenizer"),
        ("shape.npy", np.zeros((64, 64), np.int64), "not a row of token numbers"),
    ],
)
def test_calibration_that_cannot_be_is_named(capsys, checkpoint, text, tmp_path, name, content, said):  # noqa: F811
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    record = refused(
        capsys, checkpoint, *BOARD, "-o", tmp_path / "a.pack", *QUICK,
        "--precision", "awq", "--calibration", path, "--evaluation", text,
    )  # fmt: skip
    assert record["field"] == "calibration" and said in record["error"]
    assert [one.name for one in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("line", "field", "said"),
    [
        (["--precision", "awq:bits=5"], "bits", "(allowed 3, 4, 8)"),
        (["--precision", "awq:group=48"], "group", "(allowed 32, 64, 128)"),
        (["--precision", "smoothquant:bits=3"], "bits", "(allowed 4, 8)"),
        (["--precision", "smoothquant:alpha=2"], "alpha", "allowed"),
        (
            ["--precision", "smoothquant", "--activations", "f32"],
            "activations",
            "use activations int8-dynamic",
        ),
        (
            ["--precision", "awq", "--structure", "low-rank:rank=0.4"],
            "precision",
            "use round-to-nearest or gptq",
        ),
    ],
)
def test_what_is_undefined_is_refused_before_any_work(capsys, checkpoint, tmp_path, line, field, said):  # noqa: F811
    record = refused(capsys, checkpoint, *BOARD, "-o", tmp_path / "a.pack", *QUICK, *line)
    assert record["field"] == field and said in record["error"], record
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["awq", "smoothquant", "gptq"])
def test_activations_that_overflow_name_their_layer(capsys, checkpoint, text, tmp_path, precision):  # noqa: F811
    folder = tmp_path / "huge"
    folder.mkdir()
    source = HubFolder.open(checkpoint)
    tensors = []
    for name, entry in source.tensors.items():
        values = np.frombuffer(source.bytes(name), "<f2").astype(np.float32).reshape(entry.shape)
        if name == "model.layers.1.post_attention_layernorm.weight":
            values = values * np.float32(2e38)
        tensors.append((name, "f32", entry.shape, values.tobytes()))
    write_safetensors(folder / "model.safetensors", tensors)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    record = refused(
        capsys, folder, *BOARD, "-o", tmp_path / "a.pack", *QUICK, "--precision", precision,
        "--evaluation", text,
    )  # fmt: skip
    assert "not finite" in record["error"] and "model.layers.1.mlp" in record["error"]
    assert [one.name for one in tmp_path.iterdir()] == ["huge"]
