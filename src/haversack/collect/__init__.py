"""From sensors to datasets: what a device keeps, how it travels, what becomes of it."""

from __future__ import annotations

from haversack.core._names import lazily

# Public name -> the file that holds it.
_PUBLIC = {
    "Bundle": "bundle",
    "BundleError": "bundle",
    "Manifest": "bundle",
    "parse_manifest": "bundle",
    "check_bundle": "_findings",
    "write_bundle": "_bundle_writer",
}

__all__ = list(_PUBLIC)

__getattr__, __dir__ = lazily(__name__, globals(), _PUBLIC)
