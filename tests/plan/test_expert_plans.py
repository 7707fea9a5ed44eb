"""Plans for mixtures of experts: what streamed experts leave in memory is predicted as it is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.run.experts import OLMOE, write_expert_pack, write_nested_pack

from haversack.core.device import device
from haversack.core.errors import UserError
from haversack.models import read_architecture
from haversack.plan._enumerate import Space, predicted
from haversack.run import Engine

LARGE = {**OLMOE, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_experts": 16}


def space(config: dict[str, Any] = LARGE, **changes: Any) -> Space:
    architecture = read_architecture(config)
    given = {"architecture": architecture, "device": device("raspberry-pi-zero-2w"), "files_nbytes": 1000}
    return Space(**{**given, "context": 64, "effort_s": 1e6, **changes})


def test_streamed_experts_are_planned_for_models_that_have_them() -> None:
    candidates, _ = predicted(space(precision="keep:kind=f32", activations="f32", cache_type="f32"))
    found = {one.plan.residency: one for one in candidates}
    assert set(found) == {"mapped", "copied", "streamed", "streamed:edgemoe"}
    assert found["streamed:edgemoe"].ram_mib < 0.75 * found["mapped"].ram_mib
    assert found["streamed:edgemoe"].device < found["mapped"].device  # experts come from storage
    assert found["streamed:edgemoe"].device > found["streamed"].device  # and nothing else does
    candidates, _ = predicted(space(precision="keep:kind=f32", expert_store=False))  # as for a sealed pack
    assert {one.plan.residency for one in candidates} == {"mapped", "copied", "streamed"}
    dense = {key: value for key, value in LARGE.items() if "expert" not in key} | {"model_type": "llama"}
    candidates, _ = predicted(space(dense))
    assert not any("edgemoe" in f"{one.plan.residency} {one.plan.precision}" for one in candidates)


def test_nested_bits_have_a_residency_of_their_own(tmp_path: Path) -> None:
    candidates, _ = predicted(space(precision="d2moe:group=32", cache_type="f32"))
    found = {one.plan.residency: one for one in candidates}
    assert set(found) == {"mapped", "copied", "streamed", "streamed:d2moe"}
    assert {one.plan.activations for one in candidates} == {"f32"}
    pack = write_nested_pack(tmp_path / "a.pack", LARGE, alike=True, router=False)
    with Engine.open(pack, residency="streamed:d2moe", context_length=64) as engine:
        planned = engine.memory_plan().record()["lines"]
    there = sum(count for label, count in planned.items() if label.startswith(("weights", "KV", "buffers")))
    rest = device("raspberry-pi-zero-2w").base_ram_mib + planned["tokenizer"]
    assert found["streamed:d2moe"].ram_mib == pytest.approx(there + rest, abs=1.5)


def test_what_is_predicted_is_what_the_engine_plans(tmp_path: Path) -> None:
    pack = write_expert_pack(tmp_path / "a.pack", LARGE, lambda layer, expert: 32)
    candidates, _ = predicted(space(precision="edgemoe:bits=32", residency="streamed:edgemoe"))
    (one,) = {candidate.ram_mib for candidate in candidates if candidate.plan.cache_type == "f32"}
    with Engine.open(pack, residency="streamed:edgemoe", context_length=64) as engine:
        planned = engine.memory_plan().record()["lines"]
    there = sum(count for label, count in planned.items() if label.startswith(("weights", "KV", "buffers")))
    rest = device("raspberry-pi-zero-2w").base_ram_mib + planned["tokenizer"]
    assert one == pytest.approx(there + rest, abs=0.6)


def test_matrices_are_planned_for_the_precision_that_stores_them_so(tmp_path: Path) -> None:
    candidates, _ = predicted(space(precision="q4_0", activations="f32", cache_type="f32"))
    found = {one.plan.residency: one for one in candidates}
    assert set(found) == {"mapped", "copied", "streamed", "streamed:smallthinker"}
    assert found["streamed:smallthinker"].ram_mib < 0.9 * found["mapped"].ram_mib
    assert found["streamed:smallthinker"].device < found["mapped"].device
    pack = write_expert_pack(tmp_path / "a.pack", LARGE, lambda layer, expert: 32, matrices=True)
    way = "streamed:smallthinker"
    candidates, _ = predicted(space(precision="keep:kind=f32", residency=way, cache_type="f32"))
    (one,) = {candidate.ram_mib for candidate in candidates}
    with Engine.open(pack, residency=way, context_length=64) as engine:
        planned = engine.memory_plan().record()["lines"]
    experts = planned["weights, experts in memory"]
    assert experts == pytest.approx(30 * (256 * 512 * 4 + 4096) / 2**20, abs=0.01)  # thirty matrices
    assert one > experts / 2**20


def test_the_planner_s_own_bits_are_refused_for_models_without_experts() -> None:
    dense = {key: value for key, value in LARGE.items() if "expert" not in key} | {"model_type": "llama"}
    with pytest.raises(UserError, match="the model has no experts"):
        predicted(space(dense, precision="edgemoe"))


@pytest.mark.parametrize(
    "residency, precision",
    [("streamed:edgemoe", "q4_0"), ("streamed:smallthinker", "d2moe"), ("streamed:d2moe", "edgemoe")],
)
def test_a_residency_is_planned_with_the_precisions_that_it_reads(residency: str, precision: str) -> None:
    with pytest.raises(UserError, match=f"{residency} reads .*; use streamed:"):
        predicted(space(residency=residency, precision=precision))
    candidates, _ = predicted(space(residency=residency, activations="f32", cache_type="f32"))
    found = {one.plan.precision.partition(":")[0] for one in candidates}
    assert found and precision not in found
    assert (residency == "streamed:d2moe") == ("d2moe" in found)
