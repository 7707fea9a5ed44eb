"""Moonshine (Jeffries et al., 2024): samples in, no spectrogram and no fixed window; rotary positions.

Three convolutions (127 samples at stride 64, 7 at 3, 3 at 2) turn 16 kHz into about 41 states a second; a
norm over all of them follows the first. Blocks are pre-norm, their norms without bias; the first nine tenths
of each head turn, in neighbouring pairs. The encoder's feed-forward has biases and no gate, the decoder's a
SiLU gate, which checkpoints keep in one tensor with the values (values first).
Jeffries et al., "Moonshine: Speech Recognition for Live Transcription and Voice Commands"; the bound of 6.5
tokens a second is that of its authors' examples.
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
    Part,
    parts_of,
)
from haversack.models._config import Config, refuse_others
from haversack.models._rope import Rope
from haversack.models._rope_config import read_rope
from haversack.models.audio._fields import ACTIVATIONS, heads_of
from haversack.models.audio._record import Convolution, Encoder, SpeechArchitecture

SYSTEM = 16
CLASSES = ("MoonshineForConditionalGeneration", "MoonshineModel")
EPS = 1e-5
TOKENS_A_SECOND = 6.5
TURNING = 0.9


def read(values: Mapping[str, Any]) -> SpeechArchitecture:
    """The architecture of a Moonshine config. Raises UserError for a field that cannot be."""
    config = Config(values)
    refuse_others(config, CLASSES)
    width = config.whole("hidden_size", 288)
    heads = heads_of(config, "encoder_num_attention_heads", "hidden_size", width)
    # One attention class reads both sides' fields from one place, so that they cannot differ.
    for name in ("decoder_num_attention_heads", "encoder_num_key_value_heads", "decoder_num_key_value_heads"):
        config.only(name, heads)
    config.only("head_dim", width // heads)
    context = config.whole("max_position_embeddings", 512)
    vocabulary = config.whole("vocab_size", 32768)
    blocks = _Blocks(config, width, heads, context)
    embedding = "model.decoder.embed_tokens.weight"
    tied = config.flag("tie_word_embeddings", True)
    encoder = Encoder(
        width=width,
        stem=_stem(width),
        blocks=tuple(
            blocks.listening(index)
            for index in range(config.whole("encoder_num_hidden_layers", 6, most=4096))
        ),
        norm=blocks.norm("model.encoder.layer_norm"),
    )
    written = [blocks.writing(i) for i in range(config.whole("decoder_num_hidden_layers", 6, most=4096))]
    decoder = Architecture(
        family="moonshine",
        vocabulary=vocabulary,
        width=width,
        context=context,
        embedding=embedding,
        blocks=tuple(block for block, _ in written),
        final_norm=blocks.norm("model.decoder.norm"),
        head=Linear(embedding if tied else "proj_out.weight", width, vocabulary),
        end_of_text=config.tokens("eos_token_id", vocabulary),
    )
    parts = tuple(part for _, found in written for part in found)
    return SpeechArchitecture("moonshine", encoder, decoder, TOKENS_A_SECOND, parts)


def _stem(width: int) -> tuple[Convolution, ...]:
    at = "model.encoder"
    norm = (f"{at}.groupnorm.weight", f"{at}.groupnorm.bias", EPS)
    return (
        Convolution(Linear.named(f"{at}.conv1", 127, width), 1, 127, 64, 0, "tanh", norm),
        Convolution(Linear.named(f"{at}.conv2", 7 * width, 2 * width, True), width, 7, 3, 0, "gelu"),
        Convolution(Linear.named(f"{at}.conv3", 6 * width, width, True), 2 * width, 3, 2, 0, "gelu"),
    )


class _Blocks:
    """The blocks of both sides."""

    def __init__(self, config: Config, width: int, heads: int, context: int) -> None:
        self.width, self.heads = width, heads
        self.inner = config.whole("intermediate_size", 1152)
        self.bias = config.flag("attention_bias", False)
        self.listens = config.choice("encoder_hidden_act", "gelu", ACTIVATIONS)
        self.writes = config.choice("decoder_hidden_act", "silu", ACTIVATIONS)
        rope = read_rope(config, width // heads, context, partial=TURNING, scalings=("default",))
        self.rope = Rope(rope.width, rope.theta, style="interleaved")

    def norm(self, module: str) -> Norm:
        """The layer norm `module`, which has no bias."""
        return Norm(f"{module}.weight", self.width, EPS, "layer")

    def listening(self, index: int) -> Block:
        """The encoder's block number `index`."""
        at = f"model.encoder.layers.{index}"
        feed = FeedForward(
            width=self.inner,
            activation=self.listens,
            gate=None,
            up=Linear.named(f"{at}.mlp.fc1", self.width, self.inner, True),
            down=Linear.named(f"{at}.mlp.fc2", self.inner, self.width, True),
        )
        attention = Attention(**self._attention(f"{at}.self_attn"), rope=self.rope)
        return Block(
            index,
            (
                Branch(attention, self.norm(f"{at}.input_layernorm")),
                Branch(feed, self.norm(f"{at}.post_attention_layernorm")),
            ),
        )

    def writing(self, index: int) -> tuple[Block, tuple[Part, ...]]:
        """The decoder's block number `index`, and where a checkpoint keeps its gate."""
        at = f"model.decoder.layers.{index}"
        up = Linear.named(f"{at}.mlp.up_proj", self.width, self.inner, True)
        gate = Linear.named(f"{at}.mlp.gate_proj", self.width, self.inner, True)
        down = Linear.named(f"{at}.mlp.fc2", self.inner, self.width, True)
        attention = Attention(**self._attention(f"{at}.self_attn"), rope=self.rope)
        cross = CrossAttention(**self._attention(f"{at}.encoder_attn"))
        block = Block(
            index,
            (
                Branch(attention, self.norm(f"{at}.input_layernorm")),
                Branch(cross, self.norm(f"{at}.post_attention_layernorm")),
                Branch(
                    FeedForward(self.inner, self.writes, gate, up, down),
                    self.norm(f"{at}.final_layernorm"),
                ),
            ),
        )
        return block, parts_of(f"{at}.mlp.fc1", (up, gate))

    def _attention(self, at: str) -> dict[str, Any]:
        width, head = self.width, self.width // self.heads
        return {
            "heads": self.heads,
            "key_value_heads": self.heads,
            "head_width": head,
            "scale": head**-0.5,
            "query": Linear.named(f"{at}.q_proj", width, width, self.bias),
            "key": Linear.named(f"{at}.k_proj", width, width, self.bias),
            "value": Linear.named(f"{at}.v_proj", width, width, self.bias),
            "output": Linear.named(f"{at}.o_proj", width, width),
        }
