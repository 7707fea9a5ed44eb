"""Compression methods: what is saved loads, applies, gives the same result, and is the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack.core import index
from haversack.core.index import MethodEntry
from haversack.core.pack import Pack, PackWriter, TensorEntry, check_pack
from haversack.formats.safetensors import HubFolder
from haversack.models.language import read_architecture
from haversack.run import Engine, Limits, generate
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, compress, stored_kinds, stored_nbytes
from haversack.shrink._precision import calibrated

ENTRIES = index.methods("shrink", "precision")
TEXTS = np.random.default_rng(1).integers(0, 256, (8, 64)).astype(np.int32)

QUICK = {"omniquant": "epochs=2", "tesseraq": "steps=2"}
"""Of methods that learn, a little is enough to show what is stored."""

every_method = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)


def choices(entry: MethodEntry) -> list[str]:
    """The method with its defaults, and with every other allowed value of each parameter."""
    found = [entry.name]
    for parameter in entry.parameters:
        others = [value for value in list(parameter.allowed or ()) if value != parameter.default]
        found += [f"{entry.name}:{parameter.name}={value}" for value in others]
    return found


every_choice = pytest.mark.parametrize("choice", [text for entry in ENTRIES for text in choices(entry)])


def test_every_slot_of_the_stage_that_has_methods_is_tested() -> None:
    assert {entry.slot for entry in index.methods("shrink")} <= {"precision", "structure"}


WITH_EXPERTS = ("edgemoe", "q4_0", "d2moe")
"""Methods for mixtures of experts, which are tried on one."""


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, checkpoint: Path, mixture: Path) -> Path:
    """The model that suits the method."""
    given = request.node.callspec.params
    name = given["choice"] if "choice" in given else given["entry"].name
    return mixture if name.startswith(WITH_EXPERTS) else checkpoint


def activations_of(method: Any) -> str:
    """f32, where the method is defined for it."""
    return "int8-dynamic" if "activation-type:f32" in method.excludes else "f32"


def packed(checkpoint: Path, goal: Path, choice: str) -> Pack:
    source = HubFolder.open(checkpoint)
    name, _, rest = choice.partition(":")
    given = ",".join(part for part in (rest, QUICK.get(name, "")) if part)
    method = index.create("shrink", "precision", f"{name}:{given}" if given else name)
    with PackWriter(goal) as writer:
        compress(
            source,
            LanguageWalk(read_architecture(source.config)),
            method,  # type: ignore[arg-type]
            writer,
            texts=TEXTS if calibrated(method) else None,  # type: ignore[arg-type]
            policy=Policy(),
            folder=goal.parent,
        )
        writer.add_file("tokenizer.json", checkpoint / "tokenizer.json")
        plan = {"precision": choice, "activations": activations_of(method)}
        writer.finish({"architecture": source.config, "plan": plan})
    return Pack.open(goal)


def first_part(pack: Pack, name: str) -> TensorEntry:
    """The part of a form that holds most of its numbers, which comes first."""
    return next(entry for part, entry in pack.tensors.items() if part.startswith(f"{name}."))


def nested(pack: Pack, name: str) -> bool:
    return name in pack.forms and pack.forms[name]["form"] == "nested"


def bits_of(pack: Pack, kind: str) -> int:
    """Of a number stored in `kind`; of nested matrices those of the widest level."""
    if kind == "nested":
        return min(4, *(int(entry["last"]) for entry in pack.forms.values()))
    return 32 if kind.startswith(("f", "bf")) else int(kind[3:])


def logits(path: Path) -> npt.NDArray[np.float32]:
    with Engine.open(path) as engine:
        rows, _ = engine.step(TEXTS[0, :32], cache=engine.cache(32), want="all")
    assert rows is not None
    return rows


@every_choice
def test_saved_loaded_applied(choice: str, checkpoint: Path, tmp_path: Path) -> None:
    pack = packed(checkpoint, tmp_path / "a.pack", choice)
    assert check_pack(pack.path) == []
    source = HubFolder.open(checkpoint)
    held = {name: first_part(pack, name) for name in pack.forms}
    held |= {name: entry for name, entry in pack.tensors.items() if name in source.tensors}
    assert set(held) == set(source.tensors)
    stored_as = {name: "nested" if nested(pack, name) else entry.kind for name, entry in held.items()}
    walk = LanguageWalk(read_architecture(source.config))
    kinds = stored_kinds(walk, index.create("shrink", "precision", choice), Policy())  # type: ignore[arg-type]
    chosen = choice.startswith("edgemoe") and "bits=" not in choice  # on the text, expert by expert
    said = {name: kind.kind for name, kind in kinds.items()}
    assert chosen or stored_as == said, "the method stores something else than it said before"
    needed, nbytes = stored_nbytes(walk, kinds), sum(entry.nbytes for entry in pack.tensors.values())
    guessed = choice.startswith(("spqr", "quik:threshold", "mllm-npu"))  # counted while compressing
    assert nbytes == needed or chosen or (guessed and abs(nbytes - needed) < 0.25 * needed)
    entry = index.find("shrink", "precision", choice.partition(":")[0])
    stored = {f"weight-type:{stored_as[name]}" for names in walk.products(0) for name in names}
    assert stored <= entry.provides
    activations = str(pack.record.plan["activations"])
    exact, found = logits(checkpoint), logits(pack.path)
    assert np.isfinite(found).all()
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    used = set(stored_as.values()) if chosen else set(said.values())
    bits = min(bits_of(pack, kind) for kind in used)
    allowed = {2: 1.5, 3: 1.2, 4: 0.7, 8: 0.05}.get(bits, 0.02) + (0.03 if activations != "f32" else 0)
    allowed += 0.02 if "activation-type:int8-static" in entry.provides else 0  # a scale for all of a matrix
    assert error < allowed, f"a relative error of {error:.3f}"
    with Engine.open(pack.path) as engine:
        answer = generate(engine, "def f(x):", Limits(max_tokens=4, end=()))
        assert len([token for token in answer if token.id is not None]) == 4


@every_method
def test_the_same_every_time(entry: MethodEntry, checkpoint: Path, tmp_path: Path) -> None:
    one = packed(checkpoint, tmp_path / "one.pack", entry.name)
    two = packed(checkpoint, tmp_path / "two.pack", entry.name)
    assert {name: bytes(one.bytes(name)) for name in one.tensors} == {
        name: bytes(two.bytes(name)) for name in two.tensors
    }


@every_method
def test_loading_gives_what_was_saved_in_another_process(
    entry: MethodEntry, checkpoint: Path, tmp_path: Path
) -> None:
    import subprocess
    import sys

    pack = packed(checkpoint, tmp_path / "a.pack", entry.name)
    program = (
        "import sys, numpy as np; from haversack.run import Engine\n"
        f"tokens = np.asarray({TEXTS[0, :32].tolist()}, np.int32)\n"
        "with Engine.open(sys.argv[1]) as engine:\n"
        "    rows, _ = engine.step(tokens, cache=engine.cache(32), want='all')\n"
        "sys.stdout.buffer.write(rows.tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", program, str(pack.path)], capture_output=True, check=True)
    assert done.stdout == logits(pack.path).tobytes()


@every_method
def test_what_the_planner_believes_of_its_loss_orders_what_happens(
    entry: MethodEntry, checkpoint: Path, tmp_path: Path
) -> None:
    """More bits, less noise, by the method's own word and in fact."""
    name = "planes" if entry.name == "d2moe" else "bits"
    bits = next((parameter for parameter in entry.parameters if parameter.name == name), None)
    if bits is None or not bits.allowed:
        most = 1e-2 if "weight-type:int4" in entry.provides else 1e-3  # four bits, or none lost
        assert index.create("shrink", "precision", entry.name).noise() < most  # type: ignore[attr-defined]
        return
    exact = logits(checkpoint)
    believed, happened = [], []
    for value in sorted(value for value in bits.allowed if value):
        choice = f"{entry.name}:{name}={value}"
        believed.append(index.create("shrink", "precision", choice).noise())  # type: ignore[attr-defined]
        found = logits(packed(checkpoint, tmp_path / f"{value}.pack", choice).path)
        happened.append(float(np.linalg.norm(found - exact)))
    assert believed == sorted(believed, reverse=True)
    assert happened == sorted(happened, reverse=True)
