"""Chunks on two processors: the bits of a whole prefill, graphs that are shared, the trace, and refusals."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import pairwise
from pathlib import Path
from threading import Barrier, get_ident
from typing import Any

import msgspec
import numpy as np
import pytest

from haversack.cli._records import RunOutput
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.memory import run_measured
from haversack.core.pack import Pack
from haversack.formats.safetensors import HubFolder
from haversack.run import Engine, Limits, generate
from haversack.run._forms import findings
from haversack.run.forms.shadow import ShadowMatrix, bind
from haversack.run.prefill._executors import Executor
from haversack.run.prefill._graphs import Graphs
from haversack.run.prefill._schedule import FLOATS, INTEGERS, POLICIES, Subgraph

_spec = importlib.util.spec_from_file_location("shadows", Path(__file__).parent / "shadows.py")
assert _spec is not None and _spec.loader is not None
shadows = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shadows)

TEXT = np.random.default_rng(4).integers(1, 280, 90).astype(np.int32)


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shadows.shadow_pack(tmp_path_factory.mktemp("shadow") / "tiny.pack", HubFolder.open(folder))


@pytest.fixture(scope="module")
def pruned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    goal = tmp_path_factory.mktemp("shadow") / "pruned.pack"
    precision = shadows.EVERYTHING.replace("keep=1", "keep=0.15")
    return shadows.shadow_pack(goal, HubFolder.open(folder), precision)


def read(path: Path, prefill: str, tokens: Any = TEXT, capacity: int = 128, **slots: Any) -> np.ndarray:
    with Engine.open(path, prefill=prefill, **slots) as engine:
        return engine.slots.prefill.prefill(engine, np.asarray(tokens, np.int32), engine.cache(capacity))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("given", ["tokens=8", "tokens=32,cores=apart", "tokens=64"])
def test_chunks_have_the_bits_of_a_whole_prefill(policy: str, given: str, packed: Path, pruned: Path) -> None:
    for path in (packed, pruned):
        for length in (1, 7, 64, 90):  # shorter than a chunk, whole chunks, more
            whole = read(path, "whole", TEXT[:length])
            assert np.array_equal(read(path, f"chunked:shadow:policy={policy},{given}", TEXT[:length]), whole)


def test_a_prompt_that_goes_on_and_the_answer_behind_it(packed: Path) -> None:
    """Behind entries that another prompt left, and decoding over the cache that it fills."""
    found, plain = [], "whole"
    for way in (plain, "chunked:shadow:tokens=16"):
        with Engine.open(packed, prefill=way) as engine:
            cache = engine.cache(120)
            read = engine.slots.prefill.prefill
            first = read(engine, TEXT[:21], cache)
            assert cache.length == 21
            second = read(engine, TEXT[21:70], cache)
            rows, _ = engine.step(TEXT[70:80], cache=cache, want="all")
            answer = generate(engine, TEXT, Limits(max_tokens=12, end=()))
            tokens = [token.id for token in answer]
            found.append((first.tobytes(), second.tobytes(), rows.tobytes(), tokens))
    assert found[0] == found[1]


FAMILIES = [
    *("llama", "llama-biases", "llama-dynamic", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2"),
    *("phi", "phi-norms", "phi3", "stablelm-parallel", "gpt2", "opt", "opt-350m"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_dense_decoders(name: str, make_folder: Any, record: Any, tmp_path: Path) -> None:
    """The checkpoints of tests/models in their own formats, packed and read by the same code."""
    length = record.CASES[name][1]
    folder = make_folder(tmp_path / "folder", record.CASES[name][0], record.seed_of(name))
    path = shadows.shadow_pack(tmp_path / "a.pack", HubFolder.open(folder), length=min(24, length))
    prompt = TEXT[:length]
    whole = read(path, "whole", prompt, length)
    assert np.array_equal(read(path, "chunked:shadow:tokens=16", prompt, length), whole)
    with Engine.open(path) as engine:
        with engine.held.weights(0) as weights:
            held = [one for one in weights.values() if isinstance(one, ShadowMatrix)]
        assert held and all(one.entry["kept"] == one.in_floats for one in held)


def test_the_choice_of_shadows(packed: Path, pruned: Path) -> None:
    """All shadows of a pruned pack are those of one that was not; without any, both are the same."""
    for shadow in ("all", "none"):
        given = f"chunked:shadow:tokens=16,shadow={shadow}"
        assert np.array_equal(read(packed, given), read(pruned, given))
    outcomes = {
        read(pruned, f"chunked:shadow:tokens=16,shadow={each}").tobytes()
        for each in ("all", "pruned", "none")
    }
    assert len(outcomes) == 3


def test_graphs_serve_every_chunk_and_prompt(packed: Path) -> None:
    with Engine.open(packed, prefill="chunked:shadow:tokens=16") as engine:
        built = []
        for length in (40, 17, 90, 33):
            engine.slots.prefill.prefill(engine, TEXT[:length], engine.cache(120))
            built.append(engine.told.record()["graphs_built"])
        graphs: Graphs = engine.prepared.graphs
        layers, places = len(engine.architecture.blocks), 6
        shared = sum(not one.shape.attention for one in graphs.sequence)
        assert built == [shared + 3 * layers, 0, 3 * layers, 0]
        assert graphs.built == shared + places * layers
        told = engine.told.record()
        assert told["chunks"] == 3 and told["run_ms"] > 0 and set(told["busy_ms"]) == {INTEGERS, FLOATS}


def test_where_a_block_is_cut(packed: Path, pruned: Path) -> None:
    """Four subgraphs of a block where no shadow is executed; every one that is cuts once more."""

    def cuts(path: Path, shadow: str) -> list[str]:
        with Engine.open(path, prefill=f"chunked:shadow:shadow={shadow}") as engine:
            engine.slots.prefill.prefill(engine, TEXT[:9], engine.cache(16))
            return [one.processor for one in engine.prepared.graphs.shapes]

    plain = cuts(packed, "none")
    assert plain == [FLOATS, INTEGERS, FLOATS, INTEGERS] * 3
    assert len(cuts(packed, "none")) < len(cuts(pruned, "pruned")) < len(cuts(pruned, "all"))
    assert cuts(packed, "all")[:9] == [
        FLOATS,
        INTEGERS,
        FLOATS,
        INTEGERS,
        FLOATS,
        INTEGERS,
        FLOATS,
        INTEGERS,
        FLOATS,
    ]


@pytest.mark.parametrize("policy", ["chunk", "out-of-order"])
def test_the_trace_is_what_ran(policy: str, packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    read(packed, f"chunked:shadow:tokens=16,policy={policy},trace={path}")
    events = [one for one in json.loads(path.read_text())["traceEvents"] if one["ph"] == "X"]
    names = {one["name"] for one in events}
    assert {"block 0 norm", "block 0 query, key, value", "block 2 attention"} <= names
    for row in (0, 1):  # a processor does one thing at a time
        own = sorted((one["ts"], one["ts"] + one["dur"]) for one in events if one["tid"] == row)
        assert own and all(end <= start + 1 for (_, end), (start, _) in pairwise(own))
    ends = {(one["args"]["chunk"], one["args"]["subgraph"]): one["ts"] + one["dur"] for one in events}
    starts = {(one["args"]["chunk"], one["args"]["subgraph"]): one["ts"] for one in events}
    assert all(ends[chunk, index - 1] <= start + 1 for (chunk, index), start in starts.items() if index)


@pytest.mark.parametrize("policy", POLICIES)
def test_processors_that_share_cores_take_turns(policy: str) -> None:
    """On one thread, one subgraph at a time, each once, in an order that every chunk allows; apart: two."""
    shapes = [Subgraph(FLOATS), Subgraph(INTEGERS), Subgraph(FLOATS, True), Subgraph(INTEGERS)]
    ran: list[tuple[int, int]] = []
    on: set[int] = set()
    both = Barrier(2)

    def run(chunk: int, index: int) -> None:
        on.add(get_ident())
        assert all((chunk, before) in ran for before in range(index))
        assert not shapes[index].attention or all((one, index - 1) in ran for one in range(chunk))
        ran.append((chunk, index))

    executor = Executor(shapes, policy, "shared")
    executor.execute([[1.0] * 4] * 3, run)
    assert on == {get_ident()} and sorted(ran) == [(chunk, index) for chunk in range(3) for index in range(4)]
    assert [(span.chunk, span.index) for span in executor.spans] == ran
    assert all(one.end <= other.start for one, other in pairwise(executor.spans))
    if policy == "out-of-order":  # both at once, or the barrier breaks
        pair = [Subgraph(INTEGERS), Subgraph(FLOATS)]
        met: list[int] = []

        def meet(chunk: int, index: int) -> None:
            if (chunk, index) in ((1, 0), (0, 1)):
                met.append(both.wait(10))

        Executor(pair, policy, "apart").execute([[1.0] * 2] * 2, meet)
        assert sorted(met) == [0, 1]


def test_what_a_subgraph_raises_is_raised_and_leaves_the_cache(packed: Path) -> None:
    shapes = [Subgraph(FLOATS), Subgraph(INTEGERS), Subgraph(FLOATS, True), Subgraph(INTEGERS)]

    def run(chunk: int, index: int) -> None:
        if (chunk, index) == (1, 2):
            raise ZeroDivisionError

    for policy in POLICIES:
        with pytest.raises(ZeroDivisionError):
            Executor(shapes, policy).execute([[1.0] * 4] * 3, run)
    with Engine.open(packed, prefill="chunked:shadow:tokens=8") as engine:
        cache = engine.cache(40)
        engine.slots.prefill.prefill(engine, TEXT[:8], cache)
        for wrong, words in ((TEXT[:0], "at least one token"), (TEXT[:33], "do not fit"), ([9999], "9999")):
            with pytest.raises(UserError, match=words):
                engine.slots.prefill.prefill(engine, wrong, cache)
            assert cache.length == 8


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ({"prefill": "chunked:shadow:tokens=4"}, "tokens=4 is not supported .allowed 8, 16"),
        ({"prefill": "chunked:shadow:tokens=100"}, "tokens=100 is not supported"),
        ({"activations": "f32"}, "static integers, not f32"),
        ({"activations": "int8-dynamic"}, "use --activations int8-static"),
        ({"residency": "streamed"}, "blocks-at-hand"),
        ({"attention": "dhsa:mode=dhsa_topk"}, "static-shapes"),
    ],
)
def test_what_cannot_be_read_so_is_refused(slots: dict[str, str], words: str, packed: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        Engine.open(packed, **{"prefill": "chunked:shadow", **slots})
    assert caught.value.exit_code == 2


def test_a_model_without_static_grids_is_refused(pack: Path, folder: Path) -> None:
    for path in (pack, folder):
        with pytest.raises(UserError, match="mllm-npu have them"):
            Engine.open(path, prefill="chunked:shadow")


def test_positions_that_change_with_length_are_refused(make_folder: Any, record: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", record.CASES["phi3-switch"][0], 1)
    path = shadows.shadow_pack(tmp_path / "a.pack", HubFolder.open(folder), length=16)
    with pytest.raises(UserError, match="use --prefill chunked"):
        Engine.open(path, prefill="chunked:shadow")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("scale", None, "scale is None, not a positive number"),
        ("scale", -1.0, "not a positive number"),
        ("out_scale", "wide", "out_scale is wide"),
        ("inputs", "clipped", "inputs is clipped, not clip or shadow"),
        ("kept", 1, "kept is 1, not true or false"),
        ("hot", 99, "hot is 99, not a whole number from 0 to 64"),
        ("hot", 0, "is no part of"),
    ],
)
def test_scales_that_are_missing_or_wrong_are_found(
    field: str, value: Any, words: str, packed: Path, tmp_path: Path
) -> None:
    pack = Pack.open(packed)
    name = "model.layers.1.self_attn.q_proj.weight"
    changed = {**pack.forms, name: {**pack.forms[name], field: value}}
    if value is None:
        del changed[name][field]
    found = " ".join(what for _, what in findings(pack.tensors, changed))
    assert words in found


def test_hot_channels_that_do_not_rise_are_found(packed: Path) -> None:
    with Engine.open(packed) as engine, engine.held.weights(0) as weights:
        matrix = next(
            one for one in weights.values() if isinstance(one, ShadowMatrix) and one.hot is not None
        )
        parts = {
            "codes": matrix.codes,
            "hot": np.zeros(matrix.hot.shape, np.uint8),
            "hot_channels": np.full(len(matrix.hot), 99, np.int32),
        }
        with pytest.raises(DamagedFileError, match="must rise from 0 to 63"):
            bind({**matrix.entry, "shape": [matrix.rows, matrix.columns]}, parts)


def test_measured_memory_stays_below_the_plan(tmp_path: Path, make_folder: Any, tiny_config: Any) -> None:
    sizes = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 960, "num_hidden_layers": 4}
    folder = make_folder(tmp_path / "large", {**tiny_config, **sizes})
    path = shadows.shadow_pack(tmp_path / "large.pack", HubFolder.open(folder))
    program = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())", "run"]
    text = "the second one and the third one in a row of many; " * 8
    argv = [*program, str(path), "--prefill", "chunked:shadow", "--prompt", text, "--max-tokens", "8"]
    done = run_measured([*argv, "--ignore-end", "--json"], files=[path / "weights.safetensors"], timeout=120)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    msgspec.convert(record, RunOutput)
    assert record["prompt_tokens"] > 128 and record["prefill"]["chunks"] == -(-record["prompt_tokens"] // 64)
    assert record["plan"]["prefill"] == "chunked:shadow"
    assert done.peak_mib <= record["ram_mib"]["planned"]
    assert done.peak_mib > record["ram_mib"]["planned"] - 40
