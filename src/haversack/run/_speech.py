"""The speech engine: sound in, text out, on the layers of the language engine.

    with Speech.open("./whisper-tiny") as speech:
        print(speech.transcribe(read_sound("talk.wav")).text)

The encoder hears a window once; the keys and values that the decoder's blocks make of its states are kept
for all of the window's tokens, beside the cache of the tokens themselves.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from haversack.core.budget import Budget
from haversack.core.errors import UserError, not_allowed
from haversack.core.memory import MIB, MemoryPlan
from haversack.core.pack import TensorSource
from haversack.kernels import CacheLayer
from haversack.models._tokenizer import Tokenizer
from haversack.models.audio._record import RATE
from haversack.models.audio.log_mel import HOP, log_mel
from haversack.run._beams import beam_search
from haversack.run._cache import CACHE_TYPES, Cache
from haversack.run._encoder_weights import RESIDENCIES, load, planned_weights
from haversack.run._hear import ROWS, SpeechForward
from haversack.run._memory import BASE_MIB, predicted_tokenizer_nbytes
from haversack.run._speech_source import SpeechModel, open_speech
from haversack.run._times import allow

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
ACTIVATIONS = ("f32", "int8-dynamic")
WINDOW_S = 30.0
"""Sound that a model without a window of its own hears at once."""
FEWEST_TOKENS = 8
"""Tokens that may be written of the shortest sound."""


class Heard:
    """A window of sound as the decoder listens to it: keys and values of its states, and how long it is."""

    def __init__(self, listened: Sequence[CacheLayer | None], frames: int, seconds: float) -> None:
        self.listened = listened
        self.frames = frames
        self.seconds = seconds


class Speech:
    """A speech model that is ready; made by `Speech.open`. A context manager that gives the weights back."""

    def __init__(
        self, model: SpeechModel, residency: str, activations: str, cache_type: str, budget: Budget | None
    ) -> None:
        self.model = model
        self.architecture = model.architecture
        self.rules = model.rules
        self.residency = residency
        self.activations = activations
        self.cache_type = cache_type
        self.budget = budget
        self.forward = SpeechForward(model.architecture, activations=activations)
        self.weights: dict[str, Any] = {}
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str] | TensorSource | SpeechModel,
        *,
        residency: str | None = None,
        activations: str | None = None,
        cache_type: str | None = None,
        threads: int | None = None,
        budget: Budget | None = None,
        seconds: float = WINDOW_S,
        beams: int | None = None,
    ) -> Self:
        """Open `source` (a pack, a checkpoint folder, or what `open_speech` gave).

        `residency`: mapped or copied; copied also lays float matrices out for many rows (default: the pack's
        plan, else copied). `activations` and `cache_type` default to the pack's plan, else f32.
        `budget.ram_mib` is checked before weights are read, for sound of `seconds` and `beams`. Raises
        UserError for what cannot be opened or does not fit the budget.
        """
        model = open_speech(source)
        residency = residency or str(model.plan.get("residency") or "copied")
        if residency not in RESIDENCIES:
            raise not_allowed("residency", residency, RESIDENCIES)
        activations = activations or model.activations
        if activations not in ACTIVATIONS:
            raise not_allowed("activations", activations, ACTIVATIONS)
        cache_type = cache_type or str(model.plan.get("cache_type") or "f32")
        if cache_type not in CACHE_TYPES:
            raise not_allowed("cache_type", cache_type, CACHE_TYPES)
        if threads is not None:
            from haversack.kernels import set_threads

            set_threads(threads)
        speech = cls(model, residency, activations, cache_type, budget)
        if budget is not None and budget.ram_mib is not None:
            needed = speech.memory_plan(seconds, beams).total_mib
            budget.require({"ram_mib": needed}, f"running {model.path.name}")
        if model.pack is not None:
            model.pack.verify_once(keep_cached=residency == "mapped")
        speech.weights = load(model.source, model.architecture, residency)  # type: ignore[arg-type]
        return speech

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the weights back; the model cannot listen any more."""
        self.weights = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the weights, opened when first asked for."""
        if self._tokenizer is None:
            self._tokenizer = self.model.tokenizer()
        return self._tokenizer

    @property
    def plan(self) -> dict[str, Any]:
        """How it runs, as `run --json` prints it."""
        from haversack import kernels

        source, plan = self.model.source, self.model.plan
        kinds = sorted({source.tensors[linear.weight].kind for linear in self.architecture.matrices()})
        layouts = {self.weights[linear.weight].layout for linear in self.architecture.matrices()}
        return {
            "precision": str(plan.get("precision") or f"as stored ({', '.join(kinds)})"),
            "residency": self.residency,
            "layout": ", ".join(sorted(layouts)),
            "activations": self.activations,
            "cache_type": self.cache_type,
            "threads": kernels.threads(),
            "isa": kernels.isa(),
        }

    # memory

    @property
    def window(self) -> int:
        """Rows of input that the encoder hears at once: of a spectrogram, else samples."""
        return self.architecture.encoder.window or int(WINDOW_S * RATE)

    def memory_plan(self, seconds: float, beams: int | None = None) -> MemoryPlan:
        """What a run holds that hears sound of `seconds` and writes `beams` texts at a time."""
        one, beams = self.architecture, beams or self.rules.beams
        encoder, decoder = one.encoder, one.decoder
        samples = int(seconds * RATE)
        rows = self.window if encoder.bands else min(self.window, max(samples, 1))
        frames = encoder.frames(rows)
        # Samples as read, at 16 kHz, and with what is put around them; the spectrogram.
        sound = 4 * 3 * max(samples, self.window * HOP if encoder.bands else 0)
        if encoder.bands:
            sound += 4 * encoder.bands * max(samples // HOP, self.window)
        held, stem = rows, 0
        for convolution in encoder.stem:
            out = convolution.length(held)
            windows = min(ROWS, out) * convolution.matrix.inputs
            stem = max(stem, held * convolution.channels + out * convolution.matrix.outputs + windows)
            held = out
        inner = max((linear.outputs for block in one.blocks for linear in block.matrices()), default=0)
        # Hidden, normal, query, key, value, what was seen, and the cache of both.
        blocks = frames * (8 * one.width + inner)
        room = self.rules.room(1, decoder.context)
        tokens = decoder.context + (beams - 1) * room
        base = (
            ("program", int(BASE_MIB * MIB)),
            ("tokenizer", predicted_tokenizer_nbytes(one.vocabulary)),
        )
        weights = planned_weights(self.model.source, one, self.residency)  # type: ignore[arg-type]
        return MemoryPlan(
            (
                *base,
                *weights,
                ("sound", sound),
                ("encoder", 4 * max(stem, blocks)),
                (f"keys and values of {frames} states", one.cross_nbytes(frames, self.cache_type)),
                (f"KV cache, {tokens} tokens", decoder.cache_nbytes(tokens, self.cache_type)),
                ("decoder", 4 * beams * (4 * one.vocabulary + 8 * one.width + 2 * inner)),
            )
        )

    # sound to states

    def rows(self, samples: F32) -> F32:
        """`samples` f32 [n] at 16 kHz as the encoder takes them: a spectrogram f32 [n, bands] of at least a
        window, or f32 [n, 1]."""
        encoder = self.architecture.encoder
        if encoder.bands is None:
            return samples.reshape(-1, 1)
        return log_mel(samples, encoder.bands, self.window * HOP)

    def hear(self, rows: F32, seconds: float | None = None) -> Heard:
        """Listen to a window of `rows`; fewer than a fixed window has are followed by zeros.

        Raises UserError for sound too short to become a state, and for states that are not finite.
        """
        if not self.weights:
            raise UserError("the speech model was closed.", field="model")
        encoder = self.architecture.encoder
        if encoder.window is not None and len(rows) < encoder.window:
            rows = np.pad(rows, ((0, encoder.window - len(rows)), (0, 0)))
        if encoder.frames(len(rows)) < 1:
            raise UserError(
                f"the sound is too short: {len(rows)} samples become no state of this model.",
                field="audio",
                given=len(rows),
            )
        states = self.forward.states(np.ascontiguousarray(rows, np.float32), self.weights)
        if not np.isfinite(states).all():
            raise UserError(
                f"{self.model.path} gives states that are not finite; the checkpoint is damaged.",
                field="model",
                given=str(self.model.path),
            )
        if seconds is None:
            seconds = len(rows) * (HOP if encoder.bands else 1) / RATE
        return Heard(self.forward.listen(states, self.weights, self.cache_type), len(states), seconds)

    # states to text

    def cache(self, capacity: int) -> Cache:
        """An empty cache of `capacity` tokens."""
        return Cache(self.architecture.decoder, capacity, self.cache_type)

    def room(self, prompt: int, heard: Heard, most: int | None = None) -> int:
        """How many tokens may follow `prompt` of them: positions, generation_config.json, the sound's length
        and `most` bound it."""
        bounds = [self.rules.room(prompt, self.architecture.decoder.context)]
        rate = self.architecture.tokens_a_second
        if rate is not None:
            bounds.append(max(FEWEST_TOKENS, int(np.ceil(rate * heard.seconds))))
        if most is not None:
            bounds.append(most)
        return min(bounds)

    def language_of(self, heard: Heard) -> int:
        """The likeliest language's token."""
        logits = self.forward.write([self.rules.start], self.cache(1), heard.listened, self.weights)[0]
        known = np.fromiter(self.rules.languages.values(), np.int64)
        return int(known[logits[known].argmax()])

    def write(
        self,
        heard: Heard,
        prompt: Sequence[int],
        *,
        times: bool = False,
        beams: int | None = None,
        most: int | None = None,
    ) -> list[int]:
        """The tokens that follow `prompt`, greedily or as the best of `beams` texts, without the one that
        ends them. `most` bounds their number."""
        beams = beams or self.rules.beams
        room = self.room(len(prompt), heard, most)
        cache = self.cache(len(prompt) + room + (beams - 1) * room)
        logits = self.forward.write(prompt, cache, heard.listened, self.weights)[0]
        if beams == 1:
            return self._greedily(logits, cache, heard, room, times)
        tree = _Tree(self, cache, heard, beams)

        def permit(scores: F32, written: Sequence[int]) -> None:
            allow(scores, written, self.rules, times)

        return beam_search(
            logits,
            tree.step,
            permit,
            beams=beams,
            ends=self.rules.ends,
            room=room,
            length_penalty=self.rules.length_penalty,
            early_stopping=self.rules.early_stopping,
        )

    def _greedily(self, logits: F32, cache: Cache, heard: Heard, room: int, times: bool) -> list[int]:
        written: list[int] = []
        while True:
            allow(logits, written, self.rules, times)
            token = int(logits.argmax())
            if token in self.rules.ends:
                return written
            written.append(token)
            if len(written) >= room:
                return written
            logits = self.forward.write([token], cache, heard.listened, self.weights)[0]


class _Tree:
    """Texts written side by side in one cache: each sees the entries on its own path."""

    KEEP = 64
    """Entries that no text sees any more are dropped when there are so many new ones."""

    def __init__(self, speech: Speech, cache: Cache, heard: Heard, beams: int) -> None:
        self.speech, self.cache, self.heard, self.beams = speech, cache, heard, beams
        self.seen: Mask = np.ones((beams, cache.length), np.bool_)
        self.position = cache.length
        self.dropped_at = cache.length

    def step(self, parents: Sequence[int], tokens: Sequence[int]) -> F32:
        """Logits f32 [beams, vocabulary] after each text's next token; `parents`: the texts continued."""
        self.seen = self.seen[list(parents)]
        if self.cache.length - self.dropped_at >= self.KEEP:
            kept = np.flatnonzero(self.seen.any(axis=0)).astype(np.int32)
            self.cache.gather(kept)
            self.seen = np.ascontiguousarray(self.seen[:, kept])
            self.dropped_at = self.cache.length
        self.seen = np.concatenate([self.seen, np.eye(self.beams, dtype=np.bool_)], axis=1)
        positions = np.full(self.beams, self.position, np.int32)
        self.position += 1
        return self.speech.forward.write(
            list(tokens),
            self.cache,
            self.heard.listened,
            self.speech.weights,
            every=True,
            positions=positions,
            mask=self.seen,
        )
