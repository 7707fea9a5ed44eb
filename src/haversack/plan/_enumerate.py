"""All plans that the methods at hand allow, each with what prediction says of it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from haversack.core import index
from haversack.core.device import Device
from haversack.core.errors import UserError
from haversack.core.method import Method, parse_choice
from haversack.kernels._matrix import PACKED
from haversack.models._architecture import Architecture
from haversack.models._experts import experts_of
from haversack.plan._candidates import Candidate, Plan
from haversack.plan._predict import LOSS_PER_NOISE, MIB, Sizes, bits_a_weight, noise, times
from haversack.run._memory import planned_memory
from haversack.run._window import Windows, windows_of
from haversack.shrink._language import LanguageWalk
from haversack.shrink._pipeline import Policy, Walk, stored_kinds
from haversack.shrink._precision import (
    MATRICES,
    Precision,
    Stored,
    calibrated,
    refused_by,
    stores_matrices,
)
from haversack.shrink._reconstruction import BLOCK
from haversack.shrink._text_to_text import TextToTextWalk, walk_of

# Parameters that change a pack's size or type and are worth a plan each; others stay at their defaults.
VARIED = ("bits", "group", "kind")
CACHE_TYPES = ("f32", "f16", "int8")
ACTIVATIONS = ("f32", "int8-dynamic")
STATIC = "int8-static"
STATIC_TRAIT = f"activation-type:{STATIC}"
NESTED_TRAIT = "weight-type:nested"
PRODUCTS_PER_S = 4e10  # of two cores that calibrate
TEXT_LENGTH = 512  # tokens of a calibration text, at most


@dataclass(frozen=True)
class Space:
    """What is to be searched: the model, where it shall run, and what the user has fixed already (None:
    free).
    """

    architecture: Architecture
    device: Device
    files_nbytes: int
    context: int
    policy: Policy = field(default_factory=Policy)
    precision: str | None = None
    activations: str | None = None
    residency: str | None = None
    cache_type: str | None = None
    effort_s: float = math.inf
    calibration_tokens: int = 0
    expert_store: bool = True
    """Experts lie in a store of their own; in a sealed pack they do not."""
    structures: tuple[str, ...] = ("none",)
    compression: Callable[[str, str], Precision] | None = None
    """(precision, structure) -> what compresses so; plan/_structure.py has it. None: no structures."""
    attention: str | None = None
    """What the pack names: it says what layers keep of a text. None: dense."""

    @functools.cached_property
    def windows(self) -> Windows:
        """What layers keep of a text."""
        method = None if self.attention is None else index.create("run", "attention", self.attention)
        return windows_of(self.architecture, method)

    def method(self, precision: str, structure: str) -> Precision:
        """What compresses by `precision` and `structure`."""
        if self.compression is None:
            return create_precision(precision)
        return self.compression(precision, structure)


def precision_choices(fixed: str | None) -> list[str]:
    """The precision methods with their varied parameters, as `NAME:key=value,...`; only `fixed` when given.

    A fixed method without parameters is varied in them too. Methods that learn take minutes a block and
    PyTorch: they are tried when they are named. Raises UserError for an unknown method or parameter.
    """
    if fixed is not None and ":" in fixed:
        named = [name for name in parse_choice(fixed)[1] if name not in VARIED]
        return [full_name(index.create("shrink", "precision", fixed), (*VARIED, *named))]
    if fixed is None:  # what learns a whole model with static ranges is tried when it is asked for
        entries = [one for one in index.methods("shrink", "precision") if STATIC_TRAIT not in one.provides]
    else:
        entries = [index.find("shrink", "precision", fixed)]
    choices: list[str] = []
    for entry in entries:
        if fixed is None and BLOCK in create_precision(entry.name).needs:
            continue
        if fixed is None and any(parameter.name == "layers" for parameter in entry.parameters):
            continue  # bits by layer come from what other plans lost: plan/_sensitivity.py
        varied = [
            [f"{parameter.name}={value}" for value in parameter.allowed]
            for parameter in entry.parameters
            if parameter.name in VARIED and parameter.allowed
        ]
        for values in itertools.product(*varied):
            text = f"{entry.name}:{','.join(values)}" if values else entry.name
            choices.append(full_name(index.create("shrink", "precision", text), VARIED))
    return list(dict.fromkeys(choices))


def full_name(method: Method, shown: Iterable[str]) -> str:
    """`NAME:key=value,...` with the parameters `shown` even at their defaults, so that a plan says what it
    is; the name alone where it has none of them.

    The group is left out where it has no meaning: whole rows share a scale at 8 bits.
    """
    values = {
        name: getattr(method, name)
        for name in shown
        if hasattr(method, name) and not (name == "group" and getattr(method, "bits", 4) == 8)
    }
    told = ",".join(f"{name}={value}" for name, value in values.items())
    return f"{method.name}:{told}" if told else method.name


def create_precision(choice: str) -> Precision:
    """The precision method that `choice` names."""
    method = index.create("shrink", "precision", choice)
    if not hasattr(method, "quantize"):
        raise UserError(f"{choice} cannot compress weights.", field="precision", given=choice)
    found: Precision = method  # type: ignore[assignment]
    return found


def residencies(kinds: Iterable[str], fixed: str | None, experts: str | None = None) -> list[str]:
    """The ways of holding weights stored in `kinds` that need nothing beside a pack, whose expert store,
    where it has one, has `experts` (experts or matrices) as its records; only `fixed` when given. Raises
    UserError for a fixed one that cannot read them.
    """
    if fixed is not None:
        if experts is not None:
            _require_readable(fixed, set(kinds), experts)
        return [fixed]
    given = {f"weight-type:{kind}" for kind in kinds} | {"weight-layout:rows-1", "weight-layout:rows16-1"}
    given |= set() if experts is None else {f"expert-store:{experts}"}
    return [entry.name for entry in index.methods("run", "residency") if not index.conflicts([entry], given)]


def _require_readable(residency: str, kinds: set[str], experts: str) -> None:
    wanted = index.find("run", "residency", index.create("run", "residency", residency).name)
    nested = "nested" in kinds
    if nested and NESTED_TRAIT in wanted.excludes:
        said, other = "reads no nested bits, which this precision stores", "streamed:d2moe"
    elif not nested and NESTED_TRAIT in wanted.requires:
        said, other = (
            "reads nested bits, which precision d2moe alone stores",
            "streamed:edgemoe",
        )
    elif experts == "matrices" and "expert-store:experts" in wanted.requires:
        said = "reads whole experts, and this precision stores them matrix by matrix"
        other = "streamed:smallthinker"
    else:
        return
    raise UserError(
        f"{residency} {said}; use {other}, or another precision.",
        field="residency",
        given=residency,
        nearest=other,
    )


def store_records(walk: LanguageWalk, method: Precision) -> str | None:
    """What the records of the expert store are that `method` makes: experts, matrices, or none."""
    if walk.all_experts is None:
        return None
    return "matrices" if stores_matrices(method) else "experts"


def wants_matrices(residency: str | None) -> bool:
    """True for a residency, as a user named it, that reads experts matrix by matrix."""
    if residency is None:
        return False
    name = index.create("run", "residency", residency).name
    return MATRICES in index.find("run", "residency", name).requires


def activation_types(kinds: Iterable[str], fixed: str | None, precision: str | None = None) -> list[str]:
    """The activation types that the kernels have for weights stored in `kinds` (integers meet only integers)
    and that `precision` is defined for. A method that has static ranges is run with them, unless another
    type is `fixed`.
    """
    if precision is not None and fixed in (None, STATIC) and STATIC_TRAIT in _entry(precision).provides:
        return [STATIC]
    integers = any(kind in PACKED for kind in kinds)
    types = [one for one in ACTIVATIONS if (one == "f32" or integers) and fixed in (None, one)]
    return [one for one in types if precision is None or not undefined(precision, one)]


def undefined(precision: str, activations: str) -> list[str]:
    """Why the precision method cannot be run with activations of a type; empty when it can."""
    return index.conflicts([_entry(precision)], {f"activation-type:{activations}"})


def _entry(precision: str) -> Any:
    return index.find("shrink", "precision", parse_choice(precision)[0])


def offered(walk: Walk, precision: str, structure: str, tokens: int, effort_s: float) -> bool:
    """True for a method that is worth a plan where the user named none: it takes every matrix of the model,
    works with the structure, and is done within the effort.
    """
    from haversack.plan._structure import takes

    method = create_precision(precision)
    if refused_by(method, walk) or not takes(structure, precision):
        return False
    if isinstance(walk, TextToTextWalk) and not takes_text_to_text(precision):
        return False
    return packing_seconds(walk, method, tokens) <= effort_s


def packing_seconds(walk: Walk, method: Precision, tokens: int) -> float:
    """About how long compressing takes here: the passes of the calibration text through the blocks that the
    method declares (`passes`; 4 for one that says nothing and is calibrated), and three for each time that it
    learns from a token (`learned(tokens, length)` of texts of `length` tokens): forward, and back.
    """
    if not calibrated(method):
        return 0.0
    inside = (name for block in range(walk.blocks) for group in walk.products(block) for name in group)
    products = 2.0 * sum(math.prod(walk.shape(name)) for name in inside)
    passing = float(getattr(method, "passes", 4.0)) * tokens
    learned = getattr(method, "learned", None)
    if learned is not None:
        passing += 3.0 * float(learned(tokens, TEXT_LENGTH))
    return passing * products / PRODUCTS_PER_S


def predicted(space: Space) -> tuple[list[Candidate], dict[Plan, float]]:
    """Every plan of `space` as a predicted candidate, and the noise each is expected to add."""
    candidates: list[Candidate] = []
    noises: dict[Plan, float] = {}
    refused: UserError | None = None
    for structure, choice in itertools.product(space.structures, precision_choices(space.precision)):
        walk = walk_of(space.architecture)
        if space.precision is None and not offered(
            walk, choice, structure, space.calibration_tokens, space.effort_s
        ):
            continue
        method = space.method(choice, structure)
        kinds = stored_kinds(walk, method, space.policy)
        found = Sizes.of(space.architecture, kinds)
        types = {kind.kind for kind in kinds.values()}
        records = store_records(walk, method) if space.expert_store else None
        try:
            ways = residencies(types, space.residency, records)
        except UserError as error:
            refused = error  # other precisions may be what this residency reads
            continue
        for activations, residency, cache_type in itertools.product(
            activation_types(types, space.activations, choice),
            ways,
            [one for one in CACHE_TYPES if space.cache_type in (None, one)],
        ):
            plan = Plan(
                choice,
                structure,
                activations=activations,
                residency=residency,
                cache_type=cache_type,
            )
            noises[plan] = noise(method.noise(), activations, cache_type)
            candidate = predict(space, plan, found, noises[plan], held_as(space, plan, kinds))
            candidates.append(replace(candidate, calibrated=calibrated(method)))
    if not candidates:
        raise refused or no_plan(space.precision, space.activations)
    return candidates, noises


def no_plan(precision: str | None, activations: str | None) -> UserError:
    """The error for a precision and activations that no plan has together."""
    reasons = undefined(precision, activations) if precision and activations else []
    others = [one for one in ACTIVATIONS if precision and not undefined(precision, one)]
    return UserError(
        f"no plan has activations {activations} with precision {precision}"
        + (f": {reasons[0]}; use activations {' or '.join(others)}." if reasons else "."),
        field="activations",
        given=activations,
        nearest=others[0] if reasons else "f32",
    )


def stands_alone(precision: str) -> bool:
    """True for a method that needs no more of a block than the matrices of one input and their second
    moments, as the factors of a structure do not have more.
    """
    method = create_precision(precision)
    in_parts = getattr(method, "in_parts", False)  # and a factor is a part already
    return not hasattr(method, "transform") and method.needs <= {"hessian"} and not in_parts


def takes_text_to_text(precision: str) -> bool:
    """True for a method that packs an encoder with a decoder: one that stands alone, and leaves nothing
    beside the weights that was made for decoders.
    """
    method = create_precision(precision)
    apart = {NESTED_TRAIT, STATIC_TRAIT, "shadow-outliers"} & set(getattr(method, "provides", ()))
    return stands_alone(precision) and not hasattr(method, "finish") and not apart


@functools.cache
def _residency(choice: str) -> Any:
    return index.create("run", "residency", choice)


def held_as(space: Space, plan: Plan, kinds: Mapping[str, Stored]) -> Any:
    """The residency of a plan whose weights are stored as `kinds`, with the sizes of the experts where it
    needs them.
    """
    experts = experts_of(space.architecture)
    method = _residency(plan.residency)
    if experts is None or not hasattr(method, "sized"):
        return method
    shapes = space.architecture.tensors()

    def part(name: str) -> tuple[str, int]:
        shape = shapes[name]
        return kinds[name].kind, kinds[name].nbytes(shape[0] if len(shape) == 2 else 1, shape[-1])

    parts = {key: [part(name) for name in names] for key, names in experts.tensors.items()}
    return method.sized(parts, experts.chosen)


def predict(space: Space, plan: Plan, found: Sizes, added: float, held: Any = None) -> Candidate:
    """What `plan`, stored in `found` bytes, will take on the device; `held` is its residency (None: by its
    name).
    """
    took = times(
        space.device,
        space.architecture,
        found,
        activations=plan.activations,
        residency=plan.residency,
        cache_type=plan.cache_type,
    )
    memory = planned_memory(
        space.architecture,
        blocks=found.blocks,
        top=found.weights - sum(found.blocks),
        residency=held or plan.residency,
        cache_type=plan.cache_type,
        context=space.context,
        base_mib=space.device.base_ram_mib,
        windows=space.windows,
    )
    return Candidate(
        plan,
        bits=bits_a_weight(space.architecture, found),
        loss=LOSS_PER_NOISE * added,
        storage_mib=(found.weights + space.files_nbytes) / MIB,
        ram_mib=memory.total_mib,
        device=took.tokens_per_s,
        latency_ms=took.latency_ms,
        energy_mj=took.energy_mj,
    )


def by_precision(candidates: Iterable[Candidate]) -> Mapping[str, list[Candidate]]:
    """Candidates that share a pack, in their order."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.plan.precision, []).append(candidate)
    return groups
