"""Stores for tests, filled through the store's own doors."""

from __future__ import annotations

from pathlib import Path

from bundles import make

from haversack.collect._devices import Device, device_of, enrol, invite
from haversack.collect._objects import objects_of
from haversack.collect.bundle import Bundle, Consent, DeviceRecord, Manifest
from haversack.collect.store import Store, StoreLimits


def device(store: Store, contributor: str = "c-anna") -> Device:
    code = invite(store.books, contributor, policy_version="1.2", retention_days=365)
    made = enrol(store.books, code, "an-install-for-a-test", "m", "o")
    return device_of(store.books, f"Bearer {made['token']}", "an-install-for-a-test")


def put(store: Store, owner: Device, folder: Path) -> Manifest:
    """Upload a bundle without a network, from where it ended."""
    begun = store.begin(owner, (folder / "manifest.json").read_bytes())
    for file in Bundle.open(folder).manifest.files:
        if file.sha256 in begun.missing:
            here, length = store.offset(owner, begun.upload, file.sha256)
            if here < length:
                store.append(owner, begun.upload, file.sha256, here, (folder / file.name).read_bytes()[here:])
    return store.complete(owner, begun.upload)


def stored(root: Path) -> list[str]:
    """Every file that uploads left in a store, in its folder and in its bucket, its books aside."""
    here = [
        str(path.relative_to(root))
        for name in ("objects", "uploads", "clips")
        for path in (root / name).rglob("*")
        if path.is_file()
    ]
    return here + list(objects_of(root).names())


def fill(
    root: Path, count: int, contributor: str = "c-anna", *, frames: int = 12, session: str = "s1"
) -> list[Manifest]:
    """`count` clips of a contributor in the store at `root`."""
    store = Store(root, StoreLimits(keep_free_bytes=0))
    owner = device(store, contributor)
    clips = []
    for seed in range(count):
        folder = make(
            root.parent / "spool",
            frames,
            seed=seed,
            device=DeviceRecord(id=owner.id, model="m", os="o", lens_id="back"),
            consent=Consent(contributor_pseudonym=contributor, policy_version="1.2", retention_days=365),
            session=session,
        )
        clips.append(put(store, owner, folder))
    store.books.close()
    return clips
