"""Budget, device, pack, method, measurement: the nouns of the house. Imports nothing of ours.

Functions that bear their file's name are reached there: `core.device.device`, `core.link.link`,
`core.progress.progress`.
"""

from __future__ import annotations

from haversack.core._names import lazily

# Public name -> the file that holds it.
_PUBLIC = {
    "Budget": "budget",
    "BudgetError": "budget",
    "Device": "device",
    "DamagedFileError": "errors",
    "HaversackError": "errors",
    "MissingExtraError": "errors",
    "UserError": "errors",
    "Ledger": "ledger",
    "Link": "link",
    "Measurement": "measurement",
    "Quality": "measurement",
    "Spread": "measurement",
    "MeasuredRun": "memory",
    "MemoryPlan": "memory",
    "MemoryWatch": "memory",
    "peak_mib": "memory",
    "run_measured": "memory",
    "Method": "method",
    "parameter": "method",
    "Pack": "pack",
    "PackWriter": "pack",
    "TensorEntry": "pack",
    "TensorSource": "pack",
    "check_pack": "pack",
    "Cost": "roofline",
    "DirectFile": "storage",
    "SlowStorage": "storage",
}

__all__ = list(_PUBLIC)

__getattr__, __dir__ = lazily(__name__, globals(), _PUBLIC)
