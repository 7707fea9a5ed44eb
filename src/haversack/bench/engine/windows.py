"""Layers that keep their window alone, beside the same layers keeping the whole text: logits, memory, speed.

The shape is that of Gemma 3 (five layers with a window to one without) with drawn weights: what a cache takes
and costs does not depend on them.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.engine._bench import bench
from haversack.bench.engine._models import code_folder
from haversack.bench.engine.footprint import haversack
from haversack.core.memory import drop_cached, run_measured

CONTEXT = 8192
GEMMA3 = {
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": CONTEXT,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
ONE_B = {
    **GEMMA3,
    "vocab_size": 262_144,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
}
DRAWN = {**GEMMA3, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6}
TEXT, TOKENS = 5000, 128
WAYS = ((1, "f32"), (7, "f32"), (256, "f32"), (TEXT, "f32"), (61, "f16"), (61, "int8"))
"""Tokens of a step, and the type of the cache."""


def checkpoint() -> Path:
    """A drawn Gemma 3 of six layers with the tokenizer of `code`."""
    folder = code_folder()
    config = {**DRAWN, "vocab_size": json.loads((folder / "config.json").read_text())["vocab_size"]}

    def make(goal: Path) -> None:
        from haversack.formats.safetensors import write_safetensors
        from haversack.models import read_architecture

        rng = np.random.default_rng(3)
        arrays = {
            name: rng.standard_normal(shape, np.float32)
            * np.float32(0.1 if len(shape) == 1 else shape[1] ** -0.5)
            for name, shape in read_architecture(config).checkpoint_tensors().items()
        }
        (goal / "config.json").write_text(json.dumps(config), encoding="utf-8")
        write_safetensors(
            goal / "model.safetensors",
            [(name, "f32", array.shape, array.data) for name, array in arrays.items()],
        )
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                (goal / name).write_bytes((folder / name).read_bytes())

    return cached("windowed", {"config": config, "drawn": 3}, make)


def drawn_text(run: Run, count: int) -> Any:
    """`count` tokens i32."""
    return np.random.default_rng(run.seed).integers(1, 256, count).astype(np.int32)


@bench.measure(
    Row(
        "windows-exact",
        "logits that differ between layers that keep their window and layers that keep everything, over "
        "several moves: chunk sizes and cache types",
        "logits",
        "quality",
        Bar("==", 0.0),
        judged="ours",
        quick=True,
    ),
    seconds=60,
    quick_seconds=8,
)
def exact(run: Run) -> Outcomes:
    from haversack.run import Engine

    count, ways = (1100, WAYS[2:5]) if run.quick else (3000, WAYS)
    text, differing, moves = drawn_text(run, count), 0, 0
    for size, kind in ways:
        with Engine.open(checkpoint(), cache_type=kind, context_length=CONTEXT) as engine:
            plain = engine.step(text, cache=engine.cache(whole=True), want="all")[0]
            cache, at = engine.cache(), 0
            assert plain is not None
            while at < count:
                rows = engine.step(text[at : at + size], cache=cache, want="all")[0]
                differing += int((rows != plain[at : at + size]).sum())
                at += size
            moves = max(moves, *(stretch.shift for stretch in cache.stretches.values()))
    note = f"{len(ways)} ways to read {count} tokens; up to {moves} entries left out"
    return {"windows-exact": Outcome.single(differing, name="windows", note=note)}


@bench.measure(
    Row(
        "windows-bytes",
        "bytes of keys and values of Gemma 3 1B at a context of 8,192, layers with a window keeping that, "
        "over those of layers that keep everything",
        "bytes",
        "bytes",
        Bar("<=", 0.25),
        quick=True,
    ),
    seconds=1,
    quick_seconds=1,
)
def held(run: Run) -> Outcomes:
    from haversack.models import read_architecture
    from haversack.run import Cache
    from haversack.run._window import windows_of

    architecture = read_architecture(ONE_B)
    windows = windows_of(architecture)
    ours = Cache(architecture, CONTEXT, "f16", windows=windows)
    note = f"{ours.layers[0].capacity} entries for a window of {GEMMA3['sliding_window']}"  # type: ignore[union-attr]
    whole = Cache(architecture, CONTEXT, "f16").nbytes
    return {"windows-bytes": Outcome.single(ours.nbytes, whole, name="windows", against="whole", note=note)}


@bench.measure(
    Row(
        "windows-memory",
        "peak memory of `run` on a prompt of some thousand tokens, layers keeping their windows, over its "
        "plan",
        "MiB",
        "memory",
        Bar("<=", 1.0),
        quick=True,
    ),
    Row(
        "windows-saved",
        "MiB by which that peak lies below that of `run --whole-cache`, over those by which its plan does",
        "MiB",
        "memory",
        Bar(">=", 0.8),
    ),
    seconds=20,
    quick_seconds=7,
)
def resident(run: Run) -> Outcomes:
    model, found = checkpoint(), {}
    weights = model / "model.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        prompt = Path(folder) / "prompt.txt"
        # single letters that no merge joins
        prompt.write_text("".join("qzjxkv"[int(one) % 6] for one in drawn_text(run, TEXT)), encoding="utf-8")
        for options in ((), ("--whole-cache",)) if not run.quick else ((),):
            drop_cached([weights])
            argv = haversack("run", model, prompt, "--max-tokens", "16", "--ignore-end", "--json", *options)
            done = run_measured(argv, files=[weights], timeout=300)
            if done.returncode:
                raise Unavailable(f"run failed: {done.stderr.strip()[-300:]}")
            record = json.loads(done.stdout)
            found[options] = done.peak_mib, record["ram_mib"]["planned"], record["prompt_tokens"]
    peak, planned, tokens = found[()]
    note = f"{tokens} tokens"
    outcomes: Outcomes = {
        "windows-memory": Outcome.single(peak, planned, name="measured", against="planned", note=note)
    }
    if len(found) > 1:
        higher, more, _ = found["--whole-cache",]
        outcomes["windows-saved"] = Outcome.single(  # type: ignore[index]
            higher - peak, more - planned, name="measured", against="planned", note=note
        )
    return outcomes


@bench.measure(
    Row(
        "windows-speed",
        "time of a token far beyond the window, moves included, over that of layers that keep everything",
        "ms",
        "time",
        Bar("<=", 1.05),
    ),
    seconds=30,
)
def speed(run: Run) -> Outcomes:
    from haversack.run import Engine

    with Engine.open(checkpoint(), context_length=CONTEXT) as engine:
        caches = {"windows": engine.cache(), "whole": engine.cache(whole=True)}
        for cache in caches.values():
            engine.step(drawn_text(run, 1024), cache=cache, want="none")

        def ms(name: str) -> Callable[[], float]:
            def once() -> float:
                begun = time.perf_counter()
                for _ in range(TOKENS):  # as many as there is one move for
                    engine.step((7,), cache=caches[name])
                return 1e3 * (time.perf_counter() - begun) / TOKENS

            return once

        taken = run.interleave({name: ms(name) for name in caches})
    note = f"{TOKENS} tokens a sample, one move of every layer among them"
    return {"windows-speed": Outcome.of(taken, ours="windows", baseline="whole", note=note)}
