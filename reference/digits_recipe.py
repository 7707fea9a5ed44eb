"""What `train_digits` trains on and how: shapes, log-mel, strings of digits drawn for each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor

from haversack.models._train_loop_torch import Schedule
from haversack.models.audio._spoken_digits import RATE, WORDS, Recording, joined
from haversack.models.audio.resample import resample

WINDOW_S = 5
FRAMES = 100 * WINDOW_S
END, START = "<|endoftext|>", "<|startoftranscript|>"
VOCABULARY = (*WORDS, END, START)
BLANK = len(WORDS)  # of the alignment loss
IGNORED = -100


@dataclass(frozen=True)
class Shape:
    """A Whisper: `layers` in the encoder and in the decoder, heads of 32."""

    width: int
    layers: int
    feed_forward: int

    def hub_config(self) -> WhisperConfig:
        token = VOCABULARY.index
        return WhisperConfig(
            vocab_size=len(VOCABULARY),
            num_mel_bins=80,
            d_model=self.width,
            encoder_layers=self.layers,
            decoder_layers=self.layers,
            encoder_attention_heads=self.width // 32,
            decoder_attention_heads=self.width // 32,
            encoder_ffn_dim=self.feed_forward,
            decoder_ffn_dim=self.feed_forward,
            max_source_positions=FRAMES // 2,
            max_target_positions=16,
            dropout=0.1,
            attention_dropout=0.0,
            activation_dropout=0.0,
            pad_token_id=token(END),
            bos_token_id=token(END),
            eos_token_id=token(END),
            decoder_start_token_id=token(START),
            suppress_tokens=None,
            begin_suppress_tokens=None,
            max_length=None,
        )


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on besides the recordings and the machine type."""

    shape: Shape
    schedule: Schedule
    rows: int = 32
    seed: int = 16
    average_half_life_steps: float = 40.0
    alignment_share: float = 0.3
    tenths: tuple[int, ...] = (9, 10, 11)
    grown_from: str | None = None


def feature_extractor() -> WhisperFeatureExtractor:
    """The front end of Whisper with a window of five seconds in place of thirty."""
    return WhisperFeatureExtractor(feature_size=80, sampling_rate=RATE, chunk_length=WINDOW_S)


class LogMel:
    """Whisper's log-mel features f32 [rows, 80, n] of samples f32 [rows, 160 n], many rows at once."""

    def __init__(self) -> None:
        extractor = feature_extractor()
        self.bands = torch.from_numpy(extractor.mel_filters).float()
        self.window = torch.hann_window(400)

    def __call__(self, samples: Tensor) -> Tensor:
        spectrum = torch.stft(samples, 400, 160, window=self.window, return_complex=True)
        power = spectrum[..., :-1].abs().square()
        bands = (self.bands.T @ power).clamp(min=1e-10).log10()
        loudest = bands.amax(dim=(1, 2), keepdim=True)
        return (bands.maximum(loudest - 8.0) + 4.0) / 4.0


class Batches:
    """What a step reads: strings drawn anew from the recordings, at other speeds, levels and places, with
    noise, and with stripes of time and pitch hidden. It depends on the seed and the step alone.
    """

    def __init__(self, recordings: Sequence[Recording], recipe: Recipe) -> None:
        self.recipe, self.log_mel = recipe, LogMel()
        self.speakers: dict[str, list[Recording]] = {}
        for one in recordings:
            if one.split == "train":
                self.speakers.setdefault(one.speaker, []).append(one)
        self.names = sorted(self.speakers)
        self.spoken: dict[tuple[str, int, int], numpy.ndarray[Any, Any]] = {}

    def recording(self, speaker: str, at: int, tenths: int) -> numpy.ndarray[Any, Any]:
        """The samples of a recording, as if spoken in so many tenths of its time."""
        key = (speaker, at, tenths)
        if key not in self.spoken:
            self.spoken[key] = resample(self.speakers[speaker][at].samples, 10, tenths)
        return self.spoken[key]

    def string(self, generator: numpy.random.Generator) -> tuple[numpy.ndarray[Any, Any], list[int]]:
        """Samples f32 [80,000] and the digits that are said in them."""
        length = RATE * WINDOW_S
        while True:
            speaker = self.names[int(generator.integers(len(self.names)))]
            own = self.speakers[speaker]
            drawn = [int(at) for at in generator.integers(len(own), size=int(generator.integers(2, 7)))]
            tenths = int(generator.choice(self.recipe.tenths))
            gaps = [float(gap) for gap in generator.uniform(50, 200, size=len(drawn) - 1)]
            whole = joined([self.recording(speaker, at, tenths) for at in drawn], gaps)
            if len(whole) <= length:
                break
        samples = numpy.zeros(length, numpy.float32)
        begin = int(generator.integers(min(1600, length - len(whole) + 1)))
        samples[begin : begin + len(whole)] = whole * float(generator.uniform(0.4, 1.0))
        if generator.random() < 0.5:
            level = numpy.sqrt(numpy.square(whole).mean()) * 10 ** -float(generator.uniform(1, 3))
            samples += (level * generator.standard_normal(length)).astype(numpy.float32)
        return samples, [own[at].digit for at in drawn]

    def rows(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of a step: features [rows, 80, 500], tokens read and tokens to say [rows, 7], digits [rows, 6]
        (the last two filled up with -100)."""
        generator = numpy.random.default_rng([self.recipe.seed, step])
        drawn = [self.string(generator) for _ in range(self.recipe.rows)]
        features = self.log_mel(torch.from_numpy(numpy.stack([samples for samples, _ in drawn])))
        for row in features:
            hidden = float(row.mean())
            for axis, size, widest in ((1, FRAMES, 16), (1, FRAMES, 16), (0, 80, 10), (0, 80, 10)):
                width = int(generator.integers(widest))
                begin = int(generator.integers(size - width))
                row.narrow(axis, begin, width).fill_(hidden)
        start, end = VOCABULARY.index(START), VOCABULARY.index(END)
        read = torch.full((len(drawn), 7), end)
        said, digits = torch.full((len(drawn), 7), IGNORED), torch.full((len(drawn), 6), IGNORED)
        for row, (_, spoken) in enumerate(drawn):
            line = torch.tensor([start, *spoken, end])
            read[row, : len(line) - 1], said[row, : len(line) - 1] = line[:-1], line[1:]
            digits[row, : len(spoken)] = torch.tensor(spoken)
        return features, read, said, digits
