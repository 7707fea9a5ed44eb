"""Packs of mixtures of experts with drawn weights, each expert at bits of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.core.errors import UserError
from haversack.core.pack import PackWriter
from haversack.core.storage import FailingStorage
from haversack.formats.sealed import Sealer
from haversack.models import read_architecture
from haversack.models._experts import Experts, experts_of
from haversack.run._paths import PROFILE_NAME, Profile
from haversack.shrink.precision.edgemoe import compressed

OLMOE: dict[str, Any] = {
    "model_type": "olmoe",
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": False,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
"""Router after attention, experts by softmax."""
SMALLTHINKER: dict[str, Any] = {
    **{name: value for name, value in OLMOE.items() if name not in ("num_experts", "num_experts_per_tok")},
    "model_type": "smallthinker",
    "norm_topk_prob": True,
    "head_dim": 16,
    "moe_ffn_hidden_size": 96,
    "moe_num_primary_experts": 6,
    "moe_num_active_primary_experts": 2,
    "rope_theta": 1e4,
    "rope_layout": [0, 1, 1],
    "sliding_window_layout": [0, 1, 1],
    "sliding_window_size": 16,
}
"""Router before attention, experts with a ReLU."""

LARGE_NESTED: dict[str, Any] = {
    **OLMOE,
    "hidden_size": 256,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_experts": 12,
}
"""42 MiB of nested experts."""


def draw(config: dict[str, Any], seed: int = 1) -> dict[str, np.ndarray]:
    """Weights by the architecture's own names."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in read_architecture(config).tensors().items():
        spread = 0.3 if len(shape) == 1 else 1.5 / np.sqrt(shape[-1])
        found[name] = (rng.standard_normal(shape) * spread + (len(shape) == 1)).astype(np.float32)
    return found


def mixed_bits(layer: int, expert: int) -> int:
    """Every width in turn."""
    return (4, 2, 8, 32, 16)[(layer + expert) % 5]


def write_expert_pack(
    path: Path,
    config: dict[str, Any] | None = None,
    bits: Callable[[int, int], int] = mixed_bits,
    seed: int = 1,
    profile: bool = True,
    identity: str = "drawn",
    tokenizer: str | None = None,
    matrices: bool = False,
    key: bytes | None = None,
) -> Path:
    """A pack whose experts lie in a store, whole or with every matrix in a record of its own; with a `key`,
    sealed with the other weights.
    """
    config = OLMOE if config is None else config
    architecture = read_architecture(config)
    experts = experts_of(architecture)
    assert experts is not None
    inside = {linear.weight for block in architecture.blocks for linear in block.matrices()}
    sealer = None if key is None else Sealer(key, path.name)
    with PackWriter(path, sealer=sealer) as writer:
        writer.keep_experts(identity, experts.part_owners if matrices else experts.owners)
        for name, values in draw(config, seed).items():
            if name in experts.owners:
                block, expert = experts.owners[name]
                found = compressed(values, bits(experts.blocks.index(block), expert))
                stored: Any = getattr(found, "stored", None)
                matrix = found.packed()
                data = matrix.data if stored is None else stored()
                writer.add_tensor(
                    name, found.kind.kind, matrix.shape, [data], found.kind.group, matrix.layout
                )
            else:
                kind = "f16" if name in inside else "f32"
                values = values.astype("<f2") if kind == "f16" else values
                writer.add_tensor(name, kind, values.shape, [values])
        if tokenizer is not None:
            writer.add_file("tokenizer.json", tokenizer.encode())
        if profile:
            writer.add_file(PROFILE_NAME, drawn_profile(experts, identity).to_bytes())
        writer.finish({"architecture": config, "plan": {"activations": "f32"}})
    return path


def drawn_profile(experts: Experts, identity: str, seed: int = 5) -> Profile:
    """Paths of a text that never was: some experts are chosen more often than others."""
    rng = np.random.default_rng(seed)
    chances = np.arange(1, experts.count + 1) / sum(range(1, experts.count + 1))
    routes = np.array(
        [
            [rng.choice(experts.count, experts.chosen, replace=False, p=chances) for _ in experts.blocks]
            for _ in range(200)
        ],
        np.int32,
    )
    return Profile.of_routes(routes, experts.count, identity)


def write_nested_pack(
    path: Path,
    config: dict[str, Any] | None = None,
    *,
    bits: tuple[int, ...] = (2, 3, 4),
    copies: bool = False,
    seed: int = 1,
    router: bool = True,
    identity: str = "drawn",
    tokenizer: str | None = None,
    alike: bool = False,
) -> Path:
    """A pack whose experts have nested bits, in groups of 32; `router`: with drawn bit routers, `alike`: all
    experts are the same."""
    from haversack.run._levels import ROUTER_NAME
    from haversack.shrink.precision._nested import FormedNested, NestedTensor
    from haversack.shrink.precision.d2moe import copies_quantize, mwq_quantize

    config = OLMOE if config is None else config
    architecture = read_architecture(config)
    experts = experts_of(architecture)
    assert experts is not None
    inside = {linear.weight for block in architecture.blocks for linear in block.matrices()}
    made: dict[str, NestedTensor] = {}
    with PackWriter(path) as writer:
        writer.keep_experts(identity, experts.owners)
        for name, values in draw(config, seed).items():
            if name in experts.owners:
                kind = name.rpartition("experts.")[2].partition(".")[2]
                nested = made.get(kind) if alike else None
                if nested is None:
                    nested = (
                        copies_quantize(values, bits, 32)
                        if copies
                        else mwq_quantize(values, None, bits, 32, pad=True)
                    )
                made[kind] = nested
                formed = FormedNested(nested)
                for part, data in formed.parts().items():
                    writer.add_tensor(f"{name}.{part}", "u8", data.shape, [data])
                writer.add_form(name, {**formed.form, "shape": list(values.shape)})
            else:
                kind = "f16" if name in inside else "f32"
                values = values.astype("<f2") if kind == "f16" else values
                writer.add_tensor(name, kind, values.shape, [values])
        if router:
            routers = drawn_routers(experts, architecture.width, bits, identity)
            writer.add_file(ROUTER_NAME, routers.to_bytes())
        if tokenizer is not None:
            writer.add_file("tokenizer.json", tokenizer.encode())
        writer.finish({"architecture": config, "plan": {"activations": "f32"}})
    return path


def drawn_routers(experts: Experts, width: int, bits: tuple[int, ...], identity: str, seed: int = 6) -> Any:
    """Bit routers that choose every level for some tokens."""
    from haversack.run._levels import BitRouters

    rng = np.random.default_rng(seed)
    shape = (len(experts.blocks), experts.count, len(bits))
    weights = rng.standard_normal((*shape, width)).astype(np.float16)
    biases = rng.standard_normal(shape).astype(np.float32)
    return BitRouters(weights, biases, identity, experts.blocks, bits[0])


def with_router(pack: Path, routers: Any, goal: Path) -> Path:
    """A copy of a nested pack that has other bit routers."""
    from haversack.core.pack import Pack
    from haversack.run._levels import ROUTER_NAME

    source = Pack.open(pack)
    architecture = read_architecture(source.record.architecture)
    experts = experts_of(architecture)
    assert experts is not None
    with PackWriter(goal) as writer:
        writer.keep_experts(str(source.record.provenance["identity"]), experts.owners)
        for name, entry in source.tensors.items():
            writer.add_tensor(name, entry.kind, entry.shape, [source.bytes(name)], entry.group, entry.layout)
        for name, form in source.forms.items():
            writer.add_form(name, form)
        writer.add_file(ROUTER_NAME, routers.to_bytes())
        writer.finish({"architecture": source.record.architecture})
    return goal


def flip_a_bit(pack: Path, name: str) -> None:
    """Alter one bit of the record of the tensor `name` in the pack's store."""
    from haversack.core._record import STORE_NAME
    from haversack.core.pack import Pack

    offset = Pack.open(pack).tensors[name].offset + 5
    with (pack / STORE_NAME).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 32]))


def require_a_clear_end(
    pack: Path, residency: str, stalls: bool, step: Callable[[Any], Any], sound: int = 100_000
) -> None:
    """Storage that goes silent, or fails, after `sound` bytes ends a `step` of the engine in bounded time and
    one sentence."""
    from haversack.run import Engine

    engine = Engine.open(pack, residency=f"{residency},timeout_s=1")
    storage = FailingStorage(sound=sound, stalls=stalls)
    engine.held.store._file._storage = storage
    began = time.monotonic()
    with pytest.raises(UserError, match="gave nothing for 1 s" if stalls else "Input/output error"):
        for _ in range(9):
            step(engine)
    engine.close()
    assert time.monotonic() - began < 20
    storage.release.set()
