"""Rotary positions as hub configs describe them, in the spellings of all years."""

from __future__ import annotations

from collections.abc import Sequence

from haversack.core.errors import UserError, unknown_name
from haversack.models._config import Config
from haversack.models._rope import SCALINGS, Rope, longrope_attention_factor, yarn_attention_factor


def read_rope(
    config: Config,
    width: int,
    context: int,
    default_theta: float = 10000.0,
    *,
    partial: float | None = None,
    scalings: Sequence[str] = SCALINGS,
) -> Rope:
    """The rotary positions of a config, in the spelling of transformers 5 (`rope_parameters`) or the older
    ones (`rope_theta` and `rope_scaling`, whose `type` may be `rope_type`).

    `width` of a head; `partial` is the part of it that turns unless `partial_rotary_factor` says another
    (None: a family whose whole heads turn, always). `scalings` are those the family has.
    """
    table = rope_table(config)
    if any(isinstance(value, dict) for value in table.values.values()):
        name = "rope_scaling" if config.table("rope_scaling") is not None else "rope_parameters"
        raise config.wrong(name, "differs between kinds of layers, which this family does not do")
    theta = table.number("rope_theta", config.number("rope_theta", default_theta))
    return rope_of(config, table, _turned(config, table, width, partial), context, theta, scalings)


def rope_table(config: Config) -> Config:
    """The table of a config that holds the scaling; an empty one when it has none."""
    found = config.table("rope_scaling") or config.table("rope_parameters")
    return found or Config({}, f"{config.what}: rope_parameters")


def _turned(config: Config, table: Config, width: int, partial: float | None) -> int:
    """How many numbers of a head turn."""
    if width % 2:
        raise UserError(
            f"{config.what}: a head of {width} numbers cannot be turned in pairs; head_dim must be even.",
            field="head_dim",
            given=width,
            nearest=width + 1,
        )
    name = "partial_rotary_factor"
    holder = table if table.has(name) else config
    if partial is None:
        if holder.has(name) and holder.number(name) != 1:
            raise holder.wrong(name, "is not supported by this family (allowed 1.0)", 1.0)
        return width
    factor = holder.number(name, partial)
    turned = int(width * factor)
    if not 2 <= turned <= width or turned % 2:
        nearest = min(max(round(width * factor / 2) * 2, 2), width) / width
        raise holder.wrong(name, f"does not turn whole pairs of a head of {width} numbers", nearest)
    return turned


def rope_of(
    config: Config,
    table: Config,
    width: int,
    context: int,
    theta: float,
    scalings: Sequence[str] = SCALINGS,
) -> Rope:
    """The rotary positions that `table` describes, of `width` numbers of a head."""
    spelled = "rope_type" if table.has("rope_type") else "type"
    scaling = table.values.get(spelled) or "default"
    if scaling not in scalings:
        raise unknown_name(f"{table.what}: {spelled}", str(scaling)[:80], scalings, field=spelled)
    if scaling == "default":
        return Rope(width, theta)
    own = scaling in ("yarn", "longrope")  # these may leave the factor to the two lengths of text
    factor = table.number("factor") if not own or table.has("factor") else 0.0
    if scaling == "linear":
        return Rope(width, theta, scaling, factor)
    if scaling == "dynamic":
        if width < 4:
            raise config.wrong("head_dim", "is too small for dynamic scaling (4 at least)", 4)
        return Rope(width, theta, scaling, factor, context)
    outer = "original_max_position_embeddings"
    original = config.whole(outer) if config.has(outer) else table.whole(outer, context)
    if scaling == "llama3":
        low, high = table.number("low_freq_factor"), table.number("high_freq_factor")
        if low >= high:
            raise table.wrong("low_freq_factor", f"must be below high_freq_factor={high:g}")
        return Rope(width, theta, scaling, factor, original, low, high)
    factor = factor or context / original
    given = table.number("attention_factor") if table.has("attention_factor") else None
    if scaling == "longrope":
        short, long = (table.numbers(name, width // 2) for name in ("short_factor", "long_factor"))
        if given is None and factor > 1 and original < 2:
            raise config.wrong(outer, "is too short for a text (2 at least)", 2)
        attention_factor = longrope_attention_factor(factor, original) if given is None else given
        return Rope(
            width,
            theta,
            scaling,
            factor,
            original,
            attention_factor=attention_factor,
            short=short,
            long=long,
        )
    if theta <= 1:
        raise table.wrong("rope_theta", "must be above 1 for yarn")
    fast, slow = table.number("beta_fast", 32.0), table.number("beta_slow", 1.0)
    scales = [table.number(key) if table.values.get(key) else None for key in ("mscale", "mscale_all_dim")]
    attention_factor = given if given is not None else yarn_attention_factor(factor, scales[0], scales[1])
    return Rope(
        width, theta, scaling, factor, original, slow, fast, table.flag("truncate", True), attention_factor
    )
