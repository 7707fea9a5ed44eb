"""Switch-base-8, the paper's smallest model, at its real size: 620 million drawn weights, experts at 4 bits,
all else at 8, streamed beside the same experts loaded on demand.

The encoder reads a drawn text, then the decoder is given another, token by token, so that each goes its own
way through the drawn routers, which choose evenly: the worst case for a buffer. Guesses are those of the next
layer's router one layer early. The pack of 0.5 GB is written once and kept.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._cache import cache_folder, cached, content_key
from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench._streaming import fast_storage, process_over_budget
from haversack.bench.edgemoe._bench import bench

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
CONFIG: dict[str, Any] = {
    "model_type": "switch_transformers",
    "vocab_size": 32_128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_layers": 12,
    "num_decoder_layers": 12,
    "num_sparse_encoder_layers": 6,
    "num_sparse_decoder_layers": 6,
    "num_heads": 12,
    "num_experts": 8,
    "expert_capacity": 64,
    "relative_attention_num_buckets": 32,
    "dense_act_fn": "relu",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": True,
}
BITS, REST, SEED, SPARE_DISK = 4, 8, 4, 3e9
PLACES, READ, TOKENS = 10, 32, 12
RATES = (50, 550)
OURS, DEMAND = "EdgeMoE", "int4 on demand"
WAYS = {OURS: "eviction=intent,predict=gate", DEMAND: "eviction=none,predict=none"}


def drawn(name: str, shape: tuple[int, ...]) -> F32:
    """A tensor: norms of ones, matrices that keep the size of what they multiply."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    rng = np.random.default_rng([SEED, *name.encode()])
    spread = 1.0 if name == "shared.weight" or "relative" in name else float(1 / np.sqrt(shape[1]))
    values: F32 = rng.standard_normal(shape, np.float32)
    values *= np.float32(spread)
    return values


def write_pack(goal: Path, config: dict[str, Any]) -> None:
    """The drawn model as `haversack pack --precision edgemoe:bits=4,rest=int8` stores one."""
    from haversack.core.pack import PackWriter
    from haversack.models import read_architecture
    from haversack.models._experts import experts_of
    from haversack.shrink.precision.edgemoe import compressed

    architecture = read_architecture(config, reader=True)
    experts = experts_of(architecture)
    assert experts is not None
    inside = {linear.weight for linear in architecture.matrices()}
    routers = {
        one.weight for block in architecture.blocks if block.mixture for one in block.mixture.routers()
    }
    with PackWriter(goal) as writer:
        writer.keep_experts("drawn", experts.owners)
        for name, shape in architecture.tensors().items():
            values = drawn(name, shape)
            if name in routers or name not in inside:
                writer.add_tensor(name, "f32", shape, [values.data])
                continue
            found = compressed(values, BITS if name in experts.owners else REST)
            matrix = found.packed()
            writer.add_tensor(name, matrix.kind, shape, [matrix.data], matrix.group, matrix.layout)
        writer.finish({"architecture": config, "plan": {"activations": "f32"}})


def pack() -> Path:
    """The pack, written once. Raises Unavailable where the disk is too small."""
    inputs = {"config": CONFIG, "bits": [BITS, REST], "seed": SEED}
    if not (cache_folder() / "bench" / f"switch-base-{content_key(inputs)}").is_dir():
        cache_folder().mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_folder()).free
        if free < SPARE_DISK:
            raise Unavailable(f"the pack and its copy need 3 GB of disk, and {free / 1e9:.1f} are free")
    return (
        cached("switch-base", inputs, lambda goal: write_pack(goal / "switch.pack", CONFIG)) / "switch.pack"
    )


def texts(run: Run, count: int, length: int) -> I32:
    """Drawn tokens, none of them special."""
    found: I32 = np.random.default_rng(run.seed).integers(3, 32_000, (count, length)).astype(np.int32)
    return found


def opened(path: Path, way: str, mb_s: int = 0) -> Any:
    """An engine with room for ten experts, or, on demand, for one."""
    from haversack.core.pack import Pack
    from haversack.models import read_architecture
    from haversack.run import Engine
    from haversack.run.residency._edgemoe_held import Fitted
    from haversack.run.residency.edgemoe import EdgeMoE

    source = Pack.open(path)
    fitted = Fitted.of(EdgeMoE(), source, read_architecture(source.record.architecture, reader=True))
    room = max(room.held for room in fitted.rooms.values())
    kib = 0 if "eviction=none" in way else -(-PLACES * room // 1024)
    return Engine.open(path, residency=f"streamed:edgemoe,buffer_kib={kib},mb_s={mb_s},{way}")


def written(engine: Any, cache: Any, text: I32) -> list[F32]:
    """The logits after each token of `text`, behind the beginning of what is written."""
    cache.truncate(1)
    return [engine.step([token], cache=cache)[0] for token in text.tolist()]


@bench.measure(
    Row(
        "switch-tokens",
        "tokens of Switch-base-8's shape, drawn, whose logits differ from those in memory, experts "
        "of encoder and decoder streamed",
        "tokens",
        "quality",
        Bar("==", 0.0),
        judged="ours",
    ),
    Row(
        "switch-bytes",
        "peak memory of the process that runs it, pages of the pack in the page cache counted, over a "
        "budget with room for some experts",
        "share",
        "memory",
        Bar("<=", 1.0),
        judged="ours",
        published="0.81 GB beside 2.5 in memory, in f32",
    ),
    seconds=90,
)
def exact(run: Run) -> Outcomes:
    from haversack.run import Engine

    path = pack()
    read, text = texts(run, 1, READ)[0], texts(run, 2, TOKENS)[1]
    with Engine.open(path, residency="mapped") as engine:
        cache = engine.cache(TOKENS + 1)
        engine.read(read, cache)
        plain = written(engine, cache, text)
    differing, told = 0, ""
    for way in WAYS.values():
        with opened(path, way) as engine:
            cache = engine.cache(TOKENS + 1)
            engine.read(read, cache)
            found = written(engine, cache, text)
            differing += sum(not np.array_equal(one, other) for one, other in zip(found, plain, strict=True))
            told = engine.held.words().replace("\n", "; ")
    share, note = process_over_budget(path, read, TOKENS, "streamed:edgemoe", 30.0, "experts")
    return {
        "switch-tokens": Outcome.single(differing, name="streamed", note=told),
        "switch-bytes": Outcome.single(share, name=OURS, note=note),
    }


@bench.measure(
    *(
        Row(
            f"switch-base-8-{mb_s}",
            f"tokens a second of Switch-base-8's shape, drawn, at {mb_s} MB/s with ten of 96 experts in "
            "memory, beside int4 experts on demand",
            "tokens/s",
            "time",
            Bar(">=", 1.15),
            published="1.19-2.12x",
        )
        for mb_s in RATES
    ),
    seconds=240,
)
def timed(run: Run) -> Outcomes:
    with fast_storage(pack) as copied:
        return {f"switch-base-8-{mb_s}": beside(run, copied(), mb_s) for mb_s in RATES}


def beside(run: Run, path: Path, mb_s: int) -> Outcome:
    """EdgeMoE and loading on demand, in turn, on texts of their own."""
    drawn_texts = texts(run, MIN_PAIRS + 2, TOKENS)
    engines = {name: opened(path, way, mb_s) for name, way in WAYS.items()}
    try:
        caches = {name: engine.cache(TOKENS + 1) for name, engine in engines.items()}
        rounds = {}
        for name, engine in engines.items():
            engine.read(texts(run, 1, READ)[0], caches[name])
            written(engine, caches[name], drawn_texts[0])
            rounds[name] = iter(drawn_texts[1:])

        def side(name: str) -> float:
            text = next(rounds[name])
            began = perf_counter()
            written(engines[name], caches[name], text)
            return TOKENS / (perf_counter() - began)

        taken = run.interleave({name: partial(side, name) for name in engines}, MIN_PAIRS)
        told = engines[OURS].held.words().replace("\n", "; ")
    finally:
        for engine in engines.values():
            engine.close()
    return Outcome.of(taken, ours=OURS, baseline=DEMAND, note=told)
