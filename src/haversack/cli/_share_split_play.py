"""`haversack share split play`: controllers over a link in virtual time, minutes of it in a moment."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haversack.core.errors import UserError

if TYPE_CHECKING:
    from haversack.share._split_links import Outcome, TracedFrame
    from haversack.share.slimmable import Controller, Mode


def run_play(
    pack: str, link: str, *, deadline_ms: float | None, profile: Path | None, seconds: float, seed: int
) -> dict[str, Any]:
    """Every controller, the best mode that is kept, and an oracle, over the same link; the record of
    `--json`."""
    from haversack.cli._share_split_work import trace_of
    from haversack.models.vision.slimmable import payload_bytes
    from haversack.share._split_frame import HEAD_BYTES
    from haversack.share._split_links import Oracle, play, read_traces
    from haversack.share._split_pack import open_split
    from haversack.share.slimmable import Adaptive, Fixed, Published, deadline_of

    record = open_split(pack)[1]
    frames = read_traces(Path(link)) if link.endswith(".jsonl") else []
    trace = trace_of(link, seed)
    known = encode_times(frames, profile, record.members)
    if deadline_ms is None:
        deadline_ms = frames[0].deadline if frames else 300.0
    deadline = deadline_of(deadline_ms)
    table = record.table
    nbytes = {mode: payload_bytes(mode[1], record.side) + HEAD_BYTES for mode in table}

    def played(controller: Controller) -> Outcome:
        return play(
            controller, trace, table, nbytes, lambda k: known[k], deadline, seconds=seconds, seed=seed
        )

    kept = {mode: played(Fixed(mode)) for mode in table}
    best = max(kept, key=lambda mode: (kept[mode].quality, kept[mode].hits))
    sides = {
        "adaptive": played(Adaptive(table, nbytes, known)),
        "published": played(Published(table, nbytes)),
        f"mode {10 * best[0] + best[1]}": kept[best],
        "oracle": played(Oracle(trace, table, nbytes, lambda k: known[k])),
    }
    return {
        "pack": pack,
        "link": link,
        "deadline_ms": deadline,
        "seconds": seconds,
        "metric": record.metric,
        "encode_ms": {str(k): round(value, 3) for k, value in known.items()},
        "controllers": [_said(name, outcome) for name, outcome in sides.items()],
        "traced": _traced(frames) if frames else None,
    }


def encode_times(frames: Sequence[TracedFrame], profile: Path | None, members: int) -> dict[int, float]:
    """Milliseconds of each number of members: of a profile, else of the trace, in proportion where it has
    none. Raises UserError where there is neither."""
    from haversack.cli._share_split_work import read_profile

    if profile is not None:
        found = read_profile(profile)
    else:
        seen: dict[int, list[float]] = {}
        for frame in frames:
            seen.setdefault(frame.mode[0], []).append(frame.encode)
        found = {k: statistics.median(times) for k, times in seen.items()}
    if not found:
        raise UserError(
            "play needs a device's times; give --profile, as share split bench-device writes it, or a public "
            ".jsonl trace as the link.",
            field="profile",
        )
    near = {k: min(found, key=lambda other: abs(other - k)) for k in range(1, members + 1)}
    return {k: found[other] * k / other for k, other in near.items()}


def _said(name: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "controller": name,
        "frames": outcome.frames,
        "hit_share": outcome.hits,
        "mean_quality": outcome.quality,
        "modes": [{"mode": _number(mode), "frames": count} for mode, count in sorted(outcome.modes.items())],
    }


def _traced(frames: Sequence[TracedFrame]) -> dict[str, Any]:
    """What the trace's own device came to."""
    hits = [frame for frame in frames if frame.e2e <= frame.deadline]
    return {
        "frames": len(frames),
        "hit_share": len(hits) / len(frames),
        "mean_map": sum(frame.quality for frame in hits) / len(frames),
    }


def _number(mode: Mode) -> int:
    return 10 * mode[0] + mode[1]
