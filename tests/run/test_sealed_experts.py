"""A sealed mixture of experts: nothing of an expert in the clear, the same tokens, memory as planned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.run.experts import write_expert_pack

from haversack.core._record import SEALED_NAME, STORE_NAME
from haversack.core.errors import UserError
from haversack.core.pack import Pack, check_pack
from haversack.formats.sealed import check_sealed, seal
from haversack.run import Engine

pytest.importorskip("cryptography")
KEY = b"experts".ljust(32)
TEXT = np.random.default_rng(3).integers(3, 280, 40).astype(np.int32)


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same mixture plain, written sealed, and sealed afterwards."""
    folder = tmp_path_factory.mktemp("experts")
    (folder / "key").write_bytes(KEY)
    plain = write_expert_pack(folder / "plain.pack")
    written = write_expert_pack(folder / "written.pack", key=KEY)
    after = seal(Pack.open(plain), folder / "after.pack", KEY).path
    return {"plain": plain, "written": written, "after": after}


def logits_of(engine: Engine) -> np.ndarray:
    cache = engine.cache(60)
    rows = [engine.step(TEXT[:24], cache=cache, want="all")[0]]
    rows += [engine.step(TEXT[at : at + 1], cache=cache)[0] for at in range(24, 40)]
    return np.concatenate(rows)


@pytest.mark.parametrize("which", ["written", "after"])
def test_no_store_lies_beside_sealed_experts(which: str, packs: dict[str, Path]) -> None:
    pack = Pack.open(packs[which])
    names = {path.name for path in pack.path.iterdir()}
    assert SEALED_NAME in names and STORE_NAME not in names
    assert {entry.file for entry in pack.tensors.values()} == {SEALED_NAME}
    assert check_pack(pack.path) == [] == check_sealed(pack.path, KEY)
    plain = Pack.open(packs["plain"])
    assert pack.record.provenance == plain.record.provenance
    stored = (pack.path / SEALED_NAME).read_bytes()
    for name, entry in plain.tensors.items():
        assert bytes(plain.bytes(name))[:48] not in stored or entry.nbytes < 48, name


@pytest.mark.parametrize("which", ["written", "after"])
@pytest.mark.parametrize("way", ["sealed", "sealed:keep=0", "sealed:keep=1"])
def test_sealing_experts_changes_no_bit(way: str, which: str, packs: dict[str, Path]) -> None:
    """Experts of 2 to 32 bits, those of 2 widened out of their region."""
    with Engine.open(packs["plain"], residency="mapped") as engine:
        plain = logits_of(engine)
    with Engine.open(packs[which], residency=way, key=packs["plain"].parent / "key") as engine:
        assert np.array_equal(logits_of(engine), plain)


def test_sealed_experts_are_not_streamed(packs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="these weights are sealed"):
        Engine.open(packs["written"], residency="streamed:edgemoe")
