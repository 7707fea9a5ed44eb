"""An expert store holds what was written, page by page; a writer that is stopped leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haversack.core._record import PIECE
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.expert_store import ExpertStore, ExpertStoreWriter
from haversack.core.memory import cached_mib, drop_cached
from haversack.core.storage import FailingStorage, SlowStorage, aligned_buffer

IDENTITY = "a-model"


def tensors(rng: np.random.Generator, *shapes: tuple[int, int]) -> list:
    return [
        (f"w{i}", "f32", shape, None, "rows-1", [rng.standard_normal(shape).astype("<f4")])
        for i, shape in enumerate(shapes)
    ]


def write(path: Path, records: dict, model: str = IDENTITY) -> Path:
    with ExpertStoreWriter(path, model) as writer:
        for (layer, expert, part), given_ in records.items():
            writer.add(layer, expert, given_, part)
        writer.finish()
    return path


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_was_written_is_read(tmp_path, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**20)))
    keys = data.draw(
        st.lists(
            st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(["", "up"])),
            min_size=1,
            max_size=6,
            unique=True,
        )
    )
    sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3)
    records = {key: tensors(rng, *data.draw(sizes)) for key in keys}
    with ExpertStore.open(write(tmp_path / "experts.store", records)) as store:
        assert list(store.records) == keys and store.model == IDENTITY
        for key, record in store.records.items():
            assert record.offset % 4096 == 0
            view = store.read(record)
            for entry, (name, *_, values) in zip(record.entries(), records[key], strict=True):
                start = entry.offset - record.offset
                assert (entry.name, entry.shape) == (name, values[0].shape)
                assert bytes(view[start : start + entry.nbytes]) == values[0].tobytes()


def test_a_large_record_has_a_checksum_for_each_mib_and_streams_in_pieces(tmp_path):
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((1024, 300)).astype("<f4") for _ in range(3)]
    given_ = [("w", "f32", (3072, 300), None, "rows-1", (row for row in rows))]
    path = write(tmp_path / "experts.store", {(0, 0, ""): given_, (0, 1, ""): tensors(rng, (3, 3))})
    with ExpertStore.open(path) as store:
        record = store.records[0, 0, ""]
        assert len(record.sums) == -(-record.nbytes // PIECE) == 4
        buffer = aligned_buffer(record.nbytes)
        assert bytes(store.read(record, buffer)) == b"".join(row.tobytes() for row in rows)
        assert store.bytes_read < record.nbytes + 32_768


def test_a_writer_keeps_no_record_in_memory(tmp_path):
    """64 MiB pass through a process that may take 16 MiB more than it has."""
    program = (
        "import sys, resource; from pathlib import Path; import numpy as np\n"
        "from haversack.core.expert_store import ExpertStoreWriter\n"
        "from haversack.core.memory import peak_mib\n"
        "values = np.ones((256, 1024), '<f4')\n"
        "def chunks():\n"
        "    for _ in range(4): yield values\n"
        "before = peak_mib()\n"
        "with ExpertStoreWriter(Path(sys.argv[1]), 'm') as writer:\n"
        "    for expert in range(16):\n"
        "        writer.add(0, expert, [('w', 'f32', (1024, 1024), None, 'rows-1', chunks())])\n"
        "    writer.finish()\n"
        "sys.exit(0 if peak_mib() - before < 16 else f'{peak_mib() - before:.1f} MiB')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "experts.store")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "experts.store").stat().st_size > 64 << 20


@pytest.mark.parametrize(
    "wrong",
    [
        [("w", "f32", (2, 2), None, "rows-1", [bytes(15)])],
        [("w", "f32", (2, 2), None, "rows-1", [bytes(17)])],
        [("w", "int4", (2, 2), None, "rows16-1", [bytes(16)])],
        [],
    ],
)
def test_bytes_that_do_not_add_up_are_refused_and_leave_nothing(tmp_path, wrong):
    with ExpertStoreWriter(tmp_path / "experts.store", IDENTITY) as writer:
        with pytest.raises(ValueError):
            writer.add(0, 0, wrong)
        with pytest.raises(ValueError, match="not written whole"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_given_once(tmp_path):
    rng = np.random.default_rng(0)
    with ExpertStoreWriter(tmp_path / "experts.store", IDENTITY) as writer:
        writer.add(1, 2, tensors(rng, (4, 4)))
        with pytest.raises(ValueError, match="given before"):
            writer.add(1, 2, tensors(rng, (4, 4)))


def test_a_killed_writer_leaves_the_old_store_whole(tmp_path):
    rng = np.random.default_rng(0)
    path = write(tmp_path / "experts.store", {(0, 0, ""): tensors(rng, (9, 9))})
    before = path.read_bytes()
    program = (
        "import os, sys; from pathlib import Path; import numpy as np\n"
        "from haversack.core.expert_store import ExpertStoreWriter\n"
        "with ExpertStoreWriter(Path(sys.argv[1]), 'other') as writer:\n"
        "    writer.add(0, 0, [('w', 'f32', (512, 512), None, 'rows-1', [np.zeros((512, 512), '<f4')])])\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == -9
    assert path.read_bytes() == before
    write(path, {(0, 1, ""): tensors(rng, (9, 9))})
    assert [file.name for file in tmp_path.iterdir()] == ["experts.store"]
    with ExpertStore.open(path) as store:
        assert list(store.records) == [(0, 1, "")]


def test_another_model_s_store_is_named(tmp_path):
    path = write(tmp_path / "experts.store", {(0, 0, ""): tensors(np.random.default_rng(0), (4, 4))})
    with ExpertStore.open(path) as store:
        store.require_model(IDENTITY)
        with pytest.raises(UserError, match="experts of another model"):
            store.require_model("b-model")


def test_reading_leaves_nothing_in_the_page_cache(tmp_path):
    records = {(0, e, ""): tensors(np.random.default_rng(e), (1024, 1024)) for e in range(3)}
    path = write(tmp_path / "experts.store", records)
    drop_cached([path])
    if cached_mib(path) > 1:
        pytest.skip("this file system keeps its files in memory")
    with ExpertStore.open(path) as store:
        for record in store.records.values():
            store.read(record)
    assert cached_mib(path) < 1


def test_the_throttle_is_the_store_s_too(tmp_path):
    import time

    path = write(tmp_path / "experts.store", {(0, 0, ""): tensors(np.random.default_rng(0), (256, 512))})
    storage = SlowStorage(mb_s=5)
    with ExpertStore.open(path, storage) as store:
        before = time.monotonic()
        store.read(store.records[0, 0, ""])
        assert 0.1 <= time.monotonic() - before < 0.6  # 524,288 bytes at 5 MB/s


def test_a_failing_storage_ends_the_read_with_a_sentence(tmp_path):
    path = write(tmp_path / "experts.store", {(0, 0, ""): tensors(np.random.default_rng(0), (256, 512))})
    with (
        ExpertStore.open(path, FailingStorage(sound=100_000)) as store,
        pytest.raises(UserError, match="cannot be read: Input/output error"),
    ):
        store.read(store.records[0, 0, ""])


def test_truncated_while_open(tmp_path):
    records = {(0, e, ""): tensors(np.random.default_rng(e), (64, 64)) for e in range(2)}
    path = write(tmp_path / "experts.store", records)
    with ExpertStore.open(path) as store:
        os.truncate(path, store.records[0, 1, ""].offset + 100)
        store.read(store.records[0, 0, ""])
        with pytest.raises(DamagedFileError, match="ends at byte"):
            store.read(store.records[0, 1, ""])
