"""Whisper (Radford et al., 2022): a log-mel spectrogram of 30 s, sinusoidal positions, pre-norm blocks.

Two convolutions of 3 frames, the second of stride 2, halve the frames; positions of the encoder are stored,
those of the decoder learned. Key products have no bias. The output matrix is the tokens' embedding.
Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision"; field names are the hub's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from haversack.models._architecture import (
    Architecture,
    Attention,
    Block,
    Branch,
    CrossAttention,
    FeedForward,
    Linear,
    Norm,
    Positions,
)
from haversack.models._config import Config, refuse_others
from haversack.models.audio._fields import ACTIVATIONS, heads_of
from haversack.models.audio._record import Convolution, Encoder, SpeechArchitecture

SYSTEM = 16
CLASSES = ("WhisperForConditionalGeneration", "WhisperModel")
EPS = 1e-5
TAPS = 3


def read(values: Mapping[str, Any]) -> SpeechArchitecture:
    """The architecture of a Whisper config. Raises UserError for a field that cannot be."""
    config = Config(values)
    refuse_others(config, CLASSES)
    config.only("scale_embedding", False)
    config.only("use_weighted_layer_sum", False)
    width = config.whole("d_model")
    activation = config.choice("activation_function", "gelu", ACTIVATIONS)
    frames = config.whole("max_source_positions", 1500, most=1 << 16)
    context = config.whole("max_target_positions", 448, most=1 << 16)
    vocabulary = config.whole("vocab_size")
    bands = config.whole("num_mel_bins", 80, most=1024)
    tied = config.flag("tie_word_embeddings", True)
    embedding = "model.decoder.embed_tokens.weight"
    listening = _Side(config, "encoder", width, activation)
    writing = _Side(config, "decoder", width, activation)
    encoder = Encoder(
        width=width,
        stem=(
            _convolution("model.encoder.conv1", bands, width, 1),
            _convolution("model.encoder.conv2", width, width, 2),
        ),
        blocks=tuple(listening.block(index) for index in range(config.whole("encoder_layers", most=4096))),
        norm=listening.norm("model.encoder.layer_norm"),
        bands=bands,
        positions=Positions("model.encoder.embed_positions.weight", frames),
        window=2 * frames,
    )
    decoder = Architecture(
        family="whisper",
        vocabulary=vocabulary,
        width=width,
        context=context,
        embedding=embedding,
        blocks=tuple(writing.block(index) for index in range(config.whole("decoder_layers", most=4096))),
        final_norm=writing.norm("model.decoder.layer_norm"),
        head=Linear(embedding if tied else "proj_out.weight", width, vocabulary),
        end_of_text=config.tokens("eos_token_id", vocabulary),
        positions=Positions("model.decoder.embed_positions.weight", context),
    )
    return SpeechArchitecture("whisper", encoder, decoder)


def _convolution(module: str, channels: int, width: int, stride: int) -> Convolution:
    matrix = Linear.named(module, channels * TAPS, width, True)
    return Convolution(matrix, channels, TAPS, stride, padding=1, activation="gelu")


class _Side:
    """The blocks of the encoder or of the decoder (`side`)."""

    def __init__(self, config: Config, side: str, width: int, activation: str) -> None:
        self.side, self.width, self.activation = side, width, activation
        self.heads = heads_of(config, f"{side}_attention_heads", "d_model", width)
        self.inner = config.whole(f"{side}_ffn_dim")

    def norm(self, module: str) -> Norm:
        """The layer norm `module`."""
        return Norm(f"{module}.weight", self.width, EPS, "layer", bias=f"{module}.bias")

    def block(self, index: int) -> Block:
        """Block number `index`."""
        at = f"model.{self.side}.layers.{index}"
        feed = FeedForward(
            width=self.inner,
            activation=self.activation,
            gate=None,
            up=Linear.named(f"{at}.fc1", self.width, self.inner, True),
            down=Linear.named(f"{at}.fc2", self.inner, self.width, True),
        )
        branches = [
            Branch(Attention(**self._attention(f"{at}.self_attn")), self.norm(f"{at}.self_attn_layer_norm"))
        ]
        if self.side == "decoder":
            cross = CrossAttention(**self._attention(f"{at}.encoder_attn"))
            branches.append(Branch(cross, self.norm(f"{at}.encoder_attn_layer_norm")))
        return Block(index, (*branches, Branch(feed, self.norm(f"{at}.final_layer_norm"))))

    def _attention(self, at: str) -> dict[str, Any]:
        width, head = self.width, self.width // self.heads
        return {
            "heads": self.heads,
            "key_value_heads": self.heads,
            "head_width": head,
            "scale": head**-0.5,
            "query": Linear.named(f"{at}.q_proj", width, width, True),
            "key": Linear.named(f"{at}.k_proj", width, width),
            "value": Linear.named(f"{at}.v_proj", width, width, True),
            "output": Linear.named(f"{at}.out_proj", width, width, True),
        }
