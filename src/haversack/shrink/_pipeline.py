"""Compressing a language model block by block: calibrate, compress, write, drop.

Calibration text runs through the blocks already compressed, so that each block is fitted to the inputs it
will really get. Inside a block the same holds: matrices that share an input (query, key and value; gate and
up) are compressed together, in order of use, and the pass that collects the next input's statistics runs
through them as compressed and stops where that input is reached. At any time one block, one Hessian and the
hidden states of the text are in memory. Before a block is compressed a method may fold scales into it (its
`transform`, see shrink/_block.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from haversack.core.budget import BudgetError, Failure
from haversack.core.errors import UserError, not_allowed
from haversack.core.memory import MemoryPlan, give_back_freed
from haversack.core.pack import PackWriter, TensorSource
from haversack.core.progress import Progress
from haversack.kernels import Matrix
from haversack.kernels._matrix import LAYOUTS
from haversack.models._experts import identity
from haversack.run._forms import bound
from haversack.shrink._activations import IN_MEMORY_MIB, Activations
from haversack.shrink._block import BlockView
from haversack.shrink._experts import ExpertInputs
from haversack.shrink._precision import (
    Compressed,
    Formed,
    Gathering,
    InputStatistics,
    Precision,
    Stored,
    StoredKind,
    calibrated,
    fitted_to,
    refused_by,
    statistics_nbytes,
    stores_matrices,
)
from haversack.shrink._reconstruction import BLOCK, SETS, Writing, learning_lines, reconstruct_blocks
from haversack.shrink._rounding import F32
from haversack.shrink._source import read_rows, read_tensor
from haversack.shrink._transforms import Pair

I32 = NDArray[np.int32]
Tap = Callable[[str, F32], None]
Weights = dict[str, Any]  # matrices as kernels.Matrix, vectors as f32 arrays

FEWEST_OUTPUT_BITS = 6
LISTED = 3  # matrices that a refusal names
PROCESS_MIB = 200  # interpreter, libraries, tokenizer and the buffers of a forward pass


class Walk(Protocol):
    """A model as compression sees it; shrink/_language.py makes one from an architecture.

    `first` are the tensors before the blocks, `embedding` among them; `last` those between the blocks and
    the output matrix `output`.
    """

    blocks: int
    width: int
    embedding: str
    output: str
    first: tuple[str, ...]
    last: tuple[str, ...]

    def names(self, block: int) -> Sequence[str]:
        """The tensors of `block` in order of use."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""

    def products(self, block: int) -> Sequence[tuple[str, ...]]:
        """The matrices of `block` in order of use, those that multiply the same input together."""

    def is_matrix(self, name: str) -> bool:
        """True for what multiplies activations, False for norms and biases."""

    def embed(self, tokens: I32, weights: Mapping[str, Any]) -> F32:
        """Hidden states f32 [n, width] of `tokens` [n]; `weights` are those of `first`."""

    def run(self, block: int, hidden: F32, weights: Mapping[str, Any], tap: Tap | None) -> F32:
        """Hidden states f32 [n, width] after `block`; `tap` sees every matrix product's name and input."""

    def pairs(self, block: int) -> Sequence[Pair]:
        """Producers and consumers between which scales of channels may be folded, in order of use."""

    def inspect(self, block: int, pair: Pair, x: F32, weights: Mapping[str, Any]) -> F32:
        """What the layers that hold the consumers of a norm `pair` make of x f32 [n, columns], a text of its
        own, before it is added to the hidden states: f32 [n, width]."""


@dataclass(frozen=True)
class Policy:
    """What is not left to the precision method.

    `output`: kind of the output matrix, "as-blocks" or a kind; in "int8" (the default) it has 8 bits where
    the method gives fewer than 6, since every error in it is an error in the answer. `embedding`: kind of an
    embedding that is not also the output matrix. `kept`: float kind of matrices that the method cannot take;
    None refuses a model that has any.
    """

    output: str = "int8"
    embedding: str = "f16"
    kept: str | None = None

    def __post_init__(self) -> None:
        if self.output not in ("int8", "f16", "as-blocks"):
            raise not_allowed("output", self.output, ("int8", "f16", "as-blocks"))
        if self.embedding not in ("f16", "f32", "int8"):
            raise not_allowed("embedding", self.embedding, ("f16", "f32", "int8"))
        if self.kept not in (None, "f16", "f32", "bf16"):
            raise not_allowed("kept", self.kept, ("f16", "f32", "bf16"))


@dataclass(frozen=True)
class KeptMatrix:
    """A matrix that stays in a float `kind`, and why."""

    kind: StoredKind
    reason: str


ROUTER = "a router"

ARRAY_KINDS = {"float32": "f32", "int32": "i32", "uint8": "u8"}
BITS = {"f32": 32, "f16": 16, "bf16": 16, "int8": 8, "int4": 4, "int3": 3, "int2": 2}


def stored_kinds(walk: Walk, precision: Precision, policy: Policy) -> dict[str, Stored]:
    """How each tensor will be stored, in the order of the file: the planner's sizes come from here too."""
    precision = fitted_to(precision, walk)
    kinds: dict[str, Stored] = {}
    shape = _matrix_shape(walk, walk.output)
    natural = precision.stored(*shape)
    output = natural
    if BITS[natural.kind] < FEWEST_OUTPUT_BITS and policy.output != "as-blocks":
        output = StoredKind(policy.output)
    for name in walk.first:
        kinds[name] = output if name == walk.output else _kind_outside(walk, name, natural, policy)
    kept = kept_matrices(walk, precision, policy)
    for block in range(walk.blocks):
        for name in walk.names(block):
            if not walk.is_matrix(name):
                kinds[name] = StoredKind("f32")
            else:
                kinds[name] = kept[name].kind if name in kept else _stored(walk, precision, name)
    for name in walk.last:
        kinds[name] = _kind_outside(walk, name, natural, policy)
    if walk.output != walk.embedding:
        kinds[walk.output] = output
    return kinds


def kept_matrices(walk: Walk, precision: Precision, policy: Policy) -> dict[str, KeptMatrix]:
    """The matrices that `precision` cannot take, as `policy` lets them stay, and routers, which no method
    rounds. Raises UserError, which lists the former, when the policy does not.
    """
    chooses = getattr(walk, "routers", lambda block: ())
    routers = [name for block in range(walk.blocks) for name in chooses(block)]
    refused = {name: why for name, why in refused_by(precision, walk).items() if name not in routers}
    if refused and policy.kept is None:
        shown = [f"{name} ({reason})" for name, reason in list(refused.items())[:LISTED]]
        more = f" and {len(refused) - LISTED} more" if len(refused) > LISTED else ""
        raise UserError(
            f"{precision.name} cannot take {', '.join(shown)}{more}; allow them to stay in f16 "
            "(--allow-kept), or choose another precision.",
            field="precision",
            given=precision.name,
            nearest="round-to-nearest",
        )
    kept = {name: KeptMatrix(StoredKind(policy.kept or "f16"), reason) for name, reason in refused.items()}
    return kept | {name: KeptMatrix(StoredKind("f32"), ROUTER) for name in routers}


def _stored(walk: Walk, precision: Precision, name: str) -> Stored:
    named = getattr(precision, "stored_as", None)
    shape = _matrix_shape(walk, name)
    found: Stored = precision.stored(*shape) if named is None else named(name, *shape)
    return found


def _kind_outside(walk: Walk, name: str, natural: Stored, policy: Policy) -> StoredKind:
    """How a tensor outside the blocks is stored: vectors in f32; an embedding as the policy says, a
    projection in f16, or both as the blocks where these stay float.
    """
    if len(walk.shape(name)) != 2 or name in getattr(walk, "exact", ()):
        return StoredKind("f32")
    if natural.kind in ("f32", "f16", "bf16"):
        return StoredKind(natural.kind)
    projects = name != walk.embedding and walk.is_matrix(name)
    return StoredKind("f16" if projects else policy.embedding)


def stored_nbytes(walk: Walk, kinds: Mapping[str, Stored]) -> int:
    """Bytes of all tensors in `kinds`, scales and padding included."""
    total = 0
    for name, kind in kinds.items():
        shape = walk.shape(name)
        rows, columns = (shape[0], shape[1]) if len(shape) == 2 else (1, int(np.prod(shape)))
        total += kind.nbytes(rows, columns)
    return total


def _matrix_shape(walk: Walk, name: str) -> tuple[int, int]:
    shape = walk.shape(name)
    if len(shape) != 2:
        raise UserError(
            f"{name} has the shape {shape}; matrices with two dimensions can be compressed.",
            field="model",
            given=name,
        )
    return shape[0], shape[1]


def memory_plan(
    walk: Walk, precision: Precision, tokens: int, work_ram_mib: float | None, length: int = 512
) -> MemoryPlan:
    """What `compress` will hold at most, and where the hidden states of `tokens` go, in texts of `length`.

    Raises BudgetError when even with hidden states on disk `work_ram_mib` is not enough.
    """
    largest = max(
        (
            sum(4 * int(np.prod(walk.shape(name))) for name in walk.names(block))
            for block in range(walk.blocks)
        ),
        default=0,
    )
    inside = [name for block in range(walk.blocks) for name in walk.names(block) if walk.is_matrix(name)]
    widest = max((walk.shape(name)[1] for name in inside), default=0)
    ends = max(4 * int(np.prod(walk.shape(name))) for name in (walk.embedding, walk.output))
    reads = calibrated(precision)
    sets = sets_of(walk, precision)
    states = min(sets * 4 * tokens * walk.width, IN_MEMORY_MIB << 20) if reads else 0
    working = getattr(precision, "working_nbytes", None)  # what the method holds beyond the rest
    factoring = getattr(precision, "factoring_nbytes", None)
    factored = [] if factoring is None else [factoring(*_matrix_shape(walk, name)) for name in inside]
    lines = [
        ("a block in f32, twice", 2 * max(largest, ends)),
        ("statistics of its widest input", statistics_nbytes(precision.needs, widest)),
        ("hidden states of the calibration text", states),
        ("program and buffers", PROCESS_MIB << 20),
        *([("factors of its largest matrix", max(factored))] if factored else []),
        *learning_lines(walk, precision, length),
    ]
    if working is not None:
        lines.append((f"what {precision.name} tries", int(working(walk))))
    plan = MemoryPlan(tuple(lines))
    if work_ram_mib is not None and plan.total_mib > work_ram_mib:
        lines[2] = ("hidden states of the calibration text (on disk)", 8 << 20 if reads else 0)
        plan = MemoryPlan(tuple(lines))
        if plan.total_mib > work_ram_mib:
            failure = Failure("work_ram_mib", work_ram_mib, float(np.ceil(plan.total_mib)), "MiB")
            raise BudgetError([failure], "compressing this model")
    return plan


def sets_of(walk: Walk, precision: Precision) -> int:
    """How many hidden states of the calibration text are kept: those before a block, and what learning or
    a mixture's experts need beside them.
    """
    experts = getattr(walk, "experts", lambda block: ())
    mixed = any(experts(block) for block in range(walk.blocks))
    return SETS if BLOCK in precision.needs else 2 if mixed and precision.needs else 1


class _Reached(Exception):  # noqa: N818 - it is no error
    """Raised by a tap to end a pass at the input it waited for."""


def statistics_of(
    walk: Walk, block: int, weights: Weights, first: str, states: Activations, needs: frozenset[str]
) -> InputStatistics:
    """What the calibration text sends into the matrix `first`; passes end there."""
    found = Gathering(walk.shape(first)[1], needs, len(states) * states.shape[1])

    def gather(name: str, x: F32) -> None:
        if name == first:
            found.add(x)
            raise _Reached

    for index in range(len(states)):
        try:
            walk.run(block, states.read(index), weights, gather)
        except _Reached:
            continue
    return found.finish(first)


def compress(
    source: TensorSource,
    walk: Walk,
    precision: Precision,
    writer: PackWriter,
    *,
    texts: I32 | None,
    policy: Policy,
    folder: Path,
    activations_mib: float = IN_MEMORY_MIB,
    seed: int = 0,
    bar: Progress | None = None,
    unreached: list[str] | None = None,
    matrices: bool = False,
) -> None:
    """Write every tensor of `source` through `writer` as `precision` and `policy` say.

    `texts` i32 [pieces, length] is needed when the method's `needs` is not empty; `folder` takes hidden
    states that do not fit in `activations_mib`; `seed` is for what a learning method draws. `unreached` gets
    the name of every expert that no token of `texts` chose. `matrices`: each matrix of an expert has a record
    of its own. Raises UserError naming the tensor for weights or inputs that are not finite.
    """
    precision = fitted_to(precision, walk)
    reads = calibrated(precision)
    if reads and (texts is None or texts.size == 0):
        raise UserError(
            f"{precision.name} needs calibration text and got none.", field="calibration", given=None
        )
    kinds, kept = stored_kinds(walk, precision, policy), kept_matrices(walk, precision, policy)
    seen = texts
    if texts is not None and hasattr(precision, "learn"):
        precision, texts, reads = precision.learn(source, walk, texts), None, False
    owned = getattr(walk, "all_experts", None)
    if owned is not None:
        owners = owned.records(matrices or stores_matrices(precision))
        writer.keep_experts(identity(source, walk.architecture), owners)  # type: ignore[attr-defined]
    count, length = texts.shape if reads and texts is not None else (0, 0)
    learns = BLOCK in precision.needs
    share_mib = activations_mib / sets_of(walk, precision)
    with Activations(count, length, walk.width, folder, share_mib) as states:
        if texts is not None and reads:
            weights = {name: Matrix.from_array(read_tensor(source, name)) for name in walk.first}
            for index, tokens in enumerate(texts):
                states.write(index, walk.embed(tokens, weights))
            del weights
        for name in walk.first:
            _write_rows(source, writer, name, kinds[name])
        if learns:
            writing = Writing(
                lambda name, found: write_compressed(writer, name, walk.shape(name), found),
                lambda name, values: _write_vector(writer, name, values),
            )
            reconstruct_blocks(
                *(source, walk, precision, states, writing),
                folder=folder,
                activations_mib=activations_mib,
                seed=seed,
                bar=bar,
            )
        for block in range(0 if learns else walk.blocks):
            experts = ExpertInputs(walk, block, states, folder, share_mib)
            with experts:
                _compress_block(source, walk, block, precision, states, writer, kept, experts)
            if unreached is not None:
                unreached += experts.unreached
            if bar is not None:
                bar.advance()
    for name in walk.last:
        if len(walk.shape(name)) == 2:
            _write_rows(source, writer, name, kinds[name])
        else:
            _write_vector(writer, name, read_tensor(source, name))
    if walk.output != walk.embedding:
        _write_rows(source, writer, walk.output, kinds[walk.output])
    learned: Any = getattr(precision, "finish", lambda *_: {})(source, walk, seen, seed)
    for name, data in {**getattr(precision, "files", dict)(), **learned}.items():
        writer.add_file(name, data)


def _compress_block(
    source: TensorSource,
    walk: Walk,
    block: int,
    precision: Precision,
    states: Activations,
    writer: PackWriter,
    kept: Mapping[str, KeptMatrix],
    experts: ExpertInputs,
) -> None:
    from haversack.shrink.precision.keep import Keep

    names = walk.names(block)
    plain = {name: read_tensor(source, name) for name in names}
    transform = getattr(precision, "transform", None)
    if transform is not None:
        transform(BlockView(walk, block, plain, states))
        give_back_freed()
    for name in names:
        if not walk.is_matrix(name):
            _write_vector(writer, name, plain[name])
    weights: Weights = {
        name: Matrix.from_array(values) if walk.is_matrix(name) else values for name, values in plain.items()
    }
    for group in walk.products(block):
        inputs = None
        taken = {name: plain[name] for name in group if name not in kept}
        if precision.needs and taken:
            needs = precision.needs
            inputs = experts.statistics(group[0], weights, needs) or statistics_of(
                walk, block, weights, group[0], states, needs
            )
        found: dict[str, Any] = {}
        for name in set(group) - set(taken):
            found |= Keep(kind=kept[name].kind.kind).quantize({name: plain[name]}, None)
        if taken:
            found |= _named(precision, taken, inputs)
        del taken
        for name in group:
            weights[name] = write_compressed(writer, name, walk.shape(name), found[name])
            del plain[name]
        del inputs, found
        give_back_freed()
    for index in range(len(states)):
        after = walk.run(block, states.read(index), weights, None)
        if not np.isfinite(after).all():
            raise UserError(
                f"block {block} turns the calibration text into values that are not finite; "
                "the checkpoint is damaged or needs another number type.",
                field="model",
                given=f"block {block}",
            )
        states.write(index, after)


def _named(
    precision: Precision, weights: Mapping[str, F32], inputs: InputStatistics | None
) -> Mapping[str, Compressed | Formed]:
    """What the method makes of matrices of one input; what it refuses names them."""
    try:
        return precision.quantize(weights, inputs)
    except UserError as error:
        names = ", ".join(weights)
        if any(name in str(error) for name in weights):
            raise
        raise UserError(
            f"{names}: {error}", field=error.field, given=error.given, nearest=error.nearest
        ) from error


def _write_rows(source: TensorSource, writer: PackWriter, name: str, kind: Stored) -> None:
    """Store a matrix that is not fitted to inputs, an embedding or the output matrix, some rows at a time."""
    from haversack.shrink.precision.keep import Keep
    from haversack.shrink.precision.round_to_nearest import RoundToNearest

    rows, columns = source.tensors[name].shape
    method: Precision
    if kind.kind in ("f32", "f16", "bf16"):
        method = Keep(kind=kind.kind)
    else:
        method = RoundToNearest(bits=BITS[kind.kind], group=kind.group or 64, scales="searched")
    at_once = max(16, (4 << 20) // columns // 16 * 16)  # the packed layout goes by 16 rows

    def pieces() -> Iterator[Any]:
        for start in range(0, rows, at_once):
            values = read_rows(source, name, start, min(start + at_once, rows))
            yield method.quantize({name: values}, None)[name].packed().data

    writer.add_tensor(name, kind.kind, (rows, columns), pieces(), kind.group, LAYOUTS[kind.kind])


def write_compressed(
    writer: PackWriter, name: str, shape: tuple[int, ...], found: Compressed | Formed
) -> Any:
    """Store what a method made of the matrix `name`, whole or in its parts; returns what multiplies."""
    form: Mapping[str, Any] | None = getattr(found, "form", None)
    if form is None:
        return _write_matrix(writer, name, cast(Compressed, found))
    entry = {**form, "shape": list(shape)}
    tensors: dict[str, Any] = {}
    for part, value in cast(Formed, found).parts().items():
        at = f"{name}.{part}"
        if isinstance(value, np.ndarray):
            kind = ARRAY_KINDS[value.dtype.name]
            writer.add_tensor(at, kind, value.shape, [np.ascontiguousarray(value).data])
            tensors[at] = value
        else:
            tensors[at] = _write_matrix(writer, at, value)
    writer.add_form(name, entry)
    return bound(name, entry, tensors)


def _write_matrix(writer: PackWriter, name: str, found: Compressed) -> Matrix:
    matrix = found.packed()
    kind = found.kind
    stored = getattr(found, "stored", None)  # where it is kept as something else than what multiplies
    data = matrix.data if stored is None else stored()
    writer.add_tensor(name, kind.kind, matrix.shape, [data], kind.group, matrix.layout)
    return matrix


def _write_vector(writer: PackWriter, name: str, values: F32) -> None:
    writer.add_tensor(name, "f32", values.shape, [np.ascontiguousarray(values, np.float32).data])
