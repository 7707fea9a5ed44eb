"""The structure slot of a plan: which choices are tried, and what each makes of a precision method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from haversack.core import index
from haversack.core.errors import UserError
from haversack.core.pack import TensorSource
from haversack.plan._candidates import Candidate
from haversack.plan._enumerate import Space, create_precision, predicted, stands_alone
from haversack.run._forms import forms_of
from haversack.shrink._pipeline import Walk
from haversack.shrink._precision import Precision
from haversack.shrink._rounding import F32
from haversack.shrink._source import read_tensor
from haversack.shrink.structure._gated import Gates
from haversack.shrink.structure._packed import Factored, Layer, expected_loss, ranks_of
from haversack.shrink.structure._reglu import Neuronal
from haversack.shrink.structure._row_sparse import Sparsified, known, names_of
from haversack.shrink.structure.cats import Cats
from haversack.shrink.structure.low_rank import LowRank
from haversack.shrink.structure.r_sparse import RSparse
from haversack.shrink.structure.reglu import Reglu

NONE = "none"
AS_STORED = "low-rank:as-stored"
"""The factors of a checkpoint that was factored before."""
OFFERED = tuple(f"low-rank:rank={rank},solver=whitened" for rank in (0.75, 0.5, 0.25))
"""Tried where no plan without a structure fits: every one of them costs more quality than rounding does."""


class Structures:
    """What the structure choices make of the model that `walk` goes through; ranks are found once a choice.

    `tell(name)` is called with each matrix whose singular values are needed.
    """

    def __init__(
        self, walk: Walk, source: TensorSource, tell: Callable[[str], None] = lambda name: None
    ) -> None:
        self._walk, self._source, self._tell = walk, source, tell
        self._known: dict[str, tuple[LowRank, Mapping[str, int | None], float]] = {}

    def choice(self, structure: str | None) -> str:
        """The structure that a user's choice means: the checkpoint's own factors where nothing is named."""
        if structure is None and forms_of(self._source):
            return AS_STORED
        return full_structure(structure)

    def compression(self, precision: str, structure: str) -> Precision:
        """The precision method, on the factors of the structure where there is one."""
        inner = create_precision(precision)
        if structure == NONE:
            return inner
        if structure == AS_STORED:
            stored: dict[str, int | None] = {
                name: int(form["rank"]) for name, form in forms_of(self._source).items()
            }
            return Factored(LowRank(), inner, stored, held=self._held)  # type: ignore[return-value]
        method = create_structure(structure)
        if isinstance(method, RSparse):
            return Sparsified(method, inner, names_of(self._walk))  # type: ignore[return-value]
        if isinstance(method, Cats):
            return Gates(method, inner, self._walk)  # type: ignore[return-value]
        if isinstance(method, Reglu):
            return Neuronal(method, inner, self._walk)  # type: ignore[return-value]
        if not stands_alone(precision):
            raise UserError(
                f"{inner.name} looks at whole layers and cannot compress the factors of {structure}; use "
                "round-to-nearest or gptq with it.",
                field="precision",
                given=precision,
                nearest="gptq",
            )
        method, ranks, lost = self._of(structure, method)
        return Factored(method, inner, ranks, lost)  # type: ignore[return-value]  # names are per instance

    def _held(self, name: str) -> tuple[F32, F32]:
        """The factors (second, first) of the matrix `name` as the checkpoint has them."""
        first, second = (read_tensor(self._source, f"{name}.{part}") for part in ("first", "second"))
        return second, first

    def _of(self, structure: str, method: LowRank) -> tuple[LowRank, Mapping[str, int | None], float]:
        if structure not in self._known:
            ranks = ranks_of(method, self._walk, self._source, self._tell)
            if all(rank is None for rank in ranks.values()):
                raise UserError(
                    f"{structure} saves nothing in any of the {len(ranks)} matrices: two factors are as "
                    "large as a matrix at rank rows x columns / (rows + columns); give a smaller rank, or "
                    "a share such as rank=0.4.",
                    field="structure",
                    given=structure,
                    nearest="low-rank:rank=0.4",
                )
            self._known[structure] = method, ranks, expected_loss(self._walk, self._source, ranks)
        return self._known[structure]


def create_structure(choice: str) -> LowRank | RSparse | Cats | Reglu:
    """The structure method that `choice` names. Raises UserError for one that makes no packs."""
    method: Any = index.create("shrink", "structure", choice)
    if isinstance(method, RSparse | Cats | Reglu):
        return method
    if not isinstance(method, LowRank):
        raise UserError(f"{choice} makes no packs.", field="structure", given=choice, nearest=NONE)
    if method.solver == "random":
        raise UserError(
            "solver=random is for training from the start (haversack.shrink.structure.factorize): a pack of "
            "random factors would know nothing; use solver=svd or solver=whitened.",
            field="structure",
            given=choice,
            nearest="low-rank:solver=whitened",
        )
    return method


def full_structure(choice: str | None) -> str:
    """`choice` with the parameters that say what a pack is, even at their defaults; "none" for None."""
    if choice is None or choice == NONE:
        return NONE
    method = create_structure(choice)
    if isinstance(method, RSparse):
        return method.full_name
    if isinstance(method, Cats):
        return f"{method.name}:sparsity={method.sparsity:g}"
    if isinstance(method, Reglu):
        return method.name
    size = f"rank={method.rank:g}"
    if method.energy:
        size = f"energy={method.energy:g}" + (f",weights={method.weights:g}" if method.weights < 1 else "")
    return f"{method.name}:{size},solver={method.solver}" + (
        f",n_iter={method.n_iter}" if method.n_iter != type(method).n_iter else ""
    )


def takes(structure: str, precision: str) -> bool:
    """True where the structure can be combined with the precision."""
    if structure == NONE:
        return True
    if isinstance(create_structure(structure), RSparse | Cats | Reglu):
        return known(create_precision(precision))
    return stands_alone(precision)


def layers_of(method: Any) -> tuple[Layer, ...]:
    """What a compression that is done says of its matrices; nothing where there was no structure."""
    return tuple(method.layers) if isinstance(method, Factored | Gates | Neuronal | Sparsified) else ()


def summary(layers: tuple[Layer, ...]) -> str:
    """One line on the errors of `layers`."""
    if layers and all(layer.rank is None and layer.output_error is None for layer in layers):
        return (
            f"{len(layers)} matrices by rows and columns of neurons, of which a token reads those above zero"
        )
    sparse = [layer for layer in layers if layer.error is None and layer.output_error is not None]
    if sparse:
        missed = sorted(layer.output_error or 0.0 for layer in sparse)
        ranks = sorted(layer.rank or 0 for layer in sparse)
        return (
            f"{len(sparse)} matrices by columns, ranks {ranks[0]} to {ranks[-1]}; relative error of outputs "
            f"{missed[len(missed) // 2]:.3f} (median), {missed[-1]:.3f} (worst)"
        )
    factored = [layer for layer in layers if layer.rank is not None]
    errors = sorted(layer.error or 0.0 for layer in factored)
    worst = max(factored, key=lambda layer: layer.error or 0.0)
    kept = len(layers) - len(factored)
    return (
        f"{len(factored)} matrices in factors, {kept} kept dense; relative error "
        f"{errors[len(errors) // 2]:.3f} (median), {worst.error:.3f} ({worst.name})"
    )


PLAIN = "round-to-nearest:bits=4,group=64"


def advised(space: Space, chosen: Candidate) -> str | None:
    """What to take in place of `chosen`, a plan with activation sparsity, where plain 4-bit weights are
    predicted to be faster on the device and no worse; None where they are not.
    """
    if not chosen.plan.structure.startswith(RSparse.name):
        return None
    plain, _ = predicted(replace(space, precision=PLAIN, structures=(NONE,), activations=None))
    best = max(plain, key=lambda one: one.device)
    if best.device <= chosen.device or best.loss >= max(chosen.loss, 0.0):
        return None
    return (
        f"plain {PLAIN} is predicted to be the better plan here: {best.device:.0f} tokens/s against "
        f"{chosen.device:.0f}, {best.storage_mib:.1f} MiB against {chosen.storage_mib:.1f}, loss "
        f"{100 * best.loss:.1f} % (predicted) against {100 * chosen.loss:.1f} %."
    )
