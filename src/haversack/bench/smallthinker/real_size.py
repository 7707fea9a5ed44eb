"""A real model's shape in a third of its memory: OLMoE-1B-7B with drawn Q4_0 weights, its matrices streamed,
beside llama.cpp with its file mapped into memory, both under a limit that the kernel enforces.

The two files hold the same numbers, and both read the same drawn tokens. Drawn routers choose evenly, which
is the worst case for a cache; and the router comes after attention, so that nothing is read early. llama.cpp
keeps its weights as the file has them: repacked, which is its default, they would not fit. Files of 4 GB each
are written once and kept.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._cache import cache_folder, cached, content_key
from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench.smallthinker._bench import bench

U8 = NDArray[np.uint8]
OLMOE: dict[str, Any] = {
    "model_type": "olmoe",
    "vocab_size": 50_304,
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
SEED, SHARE = 10, 1 / 3
"""Of the drawn weights; of the pack that memory may hold."""
SCALE, SCALES = 0.0043, {"embed_tokens": 0.23, "o_proj": 0.0004, "down_proj": 0.0004}
"""d of every block. Tokens are large beside what blocks add to them, so that each goes its own way."""
PROMPT, TOKENS, THREADS = 8, 24, 2
SPARE_DISK = 12e9
DRAWN = 1 << 25
"""Random bytes that matrices take turns in reading, each from a place of its own."""
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
}
TOPS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


class Drawn:
    """The weights of a shape as Q4_0 blocks: u8 [rows * columns / 32 * 18]; routers and norms in f32."""

    def __init__(self, config: dict[str, Any]) -> None:
        from haversack.models import read_architecture

        self.architecture = read_architecture(config)
        self.shapes = self.architecture.tensors()
        self._noise = np.random.default_rng(SEED).integers(0, 256, DRAWN, np.uint8)
        for low, half in ((1, 0x0F), (16, 0xF0)):  # 0, which is -8, becomes 8, which is 0: no bias is left
            self._noise[(self._noise & half) == 0] += np.uint8(8 * low)

    def blocks(self, name: str) -> U8:
        """A matrix in Q4_0."""
        rows, columns = self.shapes[name]
        rng = np.random.default_rng([SEED, *name.encode()])
        count = rows * columns // 32
        found = np.empty((count, 18), np.uint8)
        scale = next((one for part, one in SCALES.items() if part in name), SCALE)
        found[:, :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
        start = int(rng.integers(0, DRAWN))
        places = np.arange(start, start + 16 * count)
        found[:, 2:] = np.take(self._noise, places, mode="wrap").reshape(count, 16)
        return found.reshape(-1)

    def floats(self, name: str) -> NDArray[np.float32]:
        """A norm, or a router."""
        shape = self.shapes[name]
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        rng = np.random.default_rng([SEED, *name.encode()])
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[1]))

    def is_float(self, name: str) -> bool:
        """Whether a tensor stays in f32."""
        return len(self.shapes[name]) == 1 or name.endswith("mlp.gate.weight")


def write_pack(goal: Path, drawn: Drawn, config: dict[str, Any]) -> None:
    """The weights as a pack whose experts are stored by matrix."""
    from haversack.core.pack import PackWriter
    from haversack.kernels import interleave
    from haversack.models._experts import experts_of

    experts = experts_of(drawn.architecture)
    assert experts is not None
    with PackWriter(goal) as writer:
        writer.keep_experts("drawn", experts.part_owners)
        for name, shape in drawn.shapes.items():
            if drawn.is_float(name):
                writer.add_tensor(name, "f32", shape, [drawn.floats(name).data])
            else:
                data = interleave(drawn.blocks(name), "int4", *shape)
                writer.add_tensor(name, "int4", shape, [data], 32, "rows16-1")
        writer.finish({"architecture": config, "plan": {"activations": "int8-dynamic"}})


def write_gguf(goal: Path, drawn: Drawn, config: dict[str, Any]) -> None:
    """The same numbers as llama.cpp reads them: the experts of a layer in one tensor."""
    from haversack.formats.gguf import TensorOut, write_gguf_file

    at, count = "model.layers.{}.", config["num_experts"]
    tensors: list[Any] = []

    def add(name: str, kind: str, shape: tuple[int, ...], pieces: Callable[[], Iterator[Any]]) -> None:
        tensors.append(TensorOut(name, kind, shape, pieces))

    for name, ours in ((TOPS[name], name) for name in TOPS):
        kind = "f32" if drawn.is_float(ours) else "q4_0"
        add(name, kind, drawn.shapes[ours], _pieces(drawn, (ours,)))
    for block in range(config["num_hidden_layers"]):
        prefix = at.format(block)
        for module, theirs in NAMES.items():
            ours = f"{prefix}{module}.weight"
            kind = "f32" if drawn.is_float(ours) else "q4_0"
            add(f"blk.{block}.{theirs}.weight", kind, drawn.shapes[ours], _pieces(drawn, (ours,)))
        for part in ("gate", "up", "down"):
            names = tuple(f"{prefix}mlp.experts.{expert}.{part}_proj.weight" for expert in range(count))
            shape = (count, *drawn.shapes[names[0]])
            add(f"blk.{block}.ffn_{part}_exps.weight", "q4_0", shape, _pieces(drawn, names))
    entries: dict[str, tuple[str, Any]] = {
        "general.architecture": ("string", "olmoe"),
        "olmoe.vocab_size": ("u32", config["vocab_size"]),
        "olmoe.context_length": ("u32", config["max_position_embeddings"]),
        "olmoe.embedding_length": ("u32", config["hidden_size"]),
        "olmoe.feed_forward_length": ("u32", config["intermediate_size"]),
        "olmoe.block_count": ("u32", config["num_hidden_layers"]),
        "olmoe.attention.head_count": ("u32", config["num_attention_heads"]),
        "olmoe.attention.head_count_kv": ("u32", config["num_key_value_heads"]),
        "olmoe.attention.layer_norm_rms_epsilon": ("f32", config["rms_norm_eps"]),
        "olmoe.rope.freq_base": ("f32", config["rope_theta"]),
        "olmoe.expert_count": ("u32", count),
        "olmoe.expert_used_count": ("u32", config["num_experts_per_tok"]),
        "general.file_type": ("u32", 2),
        "tokenizer.ggml.model": ("string", "no_vocab"),
    }
    write_gguf_file(goal, entries, tensors)


def _pieces(drawn: Drawn, names: tuple[str, ...]) -> Callable[[], Iterator[Any]]:
    def pieces() -> Iterator[Any]:
        for name in names:
            yield drawn.floats(name) if drawn.is_float(name) else drawn.blocks(name)

    return pieces


def files(config: dict[str, Any]) -> tuple[Path, Path]:
    """The pack and the GGUF file of a shape, written once. Raises Unavailable where the disk is too small."""
    inputs = {"config": config, "seed": SEED, "scales": [SCALE, SCALES]}
    made = cache_folder() / "bench" / f"smallthinker-real-{content_key(inputs)}"
    if not made.is_dir() and config is OLMOE:
        cache_folder().mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_folder()).free
        if free < SPARE_DISK:
            raise Unavailable(
                f"two files of 4 GB need {SPARE_DISK / 1e9:.0f} GB of disk, and {free / 1e9:.1f} are free"
            )

    def make(goal: Path) -> None:
        drawn = Drawn(config)
        write_pack(goal / "real.pack", drawn, config)
        write_gguf(goal / "real.gguf", drawn, config)

    folder = cached("smallthinker-real", inputs, make)
    return folder / "real.pack", folder / "real.gguf"


PROGRAM = """
import json, sys
from time import perf_counter
import numpy as np
from haversack.core.budget import Budget
from haversack.run import Engine
pack, prompt, text, ram_mib, threads = json.loads(sys.argv[1])
with Engine.open(pack, residency="streamed:smallthinker", budget=Budget(ram_mib=ram_mib), threads=threads,
                 tokens=(len(prompt), len(text))) as engine:
    cache, held, opened = engine.cache(len(prompt) + len(text)), engine.held, perf_counter()
    engine.step(np.asarray(prompt, np.int32), cache=cache)
    asked, hits, stalled = (getattr(held.buffer.statistics, name) for name in ("asked", "hits", "stall_s"))
    read, began = held.store.bytes_read, perf_counter()
    for token in text:
        engine.step([token], cache=cache)
    seconds, counts = perf_counter() - began, held.buffer.statistics
    rate = held.store.bytes_read / held.buffer.reader.busy_s
    whole = perf_counter() - opened
    bound = max(held.buffer.least_bytes() / rate, whole - counts.stall_s)
    print(json.dumps({
        "tokens_per_s": len(text) / seconds,
        "hits": (counts.hits - hits) / (counts.asked - asked),
        "read": held.store.bytes_read - read,
        "stall_s": counts.stall_s - stalled,
        "times_bound": whole / bound,
    }))
"""


@bench.measure(
    Row(
        "real-size",
        "OLMoE-1B-7B's shape at 4 bits in a third of its pack: tokens a second, beside llama.cpp with mmap "
        "under the same limit",
        "tokens/s",
        "time",
    ),
    Row("real-hits", "share of the chosen experts' matrices that were there, in that run", "share", "bytes"),
    Row(
        "real-bound",
        "time of that run over what reading what no eviction could have kept, or computing, takes",
        "times",
        "time",
    ),
    Row(
        "real-memory",
        "peak memory of that process over a third of the pack, beside llama.cpp's resident bytes over it",
        "share",
        "memory",
        Bar("<=", 1.0),
        judged="ours",
    ),
    seconds=420,
)
def real_size(run: Run) -> Outcomes:
    from haversack.core._cgroup import MemoryGroup
    from haversack.core.errors import UserError
    from haversack.core.memory import drop_cached, run_measured
    from haversack.core.pack import Pack

    pack, gguf = files(OLMOE)
    source = Pack.open(pack)
    budget = SHARE * source.nbytes / 2**20
    drawn = np.random.default_rng(run.seed).integers(3, 50_000, PROMPT + TOKENS).tolist()
    prompt, text = drawn[:PROMPT], drawn[PROMPT:]
    drop_cached([*source.files, gguf])
    given = json.dumps([str(pack), prompt, text, budget, THREADS])
    try:
        limit = MemoryGroup(budget)
    except UserError as error:
        raise Unavailable(str(error)) from error
    limit.remove()
    argv = [sys.executable, "-c", PROGRAM, given]
    done = run_measured(argv, files=source.files, timeout=600, limit_mib=budget)
    if done.returncode:
        raise Unavailable(f"the process ended with {done.returncode}: {done.stderr[-200:]}")
    told = json.loads(done.stdout)
    peer = _peer(gguf, prompt, text, budget)
    note = (
        f"{budget:.0f} MiB of {source.nbytes / 2**20:.0f}; {told['read'] / 2**20 / TOKENS:.0f} MiB "
        f"read a token, {told['stall_s']:.1f} s waited"
    )
    shares = {"haversack": done.peak_mib / budget}
    found: dict[str, Outcome] = {
        "real-hits": Outcome.single(told["hits"], note=note),
        "real-bound": Outcome.single(told["times_bound"], note=note),
    }
    if isinstance(peer, Unavailable):
        note = f"{note}; llama.cpp: {peer}"
        found["real-size"] = Outcome.single(told["tokens_per_s"], note=note)
        found["real-memory"] = Outcome(Side("haversack", (shares["haversack"],)), note=note)
        return found
    rate, resident = peer
    found["real-size"] = Outcome.single(
        told["tokens_per_s"], rate, name="haversack", against="llama.cpp, mmap", note=note
    )
    found["real-memory"] = Outcome.single(
        shares["haversack"], resident / budget, name="haversack", against="llama.cpp, mmap", note=note
    )
    return found


def _peer(gguf: Path, prompt: list[int], text: list[int], budget: float) -> tuple[float, float] | Unavailable:
    """llama.cpp's tokens a second and resident MiB under the limit, or why there are none."""
    from haversack.bench._workers import Worker
    from haversack.bench.peers import llama_cpp
    from haversack.core._cgroup import MemoryGroup
    from haversack.core.memory import drop_cached

    drop_cached([gguf])
    try:
        interpreter = llama_cpp.python(build=False)
    except Unavailable as error:
        return error
    group = MemoryGroup(budget)
    try:
        words = [str(word) for word in (interpreter, "-P", llama_cpp.MAPPED_WORKER)]
        with Worker(group.join(words), patience=600.0) as worker:
            opening = {"model": str(gguf), "threads": THREADS, "flash": True, "context": 256}
            worker.ask("open", load="mapped", **opening)
            worker.ask("prefill", tokens=prompt)
            seconds = worker.ask("decode", tokens=text)["seconds"]
            status = Path(f"/proc/{worker.process.pid}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        return TOKENS / seconds, resident / 1024
    except Unavailable as error:
        return error
    finally:
        group.remove()
