"""One reader or writer per file format."""

from __future__ import annotations

from haversack.core._names import lazily

# Public name -> the file that holds it.
_PUBLIC = {
    "HubFolder": "safetensors",
    "SafetensorsFile": "safetensors",
    "write_safetensors": "safetensors",
}

__all__ = list(_PUBLIC)

__getattr__, __dir__ = lazily(__name__, globals(), _PUBLIC)
