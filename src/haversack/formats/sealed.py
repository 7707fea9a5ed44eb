"""sealed.store: weights that are encrypted and authenticated where they lie, in blocks bound to their
place.

Building blocks: AES-256-GCM (NIST SP 800-38D) and HKDF with SHA-256 (RFC 5869), both of the package
`cryptography`, extra `seal`; imported when a key is first used.
What is here: a tensor is cut into blocks of 64 KiB, the grain at which a restoration may be preempted
(TZ-LLM, run/residency/sealed.py). Each is stored as its ciphertext and a tag of 16 bytes. The associated
data are the pack's salt, the tensor's name, number and size, and the block's number, so a block proves
itself in one place of one pack and nowhere else: moved, taken from another pack or from another version of
this one, it is refused. The key of a pack comes from the owner's key and the pack's salt, 32 random bytes;
a nonce is the place of a block and is used once under that key. The front is encrypted too and vouches, by
SHA-256, for the record (architecture, plan, tensors, forms) and for every file beside the weights.
What is not hidden: pack.json, with the names, shapes and sizes of tensors, and the tokenizer.
Rollback: an old version of a pack is authentic, so no cipher refuses it; a pack carries a name and the time
of its sealing, and `_sealed_versions.py` remembers the newest that ran here.
Cost: 16 bytes a block, and up to 4095 a tensor, which begin at multiples of 4096.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from haversack.core._record import SEALED_NAME, PackRecord
from haversack.core.errors import DamagedFileError, MissingExtraError, UserError
from haversack.core.pack import Finding, Pack, PackWriter

if TYPE_CHECKING:
    from typing_extensions import Buffer

SYSTEM = 29

BLOCK = 64 * 1024
"""Plain bytes of a block; the last of a tensor is shorter."""
TAG = 16
ALIGNMENT = 4096
KEY = 32
MAGIC = b"HVSEALED"
VERSION = 1
FRONT = struct.Struct(">8sII32s16s")
"""magic, version, bytes of the encrypted front, salt, check of the key."""
FRONT_MOST = 16 * 2**20
_FRONT_TENSOR = 0xFFFFFFFF


def blocks_of(nbytes: int) -> int:
    """How many blocks a tensor of `nbytes` has."""
    return -(-nbytes // BLOCK)


def plain_span(block: int, nbytes: int) -> tuple[int, int]:
    """(first byte, bytes) of a block in its tensor of `nbytes`."""
    return block * BLOCK, min(BLOCK, nbytes - block * BLOCK)


def stored_span(first: int, count: int, nbytes: int) -> tuple[int, int]:
    """(first byte, bytes) of `count` blocks from `first` in what is stored of a tensor of `nbytes`."""
    start = first * (BLOCK + TAG)
    stop = min((first + count) * BLOCK, nbytes) + min(first + count, blocks_of(nbytes)) * TAG
    return start, stop - start


def nonce(tensor: int, block: int) -> bytes:
    """12 bytes that no other block under the same key has."""
    return struct.pack(">IQ", tensor, block)


def associated(salt: bytes, name: str, tensor: int, block: int, nbytes: int) -> bytes:
    """What a block is authenticated with: the pack, the tensor and its size, and its own place."""
    return struct.pack(">32sIQQ", salt, tensor, block, nbytes) + name.encode()


def keys_of(key: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """(the pack's key, 16 bytes that tell a wrong key from an altered file)."""
    made = derive(key, salt, b"haversack sealed weights 1", KEY + 16)
    return made[:KEY], made[KEY:]


def read_key(path: str | os.PathLike[str]) -> bytes:
    """The owner's key: a file of 32 bytes, or of 64 hexadecimal digits. Raises UserError."""
    made = f"make one with: umask 077; openssl rand -hex 32 > {os.fspath(path)}"
    try:
        with Path(path).open("rb") as file:
            data = file.read(2 * KEY + 3)
    except OSError as error:
        said = "there is no key at" if isinstance(error, FileNotFoundError) else f"{error.strerror}: the key"
        raise UserError(f"{said} {os.fspath(path)}; {made}", field="key", given=os.fspath(path)) from error
    if len(data) == KEY:
        return data
    text = data.strip()
    if len(text) == 2 * KEY:
        try:
            return bytes.fromhex(text.decode("ascii"))
        except ValueError:
            pass
    raise UserError(
        f"{os.fspath(path)} is no key, which is 32 bytes or 64 hexadecimal digits; {made}",
        field="key",
        given=os.fspath(path),
    )


def require_cipher() -> None:
    """Raises MissingExtraError where `cryptography` is not installed; does not import it."""
    from importlib.util import find_spec

    if find_spec("cryptography") is None:
        raise MissingExtraError("opening or sealing weights", "cryptography", "seal")


def same(one: bytes | str, other: bytes | str) -> bool:
    """Whether two codes are equal, in a time that does not say where they differ."""
    from hmac import compare_digest

    both = [side.encode() if isinstance(side, str) else side for side in (one, other)]
    return compare_digest(both[0], both[1])


def derive(key: bytes, salt: bytes, purpose: bytes, count: int) -> bytes:
    """`count` bytes for `purpose` made of a key (HKDF with SHA-256)."""
    require_cipher()
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    made: bytes = HKDF(SHA256(), count, salt, purpose).derive(key)
    return made


def _cipher(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def record_bytes(record: PackRecord) -> bytes:
    """What of a record a sealed store vouches for; the same bytes for a record that was written and read."""
    return msgspec.json.encode(
        [record.kind, record.architecture, record.plan, record.activations, record.tensors, record.forms]
    )


class Sealer:
    """Encrypts the weights that a `PackWriter` writes, under the owner's `key` of 32 bytes.

    Packs of one `name` under one key are versions of each other. `sealed`: when, in ms since 1970 (default:
    now).
    """

    file = SEALED_NAME

    def __init__(self, key: bytes, name: str, sealed: int | None = None) -> None:
        self.name = name
        self.sealed = time.time_ns() // 1_000_000 if sealed is None else sealed
        self._salt = os.urandom(32)
        made, self._check = keys_of(key, self._salt)
        self._cipher = _cipher(made)
        self._tensors = 0

    def blocks(self, name: str, nbytes: int, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        """See core/_pack_writer.py: ciphertext and tag of each block, then zeros up to a page."""
        tensor, block, stored, waiting = self._tensors, 0, 0, bytearray()
        self._tensors += 1

        def sealed(plain: Buffer) -> bytes:
            place = associated(self._salt, name, tensor, block, nbytes)
            made: bytes = self._cipher.encrypt(nonce(tensor, block), plain, place)
            return made

        for chunk in chunks:
            view = memoryview(chunk)
            view = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
            while view.nbytes:
                part = view[: BLOCK - len(waiting)]
                waiting += part
                view = view[part.nbytes :]
                if len(waiting) == BLOCK:
                    yield sealed(waiting)
                    block, stored, waiting = block + 1, stored + BLOCK + TAG, bytearray()
        if waiting:
            yield sealed(waiting)
            stored += len(waiting) + TAG
        yield bytes(-stored % ALIGNMENT)

    def front_nbytes(self, files: Sequence[str]) -> int:
        """See core/_pack_writer.py."""
        return len(self._front(b"", dict.fromkeys(files, "0" * 64)))

    def front(self, record: PackRecord, folder: Path) -> bytes:
        """See core/_pack_writer.py."""
        return self._front(record_bytes(record), {name: _digest(folder / name) for name in record.files})

    def _front(self, record: bytes, files: Mapping[str, str]) -> bytes:
        said = {"name": self.name, "sealed": self.sealed, "record": _sum(record), "files": dict(files)}
        text = json.dumps(said, ensure_ascii=False).encode()
        fixed = FRONT.pack(MAGIC, VERSION, len(text) + TAG, self._salt, self._check)
        whole: bytes = fixed + self._cipher.encrypt(nonce(_FRONT_TENSOR, 0), text, fixed)
        return whole.ljust(-(-len(whole) // ALIGNMENT) * ALIGNMENT, b"\0")


@dataclass(frozen=True)
class Place:
    """A tensor in a store: its `number` in order, and where what is stored of its `nbytes` begins."""

    name: str
    number: int
    offset: int
    nbytes: int

    def stored(self, first: int, count: int) -> tuple[int, int]:
        """(offset in the file, bytes) of `count` blocks from `first`."""
        start, size = stored_span(first, count, self.nbytes)
        return self.offset + start, size


class Vault:
    """An opened store, of the pack `folder`, and its key. Made by `Vault.open`.

    `places`: its tensors by name. `name` and `sealed`: whose version it is, and of when.
    """

    def __init__(self, folder: Path, salt: bytes, cipher: Any, front: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / SEALED_NAME
        self.places: dict[str, Place] = {}
        self.name, self.sealed = str(front["name"]), int(front["sealed"])
        self._front = front
        self._salt = salt
        self._cipher = cipher

    @classmethod
    def open(cls, folder: Path, key: bytes, record: bytes) -> Vault:
        """Open the store of the pack `folder`, whose record as it was read is `record` (`record_bytes`).

        Raises UserError for the wrong key, DamagedFileError when the front, the record or a file beside the
        weights is not what was sealed.
        """
        salt, check, fixed, text = read_front(folder / SEALED_NAME)
        made, expected = keys_of(key, salt)
        if not same(check, expected):
            raise UserError(
                f"{folder} was not sealed with this key; give the key of its owner.",
                field="key",
                given=str(folder),
            )
        cipher = _cipher(made)
        from cryptography.exceptions import InvalidTag

        try:
            front = json.loads(cipher.decrypt(nonce(_FRONT_TENSOR, 0), text, fixed))
        except InvalidTag as error:
            raise DamagedFileError(folder / SEALED_NAME, "its front is not what was sealed") from error
        if not same(front["record"], _sum(record)):
            raise DamagedFileError(folder / "pack.json", "it is not the record that was sealed")
        known = {"pack.json", SEALED_NAME, *front["files"]}
        for path in sorted(folder.iterdir()):
            if path.name not in known and not path.name.startswith("."):
                raise DamagedFileError(path, "it was not in the pack when that was sealed")
        for name, digest in front["files"].items():
            if not same(digest, _digest(folder / name)):
                raise DamagedFileError(folder / name, "it is not the file that was sealed")
        vault = cls(folder, salt, cipher, front)
        for number, entry in enumerate(json.loads(record)[4]):
            place = Place(entry["name"], number, entry["offset"], entry["nbytes"])
            vault.places[place.name] = place
        return vault

    def open_block(self, place: Place, block: int, stored: Buffer, plain: memoryview) -> None:
        """Decrypt a block into `plain`, which it fills. Raises DamagedFileError, with `plain` wiped, for one
        that was not sealed at this place of this pack.
        """
        from cryptography.exceptions import InvalidTag

        place_data = associated(self._salt, place.name, place.number, block, place.nbytes)
        try:
            self._cipher.decrypt_into(nonce(place.number, block), stored, place_data, plain)
        except InvalidTag as error:
            plain[:] = bytes(plain.nbytes)
            raise DamagedFileError(
                self.path,
                f"block {block} of the tensor {place.name} is not what was sealed there (altered, moved, "
                "or of another pack or version)",
                field=place.name,
            ) from error


def read_front(path: Path) -> tuple[bytes, bytes, bytes, bytes]:
    """(salt, check of the key, fixed bytes, encrypted front) of a store. Raises DamagedFileError."""
    try:
        with path.open("rb") as file:
            fixed = file.read(FRONT.size)
            if len(fixed) < FRONT.size:
                raise DamagedFileError(path, f"it ends after {len(fixed)} bytes")
            magic, version, count, salt, check = FRONT.unpack(fixed)
            if magic != MAGIC:
                raise DamagedFileError(path, "it does not begin as a sealed store does")
            if version != VERSION:
                raise DamagedFileError(path, f"it is of version {version} and this program opens {VERSION}")
            if not TAG < count <= FRONT_MOST:
                raise DamagedFileError(path, f"its front claims {count} bytes")
            text = file.read(count)
            if len(text) < count:
                raise DamagedFileError(path, f"its front claims {count} bytes and {len(text)} are there")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", field="pack", given=str(path)) from error
    return salt, check, fixed, text


def check_sealed(folder: Path, key: bytes | None = None) -> list[Finding]:
    """What does not hold of the sealed weights of the pack `folder`, whose files do; none in a plain pack.

    Without a key: the front and the places of tensors. With it: who sealed it, the record, the files and
    every block. Raises UserError for the wrong key.
    """
    pack = Pack.open(folder)
    if not pack.sealed:
        return []
    found: list[Finding] = []
    try:
        read_front(folder / SEALED_NAME)
        at = pack.record.files[SEALED_NAME].start
        for entry in pack.tensors.values():
            if entry.file != SEALED_NAME or entry.offset != at:
                found.append(Finding("pack.json", f"the tensor {entry.name} is not behind the one before"))
            _, stored = stored_span(0, blocks_of(entry.nbytes), entry.nbytes)
            at = entry.offset + -(-stored // ALIGNMENT) * ALIGNMENT
        if not found and at != pack.record.files[SEALED_NAME].size:
            found.append(Finding(SEALED_NAME, f"its tensors end at byte {at} and it does not"))
        if key is None or found:
            return found
        vault = Vault.open(folder, key, record_bytes(pack.record))
    except DamagedFileError as error:
        return [Finding(Path(error.path).name, error.what)]
    plain = memoryview(bytearray(BLOCK))
    with vault.path.open("rb", buffering=0) as file:
        for place in vault.places.values():
            for block in range(blocks_of(place.nbytes)):
                offset, count = place.stored(block, 1)
                try:
                    data = os.pread(file.fileno(), count, offset)
                    vault.open_block(place, block, data, plain[: plain_span(block, place.nbytes)[1]])
                except DamagedFileError as error:
                    found.append(Finding(SEALED_NAME, error.what, offset))
                    break  # one finding a tensor
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    plain[:] = bytes(BLOCK)
    return found


def seal(pack: Pack, goal: Path, key: bytes, *, name: str | None = None, sealed: int | None = None) -> Pack:
    """Write the plain pack `pack` to `goal`, sealed, whole or not at all. `name`: see Sealer (default: that
    of `goal`)."""
    if pack.sealed:
        raise UserError(f"{pack.path} is sealed already.", field="pack", given=str(pack.path))
    record = pack.record
    with PackWriter(goal, record.kind, sealer=Sealer(key, name or goal.name, sealed)) as writer:
        for entry in record.tensors:
            chunks = [pack.bytes(entry.name)]
            writer.add_tensor(entry.name, entry.kind, entry.shape, chunks, entry.group, entry.layout)
        for matrix, form in record.forms.items():
            writer.add_form(matrix, form)
        weights = {path.name for path in pack.files}
        for file in record.files:
            if file not in weights:
                writer.add_file(file, pack.path / file)
        writer.finish(
            {
                "architecture": record.architecture,
                "plan": {**record.plan, "residency": "sealed"},
                "activations": record.activations,
                "provenance": record.provenance,
                "family": record.family,
                "measurements": record.measurements,
            }
        )
    return Pack.open(goal)


def _sum(data: bytes) -> str:
    from hashlib import sha256

    return sha256(data).hexdigest()


def _digest(path: Path) -> str:
    from hashlib import sha256

    found = sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(2**20):
                found.update(piece)
    except OSError as error:
        raise DamagedFileError(path, f"it cannot be read ({error.strerror})") from error
    return found.hexdigest()
