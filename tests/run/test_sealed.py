"""Sealed weights: the same tokens however they are restored, the key elsewhere, memory as planned."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from haversack.core.budget import Budget, BudgetError
from haversack.core.errors import HaversackError, UserError
from haversack.core.memory import run_measured
from haversack.core.pack import Pack
from haversack.core.storage import DirectFile, SlowStorage
from haversack.formats.sealed import BLOCK, Vault, record_bytes, seal
from haversack.models import read_architecture
from haversack.run import Engine, Limits, generate
from haversack.run._weights import row_span
from haversack.run.residency import _restorer
from haversack.run.residency._regions import Region, map_region
from haversack.run.residency._restoration import Queues, Wanted, lay_out, order_key, pieces
from haversack.run.residency._restorer import Restorer
from haversack.run.residency._sealed_units import sealed_units
from haversack.run.residency.sealed import Sealed, Stages, bound_s, overlap, unpipelined_s

KEY = np.random.default_rng(29).bytes(32)
TEXT = np.random.default_rng(3).integers(3, 280, 50).astype(np.int32)
# Blocks of several 64 KiB, matrices that end inside one, an output matrix of several parts.
LARGE = {
    "vocab_size": 9000,
    "hidden_size": 256,
    "intermediate_size": 544,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


class Packs:
    def __init__(self, folder: Path, make_pack: Any, config: dict[str, Any]) -> None:
        self.key = folder / "key"
        self.key.write_bytes(KEY)
        self.plain: dict[str, Path] = {}
        self.sealed: dict[str, Path] = {}
        for name, changes in (("tied", {"tie_word_embeddings": True}), ("untied", {})):
            self.plain[name] = make_pack(folder / f"{name}.pack", {**config, **LARGE, **changes})
            self.sealed[name] = seal(Pack.open(self.plain[name]), folder / f"{name}-s.pack", KEY).path


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory, make_pack: Any, tiny_config: Any) -> Packs:
    return Packs(tmp_path_factory.mktemp("sealed"), make_pack, tiny_config)


def logits_of(engine: Engine) -> np.ndarray:
    cache = engine.cache(60)
    rows = [engine.step(TEXT[:40], cache=cache, want="all")[0]]
    rows += [engine.step(TEXT[at : at + 1], cache=cache)[0] for at in range(40, 50)]
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def plain(packs: Packs) -> dict[str, np.ndarray]:
    found = {}
    for name, pack in packs.plain.items():
        with Engine.open(pack) as engine:
            found[name] = logits_of(engine)
    return found


@pytest.mark.parametrize("ends", ["tied", "untied"])
@pytest.mark.parametrize(
    "way",
    [
        "sealed",
        "sealed:keep=0",
        "sealed:keep=2",
        "sealed:keep=99",
        "sealed:schedule=at-once",
        "sealed:schedule=random",
        "sealed:schedule=whole-tensors",
        "sealed:keep=1,schedule=random",
        "sealed:mb_s=200",
    ],
)
def test_sealing_changes_no_bit(way: str, ends: str, packs: Packs, plain: dict[str, np.ndarray]) -> None:
    with Engine.open(packs.sealed[ends], residency=way, key=packs.key) as engine:
        assert np.array_equal(logits_of(engine), plain[ends])
        assert np.array_equal(logits_of(engine), plain[ends])


def test_other_kinds_of_matrices(folder: Path, make_pack: Any, tiny_config: Any, tmp_path: Path) -> None:
    """Learned positions, projections beside the blocks, biases."""
    from haversack.core.pack import PackWriter

    (tmp_path / "key").write_bytes(KEY)
    config = json.loads((folder / "config.json").read_text())
    with Engine.open(folder) as engine:
        expected, source = logits_of(engine), engine.model.source
        with PackWriter(tmp_path / "f32.pack") as writer:
            for name, entry in source.tensors.items():
                writer.add_tensor(name, entry.kind, entry.shape, [source.bytes(name)])
            writer.add_file("tokenizer.json", folder / "tokenizer.json")
            writer.finish({"architecture": config, "plan": {"precision": "keep"}})
    sealed = seal(Pack.open(tmp_path / "f32.pack"), tmp_path / "s.pack", KEY)
    for way in ("sealed", "sealed:keep=0"):
        with Engine.open(sealed, residency=way, key=tmp_path / "key") as engine:
            assert np.array_equal(logits_of(engine), expected)


def test_the_pack_says_how_it_is_run(packs: Packs) -> None:
    with Engine.open(packs.sealed["tied"], key=packs.key) as engine:
        assert engine.plan["residency"].startswith("sealed")


@pytest.mark.parametrize("keep", [0, 2])
def test_a_broken_off_pass_starts_over(keep: int, packs: Packs, plain: dict[str, np.ndarray]) -> None:
    """Blocks asked for out of order, head skipped: what arrives is always the block that was asked for."""
    source = Pack.open(packs.plain["untied"])
    with Engine.open(packs.sealed["untied"], residency=f"sealed:keep={keep}", key=packs.key) as engine:
        for block in (1, 0, 2, 2, 0, 3, 1):
            with engine.held.weights(block) as weights:
                name = f"model.layers.{block}.mlp.up_proj.weight"
                assert bytes(weights[name].data) == bytes(source.bytes(name))
        engine.step(TEXT[:3], cache=engine.cache(), want="none")
        assert np.array_equal(logits_of(engine), plain["untied"])


@pytest.mark.parametrize("percent", [0, 40, 100])
def test_what_was_given_back_is_restored(percent: int, packs: Packs, plain: dict[str, np.ndarray]) -> None:
    with Engine.open(packs.sealed["tied"], residency="sealed", key=packs.key) as engine:
        for _ in range(3):
            assert np.array_equal(logits_of(engine), plain["tied"])
            engine.held.rest(percent)


def test_answers_give_back_by_themselves(packs: Packs) -> None:
    answers = []
    for residency in ("sealed", "sealed:cache=0"):
        with Engine.open(packs.sealed["tied"], residency=residency, key=packs.key) as engine:
            for _ in range(2):
                answer = generate(engine, TEXT[:9], Limits(max_tokens=6, end=()))
                list(answer)
                answers.append(answer.tokens)
            resting = residency != "sealed"
            assert (engine.held._link.ready == {}) == resting
    assert answers[0] == answers[1] == answers[2] == answers[3]


def test_a_store_truncated_while_running_is_found(packs: Packs, tmp_path: Path) -> None:
    pack = shutil.copytree(packs.sealed["tied"], tmp_path / "cut.pack")
    with Engine.open(pack, residency="sealed:keep=0", key=packs.key) as engine:
        logits_of(engine)
        os.truncate(pack / "sealed.store", 200_000)
        with pytest.raises(UserError, match="ends at byte"):
            logits_of(engine)


def test_a_block_altered_while_running_is_found(packs: Packs, tmp_path: Path) -> None:
    pack = shutil.copytree(packs.sealed["tied"], tmp_path / "altered.pack")
    with Engine.open(pack, residency="sealed:keep=0", key=packs.key) as engine:
        logits_of(engine)
        entry = Pack.open(pack).tensors["model.layers.2.mlp.up_proj.weight"]
        with (pack / "sealed.store").open("r+b") as file:
            file.seek(entry.offset + 5)
            file.write(b"\xff\x00\xff\x00")
        with pytest.raises(UserError, match=r"layers\.2\.mlp\.up_proj"):
            logits_of(engine)


def test_a_holder_that_dies_ends_the_run(packs: Packs) -> None:
    with Engine.open(packs.sealed["tied"], residency="sealed:keep=0", key=packs.key) as engine:
        engine.held._link._process.kill()
        with pytest.raises(HaversackError, match="ended without a word"):
            logits_of(engine)


# Where key and weights are.

PROGRAM = """
import sys
from haversack.run import Engine, Limits, generate
engine = Engine.open(sys.argv[1], key=sys.argv[2])
list(generate(engine, [5, 6, 7], Limits(max_tokens=2, end=())))
print(engine.held._link._process.pid, flush=True)
sys.stdin.read()
engine.close()
"""


def memory_of(process: int) -> Iterator[bytes]:
    """What a process has in memory that it may read, mapping by mapping."""
    with Path(f"/proc/{process}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{process}/maps").read_text().splitlines():
            begin, end, rights = re.match(r"(\w+)-(\w+) (\S+)", line).groups()  # type: ignore[union-attr]
            if rights[0] == "r" and "[v" not in line:
                memory.seek(int(begin, 16))
                with contextlib.suppress(OSError):
                    yield memory.read(int(end, 16) - int(begin, 16))


def test_the_computing_process_has_weights_but_no_key(packs: Packs) -> None:
    """Neither the owner's key nor the pack's is in it; its view of the weights cannot be made writable."""
    argv = [sys.executable, "-c", PROGRAM, str(packs.sealed["tied"]), str(packs.key)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            holder = int(process.stdout.readline())
            weights = bytes(Pack.open(packs.plain["tied"]).bytes("model.layers.1.mlp.up_proj.weight"))[:4096]
            found = {"key": False, "weights": False}
            for part in memory_of(process.pid):
                found["key"] |= KEY in part
                found["weights"] |= weights in part
            assert found == {"key": False, "weights": True}
            maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            shared = [line.split()[1] for line in maps if "memfd:haversack" in line]
            assert shared and all(rights == "r--s" for rights in shared)
            assert holder != process.pid
            if os.geteuid() != 0:
                with pytest.raises(PermissionError):
                    Path(f"/proc/{holder}/mem").open("rb").close()
        finally:
            process.communicate()
    assert process.returncode == 0


def test_a_region_has_one_writer() -> None:
    import mmap

    region = Region(10_000)
    region.view[:4] = b"abcd"
    with pytest.raises(OSError):
        mmap.mmap(region.descriptor, region.size)
    with pytest.raises(OSError):
        os.pwrite(region.descriptor, b"x", 0)
    with pytest.raises(OSError):
        os.ftruncate(region.descriptor, 0)
    again = os.open(f"/proc/self/fd/{region.descriptor}", os.O_RDWR)
    with pytest.raises(OSError):
        os.pwrite(again, b"x", 0)
    os.close(again)
    seen = map_region(os.dup(region.descriptor))
    assert seen.readonly and bytes(seen[:4]) == b"abcd" and len(seen) == region.size
    region.view[:4] = b"efgh"
    assert bytes(seen[:4]) == b"efgh"
    region.close()
    assert bytes(seen[:4]) == b"efgh"


def restorer(
    pack: Path, storage: SlowStorage | None = None
) -> tuple[Restorer, list[Any], dict[int, memoryview]]:
    opened = Pack.open(pack)
    units = sealed_units(opened, read_architecture(opened.record.architecture), whole=True)
    vault = Vault.open(pack, KEY, record_bytes(opened.record))
    told: list[Any] = []
    regions: dict[int, memoryview] = {}

    def tell(message: dict[str, Any], descriptor: int | None) -> None:
        told.append(message)
        if descriptor is not None:
            regions[message["region"]] = map_region(os.dup(descriptor))

    def fail(error: BaseException) -> None:
        told.append({"fail": error})

    work = [(unit.layer, unit.nbytes, unit.spans) for unit in units]
    made = Restorer(vault, DirectFile(vault.path, storage), work, len(work), 0, "pipelined", tell, fail, 1)
    return made, told, regions


def test_units_are_announced_in_order_and_wiped_at_the_end(packs: Packs) -> None:
    made, told, regions = restorer(packs.sealed["tied"])
    made.begin()
    while not any(said.get("ready") == len(made._units) - 1 or "fail" in said for said in list(told)):
        os.sched_yield()
    order = [said["ready"] for said in told if "ready" in said]
    assert order == list(range(len(made._units)))
    assert any(any(view) for view in regions.values())
    made.close()
    assert not any(any(view) for view in regions.values())


def test_a_unit_with_a_bad_block_is_never_announced(packs: Packs, tmp_path: Path) -> None:
    pack = shutil.copytree(packs.sealed["tied"], tmp_path / "bad.pack")
    entry = Pack.open(pack).tensors["model.layers.1.mlp.down_proj.weight"]
    with (pack / "sealed.store").open("r+b") as file:
        file.seek(entry.offset)
        file.write(bytes(16))
    made, told, _ = restorer(pack)
    made.begin()
    while not any("fail" in said for said in list(told)):
        os.sched_yield()
    made.close()
    assert 2 not in [said.get("ready") for said in told]  # unit 0 is what is always there, block 1 is unit 2


class Stalled(SlowStorage):
    """Storage that does not answer before it is released."""

    def __init__(self) -> None:
        super().__init__(1e6)
        self.released = threading.Event()

    def wait(self, count: int, started: float) -> None:
        self.released.wait(60)


def test_storage_that_stalls_is_given_up(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_restorer, "STALL_S", 0.3)
    storage = Stalled()
    made, told, _ = restorer(packs.sealed["tied"], storage)
    made.begin()
    while not any("fail" in said for said in list(told)):
        os.sched_yield()
    storage.released.set()
    made.close()
    assert "gave nothing for 0.3 s" in str(told[-1]["fail"])


# The paper's schedule.


def test_the_known_schedule() -> None:
    """Four layers, allocation 1, read 2, decryption 1, computation 3: 28 unpipelined, 16 pipelined; 12
    where the first two are kept."""
    layers = [Stages(1, 2, 1, 3)] * 4
    assert unpipelined_s(layers) == 28 and bound_s(layers) == 16 and bound_s(layers, kept=2) == 12
    assert unpipelined_s(layers, init=2) == 30
    assert overlap(28, 16, 16) == 1 and overlap(28, 28, 16) == 0
    assert 1 - bound_s(layers) / unpipelined_s(layers) == pytest.approx(0.429, abs=0.001)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(some.lists(some.tuples(some.integers(-1, 1100), some.integers(0, 2**32 - 1)), min_size=1))
def test_tasks_come_by_layer_and_number(keys: list[tuple[int, int]]) -> None:
    queues = Queues()
    for key in keys:
        queues.put("read", order_key(*key), key)
    taken = [queues.read()[2] for _ in keys]  # type: ignore[index]
    assert taken == sorted(keys)
    assert queues.read() is None and queues.step() is None and len(queues) == 0


def test_a_processor_decrypts_before_it_allocates() -> None:
    queues = Queues()
    queues.put("allocate", order_key(0, 0), "early")
    queues.put("decrypt", order_key(9, 0), "late")
    assert [queues.step()[2] for _ in range(2)] == ["late", "early"]  # type: ignore[index]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    some.lists(
        some.integers(1, 5 * BLOCK).flatmap(
            lambda size: some.tuples(some.just(size), some.integers(0, size - 1), some.integers(1, size))
        ),
        min_size=1,
        max_size=5,
    ),
    some.integers(1, 4),
)
def test_spans_hold_what_is_wanted_and_do_not_overlap(sizes: list[tuple[int, int, int]], most: int) -> None:
    wanted = [Wanted(f"t{i}", n, start, min(count, n - start)) for i, (n, start, count) in enumerate(sizes)]
    spans, nbytes = lay_out(wanted)
    end = 0
    for one, span in zip(wanted, spans, strict=True):
        assert span.at >= end and span.at % 64 == 0
        assert span.first * BLOCK <= one.start
        assert one.start + one.count <= span.first * BLOCK + span.nbytes <= one.nbytes
        assert [at for first, count in pieces(span, most) for at in range(first, first + count)] == list(
            range(span.first, span.first + span.count)
        )
        end = span.at + span.nbytes
    assert end <= nbytes


# Budgets.


def test_a_budget_below_the_model_runs_by_turns(packs: Packs, plain: dict[str, np.ndarray]) -> None:
    how: dict[str, Any] = {"residency": "sealed", "key": packs.key, "tokens": (40, 10), "context_length": 60}
    with pytest.raises(BudgetError) as refused:
        Engine.open(packs.sealed["untied"], budget=Budget(ram_mib=30), **how)
    least = refused.value.nearest
    with Engine.open(packs.sealed["untied"], budget=Budget(ram_mib=least), **how) as engine:
        assert engine.memory_plan((40, 10)).total_mib <= least
        assert np.array_equal(logits_of(engine), plain["untied"])


def test_measured_memory_stays_below_the_plan(packs: Packs) -> None:
    pack = packs.sealed["untied"]
    argv = [
        sys.executable,
        "-c",
        "import sys; from haversack.cli import main; sys.exit(main())",
        "run",
        str(pack),
    ]
    argv += [
        "--key",
        str(packs.key),
        "--prompt",
        "the second one",
        "--max-tokens",
        "12",
        "--ignore-end",
        "--json",
    ]
    done = run_measured(argv, files=[pack / "sealed.store"], timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout
    record = json.loads(done.stdout)
    assert done.peak_mib <= record["ram_mib"]["planned"]
    assert done.peak_mib > record["ram_mib"]["planned"] - 40


def test_rows_are_restored_alone(packs: Packs) -> None:
    """A token's row asks for its own blocks, not for the matrix."""
    with Engine.open(packs.sealed["untied"], residency="sealed:keep=0", key=packs.key) as engine:
        tokens = np.array([8999, 0, 17], np.int32)
        matrix, rows = engine.held.rows(tokens)
        entry = engine.model.source.tensors["model.embed_tokens.weight"]
        assert matrix.rows == 3 * 16 and rows.shape == (3,)
        expected = Pack.open(packs.plain["untied"]).bytes(entry.name)
        start, count = row_span(entry, 0, 16)
        assert bytes(matrix.data[:count]) == bytes(expected[start : start + count])


def test_sealed_without_a_key_is_refused(packs: Packs) -> None:
    with pytest.raises(UserError, match="needs the key"):
        Engine.open(packs.sealed["tied"])
    assert Sealed().schedule == "pipelined"


def test_a_cache_is_wiped_when_it_is_dropped(packs: Packs) -> None:
    with Engine.open(packs.sealed["tied"], key=packs.key) as engine:
        cache = engine.cache(16)
        engine.step(TEXT[:9], cache=cache)
        keys = [layer.keys for layer in cache.layers if layer is not None]
        assert all(array.any() for array in keys)
        del cache
        assert not any(array.any() for array in keys)


def test_a_key_may_come_by_a_pipe(packs: Packs, plain: dict[str, np.ndarray], tmp_path: Path) -> None:
    """It is read once, so whoever takes over the computing process finds nothing there."""
    os.mkfifo(tmp_path / "pipe")
    writing = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(KEY,))
    writing.start()
    with Engine.open(packs.sealed["tied"], key=tmp_path / "pipe") as engine:
        writing.join()
        assert np.array_equal(logits_of(engine), plain["tied"])


def test_a_killed_run_leaves_no_holder(packs: Packs) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(packs.sealed["tied"]), str(packs.key)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        holder = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
        assert select.select([holder], [], [], 30)[0]
        os.close(holder)


def test_a_run_says_what_restoring_took(packs: Packs) -> None:
    with Engine.open(packs.sealed["tied"], key=packs.key) as engine:
        engine.step(TEXT[:5], cache=engine.cache(16))
        said = engine.held.record()
        stored = sum(entry.nbytes for entry in engine.model.source.tensors.values())
        assert said["restored_mib"] == pytest.approx(stored / 2**20, abs=0.01)
        assert min(said["read_s"], said["decrypt_s"], said["waited_s"]) > 0
        assert engine.held.record()["restored_mib"] == 0
