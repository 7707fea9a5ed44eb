"""The families that are nearest to one we do not have, and what differs, told from its config."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from haversack.core.errors import UserError
from haversack.models._architecture import Architecture
from haversack.models.language._features import marks_of

NORMS = {
    "layer": ("layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon"),
    "rms": ("rms_norm_eps", "norm_eps"),
}
ROTARY = ("rope_theta", "rope_scaling", "rope_parameters", "rotary_dim", "rotary_pct", "rotary_emb_base")
LEARNED = ("n_positions", "n_ctx")
PARALLEL = ("parallel_attn", "use_parallel_residual", "parallel_residual", "parallel_attention")
NORM_NAMES = {"layer": "layer norms", "rms": "root-mean-square norms"}
SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
SHOWN = 3
SCALED = "a scaled embedding"
KNOWN_FOR = {
    "gemma": SCALED,
    "t5gemma": SCALED,
    "bloom": "attention biased by distance",
    "rwkv": "recurrent layers",
    "gptj": "positions turned in neighbouring pairs",
    "codegen": "positions turned in neighbouring pairs",
    "cohere": "positions turned in neighbouring pairs",
    "glm": "positions turned in neighbouring pairs",
}
"""What some families do without their configs saying so."""


@dataclass(frozen=True)
class Nature:
    """What tells families apart; None where a config does not say."""

    norm: str | None = None
    learned_positions: bool | None = None
    parallel: bool | None = None
    marks: tuple[str, ...] = ()


def unknown_family(family: str, config: Mapping[str, Any], known: Iterable[str]) -> UserError:
    """The error for a family we do not have: the nearest three, by nature and by name, and what differs."""
    theirs = nature_of_config(family, config)
    natures = {name: nature_of_family(name) for name in known}
    nearest = sorted(natures, key=lambda name: (-_likeness(family, theirs, name, natures[name]), name))[
        :SHOWN
    ]
    shown = [f"{name} ({differences(theirs, natures[name])})" for name in nearest]
    listed = " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
    return UserError(
        f"config.json: the architecture {family[:80]!r} is not known; the nearest are {listed}.",
        field="model_type",
        given=family,
        nearest=nearest[0],
    )


def nature_of_config(family: str, config: Mapping[str, Any]) -> Nature:
    """What a config of any family says, and what its family is known for."""
    norms = [kind for kind, fields in NORMS.items() if any(field in config for field in fields)]
    rotary = any(field in config for field in ROTARY)
    learned = None if rotary == any(field in config for field in LEARNED) else not rotary
    said = [config[field] for field in PARALLEL if isinstance(config.get(field), bool)]
    return Nature(
        norm=norms[0] if len(norms) == 1 else None,
        learned_positions=learned,
        parallel=any(said) if said else None,
        marks=(*marks_of(config), *(what for name, what in KNOWN_FOR.items() if family.startswith(name))),
    )


def nature_of_family(name: str) -> Nature:
    """What one of our families has, by a small model of it."""
    module = import_module(f"haversack.models.language.{name.replace('-', '_')}")
    try:
        architecture = module.read({**SMALL, "model_type": name})
    except UserError:
        return Nature()
    if not isinstance(architecture, Architecture):
        return Nature("layer", True, False, ("attention in both directions",))
    block = architecture.blocks[0]
    norm = block.branches[0].norm or block.branches[0].after_norm
    marks = (SCALED,) if architecture.embedding_scale != 1 else ()
    if block.mixture is not None:
        marks = (*marks, "a mixture of experts")
    kind = None if norm is None else norm.kind
    return Nature(kind, architecture.positions is not None, block.parallel, marks)


def differences(theirs: Nature, ours: Nature) -> str:
    """What our family has and has not, next to `theirs`."""
    found = [f"without {what}" for what in theirs.marks if what not in ours.marks]
    found += [f"with {what}" for what in ours.marks if what not in theirs.marks]
    if None not in (theirs.norm, ours.norm) and theirs.norm != ours.norm:
        found.append(f"with {NORM_NAMES[str(ours.norm)]}")
    one, two = theirs.learned_positions, ours.learned_positions
    if None not in (one, two) and one != two:
        found.append(f"with {'learned' if two else 'rotary'} positions")
    if None not in (theirs.parallel, ours.parallel) and theirs.parallel != ours.parallel:
        found.append(f"with layers {'side by side' if ours.parallel else 'one after the other'}")
    return ", ".join(found) or "its config tells no difference"


def _likeness(family: str, theirs: Nature, name: str, ours: Nature) -> float:
    """Larger for what is more alike: the name counts as much as all else."""
    alike = difflib.SequenceMatcher(None, family.lower(), name.lower()).ratio()
    alike += 0.3 if name.startswith(family.lower()) else 0
    pairs = (
        (theirs.norm, ours.norm, 0.4),
        (theirs.learned_positions, ours.learned_positions, 0.3),
        (theirs.parallel, ours.parallel, 0.2),
    )
    alike -= sum(weight for one, two, weight in pairs if None not in (one, two) and one != two)
    return alike - 0.3 * len(set(theirs.marks) ^ set(ours.marks))
