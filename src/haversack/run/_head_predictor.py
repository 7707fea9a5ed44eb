"""Which rows of the output matrix are worth computing: a predictor of two small matrices, its file in a pack,
and logits of the rows that it names.

The file is a line of JSON, zeros up to a multiple of 64 bytes, and the two matrices in int4 groups of 32:
`down` [rank, width], then `up` [vocabulary, rank]. A row is computed where up (down h) is above `limit` for
the normed hidden state h that meets the output matrix; the others get minus infinity. SmallThinker's engine
writes 0 for them, which a sampler could draw [inferred: a floor serves better].
"""

from __future__ import annotations

from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt

from haversack.core._record import PREDICTOR_NAME
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack
from haversack.kernels import Channels, Matrix, matmul, packed_nbytes
from haversack.kernels import softcap as bounded
from haversack.kernels.neurons import Neurons
from haversack.kernels.sparse import BLOCK
from haversack.run._products import activations_of

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

PREDICTOR_FORMAT = (1, 0)
KIND, GROUP = "int4", 32
STEP = 64


class _Header(msgspec.Struct, frozen=True):
    format: tuple[int, int]
    model: str
    rank: int
    width: int
    vocabulary: int
    limit: float
    recall: float


class HeadPredictor:
    """`down` [rank, width] and `up` [vocabulary, rank] of the model `model`. `recall`: share of calibration
    text's likeliest tokens that are above `limit`. `rows` were asked about, of which `computed` were.
    """

    def __init__(self, model: str, down: Matrix, up: Matrix, limit: float, recall: float) -> None:
        self.model, self.down, self.up, self.limit, self.recall = model, down, up, limit, recall
        self.rows = self.computed = 0

    @property
    def nbytes(self) -> int:
        """Bytes of both matrices."""
        return int(self.down.data.nbytes + self.up.data.nbytes)

    def scores(self, hidden: F32) -> F32:
        """How much each row is expected to matter, f32 [n, vocabulary], for hidden f32 [n, width]."""
        narrow = matmul(np.ascontiguousarray(hidden), self.down)
        found: F32 = matmul(narrow, self.up)
        return found

    def active(self, hidden: F32) -> I64:
        """The rows to compute for hidden f32 [1, width], rising; at least the one with the best score."""
        scores = self.scores(hidden)[0]
        found = np.flatnonzero(scores > self.limit)
        found = found if len(found) else np.array([int(scores.argmax())])
        self.rows += len(scores)
        self.computed += len(found)
        return found

    def to_bytes(self) -> bytes:
        """As the pack holds it."""
        sizes = (self.down.rows, self.down.columns, self.up.rows)
        header = _Header(PREDICTOR_FORMAT, self.model, *sizes, self.limit, self.recall)
        text = msgspec.json.encode(header) + b"\n"
        return b"".join((text, bytes(-len(text) % STEP), self.down.data.tobytes(), self.up.data.tobytes()))

    @classmethod
    def of_bytes(cls, data: bytes | memoryview, path: object = PREDICTOR_NAME) -> Self:
        """Of a file's bytes. Raises DamagedFileError with the first thing that does not hold."""
        raw = bytes(data)
        end = raw.find(b"\n") + 1
        try:
            header = msgspec.json.decode(raw[:end], type=_Header)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise DamagedFileError(path, f"it is no predictor of output rows ({error})") from error
        if header.format[0] != PREDICTOR_FORMAT[0]:
            major, minor = header.format
            raise DamagedFileError(
                path, f"it is of format {major}.{minor} and this program reads {PREDICTOR_FORMAT[0]}.x"
            )
        if not all(1 <= size < 2**31 for size in (header.rank, header.width, header.vocabulary)):
            raise DamagedFileError(path, "its matrices have impossible sizes")
        shapes = ((header.rank, header.width), (header.vocabulary, header.rank))
        sizes = [packed_nbytes(KIND, *shape, GROUP) for shape in shapes]
        start = end + -end % STEP
        if len(raw) != start + sum(sizes):
            raise DamagedFileError(path, f"it has {len(raw)} bytes where {start + sum(sizes)} are said")
        body = np.frombuffer(raw, np.uint8)[start:]
        parts = (body[: sizes[0]], body[sizes[0] :])
        down, up = (
            Matrix(KIND, *shape, GROUP, "rows16-1", part) for shape, part in zip(shapes, parts, strict=True)
        )
        return cls(header.model, down, up, header.limit, header.recall)

    @classmethod
    def of(cls, source: Any, architecture: Any) -> Self:
        """That of the pack `source`. Raises UserError when there is none, or one of another model."""
        from haversack.models._experts import identity

        if not isinstance(source, Pack) or PREDICTOR_NAME not in source.record.files:
            raise UserError(
                f"{source.path} has no {PREDICTOR_NAME}; pack the model with --precision q4_0:predictor=64, "
                "or decode one-by-one.",
                field="decode",
                given="sparse-head",
                nearest="one-by-one",
            )
        path = source.path / PREDICTOR_NAME
        found = cls.of_bytes(source.read_file(PREDICTOR_NAME), path)
        expected = (identity(source, architecture), architecture.width, architecture.vocabulary)
        if (found.model, found.down.columns, found.up.rows) != expected:
            raise UserError(
                f"{path} was made of another model ({found.model}, {found.up.rows} tokens) than this one "
                f"({expected[0]}, {expected[2]}); pack the model again.",
                field="decode",
                given=found.model,
                nearest=expected[0],
            )
        return found

    def record(self) -> dict[str, Any]:
        """As `run --json` prints it."""
        return {"rows": self.rows, "computed": self.computed}

    def words(self) -> str:
        """The same in a line."""
        share = self.computed / self.rows if self.rows else 0.0
        return f"output matrix: {share:.1%} of its rows computed"


def some_rows(hidden: F32, matrix: Matrix, rows: I64, activations: str) -> F32:
    """hidden f32 [1, width] times the rows `rows` (rising) of `matrix`, f32 [rows]: the bits of the whole
    product. Layouts of 16 rows are read by 16, others row by row."""
    if matrix.layout == "rows16-1":
        blocks, where = np.unique(rows // 16, return_inverse=True)
        bytes_ = matrix.data.reshape(-(-matrix.rows // 16), -1)[blocks].reshape(-1)
        part = Matrix(matrix.kind, 16 * len(blocks), matrix.columns, matrix.group, matrix.layout, bytes_)
        whole: F32 = matmul(hidden, part, activations=activations_of(part, activations))
        found: F32 = whole[0, where.reshape(-1) * 16 + rows % 16]
        return found
    if matrix.columns <= BLOCK:
        gate = np.zeros((1, matrix.rows), np.float32)
        gate[0, rows] = 1
        neurons = Neurons(Channels(matrix.kind, matrix.columns, matrix.rows, None, matrix.data))
        return np.asarray(neurons.gated(hidden, gate)[0, rows])
    taken = matrix.data.reshape(matrix.rows, -1)[rows].reshape(-1)
    part = Matrix(matrix.kind, len(rows), matrix.columns, None, matrix.layout, taken)
    return np.asarray(matmul(hidden, part)[0])


def sparse_logits(engine: Any, predictor: HeadPredictor, hidden: F32) -> F32:
    """Logits f32 [1, vocabulary] of a normed hidden state f32 [1, width]: minus infinity in the rows that
    `predictor` leaves out, the dense ones' bits in the others."""
    architecture, active = engine.architecture, predictor.active(hidden)
    logits = np.full((1, architecture.vocabulary), -np.inf, np.float32)
    for first, matrix in engine.held.head():
        inside = active[(active >= first) & (active < first + matrix.rows)]
        if len(inside):
            logits[0, inside] = some_rows(hidden, matrix, inside - first, engine.activations)
    if architecture.head.bias is not None:
        logits[0, active] += engine.held.top[architecture.head.bias][active]
    if architecture.logit_softcap is not None:
        chosen = logits[:, active]
        logits[:, active] = bounded(chosen, architecture.logit_softcap)
    return logits
