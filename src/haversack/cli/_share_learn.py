"""What `share learn` does: read outcomes, learn on one part, report on the other, write the router."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from haversack.core.errors import UserError, not_allowed, unknown_name

HELD_OUT = ("random", "subject")
BEST = "best"


def learn_steps(router: str, traces: Path | None, output: Path | None, *, seed: int, json: bool) -> None:
    """Learn a router of an agent's steps: `--router hera`. Raises UserError for any other name."""
    if router != "hera":
        raise unknown_name("router", router, ("query", "hera"))
    if traces is None:
        raise UserError("--router hera learns from episodes: --traces FILE.jsonl.", field="traces")
    from haversack.cli._share_hera import learn

    learn(traces, output, seed=seed, json=json)


def learn_query(
    paths: Sequence[Path],
    output: Path | None,
    *,
    form: str,
    share: float,
    pair: tuple[str | None, str | None],
    by: str,
    seed: int,
    recalibrate: Path | None,
) -> dict[str, Any]:
    """Learn a query router and write it; the record of `share learn --json`."""
    from haversack.core.progress import progress
    from haversack.share._outcomes import read_outcomes
    from haversack.share._router_files import load_router, save_router
    from haversack.share.learning_routers import Seen, learn, recalibrated, report
    from haversack.share.query_routers import FORMS, tensors_of

    if by not in HELD_OUT:
        raise not_allowed("by", by, HELD_OUT)
    if form not in (BEST, *FORMS):
        raise not_allowed("form", form, (BEST, *FORMS))
    outcomes = read_outcomes(paths, *pair)
    chosen: Any
    record: dict[str, Any] = {"queries": len(outcomes), "weak": outcomes.pair[0], "strong": outcomes.pair[1]}
    record |= {"share": share, "by": by, "seed": seed, "held_out": [], "file": None}
    if recalibrate is not None:
        known, _, kept = load_router(recalibrate)
        if known.kind != "query":
            raise UserError(f"{recalibrate} routes steps, not queries.", field="recalibrate")
        threshold = recalibrated(known, outcomes, share)  # type: ignore[arg-type]
        kept |= {"threshold": threshold, "weak": outcomes.pair[0], "strong": outcomes.pair[1]}
        record |= {"form": kept["form"], "threshold": threshold}
        chosen, made = known, kept
    else:
        seen = Seen.of(outcomes)
        inside, outside = _parts(seen.outcomes.subjects, by, seed)
        forms = [one for one in FORMS if one != "length"] if form == BEST else [form]
        tried = {}
        with progress("learning", total=len(forms) + 2) as bar:
            for name in dict.fromkeys([*forms, "length"]):
                tried[name] = learned = learn(name, seen.part(inside), share, seed)
                found = report(learned.router, seen.part(outside), share, learned.threshold)
                record["held_out"].append({"form": name, **found})
                bar.advance(1)
            picked = max(forms, key=lambda name: tried[name].gain)
            final = learn(picked, seen, share, seed)
            bar.advance(1)
        record |= {"form": picked, "threshold": final.threshold}
        chosen = final.router
        made = {"kind": "query", "threshold": final.threshold, "share": share, "seed": seed}
        made |= {"weak": outcomes.pair[0], "strong": outcomes.pair[1], "queries": len(outcomes)}
        held = next(one for one in record["held_out"] if one["form"] == picked)
        made |= {
            "held_out_by": by,
            "recovered": held["recovered"],
            "recovered_length": held["recovered_length"],
        }
    if output is not None:
        name, tensors, numbers = tensors_of(chosen)
        save_router(output, {**made, "form": name, **numbers}, tensors)
        record["file"] = {"path": str(output), "nbytes": output.stat().st_size}
    return record


def _parts(subjects: Sequence[str], by: str, seed: int) -> tuple[Any, Any]:
    """Places of the training half and of the held-out half."""
    rng = np.random.default_rng(seed)
    if by == "random":
        order = rng.permutation(len(subjects))
        return order[: len(order) // 2], order[len(order) // 2 :]
    names = sorted(set(subjects) - {""})
    if len(names) < 2:
        raise UserError("the outcomes tell fewer than two subjects.", field="by", given=by, nearest="random")
    held = [names[at] for at in rng.permutation(len(names))[: len(names) // 2]]
    outside = np.isin(np.array(subjects), held)
    return np.flatnonzero(~outside), np.flatnonzero(outside)
