"""Clips pushed over a connection that loses requests, to a server and by a client that are killed.

Client and server are the commands, in processes of their own. A proxy between them loses a tenth of all
requests: half are cut at a random byte, half are answered and the answer is lost. Both sides are killed
(SIGKILL) at random requests, in turns. Counted: clips in the spool's list that the store does not have, jobs
beyond one a clip, and every byte that the client sent. Payload is nearly incompressible video.

A tampered chunk is one with a bit flipped after its checksum was made.
"""

from __future__ import annotations

import base64
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench.aoe._bench import bench
from haversack.bench.aoe._processes import COMMAND, Command
from haversack.bench.aoe._proxy import Proxy

LOST_SHARE = 0.1
CLIP_MIB = 8
CHUNK_KIB = 64

LOST = Row(
    "upload-lost",
    "clips lost over kills of client and server and a tenth of requests lost",
    "clips",
    "quality",
    Bar("==", 0.0),
    "ours",
    quick=True,
)
DOUBLED = Row(
    "upload-doubled", "clips queued more than once, same runs", "clips", "quality", Bar("==", 0.0), "ours"
)
BYTES = Row(
    "upload-bytes",
    "bytes that the client sent, as a share of the payload, same runs",
    "ratio",
    "bytes",
    Bar("<=", 1.10),
    "ours",
    quick=True,
)
TAMPERED = Row(
    "upload-tampered",
    "chunks with a flipped bit that are refused",
    "share",
    "quality",
    Bar("==", 1.0),
    "ours",
    quick=True,
)


@bench.measure(LOST, DOUBLED, BYTES, seconds=240, quick_seconds=25)
def kills(run: Run) -> Outcomes:
    """20 kills of each side (2 in a quick run) while the spool is pushed."""
    clips, each = (3, 2) if run.quick else (12, 20)
    draws = random.Random(run.seed)
    with tempfile.TemporaryDirectory() as folder:
        root, spool = Path(folder, "store"), Path(folder, "spool")
        with Command(root) as server:
            device = _enrolled(root, server.url, spool)
            sent = [_noise(spool, device, run.seed + at) for at in range(clips)]
            payload = sum(nbytes for _, nbytes in sent)
            proxy = Proxy(server.port, share=LOST_SHARE, seed=run.seed)
            counted = {"client": 0, "server": 0}
            requests = payload // (CHUNK_KIB << 10)
            gap = max(3, int(requests / (2 * each + 4)))
            turns = 0
            while list(spool.glob("*/*/*/manifest.json")):
                push = _push(spool, proxy.url)
                aim = proxy.requests + draws.randrange(1, gap)
                while push.poll() is None:
                    if sum(counted.values()) < 2 * each and proxy.requests >= aim:
                        side = "client" if sum(counted.values()) % 2 else "server"
                        counted[side] += 1
                        if side == "client":
                            push.kill()
                        else:
                            server.kill()
                            server.start()
                        aim = proxy.requests + draws.randrange(1, gap)
                    time.sleep(0.002)
                push.communicate()
                turns += 1
                if turns > 4 * each + 20:
                    raise Unavailable("the spool was not empty after many runs of the client")
            proxy.close()
        arrived = _queued(root)
    names = {name for name, _ in sent}
    note = (
        f"{clips} clips of {payload / 2**20:.0f} MiB, {counted['client']} kills of the client, "
        f"{counted['server']} of the server, {proxy.cut} of {proxy.requests} requests lost"
    )
    return {
        LOST.id: Outcome.single(float(len(names - set(arrived))), note=note),
        DOUBLED.id: Outcome.single(float(len(arrived) - len(set(arrived))), note=note),
        BYTES.id: Outcome.single(proxy.sent / payload, note=f"{note}; everything from the client is counted"),
    }


@bench.measure(TAMPERED, seconds=20, quick_seconds=10)
def tampered(run: Run) -> Outcomes:
    """200 chunks, each with one bit flipped after its CRC-32C was taken."""
    import httpx

    from haversack.collect._crc32c import crc32c

    draws = random.Random(run.seed)
    with tempfile.TemporaryDirectory() as folder:
        root, spool = Path(folder, "store"), Path(folder, "spool")
        with Command(root) as server:
            device = _enrolled(root, server.url, spool)
            name, _ = _noise(spool, device, run.seed, mib=1)
            bundle = next(spool.glob(f"*/*/{name}"))
            identity = json.loads((spool / "device.json").read_text())
            headers = {
                "Authorization": f"Bearer {identity['token']}",
                "Haversack-Install": identity["install"],
            }
            with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
                manifest = (bundle / "manifest.json").read_bytes()
                upload = client.post("/v1/clips", content=manifest).json()["upload_id"]
                files = {file["name"]: file for file in json.loads(manifest)["files"]}
                address = f"/v1/uploads/{upload}/{files['video.mp4']['sha256']}"
                data = (bundle / "video.mp4").read_bytes()[: CHUNK_KIB << 10]
                checksum = base64.b64encode(crc32c(data).to_bytes(4, "big")).decode()
                refused = 0
                for _ in range(200):
                    bad = bytearray(data)
                    bad[draws.randrange(len(bad))] ^= 1 << draws.randrange(8)
                    given = {
                        "Content-Type": "application/offset+octet-stream",
                        **{"Upload-Offset": "0", "Upload-Checksum": f"crc32c {checksum}"},
                    }
                    refused += client.patch(address, content=bytes(bad), headers=given).status_code == 460
    return {TAMPERED.id: Outcome.single(refused / 200)}


def _push(spool: Path, url: str) -> subprocess.Popen[bytes]:
    words = ["--chunk-kib", str(CHUNK_KIB), "--first-wait", "0.02", "--most-wait", "0.3", "--json"]
    return subprocess.Popen(
        [*COMMAND, "collect", "push", str(spool), "--to", url, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _enrolled(root: Path, url: str, spool: Path) -> Any:
    """The device record of a device that is enrolled in a running server's store."""
    from haversack.collect._books import Books
    from haversack.collect._devices import invite
    from haversack.collect.bundle import DeviceRecord
    from haversack.collect.push import enrol

    code = invite(Books(root), "c-bench", policy_version="1", retention_days=30)
    identity = enrol(spool, url, code)
    return DeviceRecord(id=identity["device"], model="bench", os="linux", lens_id="0")


def _noise(spool: Path, device: Any, seed: int, *, mib: int = CLIP_MIB) -> tuple[str, int]:
    """A bundle of noise of about `mib` MiB in the spool: its clip's id and the bytes of its files."""
    from haversack.collect._bundle_writer import ClipInfo, write_bundle
    from haversack.collect._video import write_video
    from haversack.collect.bundle import Bundle, Consent

    rng = np.random.default_rng(seed)
    count = max(2, mib * 14)
    times = np.round(np.arange(count) * 1e9 / 15).astype(np.int64)
    pictures = [rng.integers(0, 255, (256, 256, 3), dtype=np.uint8) for _ in range(count)]
    clip = ClipInfo(
        device=device,
        session="bench",
        consent=Consent(contributor_pseudonym="c-bench", policy_version="1", retention_days=30),
        fps_nominal=15.0,
        t0_wall_ns=time.time_ns(),
    )
    frames = list(zip(times.tolist(), pictures, strict=True))
    folder = write_bundle(spool, clip, lambda path: write_video(path, frames, 15.0, crf=1), times)
    manifest = Bundle.open(folder).manifest
    return manifest.clip_uuid, manifest.nbytes


def _queued(root: Path) -> list[str]:
    """The clips of all jobs of the first stage, and of all whole folders that no job is for."""
    from haversack.collect._books import Books
    from haversack.collect.bundle import bundles_in

    rows = Books(root).rows("SELECT clip FROM jobs WHERE stage = 'c1-ingest'")
    queued = [str(row["clip"]) for row in rows]
    folders = [folder.name for folder in bundles_in(root / "clips")]
    return [name for name in queued if name in folders] + [name for name in folders if name not in queued]
