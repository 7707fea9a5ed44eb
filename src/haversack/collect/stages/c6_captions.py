"""C6, captions: what happens in the clip, in words that hold against the clip.

Paper: AoE (arXiv 2602.23893); the describe-then-segment prompt and its figures (2 pictures a second, at most
60, five columns, 10 rephrasings, temperature 0.2) are those of the public LeRobot annotation pipeline.

The author is built in (verbs from C5, objects by colour), any OpenAI-compatible vision model, or a file of
yours:

    [c6-captions]
    endpoint = "http://127.0.0.1:8000/v1"     # with `model`, `key_env` (the key's variable), `timeout_s`
    json = "/folder/{clip}.json"              # or a caption that exists already

A remote answer is checked (collect/_captioner.py); one that does not hold, or does not come, is asked for
once more with the complaint; then the clip is dropped with `caption`. Files: `caption.json`. Cost: decoding
the clip once.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from haversack.collect._camera import Camera
from haversack.collect._captioner import (
    Caption,
    CaptionError,
    ask,
    carried_colour,
    checked,
    contact_sheet,
    template,
)
from haversack.collect._clip_data import ClipData, skin
from haversack.collect._stages import Clip, Outcome, Stage
from haversack.collect.stages.c3_trajectory import CAMERA
from haversack.collect.stages.c4_hands import HANDS
from haversack.collect.stages.c5_actions import ACTIONS, SIDES

U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
SYSTEM = 1
CAPTION = "caption.json"
TIMEOUT_S = 120.0
PATCH = 28
CARRYING = ("lift", "transport", "place")


def things(clip: Clip, data: ClipData, rows: list[dict[str, float | str]]) -> dict[str, str | None]:
    """What each hand carries, by its colour: the pixels beyond the fingers that go with them."""
    with np.load(clip.stages["c4-hands"] / HANDS) as file:
        joints, valid = file["joints"], file["valid"]
    said = clip.record("c3-trajectory", CAMERA)
    camera = Camera(*(said[name] for name in ("f", "cx", "cy", "width", "height", "k1")))
    seconds = (data.t_ns - data.t_ns[0]) * 1e-9
    wanted = np.zeros((len(seconds), 2), bool)
    for row in rows:
        if row["verb"] in CARRYING:
            side = SIDES.index(str(row["hand"]))
            wanted[(seconds >= float(row["t0"])) & (seconds <= float(row["t1"])), side] = True
    wanted &= valid
    patches: tuple[list[U8], list[U8]] = ([], [])
    skins: tuple[list[Bool], list[Bool]] = ([], [])
    if wanted.any():
        for number, picture in enumerate(data.pictures()):
            for side in np.flatnonzero(wanted[number]).tolist():
                tips = joints[number, side, [4, 8, 12, 16]]
                if tips[:, 2].min() < 0.05:
                    continue
                x, y = np.round(camera.project(tips).mean(0)).astype(int).tolist()
                half = PATCH // 2
                cut = picture[max(0, y - half) : y + half, max(0, x - half) : x + half]
                if cut.shape[:2] == (2 * half, 2 * half):
                    patches[side].append(cut)
                    skins[side].append(skin(cut))
    found: dict[str, str | None] = {}
    for side, hand in enumerate(SIDES):
        colour = carried_colour(patches[side], skins[side])
        found[hand] = f"{colour} object" if colour else None
    return found


def remote(clip: Clip, data: ClipData) -> Caption:
    """A vision model's caption, asked for at most twice. Raises CaptionError."""
    settings, seconds = clip.settings, (data.t_ns - data.t_ns[0]) * 1e-9
    step = max(1, round(len(seconds) / max(float(seconds[-1]) * 2, 1)))
    shots = [picture for number, picture in enumerate(data.pictures()) if number % step == 0]
    sheet, complaint = contact_sheet(shots), ""
    key = os.environ.get(str(settings.get("key_env", "HAVERSACK_CAPTIONER_KEY")))
    last = CaptionError("no answer")
    for _ in range(2):
        try:
            answer = ask(
                *(
                    str(settings["endpoint"]),
                    str(settings.get("model", "default")),
                    sheet,
                    float(seconds[-1]),
                ),
                key=key,
                timeout_s=float(settings.get("timeout_s", TIMEOUT_S)),
                complaint=complaint,
            )
            return checked(answer, seconds)
        except CaptionError as error:
            last, complaint = error, str(error)[:300]
    raise last


def run(clip: Clip, out: Path) -> Outcome:
    """Writes `caption.json`."""
    data = ClipData.read(clip.path, clip.manifest)
    seconds = (data.t_ns - data.t_ns[0]) * 1e-9
    rows = msgspec.json.decode((clip.stages["c5-actions"] / ACTIONS).read_bytes())
    author = "built-in"
    try:
        if "json" in clip.settings:
            author = "given"
            path = Path(str(clip.settings["json"]).format(clip=clip.manifest.clip_uuid))
            if not path.is_file():
                raise CaptionError(f"{path} is absent.", field="json")
            found = checked(path.read_bytes(), seconds)
        elif "endpoint" in clip.settings:
            author = "remote"
            found = remote(clip, data)
        else:
            found = checked(msgspec.json.encode(template(rows, things(clip, data, rows))), seconds)
    except CaptionError as error:
        return Outcome({"author": author, "error": str(error)[:300]}, "caption")
    (out / CAPTION).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    return Outcome({"author": author, "task": found.task, "actions": len(found.actions)})


STAGE = Stage("c6-captions", "1", run)
