"""Which version of a sealed pack ran here last, so that an older one is refused whole.

An old pack is authentic: its blocks, its front and its record belong together. What tells it apart is what
ran here before, so each name under a key has a small file in the user's data folder, with a code over it
that only the key makes. It can be removed, or be put back together with the pack it belongs to, by whoever
may write there; a device that must not allow that needs a counter in hardware (RPMB, TPM).
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from haversack.core._files import data_folder, write_atomically
from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.sealed import KEY, Vault, derive, same


class Versions:
    """The newest versions that ran here, of packs under the owner's `key`; in `folder` (default: the user's
    data folder)."""

    def __init__(self, key: bytes, folder: Path | None = None) -> None:
        self._key = derive(key, b"", b"haversack sealed versions 1", KEY)
        self.folder = data_folder() / "sealed" if folder is None else folder

    def admit(self, vault: Vault) -> None:
        """Raises UserError when a newer version ran here; else remembers this one."""
        path = self.folder / f"{self._code(vault.name)[:32]}.json"
        newest = self._newest(path, vault.name)
        if newest is not None and vault.sealed < newest:
            raise UserError(
                f"{vault.folder} is an older version of {vault.name} than one that ran here "
                f"({_date(vault.sealed)} and {_date(newest)}), so it is refused; to go back on purpose, "
                f"remove {path}.",
                field="pack",
                given=str(vault.folder),
            )
        if newest is None or newest < vault.sealed:
            said = {"sealed": vault.sealed, "code": self._code(f"{vault.sealed} {vault.name}")}
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(said).encode())

    def _newest(self, path: Path, name: str) -> int | None:
        try:
            said = json.loads(path.read_bytes())
            newest = int(said["sealed"])
            if same(str(said["code"]), self._code(f"{newest} {name}")):
                return newest
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise DamagedFileError(path, f"it does not say which version of {name} ran here", advice="Remove it.")

    def _code(self, text: str) -> str:
        import hmac

        return hmac.new(self._key, text.encode(), "sha256").hexdigest()


def _date(milliseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(milliseconds / 1000))
