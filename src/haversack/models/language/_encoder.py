"""The encoder that BERT, RoBERTa and XLM-R share: tokens see one another both ways, norms come after sums.

    hidden = norm(words[token] + positions[position] + types[type])
    hidden = norm(hidden + attention(hidden));  hidden = norm(hidden + down(activation(up(hidden))))

A head reads every token (token classes, masked words) or the first (pooled output, class of the sequence). A
family's file says which names its tensors bear, where positions begin and how its heads are built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from haversack.core.errors import UserError
from haversack.models._architecture import Attention, Block, Branch, FeedForward, Linear, Norm
from haversack.models._config import Config

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
HEADS = ("masked-language", "sequence", "token")
PROBLEMS = {
    "single_label_classification": "one",
    "multi_label_classification": "many",
    "regression": "regression",
}
OUTPUTS = {
    "Model": None,
    "ForMaskedLM": "masked-language",
    "ForPreTraining": "masked-language",
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
}
"""End of the class that config.json names -> kind of its head."""


@dataclass(frozen=True)
class Head:
    """output(norm(activation(dense(x)))), each part optional but the last; `kind` says what x is.

    masked-language, token: every token. sequence: the first. `problem`: how the numbers of a sequence head
    are read: one (of several classes), many (each by itself) or regression.
    """

    kind: str
    output: Linear
    dense: Linear | None = None
    activation: str | None = None
    norm: Norm | None = None
    problem: str = "one"

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(tensor name, shape) of each tensor."""
        for part in (self.dense, self.norm, self.output):
            if part is not None:
                yield from part.tensors()


@dataclass(frozen=True)
class EncoderArchitecture:
    """An encoder: three embeddings and their norm, blocks, a pooler and a head where there are any.

    `embedding` names the words' matrix [vocabulary, width], `positions` and `types` those of `position_count`
    positions and `type_count` token types. The first token of a text stands at row `first_position`.
    `skips_padding`: tokens equal to `padding` take no position of their own but row `padding`.
    """

    family: str
    vocabulary: int
    width: int
    embedding: str
    positions: str
    position_count: int
    types: str
    type_count: int
    embedding_norm: Norm
    blocks: tuple[Block, ...]
    pooler: Linear | None
    head: Head | None
    labels: tuple[str, ...] = ()
    first_position: int = 0
    padding: int = 0
    skips_padding: bool = False
    prefix: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Tensor name -> the name that takes its place where a checkpoint lacks it."""

    @property
    def context(self) -> int:
        """The most tokens of a text, those that the tokenizer puts around it included."""
        return self.position_count - self.first_position

    @property
    def tied(self) -> bool:
        """True when a masked-language head multiplies with the words' embedding."""
        return self.head is not None and self.head.output.weight == self.embedding

    def top_tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of what lies outside the blocks."""
        found: dict[str, tuple[int, ...]] = {
            self.embedding: (self.vocabulary, self.width),
            self.positions: (self.position_count, self.width),
            self.types: (self.type_count, self.width),
        }
        found.update(self.embedding_norm.tensors())
        if self.pooler is not None:
            found.update(self.pooler.tensors())
        if self.head is not None:
            found.update(self.head.tensors())
        return found

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape of the whole model, in order of first use."""
        top = self.top_tensors()
        first = (self.embedding, self.positions, self.types, *dict(self.embedding_norm.tensors()))
        found = {name: top.pop(name) for name in first}
        for block in self.blocks:
            found.update(block.tensors())
        return found | top

    def matrices(self) -> tuple[Linear, ...]:
        """Every matrix that multiplies, in order of use, each once."""
        found = [linear for block in self.blocks for linear in block.matrices()]
        head = (self.head.dense, self.head.output) if self.head is not None else ()
        found += [linear for linear in (self.pooler, *head) if linear is not None]
        return tuple({linear.weight: linear for linear in found}.values())

    def without_pooler(self) -> EncoderArchitecture:
        """The same for a checkpoint that has no pooler."""
        return replace(self, pooler=None)


@dataclass(frozen=True)
class Family:
    """What a family's file says: its name, where its tensors' names begin (`prefix`), where positions
    begin."""

    name: str
    classes: str
    prefix: str
    padding: int
    skips_padding: bool


def read_encoder(family: Family, values: Mapping[str, Any], heads: Any) -> EncoderArchitecture:
    """The architecture of a config; `heads(config, kind, prefix, width, names)` gives (pooler, head) of the
    family.

    Raises UserError for a field that cannot be, and for encoders that compute something else.
    """
    config = Config(values)
    _refuse_others(config)
    width = config.whole("hidden_size")
    count = config.whole("num_attention_heads", most=65536)
    if width % count:
        near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - count))
        raise config.wrong("num_attention_heads", f"does not divide hidden_size={width}", near)
    vocabulary = config.whole("vocab_size")
    eps = config.number("layer_norm_eps", 1e-12, above=False)
    padding = config.whole("pad_token_id", family.padding, least=0, most=max(vocabulary - 1, 0))
    kind = head_kind(config, family)
    prefix = "" if kind is None else f"{family.prefix}."
    positions = config.whole("max_position_embeddings")
    first = padding + 1 if family.skips_padding else 0
    if positions <= first:
        raise config.wrong("max_position_embeddings", f"leaves no position from row {first} on", first + 512)
    names = Names(prefix, width, config.whole("intermediate_size"), count, eps)
    activation = config.choice("hidden_act", "gelu", ACTIVATIONS)
    layers = config.whole("num_hidden_layers", most=4096)
    labels = read_labels(config) if kind in ("sequence", "token") else ()
    tied = config.flag("tie_word_embeddings", True)
    request = HeadRequest(config, kind, prefix, width, vocabulary, eps, activation, len(labels), tied)
    pooler, head, aliases = heads(request)
    return EncoderArchitecture(
        family=family.name,
        vocabulary=vocabulary,
        width=width,
        embedding=request.embedding,
        positions=f"{prefix}embeddings.position_embeddings.weight",
        position_count=positions,
        types=f"{prefix}embeddings.token_type_embeddings.weight",
        type_count=config.whole("type_vocab_size", 2),
        embedding_norm=names.norm("embeddings.LayerNorm"),
        blocks=tuple(names.block(index, activation) for index in range(layers)),
        pooler=pooler,
        head=head,
        labels=labels,
        first_position=first,
        padding=padding,
        skips_padding=family.skips_padding,
        prefix=f"{family.prefix}.",
        aliases=aliases,
    )


def _refuse_others(config: Config) -> None:
    """Fields whose values change the arithmetic in ways that are not computed here."""
    if config.has("quantization_config"):
        raise UserError(
            "config.json: quantization_config says that the weights are quantized in a format that is not "
            "read; give the unquantized checkpoint and let `haversack pack` quantize it.",
            field="quantization_config",
        )
    config.choice("position_embedding_type", "absolute", {"absolute": "absolute"})
    for name in ("is_decoder", "add_cross_attention"):
        if config.flag(name, False):
            raise config.wrong(name, "makes a decoder of it, which is not supported (allowed false)", False)


def head_kind(config: Config, family: Family) -> str | None:
    """The kind of head that `architectures` names, None for a bare model or when it names none."""
    listed = config.values.get("architectures")
    if not listed:
        return None
    name = listed[0] if isinstance(listed, list) else listed
    known = {f"{family.classes}{end}": kind for end, kind in OUTPUTS.items()}
    if family.name != "bert":
        known.pop(f"{family.classes}ForPreTraining")
    if not isinstance(name, str) or name not in known:
        from haversack.core.errors import unknown_name

        raise unknown_name("config.json: architectures", str(name)[:80], known, field="architectures")
    return known[name]


def read_labels(config: Config) -> tuple[str, ...]:
    """The names of a head's classes from `id2label`, else LABEL_0 and so on, `num_labels` of them."""
    table = config.table("id2label")
    if table is None:
        return tuple(f"LABEL_{index}" for index in range(config.whole("num_labels", 2, most=1 << 20)))
    found = {}
    for key, label in table.values.items():
        if not str(key).isdigit() or not isinstance(label, str):
            raise config.wrong("id2label", "is no table from class numbers to names")
        found[int(key)] = label
    if sorted(found) != list(range(len(found))):
        raise config.wrong("id2label", f"does not name the classes 0 to {len(found) - 1}")
    return tuple(found[index] for index in range(len(found)))


@dataclass(frozen=True)
class Names:
    """Tensor names and sizes of the blocks, as all three families have them."""

    prefix: str
    width: int
    feed_forward: int
    heads: int
    eps: float

    def norm(self, module: str) -> Norm:
        """The layer norm `module`."""
        name = f"{self.prefix}{module}"
        return Norm(f"{name}.weight", self.width, self.eps, "layer", bias=f"{name}.bias")

    def block(self, index: int, activation: str) -> Block:
        """Block number `index`."""
        at, width = f"{self.prefix}encoder.layer.{index}", self.width
        module = f"encoder.layer.{index}"
        head = width // self.heads
        attention = Attention(
            heads=self.heads,
            key_value_heads=self.heads,
            head_width=head,
            scale=head**-0.5,
            query=Linear.named(f"{at}.attention.self.query", width, width, True),
            key=Linear.named(f"{at}.attention.self.key", width, width, True),
            value=Linear.named(f"{at}.attention.self.value", width, width, True),
            output=Linear.named(f"{at}.attention.output.dense", width, width, True),
        )
        feed = FeedForward(
            width=self.feed_forward,
            activation=activation,
            gate=None,
            up=Linear.named(f"{at}.intermediate.dense", width, self.feed_forward, True),
            down=Linear.named(f"{at}.output.dense", self.feed_forward, width, True),
        )
        return Block(
            index,
            (
                Branch(attention, after_norm=self.norm(f"{module}.attention.output.LayerNorm")),
                Branch(feed, after_norm=self.norm(f"{module}.output.LayerNorm")),
            ),
        )


@dataclass(frozen=True)
class HeadRequest:
    """What a family needs to build its pooler and head. `kind` None asks for the bare model."""

    config: Config
    kind: str | None
    prefix: str
    width: int
    vocabulary: int
    eps: float
    activation: str
    classes: int
    tied: bool

    @property
    def embedding(self) -> str:
        """The words' matrix."""
        return f"{self.prefix}embeddings.word_embeddings.weight"

    @property
    def pooler(self) -> Linear:
        """The pooler's matrix."""
        return Linear.named(f"{self.prefix}pooler.dense", self.width, self.width, True)

    @property
    def problem(self) -> str:
        """How the numbers of a sequence head are read."""
        if self.config.has("problem_type"):
            return self.config.choice("problem_type", None, PROBLEMS)
        return "many" if self.classes == 1 else "one"

    def words(self, module: str, weight: str, bias: str, norm: str) -> tuple[Head, dict[str, str]]:
        """A masked-language head: `module` is its dense layer, `weight` and `bias` those of the output.

        An untied output has a bias of its own beside the weight; tied checkpoints may hold either or both.
        """
        beside = weight.removesuffix("weight") + "bias"
        bias, other = (bias, beside) if self.tied else (beside, bias)
        output = Linear(self.embedding if self.tied else weight, self.width, self.vocabulary, bias)
        return (
            Head(
                "masked-language",
                output,
                Linear.named(module, self.width, self.width, True),
                self.activation,
                Norm(f"{norm}.weight", self.width, self.eps, "layer", bias=f"{norm}.bias"),
            ),
            {bias: other},
        )

    def tokens(self) -> Head:
        """One matrix over every token."""
        return Head("token", Linear.named("classifier", self.width, self.classes, True))
