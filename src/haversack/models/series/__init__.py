"""Models of series and tables: forecasters that are linear in their window, and the residual gated cell;
recurrent and dense layers."""

from __future__ import annotations

from haversack.core._names import lazily

_PUBLIC = {
    "CuraClassifier": "cura_estimators",
    "CuraRegressor": "cura_estimators",
    "DLinear": "dlinear",
    "MixLinear": "mixlinear",
    "SeasonalNaive": "seasonal_naive",
    "SparseTSF": "sparsetsf",
}

__all__ = list(_PUBLIC)

__getattr__, __dir__ = lazily(__name__, globals(), _PUBLIC)
