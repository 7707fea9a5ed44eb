"""Commands given damaged packs: exit code 2 and one sentence, whatever was damaged; never a traceback."""

import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tokenizers

from haversack.core.pack import PackWriter, check_pack
from haversack.models import read_architecture

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "vocab_size": 257,
}
MAIN = "import sys; from haversack.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def language_pack(tmp_path_factory):
    """A language pack that runs: one block, random weights, a byte-level tokenizer."""
    path = tmp_path_factory.mktemp("packs") / "tiny.pack"
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    numbers = np.random.default_rng(0)
    with PackWriter(path) as writer:
        for name, shape in read_architecture(CONFIG).tensors().items():
            values = numbers.normal(float(len(shape) == 1), 0.2, shape).astype(np.float32)
            writer.add_tensor(name, "f32", shape, [values.tobytes()])
        writer.add_file("tokenizer.json", library.to_str().encode())
        writer.finish({"architecture": CONFIG, "plan": {"precision": "keep", "activations": "f32"}})
    return path


@pytest.fixture
def attacked(language_pack, tmp_path):
    return shutil.copytree(language_pack, tmp_path / "tiny.pack")


def run(pack, *options):
    return subprocess.run(
        [sys.executable, "-c", MAIN, "run", pack, "--prompt", "def", "--max-tokens", "3", *options],
        capture_output=True,
        text=True,
        check=False,
    )


def assert_one_sentence(done):
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("haversack: ")


def test_the_whole_pack_runs(attacked):
    assert json.loads(run(attacked, "--json").stdout)["tokens"]


@pytest.mark.parametrize("name", ["pack.json", "weights.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "absent"])
def test_run_refuses_a_damaged_pack(attacked, name, how):
    file = attacked / name
    if how == "flipped":
        data = bytearray(file.read_bytes())
        data[random.Random(name).randrange(len(data) // 2, len(data))] ^= 4
        file.write_bytes(data)
    elif how == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.unlink()
    assert_one_sentence(run(attacked))
    done = run(attacked, "--json")
    assert done.returncode == 2 and set(json.loads(done.stdout)) >= {"error", "field", "given", "nearest"}
    if name != "pack.json" or how != "absent":
        assert check_pack(attacked)


def test_run_refuses_a_prompt_longer_than_the_context(attacked):
    done = run(attacked, "--prompt", "x" * 500)
    assert_one_sentence(done)
    assert "32" in done.stderr


def test_run_refuses_a_budget_it_cannot_meet(attacked):
    done = run(attacked, "--ram-mib", "1")
    assert_one_sentence(done)
    assert "needs at least" in done.stderr
