"""The encoder engine: texts in, hidden states, pooled outputs, head numbers or sentence vectors out.

    with Encoder.open("./all-MiniLM-L6-v2") as encoder:
        vectors = encoder.embed(["a text", "another"])          # f32 [2, width]

A text's numbers do not depend on the texts beside it nor on padding, to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from haversack.core.budget import Budget, BudgetError, Failure
from haversack.core.errors import UserError, not_allowed
from haversack.core.memory import MIB, MemoryPlan
from haversack.core.pack import TensorSource
from haversack.models._tokenizer import Tokenizer
from haversack.run._encode import ROWS, EncoderForward, Tokens, parts, positions_of
from haversack.run._encoder_source import EncoderModel, open_encoder
from haversack.run._encoder_weights import RESIDENCIES, load, planned_weights
from haversack.run._forms import check_activations
from haversack.run._memory import BASE_MIB, predicted_tokenizer_nbytes
from haversack.run._pooling import Pooling, normalized, pool
from haversack.run._weights import kinds_of

F32 = npt.NDArray[np.float32]
Text = str | tuple[str, str]
ACTIVATIONS = ("f32", "int8-dynamic")
WANTS = ("sequence", "pooled", "head")


@dataclass(frozen=True)
class Encoded:
    """What a batch gave: `texts` as tokens; of each text `sequence` f32 [n, width]; `pooled` f32 [texts,
    width]; `head` f32 [texts, classes] of a sequence head, else f32 [n, classes] for each text."""

    texts: list[Tokens]
    sequence: list[F32]
    pooled: F32 | None = None
    head: Any = None


class Encoder:
    """An encoder that is ready; made by `Encoder.open`. A context manager that gives the weights back."""

    def __init__(self, model: EncoderModel, residency: str, activations: str, budget: Budget | None) -> None:
        self.model = model
        self.architecture = model.architecture
        self.residency = residency
        self.activations = activations
        self.budget = budget
        self.pooling: Pooling = model.pooling
        self.forward = EncoderForward(model.architecture, activations=activations)
        self.weights: dict[str, Any] = {}
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str] | TensorSource | EncoderModel,
        *,
        residency: str | None = None,
        activations: str | None = None,
        threads: int | None = None,
        budget: Budget | None = None,
    ) -> Self:
        """Open `source` (a pack, a checkpoint folder, or what `open_encoder` gave).

        `residency`: mapped or copied; copied also lays float matrices out for batches (default: the pack's
        plan, else copied). `activations` (default: the pack's plan, else f32). `budget.ram_mib` is checked
        before weights are read. Raises UserError for what cannot be opened or does not fit the budget.
        """
        model = open_encoder(source)
        residency = residency or str(model.plan.get("residency") or "copied")
        if residency not in RESIDENCIES:
            raise not_allowed("residency", residency, RESIDENCIES)
        activations = activations or model.activations
        if activations not in ACTIVATIONS:
            raise not_allowed("activations", activations, ACTIVATIONS)
        check_activations(model.source, activations)
        if threads is not None:
            from haversack.kernels import set_threads

            set_threads(threads)
        encoder = cls(model, residency, activations, budget)
        encoder._require_memory()
        if model.pack is not None:
            model.pack.verify_once(keep_cached=residency == "mapped")
        encoder.weights = load(model.source, model.architecture, residency)
        return encoder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the weights back; the encoder cannot encode any more."""
        self.weights = {}

    @property
    def plan(self) -> dict[str, Any]:
        """How it runs, as `run --json` prints it."""
        from haversack import kernels

        source, plan = self.model.source, self.model.plan
        matrices = [linear.weight for linear in self.architecture.matrices()]
        kinds = kinds_of(source, matrices)
        layouts = {getattr(self.weights[name], "layout", "in parts") for name in matrices}
        return {
            "precision": str(plan.get("precision") or f"as stored ({', '.join(kinds)})"),
            "residency": self.residency,
            "layout": ", ".join(sorted(layouts)),
            "activations": self.activations,
            "pooling": "+".join(self.pooling.modes) + (", normalized" if self.pooling.normalize else ""),
            "threads": kernels.threads(),
            "isa": kernels.isa(),
        }

    def memory_plan(self, tokens: int | None = None) -> MemoryPlan:
        """What a run holds whose batches have `tokens` tokens (default: as many as pass at once)."""
        one = self.architecture
        rows = min(max(tokens or ROWS, 1), max(ROWS, one.context))
        widest = max((linear.outputs for block in one.blocks for linear in block.matrices()), default=0)
        buffers = 4 * rows * (9 * one.width + 2 * widest)
        if one.head is not None:
            buffers += 4 * (1 if one.head.kind == "masked-language" else rows) * one.head.output.outputs
        base = (
            ("program", int(BASE_MIB * MIB)),
            ("tokenizer", predicted_tokenizer_nbytes(one.vocabulary)),
        )
        return MemoryPlan(
            (*base, *planned_weights(self.model.source, one, self.residency), ("buffers", buffers))
        )

    def _require_memory(self) -> None:
        limit = None if self.budget is None else self.budget.ram_mib
        plan = self.memory_plan()
        if limit is not None and plan.total_mib > limit:
            raise BudgetError(
                [Failure("ram_mib", limit, float(np.ceil(plan.total_mib)), "MiB")], "running this encoder"
            )

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the weights, opened when first asked for."""
        if self._tokenizer is None:
            self._tokenizer = self.model.tokenizer()
        return self._tokenizer

    @property
    def longest(self) -> int:
        """The most tokens of a text: the positions, or fewer where the folder's files say so."""
        longest = self.pooling.longest
        return min(self.architecture.context, longest) if longest else self.architecture.context

    def tokens(self, texts: Sequence[Text], *, truncate: bool = False) -> list[Tokens]:
        """Texts (or pairs of texts) as tokens. Raises UserError for none, an empty one, or one longer than
        the positions unless `truncate` cuts it there."""
        if isinstance(texts, str) or not len(texts):
            raise UserError("give at least one text, in a list.", field="texts", given=len(texts))
        found = []
        for index, text in enumerate(texts):
            first, second = (text, None) if isinstance(text, str) else (text[0], text[1])
            if not isinstance(first, str) or not first.strip():
                raise UserError(f"text {index} is empty; give one that says something.", field="texts")
            limit = self.longest
            ids, types, whole = self.tokenizer.encode_types(first, second, limit if truncate else None)
            if len(ids) > limit:
                raise UserError(
                    f"text {index} has {whole} tokens and this model takes {limit}; shorten it, or give "
                    "--truncate to read its beginning only.",
                    field="texts",
                    given=whole,
                    nearest=limit,
                )
            found.append(self.checked(ids, types))
        return found

    def checked(self, ids: Any, types: Any = None, mask: Any = None, *, index: int = 0) -> Tokens:
        """One text of token numbers, as `encode_tokens` takes it. `mask` leaves out where it is 0.

        Raises UserError for token numbers or types outside the model's, and for too many tokens.
        """
        one = self.architecture
        given = np.ascontiguousarray(ids, np.int32).reshape(-1)
        kinds = np.zeros(len(given), np.int32) if types is None else np.ascontiguousarray(types, np.int32)
        positions = positions_of(one, given)
        if mask is not None:
            kept = np.asarray(mask).astype(np.bool_)
            given, kinds, positions = given[kept], kinds[kept], positions[kept]
        if len(given) == 0:
            raise UserError(f"text {index} has no tokens.", field="texts", given=0, nearest=1)
        for name, values, count in (("token", given, one.vocabulary), ("token type", kinds, one.type_count)):
            if len(values) != len(given) or int(values.min()) < 0 or int(values.max()) >= count:
                worst = int(values.max()) if len(values) and values.max() >= count else int(values.min())
                raise UserError(
                    f"text {index} has the {name} {worst}, the model knows 0 to {count - 1}.",
                    field="tokens",
                    given=worst,
                    nearest=count - 1,
                )
        if int(positions.max()) >= one.position_count:
            raise UserError(
                f"text {index} has {len(given)} tokens and the model positions for {one.context}.",
                field="tokens",
                given=len(given),
                nearest=one.context,
            )
        return Tokens(given, kinds, positions)

    def encode(
        self, texts: Sequence[Text], *, want: Sequence[str] = ("sequence",), truncate: bool = False
    ) -> Encoded:
        """Encode texts; `want` out of sequence, pooled, head says what beyond `sequence` is computed."""
        return self.encode_tokens(self.tokens(texts, truncate=truncate), want=want)

    def encode_ids(
        self, ids: Any, mask: Any = None, types: Any = None, *, want: Sequence[str] = ("sequence",)
    ) -> Encoded:
        """Encode padded batches as the reference takes them: `ids`, `mask`, `types` [texts, n]; padding (mask
        0) is left out, so that it changes nothing."""
        batch = np.asarray(ids)
        if batch.ndim != 2 or batch.size == 0:
            raise UserError("give token numbers [texts, n], at least one text.", field="ids")
        texts = [
            self.checked(
                row,
                None if types is None else np.asarray(types)[index],
                None if mask is None else np.asarray(mask)[index],
                index=index,
            )
            for index, row in enumerate(batch)
        ]
        return self.encode_tokens(texts, want=want)

    def encode_tokens(self, texts: Sequence[Tokens], *, want: Sequence[str] = ("sequence",)) -> Encoded:
        """Encode what `tokens` or `checked` gave."""
        self._check_wants(want)
        if not texts:
            raise UserError("give at least one text.", field="texts", given=0, nearest=1)
        sequence: list[F32] = []
        pooled: list[F32] = []
        head: list[F32] = []
        for part in parts([len(text) for text in texts]):
            chosen = list(texts[part])
            lengths = [len(text) for text in chosen]
            hidden = self.hidden(chosen)
            ends = np.cumsum(lengths)[:-1].tolist()
            sequence += np.split(hidden, ends)
            if "pooled" in want:
                pooled.append(self.forward.pooled(hidden, lengths, self.weights))
            if "head" in want:
                numbers = self.forward.head(hidden, lengths, self.weights)
                one = self.architecture.head
                head += [numbers] if one is not None and one.kind == "sequence" else np.split(numbers, ends)
        both: Any = head or None
        if head and self.architecture.head is not None and self.architecture.head.kind == "sequence":
            both = np.concatenate(head)
        return Encoded(list(texts), sequence, np.concatenate(pooled) if pooled else None, both)

    def hidden(self, texts: Sequence[Tokens]) -> F32:
        """Last hidden states f32 [all tokens, width]; texts follow one another.

        Raises UserError when they are not finite: weights hold NaN or overflow.
        """
        if not self.weights:
            raise UserError("the encoder was closed.", field="encoder")
        lengths = [len(text) for text in texts]
        states = self.forward.embed(texts, self.weights)
        for index in range(len(self.architecture.blocks)):
            self.forward.block(index, states, lengths, self.weights)
        if not np.isfinite(states).all():
            raise UserError(
                f"{self.model.path} gives hidden states that are not finite; the checkpoint is damaged.",
                field="model",
                given=str(self.model.path),
            )
        return states

    def embed(
        self,
        texts: Sequence[Text],
        *,
        pooling: Pooling | None = None,
        truncate: bool = False,
    ) -> F32:
        """One vector a text, f32 [texts, width], pooled as the folder says or as `pooling` does."""
        return self.embed_tokens(self.tokens(texts, truncate=truncate), pooling=pooling)

    def embed_tokens(self, texts: Sequence[Tokens], *, pooling: Pooling | None = None) -> F32:
        """`embed` for texts that are tokens already."""
        how = pooling or self.pooling
        # Texts of like length pass together; the order is put back at the end.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        out = np.empty((len(texts), how.width(self.architecture.width)), np.float32)
        for part in parts([len(texts[index]) for index in order]):
            chosen = order[part]
            hidden = self.hidden([texts[index] for index in chosen])
            at = 0
            for index in chosen:
                out[index] = pool(hidden[at : at + len(texts[index])], how.modes)
                at += len(texts[index])
        return normalized(out) if how.normalize else out

    def _check_wants(self, want: Sequence[str]) -> None:
        for name in want:
            if name not in WANTS:
                raise not_allowed("want", name, WANTS)
        if "pooled" in want and self.architecture.pooler is None:
            raise UserError(
                f"{self.model.path} has no pooler; take sequence instead.",
                field="want",
                given="pooled",
                nearest="sequence",
            )
        if "head" in want and self.architecture.head is None:
            raise UserError(
                f"{self.model.path} has no head; take sequence or pooled instead.",
                field="want",
                given="head",
                nearest="sequence",
            )
