"""`haversack run` of a network that tells pictures or texts apart, with or without a delta over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from haversack.cli._output import print_json, show_memory
from haversack.core.errors import UserError

TOP = 5


def tells_classes(source: Any, model: str) -> bool:
    """Whether what was opened is a network that only tells classes apart. Raises UserError for a delta,
    which is none by itself."""
    record = getattr(source, "record", None)
    if record is None:
        from haversack.train._predict import is_network

        return hasattr(source, "config") and is_network(model)
    if record.kind == "delta":
        raise UserError(
            f"{model} is a delta pack, which runs over its base; use haversack run BASE --delta {model}.",
            field="model",
            given=model,
        )
    return False


def run_network(
    model: str,
    delta: Path | None,
    input: str | None,
    prompt: str | None,
    *,
    top: int,
    ram_mib: float | None,
    json: bool,
) -> None:
    """Print the likeliest classes of a picture, a mesh or a text, `top` of them (0: five)."""
    from haversack.core.budget import Budget
    from haversack.core.memory import MemoryPlan, peak_mib
    from haversack.train._examples import takes_meshes
    from haversack.train._meter import opened_nbytes
    from haversack.train._network import Pictures, Tokens
    from haversack.train._predict import answers, open_with_delta

    network = open_with_delta(model, delta)
    lines = (("process with the network open", opened_nbytes()), *network.plan({}, 1))
    plan = MemoryPlan(lines)
    Budget(ram_mib=ram_mib).require({"ram_mib": plan.total_mib}, f"running {network.name}")
    given = input if input is not None else prompt
    if given is None or (input is not None and prompt is not None):
        what = "a text (--prompt TEXT or a file)"
        if not isinstance(network.form, Tokens):
            what = "a mesh (.off)" if takes_meshes(network.form) else "a picture"
        raise UserError(f"give {what}: haversack run {model} INPUT.", field="input")
    if isinstance(network.form, Pictures) or takes_meshes(network.form):
        kind = "picture" if isinstance(network.form, Pictures) else "mesh"
        if prompt is not None:
            raise UserError(f"{model} takes a {kind}; give INPUT, not --prompt.", field="prompt")
        if not Path(given).is_file():
            raise UserError(f"there is no {kind} {given}.", field="input", given=given)
    elif input is not None:
        from haversack.cli._given_text import text_of

        given = text_of(None, input)
    (found,) = answers(network, [given], top or TOP)
    if json:
        print_json(
            {
                "network": network.name,
                "delta": None if delta is None else str(delta),
                "input": found.input,
                "classes": [{"name": name, "probability": share} for name, share in found.classes],
                "ram_mib": {"planned": round(plan.total_mib, 2), "measured": round(peak_mib(), 2)},
            }
        )
        return
    for name, share in found.classes:
        print(f"{100 * share:6.2f} %  {name}")
    show_memory(plan)
