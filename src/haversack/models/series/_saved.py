"""Fitted forecasters as packs of one small file, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.small_pack import SmallPack
from haversack.models.series._forecaster import Forecaster
from haversack.models.series.dlinear import DLinear
from haversack.models.series.mixlinear import MixLinear
from haversack.models.series.seasonal_naive import SeasonalNaive
from haversack.models.series.sparsetsf import SparseTSF

F64 = NDArray[np.float64]
FORECASTERS: dict[str, type[Forecaster]] = {
    kind.name: kind for kind in (MixLinear, SparseTSF, DLinear, SeasonalNaive)
}
_SETTINGS = ("horizon", "seq", "period", "bins", "alpha", "rank")


def to_pack(model: Forecaster, *, step: float | None = None) -> SmallPack:
    """A fitted forecaster as a pack; `step` is that of its series, in seconds."""
    model._need_fit("mean_")
    settings = {name: value for name, value in model.get_params().items() if name in _SETTINGS}
    if isinstance(model, MixLinear):
        settings |= {"bins": model._bins(), "alpha": model._alpha()}
    if step is not None:
        settings["step"] = step
    return SmallPack("signal", model.name, settings, _arrays(model))


def from_pack(pack: SmallPack, path: object) -> tuple[Forecaster, float | None]:
    """The forecaster of a pack and the step of its series. Raises UserError for a pack of something else,
    DamagedFileError for one whose arrays are not what its settings need."""
    kind = FORECASTERS.get(pack.model)
    if kind is None:
        raise UserError(
            f"{path} holds the model {pack.model[:40]!r}, which is no forecaster "
            f"(allowed {', '.join(FORECASTERS)}).",
            field="pack",
            given=pack.model[:40],
        )
    record = dict(pack.record)
    step = record.pop("step", None)
    try:
        model = kind(**record)
        model._check()
        model.mean_ = np.asarray(pack.arrays.get("mean", np.zeros(())))
        model.scale_ = np.asarray(pack.arrays.get("scale", np.ones(())))
        _RESTORE[pack.model](model, pack.arrays)
    except (TypeError, KeyError, ValueError, UserError) as error:
        raise DamagedFileError(path, f"its settings and arrays do not go together ({error})") from error
    return model, float(step) if isinstance(step, int | float) else None


def _arrays(model: Forecaster) -> dict[str, F64]:
    if isinstance(model, MixLinear):
        return {
            "kernel": model.kernel_,
            "within": model.within_,
            "across": model.across_,
            "narrow": np.stack([model.narrow_.real, model.narrow_.imag]),
            "wide": np.stack([model.wide_.real, model.wide_.imag]),
        }
    if isinstance(model, SparseTSF):
        return {"kernel": model.kernel_, "map": model.map_}
    if isinstance(model, DLinear):
        return {"matrix": model.matrix_, "bias": model.bias_, "mean": model.mean_, "scale": model.scale_}
    return {}


def _restore_mixlinear(model: Any, arrays: Any) -> None:
    parts = [arrays[name].ravel() for name in ("within", "across", "narrow", "wide")]
    parameters = np.concatenate(parts)
    if len(arrays["kernel"]) != model.period + 1 or len(parameters) != model._map().size:
        raise ValueError("there are too few or too many numbers")
    model._keep(arrays["kernel"], parameters)


def _restore_sparsetsf(model: Any, arrays: Any) -> None:
    if len(arrays["kernel"]) != model.period + 1:
        raise ValueError("the kernel is not a period and one long")
    model.kernel_ = arrays["kernel"]
    model.map_ = arrays["map"].reshape(model.periods_ahead, model.periods_back)


def _restore_dlinear(model: Any, arrays: Any) -> None:
    model.matrix_ = arrays["matrix"].reshape(model.horizon, model.seq)
    model.bias_ = arrays["bias"].reshape(model.horizon)


_RESTORE: dict[str, Callable[[Any, Any], None]] = {
    "mixlinear": _restore_mixlinear,
    "sparsetsf": _restore_sparsetsf,
    "dlinear": _restore_dlinear,
    "seasonal-naive": lambda model, arrays: None,
}
