"""A small real checkpoint, written by the suite: everything here runs on it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from haversack.formats.safetensors import write_safetensors

if TYPE_CHECKING:
    from haversack.run._head_predictor import HeadPredictor

WIDTH, HEADS, KV_HEADS, HEAD, INNER, BLOCKS, CONTEXT = 64, 4, 2, 16, 96, 3, 96
SPECIAL = "<|end|>"


def write_tokenizer(folder: Path) -> int:
    """A byte-level tokenizer without merges and one special token; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    return int(tokenizer.get_vocab_size())


def write_checkpoint(folder: Path, seed: int, blocks: int = BLOCKS) -> Path:
    """A Llama in the hub's own format, its weights drawn so that every tensor matters."""
    folder.mkdir(parents=True)
    vocabulary = write_tokenizer(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": blocks,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
        "bos_token_id": None,
        "eos_token_id": vocabulary - 1,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (vocabulary, WIDTH)}
    for block in range(blocks):
        at = f"model.layers.{block}"
        shapes |= {
            f"{at}.input_layernorm.weight": (WIDTH,),
            f"{at}.self_attn.q_proj.weight": (HEADS * HEAD, WIDTH),
            f"{at}.self_attn.k_proj.weight": (KV_HEADS * HEAD, WIDTH),
            f"{at}.self_attn.v_proj.weight": (KV_HEADS * HEAD, WIDTH),
            f"{at}.self_attn.o_proj.weight": (WIDTH, HEADS * HEAD),
            f"{at}.post_attention_layernorm.weight": (WIDTH,),
            f"{at}.mlp.gate_proj.weight": (INNER, WIDTH),
            f"{at}.mlp.up_proj.weight": (INNER, WIDTH),
            f"{at}.mlp.down_proj.weight": (WIDTH, INNER),
        }
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (vocabulary, WIDTH)}
    rng = np.random.default_rng(seed)
    tensors = []
    for name, shape in shapes.items():
        spread = 0.3 if len(shape) == 1 else 1.5 / np.sqrt(shape[-1])
        values = rng.normal(1.0 if len(shape) == 1 else 0.0, spread, shape).astype(np.float32)
        tensors.append((name, "f32", shape, values.tobytes()))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def write_mixture(folder: Path) -> Path:
    """An OLMoE of the same sizes: six experts in each block, two of which take a token."""
    from haversack.models.language import read_architecture

    folder.mkdir(parents=True)
    vocabulary = write_tokenizer(folder)
    config = {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
        "bos_token_id": None,
        "eos_token_id": vocabulary - 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(6)
    tensors = []
    for name, shape in read_architecture(config).checkpoint_tensors().items():
        spread = 0.3 if len(shape) == 1 else 1.5 / np.sqrt(shape[-1])
        values = rng.normal(1.0 if len(shape) == 1 else 0.0, spread, shape).astype(np.float32)
        tensors.append((name, "f32", shape, values.tobytes()))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="session")
def served() -> Iterator[Callable[[Path], str]]:
    """The address of a server that verifies drafts for a model; each is started once."""
    file = Path(__file__).parents[1] / "share" / "serving.py"
    spec = importlib.util.spec_from_file_location("conformance_serving", file)
    assert spec is not None and spec.loader is not None
    serving: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serving)
    urls: dict[Path, str] = {}
    with contextlib.ExitStack() as servers:

        def url(model: Path) -> str:
            if model not in urls:
                server = servers.enter_context(serving.serving(model, verify=True))
                urls[model] = server.verify_url
            return urls[model]

        yield url


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts."""
    return write_mixture(tmp_path_factory.mktemp("conformance") / "mixture")


@pytest.fixture(scope="session")
def mixture_pack(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in a pack, whose experts lie in a store."""
    return packed_mixture(mixture, tmp_path_factory.mktemp("conformance"))


@pytest.fixture(scope="session")
def matrices_pack(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with every matrix of an expert in a record of its own."""
    return packed_mixture(mixture, tmp_path_factory.mktemp("conformance"), matrices=True)


@pytest.fixture(scope="session")
def nested_pack(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with nested bits."""
    return packed_mixture(mixture, tmp_path_factory.mktemp("conformance"), "d2moe:group=32")


@pytest.fixture(scope="session")
def shadow_pack(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint in static int8, every matrix with shadows."""
    from haversack.core import index
    from haversack.core.pack import PackWriter
    from haversack.formats.safetensors import HubFolder
    from haversack.models.language import read_architecture
    from haversack.shrink._language import LanguageWalk
    from haversack.shrink._pipeline import Policy, compress

    goal = tmp_path_factory.mktemp("conformance") / "shadow.pack"
    source = HubFolder.open(checkpoint)
    method = index.create("shrink", "precision", "mllm-npu:beyond=0.03,threshold=2,keep=1")
    texts = np.random.default_rng(8).integers(0, 256, (2, 64)).astype(np.int32)
    with PackWriter(goal) as writer:
        walk = LanguageWalk(read_architecture(source.config))
        compress(source, walk, method, writer, texts=texts, policy=Policy(), folder=goal.parent)  # type: ignore[arg-type]
        writer.add_file("tokenizer.json", checkpoint / "tokenizer.json")
        plan = {"precision": str(method), "activations": "int8-static"}
        writer.finish({"architecture": source.config, "plan": plan, "activations": "int8-static"})
    return goal


def packed_mixture(
    mixture: Path, folder: Path, precision: str = "keep:kind=f32", *, matrices: bool = False
) -> Path:
    """The mixture of experts as a pack, with a predictor of output rows that leaves none out."""
    from haversack.core import index
    from haversack.core._record import PREDICTOR_NAME
    from haversack.core.pack import PackWriter
    from haversack.formats.safetensors import HubFolder
    from haversack.models._experts import identity
    from haversack.models.language import read_architecture
    from haversack.shrink._language import LanguageWalk
    from haversack.shrink._pipeline import Policy, compress

    goal = folder / "mixture.pack"
    source = HubFolder.open(mixture)
    walk = LanguageWalk(read_architecture(source.config))
    method = index.create("shrink", "precision", precision)
    texts = np.random.default_rng(8).integers(0, 256, (2, 64)).astype(np.int32)
    with PackWriter(goal) as writer:
        kept = {"texts": texts, "policy": Policy(embedding="f32"), "folder": goal.parent}
        compress(source, walk, method, writer, matrices=matrices, **kept)  # type: ignore[arg-type]
        writer.add_file("tokenizer.json", mixture / "tokenizer.json")
        every_row = predictor(identity(source, walk.architecture), walk.architecture.vocabulary)
        writer.add_file(PREDICTOR_NAME, every_row.to_bytes())
        writer.finish({"architecture": source.config, "plan": {"activations": "f32"}})
    return goal


def predictor(model: str, vocabulary: int) -> HeadPredictor:
    """A predictor of output rows whose every score is above its limit."""
    from haversack.kernels import pack_int4
    from haversack.run._head_predictor import HeadPredictor
    from haversack.shrink.precision.q4_0 import round_blocks

    down, up = np.ones((32, WIDTH), np.float32), np.zeros((vocabulary, 32), np.float32)
    parts = (pack_int4(*round_blocks(one), 32) for one in (down, up))
    return HeadPredictor(model, next(parts), next(parts), -1.0, 1.0)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("conformance") / "small", seed=3)


@pytest.fixture(scope="session")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller model with the same tokenizer."""
    return write_checkpoint(tmp_path_factory.mktemp("conformance") / "draft", seed=4, blocks=1)


@pytest.fixture(scope="session")
def sealed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `small.pack`, the checkpoint in a sealed pack, and its `key`."""
    from haversack.core.pack import Pack, PackWriter
    from haversack.formats.safetensors import HubFolder
    from haversack.formats.sealed import read_key, seal

    folder = tmp_path_factory.mktemp("sealed")
    (folder / "key").write_bytes(b"conformance".ljust(32))
    source = HubFolder.open(checkpoint)
    with PackWriter(folder / "plain.pack") as writer:
        for name, entry in source.tensors.items():
            writer.add_tensor(name, entry.kind, entry.shape, [source.bytes(name)])
        writer.add_file("tokenizer.json", checkpoint / "tokenizer.json")
        writer.finish({"architecture": source.config, "plan": {"precision": "keep"}})
    seal(Pack.open(folder / "plain.pack"), folder / "small.pack", read_key(folder / "key"))
    return folder
