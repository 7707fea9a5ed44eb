"""Captions: the record and its checks, the built-in author, and any OpenAI-compatible vision model.

A caption is {task, objects, actions [{t0, t1, hand, verb, object, text, conf}], paraphrases}. `checked`
refuses what is none: times outside the clip, out of order or off its frames, verbs outside the vocabulary,
actions of one hand that overlap. The built-in author needs no network: verbs from C5, objects by the colour
of what a hand carries. The remote one sees a contact sheet (2 pictures a second, at most 60, five columns)
and must answer with JSON alone.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from haversack.collect._extra import need
from haversack.collect.stages.c5_actions import VERBS
from haversack.core.errors import UserError

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]
TEXT_MOST, ACTIONS_MOST, PARAPHRASES = 300, 400, 10
COLUMNS, SHEET_MOST, TILE = 5, 60, 256
HUES = (
    *((15, "red"), (40, "orange"), (70, "yellow"), (165, "green"), (200, "cyan"), (255, "blue")),
    *((315, "purple"), (345, "pink"), (361, "red")),
)


class Action(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a hand (left, right, both) does from t0 to t1, seconds from the first frame."""

    t0: float
    t1: float
    hand: str
    verb: str
    object: str = ""
    text: str = ""
    conf: float = 1.0


class Caption(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A clip in words."""

    task: str
    objects: list[str]
    actions: list[Action]
    paraphrases: list[str] = []


class CaptionError(UserError):
    """A caption that does not hold, or that never came."""


def checked(data: bytes | str, frame_s: F64) -> Caption:
    """The caption in `data` (JSON, perhaps in a code fence), its times on the nearest frames of `frame_s`
    [n]. Raises CaptionError."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    if len(text) > 200_000:
        raise CaptionError("the caption is longer than 200,000 characters.", field="caption")
    begin, end = text.find("{"), text.rfind("}")
    if begin < 0 or end < begin:
        raise CaptionError("the caption holds no JSON object.", field="caption", given=text[:80])
    try:
        found = msgspec.json.decode(text[begin : end + 1].encode(), type=Caption)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CaptionError(f"the caption does not hold: {error}.", field="caption") from error
    texts = [found.task, *found.objects, *found.paraphrases, *(each.text for each in found.actions)]
    if not found.task.strip() or len(found.actions) > ACTIONS_MOST or len(texts) > 4 * ACTIONS_MOST:
        raise CaptionError("the caption names no task, or too many actions.", field="caption")
    if any(len(each) > TEXT_MOST or not each.isprintable() for each in texts):
        raise CaptionError(f"a text is longer than {TEXT_MOST} characters or not printable.", field="caption")
    found.actions = [_action(each, frame_s) for each in found.actions]
    ends: dict[str, float] = {}
    for each in sorted(found.actions, key=lambda action: action.t0):
        for hand in ("left", "right") if each.hand == "both" else (each.hand,):
            if each.t0 < ends.get(hand, 0.0) - 1e-6:
                raise CaptionError(f"actions of the {hand} hand overlap at {each.t0:.2f} s.", field="actions")
            ends[hand] = each.t1
    if [each.t0 for each in found.actions] != sorted(each.t0 for each in found.actions):
        raise CaptionError("actions are not in the order of their times.", field="actions")
    return found


def _action(each: Action, frame_s: F64) -> Action:
    period = float(np.median(np.diff(frame_s))) if len(frame_s) > 1 else 1.0
    if each.verb not in VERBS:
        raise CaptionError(
            f"verb {each.verb[:40]!r} is not known (allowed {', '.join(VERBS)}).", field="verb"
        )
    if each.hand not in ("left", "right", "both"):
        raise CaptionError(f"hand {each.hand[:40]!r} is not left, right or both.", field="hand")
    if not 0 <= each.conf <= 1 or not each.t0 < each.t1:
        raise CaptionError(f"an action has t0={each.t0}, t1={each.t1}, conf={each.conf}.", field="actions")
    made = []
    for t in (each.t0, each.t1):
        near = float(frame_s[int(np.abs(frame_s - t).argmin())])
        if abs(near - t) > period:
            raise CaptionError(f"{t:.2f} s is not within the clip of {frame_s[-1]:.2f} s.", field="actions")
        made.append(near)
    if made[0] >= made[1]:
        raise CaptionError(f"an action at {each.t0:.2f} s is shorter than a frame.", field="actions")
    each.t0, each.t1 = made
    return each


# ---- the built-in author


def colour_name(rgb: F64) -> str:
    """A colour in a word."""
    high, low = float(rgb.max()), float(rgb.min())
    if high - low < 22 or high < 45:
        return "black" if high < 60 else "white" if low > 185 else "grey"
    r, g, b = (float(value) for value in rgb)
    if high == r:
        hue = 60 * ((g - b) / (high - low)) % 360
    else:
        hue = 60 * ((b - r) / (high - low) + 2) if high == g else 60 * ((r - g) / (high - low) + 4)
    return next(name for below, name in HUES if hue < below)


def carried_colour(patches: Sequence[U8], skins: Sequence[npt.NDArray[np.bool_]]) -> str | None:
    """The colour of what stays the same in patches [k, k, 3] that go with a hand; None where nothing does."""
    if len(patches) < 3:
        return None
    stack = np.stack(patches).astype(np.float64)
    still = stack.std(0).mean(2)
    free = np.stack(skins).mean(0) < 0.15
    if not free.any():
        return None
    calm = free & (still <= np.quantile(still[free], 0.25)) & (still < 35)
    if calm.sum() < 12:
        return None
    return colour_name(np.median(stack.mean(0)[calm], axis=0))


def sentence(hand: str, verb: str, thing: str) -> str:
    """<hand> hand <verb>s the <object>."""
    third = verb + ("es" if verb.endswith(("s", "sh", "ch")) else "s")
    if verb in ("idle", "hold") and not thing:
        return f"{hand} hand {'rests' if verb == 'idle' else 'holds still'}"
    return f"{hand} hand {third} {'for ' if verb == 'reach' else ''}the {thing}"


def template(rows: Sequence[Mapping[str, Any]], things: Mapping[str, str | None]) -> Caption:
    """The built-in caption of C5's rows; `things`: hand -> what it carries."""
    actions, said = [], []
    for row in rows:
        thing = things.get(row["hand"]) or "object"
        thing = thing if row["verb"] not in ("idle",) else ""
        actions.append(
            Action(
                **{key: row[key] for key in ("t0", "t1", "hand", "verb", "conf")},
                object=thing,
                text=sentence(row["hand"], row["verb"], thing),
            )
        )
    for hand in ("left", "right"):
        verbs = {row["verb"] for row in rows if row["hand"] == hand}
        thing = things.get(hand) or "object"
        if {"place", "transport"} & verbs:
            said.append(f"move the {thing} with the {hand} hand")
        elif verbs & {"wipe", "pour", "lift", "grasp"}:
            verb = next(verb for verb in ("wipe", "pour", "lift", "grasp") if verb in verbs)
            said.append(f"{verb} the {thing} with the {hand} hand")
    task = " and ".join(said) or "use the hands"
    objects = sorted({each.object for each in actions if each.object})
    return Caption(task=task, objects=objects, actions=actions, paraphrases=paraphrases(task))


def paraphrases(task: str) -> list[str]:
    """Ten ways to say it, by rule."""
    forms = ("{}", "please {}", "{}, please", "now {}", "you should {}", "the task is to {}", "try to {}")
    more = ("your job: {}", "go ahead and {}", "i want you to {}")
    return [form.format(task)[:TEXT_MOST] for form in (*forms, *more)][:PARAPHRASES]


# ---- a vision model


def contact_sheet(pictures: Sequence[U8]) -> bytes:
    """Tiles in five columns as a JPEG."""
    step = max(1, -(-pictures[0].shape[1] // TILE))
    tiles = [picture[::step, ::step] for picture in pictures[:SHEET_MOST]]
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.zeros((rows * height, COLUMNS * width, 3), np.uint8)
    for at, tile in enumerate(tiles):
        y, x = at // COLUMNS * height, at % COLUMNS * width
        sheet[y : y + height, x : x + width] = tile
    return jpeg(sheet)


def jpeg(picture: U8) -> bytes:
    """An RGB picture as JPEG."""
    av = need("av")
    height, width = (side // 2 * 2 for side in picture.shape[:2])
    target = io.BytesIO()
    with av.open(target, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        stream.options = {"qscale": "4"}
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


PROMPT = (
    "The picture shows frames of a first-person video, 2 a second, in rows of five, {seconds:.1f} s in all. "
    "Describe for yourself what the hands do, then answer with one JSON object and nothing else: "
    '{{"task": str, "objects": [str], "actions": [{{"t0": seconds, "t1": seconds, "hand": '
    '"left|right|both", "verb": str, "object": str, "text": str, "conf": 0..1}}], "paraphrases": '
    "[ten rewordings of the task]}}. At most 8 actions, in the order of t0, none of one hand overlapping; "
    "verbs only from: {verbs}."
)


def ask(
    endpoint: str,
    model: str,
    sheet: bytes,
    seconds: float,
    *,
    key: str | None,
    timeout_s: float,
    complaint: str = "",
) -> str:
    """What a model answers at ENDPOINT/chat/completions. Raises CaptionError when it does not."""
    httpx = need("httpx")
    said = PROMPT.format(seconds=seconds, verbs=", ".join(VERBS))
    if complaint:
        said += f" Your last answer was refused: {complaint} Mend it."
    picture = "data:image/jpeg;base64," + base64.b64encode(sheet).decode()
    content = [{"type": "text", "text": said}, {"type": "image_url", "image_url": {"url": picture}}]
    body = {
        **{"model": model, "messages": [{"role": "user", "content": content}]},
        **{"temperature": 0.2, "max_tokens": 1500},
    }
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.post(
            f"{endpoint.rstrip('/')}/chat/completions", json=body, headers=headers, timeout=timeout_s
        )
        answer.raise_for_status()
        found = answer.json()["choices"][0]["message"]["content"]
    except (httpx.HTTPError, json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        what = " ".join(str(error).split())[:160] or type(error).__name__
        raise CaptionError(
            f"the captioner at {endpoint} gave no answer ({what}).", field="endpoint"
        ) from error
    if not isinstance(found, str):
        raise CaptionError(f"the captioner at {endpoint} answered with no text.", field="endpoint")
    return found
