"""Signalled words: made recordings of a camera and a microphone whose truth is known exactly.

A word is three of four letters. The signaller says it within half a second (a formant synthesizer) and shows
it within a second (a mask over a photograph that takes a letter's shape, one after the other). Some words are
others backwards, so the order counts. Either sense is spoilt on its own: another voice and hiss, blur, faint
contrast, an occluding patch in the picture; so some recordings are easy to hear and some need the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

WORDS = ("aiu", "uia", "aui", "iua", "ami", "ima", "amu", "uma", "imu", "umi", "mai", "iam")
LETTERS = "aium"
SIDE, FRAMES = 32, 30
RATE, SAMPLES, MOMENTS = 8000, 4000, 100
NOISE_DB = (-5.0, 20.0)
HARD_DB = 5.0
"""Below it a recording counts as hard to hear."""
FORMANTS = {"a": (730.0, 1090.0), "i": (280.0, 2250.0), "u": (310.0, 870.0), "m": (250.0, 1250.0)}
LOUDNESS = {"a": 1.0, "i": 0.8, "u": 0.8, "m": 0.35}
SHAPES = {"a": (6.0, 8.0), "i": (9.5, 2.6), "u": (3.6, 4.2), "m": (8.0, 1.0)}
"""Half width and half height of the mask in pixels."""


@dataclass(frozen=True)
class Recordings:
    """Recordings [n]: `frames` u8 [n, 30, 32, 32], `sound` f32 [n, 4000], `labels` into WORDS, signal to
    noise of the sound in dB, and `sight` from 0 (spoilt) to 1 (clear). `shown` [n, 30, 4] and `said`
    [n, 100, 5] are the truth at each moment: the share of each of LETTERS, of what is said also of
    silence."""

    frames: U8
    sound: F32
    labels: NDArray[np.int64]
    noise_db: F64
    sight: F64
    shown: F32
    said: F32

    def __len__(self) -> int:
        return len(self.labels)


def make(count: int, seed: int, photos: U8) -> Recordings:
    """`count` recordings drawn by `seed` over crops of photos u8 [p, side, side], words in turns."""
    draw = np.random.default_rng([seed, 0x5169])
    labels = draw.permutation(np.arange(count) % len(WORDS))
    frames = np.empty((count, FRAMES, SIDE, SIDE), np.uint8)
    sound = np.empty((count, SAMPLES), np.float32)
    noise, sight = draw.uniform(*NOISE_DB, count), draw.random(count)
    shown = np.empty((count, FRAMES, len(LETTERS)), np.float32)
    said = np.empty((count, MOMENTS, len(LETTERS) + 1), np.float32)
    for at in range(count):
        word = WORDS[labels[at]]
        frames[at], shown[at] = _show(word, float(sight[at]), photos, draw)
        sound[at], said[at] = _say(word, float(noise[at]), draw)
    return Recordings(frames, sound, labels, noise, sight, shown, said)


def _course(word: str, at: F64, draw: np.random.Generator) -> F64:
    """The share of each of LETTERS [len(at), 4] at shares 0..1 of the word, with soft passages at drawn
    places."""
    ends = np.cumsum(1 + draw.uniform(-0.25, 0.25, 3))
    ends = ends[:2] / ends[2]
    soft = draw.uniform(0.03, 0.06)
    second, third = (1 / (1 + np.exp(-np.clip((at - end) / soft, -40, 40)[:, None])) for end in ends)
    one, two, three = (np.eye(len(LETTERS))[LETTERS.index(letter)] for letter in word)
    return np.asarray(one * (1 - second) + two * (second - third) + three * third)


def _show(word: str, sight: float, photos: U8, draw: np.random.Generator) -> tuple[U8, F64]:
    """Thirty frames of the mask, and the letters that they show."""
    size = photos.shape[1]
    photo = photos[draw.integers(len(photos))]
    zoom = int(draw.integers(1, size // SIDE // 2 + 1))
    top, left = draw.integers(0, size - zoom * SIDE + 1, 2)
    ground = photo[top : top + zoom * SIDE : zoom, left : left + zoom * SIDE : zoom].astype(np.float64) / 255
    at = (np.arange(FRAMES) + 0.5) / FRAMES
    onset = draw.uniform(-0.05, 0.1)
    letters = _course(word, np.clip((at - onset) / (0.97 - onset), 0, 1), draw)
    shape = letters @ np.array([SHAPES[letter] for letter in LETTERS])
    shape = shape * draw.uniform(0.8, 1.15) * (1 + 0.06 * draw.normal(size=(1, 2)))
    drift = np.cumsum(draw.normal(0, 0.35, (FRAMES, 2)), 0)
    centre = (SIDE - 1) / 2 + draw.uniform(-4, 4, 2) + drift - drift.mean(0)
    tilt = draw.uniform(-0.25, 0.25)
    grid = np.arange(SIDE)
    dy = grid[None, :, None] - centre[:, 0, None, None]
    dx = grid[None, None, :] - centre[:, 1, None, None]
    across, along = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx
    radius = np.sqrt((across / shape[:, 0, None, None]) ** 2 + (along / shape[:, 1, None, None]) ** 2)
    edge = np.minimum(shape[:, 0], shape[:, 1])[:, None, None]
    mask = np.clip(0.5 + (1 - radius) * edge, 0, 1)
    level = 0.05 if ground.mean() > 0.5 else 0.95
    share = 0.2 + 0.6 * sight
    made = ground + share * mask * (level - ground)
    blur = _blur(0.3 + 1.9 * (1 - sight) * draw.random())
    made = blur @ made @ blur.T
    if draw.random() < 0.6 * (1 - sight) + 0.1:  # something passes in front
        first = int(draw.integers(0, FRAMES - 5))
        last = first + int(draw.integers(5, 15))
        start = draw.integers(0, SIDE // 2, 2)
        made[first:last, start[0] : start[0] + SIDE // 2 + 4, start[1] : start[1] + SIDE // 2 + 4] = (
            draw.random()
        )
    made += draw.normal(0, 0.02 + 0.11 * (1 - sight), made.shape)
    return np.asarray(np.clip(np.rint(made * 255), 0, 255), np.uint8), letters


def _blur(sigma: float) -> F64:
    """A matrix [SIDE, SIDE] that blurs a column."""
    apart = np.arange(SIDE)[:, None] - np.arange(SIDE)[None, :]
    kernel = np.exp(-0.5 * (apart / sigma) ** 2)
    return np.asarray(kernel / kernel.sum(1, keepdims=True))


def _voice(word: str, draw: np.random.Generator) -> tuple[F64, F64]:
    """Half a second of one voice, harmonics of a gliding pitch under two moving formants; and the letters
    that it says [MOMENTS, 5]."""
    onset = draw.uniform(0.0, 0.08)
    length = draw.uniform(0.8, 0.98 - onset)
    at = (np.arange(SAMPLES) / SAMPLES - onset) / length
    inside = np.clip(np.minimum(at, 1 - at) / 0.04, 0, 1)
    coarse = np.linspace(0, 1, 101)  # formants are slow: a hundred places will do
    letters = _course(word, coarse, draw)
    course = letters @ np.array([(*FORMANTS[letter], LOUDNESS[letter]) for letter in LETTERS])
    tract = draw.uniform(0.82, 1.22)
    pitch = draw.uniform(95, 230) * (1 + draw.uniform(-0.12, 0.12) * (np.arange(SAMPLES) / SAMPLES - 0.5))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    number = np.arange(1, int(3600 / pitch.mean()) + 1)
    tone = pitch.mean() * number[:, None]
    envelope = np.zeros((len(number), len(coarse)))
    for formant, width, gain in ((0, 90.0, 1.0), (1, 130.0, 0.7)):
        envelope += gain / (1 + ((tone - tract * course[None, :, formant]) / width) ** 2)
    envelope *= course[None, :, 2] / np.sqrt(number)[:, None]
    place = np.clip(at, 0, 1) * (len(coarse) - 1)
    low = np.minimum(place.astype(np.int64), len(coarse) - 2)
    part = (place - low)[None, :]
    gains = envelope[:, low] * (1 - part) + envelope[:, low + 1] * part
    waves = np.sin(number[:, None] * phase + draw.uniform(0, 6.28, (len(number), 1)))
    moments = ((np.arange(MOMENTS) + 0.5) / MOMENTS - onset) / length
    loud = ((moments > 0) & (moments < 1))[:, None]
    said = letters[np.rint(np.clip(moments, 0, 1) * (len(coarse) - 1)).astype(np.int64)]
    return inside * (gains * waves).sum(0), np.concatenate([said * loud, 1 - loud], 1)


def _say(word: str, noise_db: float, draw: np.random.Generator) -> tuple[F32, F64]:
    """The word in half a second of sound, over another voice that says another word, and hiss."""
    voice, said = _voice(word, draw)
    other, _ = _voice(WORDS[draw.integers(len(WORDS))], draw)
    noise = other / other.std() + draw.uniform(0.2, 1.0) * draw.normal(size=SAMPLES)
    voice += noise * np.sqrt(np.mean(voice**2) / 10 ** (noise_db / 10) / np.mean(noise**2))
    sound = 0.3 * draw.uniform(0.3, 1.0) * voice / np.abs(voice).max()
    return np.asarray(sound, np.float32), said
