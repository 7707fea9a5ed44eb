"""Server and client over real sockets: what is answered, what is refused, what resumes."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import time

import httpx
import pytest
from bundles import edit, make, noisy
from filled import stored
from serving import Proxy, client, enrolled, headers, pusher, serving

from haversack.collect._crc32c import crc32c
from haversack.collect._devices import invite
from haversack.collect._findings import check_bundle
from haversack.collect.bundle import Bundle, DeviceRecord, bundles_in
from haversack.collect.push import Patience, Pusher, UnreachableError, enrol
from haversack.collect.store import StoreLimits
from haversack.core.errors import UserError


def clip(spool, identity, seed=0, **changes):
    device = DeviceRecord(id=identity["device"], model="m", os="o", lens_id="back")
    return make(spool, 10, seed=seed, device=device, **changes)


def chunk(identity, data, offset=0, checksum=None):
    sum_of = crc32c(data) if checksum is None else checksum
    return headers(
        identity,
        **{
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(offset),
            "Upload-Checksum": "crc32c " + base64.b64encode(sum_of.to_bytes(4, "big")).decode(),
        },
    )


def begin(http, folder):
    return http.post("/v1/clips", content=(folder / "manifest.json").read_bytes())


@pytest.fixture(scope="module")
def room(tmp_path_factory, place):
    """A server, a device, its spool."""
    base = tmp_path_factory.mktemp("transport")
    with serving(place(base / "store"), per_second=1e6, burst=10**6) as server:
        identity = enrolled(server, base / "spool")
        yield server, identity, base / "spool"


@pytest.fixture
def fresh(tmp_path, place):
    """The same for one test alone, with options."""
    opened = []

    def make_room(how=None, **options):
        context = serving(place(tmp_path / "store"), **options)
        server = context.__enter__()
        opened.append(context)
        return server, enrolled(server, tmp_path / "spool", **(how or {})), tmp_path / "spool"

    yield make_room
    for context in opened:
        context.__exit__(None, None, None)


def test_clips_travel_and_leave_the_spool(room):
    server, identity, spool = room
    folders = [clip(spool, identity, seed) for seed in range(3)]
    manifests = [Bundle.open(folder).manifest for folder in folders]
    with pusher(spool, server.url) as push:
        done = push.push()
    assert sorted(done.clips) == sorted(manifest.clip_uuid for manifest in manifests)
    assert not done.refused and bundles_in(spool) == [] and not any(folder.exists() for folder in folders)
    for manifest in manifests:
        path = server.store.clip_path(manifest)
        assert check_bundle(path).findings == []
        assert Bundle.open(path).manifest == manifest
    assert done.sent_bytes <= done.payload_bytes  # imu and edge files that are alike travel once
    jobs = server.store.books.rows("SELECT * FROM jobs WHERE clip = ?", (manifests[0].clip_uuid,))
    assert [(job["stage"], job["state"]) for job in jobs] == [("c1-ingest", "queued")]


def test_the_same_clip_again_is_answered_and_nothing_is_sent(room):
    server, identity, spool = room
    folder = clip(spool, identity, 5)
    copy = spool.parent / "copy"
    shutil.copytree(folder, copy)
    with pusher(spool, server.url) as push:
        push.push()
    shutil.copytree(copy, folder)
    with pusher(spool, server.url) as push:
        done = push.push()
    assert len(done.clips) == 1 and done.sent_bytes == 0
    uuid = Bundle.open(copy).manifest.clip_uuid
    assert server.store.books.number("SELECT count(*) FROM jobs WHERE clip = ?", (uuid,)) == 1


def test_a_file_that_is_held_is_not_asked_for_but_only_of_the_same_device(room, tmp_path):
    server, _, _ = room
    identity = enrolled(server, tmp_path / "mine")
    first, second = clip(tmp_path / "a", identity, 6), clip(tmp_path / "a", identity, 6)
    other = enrolled(server, tmp_path / "other", "c-bert")
    theirs = clip(tmp_path / "b", other, 6, consent=consent("c-bert"))
    with client(server, identity) as http:
        assert len(begin(http, first).json()["missing"]) == 4
        deliver(http, identity, first)
        assert begin(http, second).json()["missing"] == []
        assert http.post(f"/v1/uploads/{begin(http, second).json()['upload_id']}/complete").status_code == 200
    with client(server, other) as http:
        assert len(begin(http, theirs).json()["missing"]) == 4


def consent(contributor, policy="1.2", days=365):
    from haversack.collect.bundle import Consent

    return Consent(contributor_pseudonym=contributor, policy_version=policy, retention_days=days)


def deliver(http, identity, folder):
    """Send a clip by hand; the upload's id."""
    begun = begin(http, folder).json()
    manifest = Bundle.open(folder).manifest
    for file in manifest.files:
        if file.sha256 in begun["missing"]:
            data = (folder / file.name).read_bytes()
            address = f"/v1/uploads/{begun['upload_id']}/{file.sha256}"
            if int(http.head(address).headers["Upload-Offset"]) == len(data):
                continue
            assert http.patch(address, content=data, headers=chunk(identity, data)).status_code == 204
    assert http.post(f"/v1/uploads/{begun['upload_id']}/complete").status_code == 200
    return begun["upload_id"]


CONSENTS = {
    "none": ...,
    "null": None,
    "another-contributor": {"contributor_pseudonym": "c-eve", "policy_version": "1.2", "retention_days": 365},
    "another-policy": {"contributor_pseudonym": "c-anna", "policy_version": "9", "retention_days": 365},
    "for-longer": {"contributor_pseudonym": "c-anna", "policy_version": "1.2", "retention_days": 366},
}


@pytest.mark.parametrize("name", CONSENTS)
def test_without_consent_no_byte_is_stored(fresh, name):
    server, identity, spool = fresh()
    folder = clip(spool, identity)
    edit(folder, consent=CONSENTS[name])
    with client(server, identity) as http:
        response = begin(http, folder)
    assert response.status_code == 403 and response.json()["code"] == "consent"
    assert stored(server.store.root) == []
    assert server.store.books.number("SELECT count(*) FROM clips") == 0
    with pusher(spool, server.url) as push:
        done = push.push()
    assert [each["code"] for each in done.refused] == ["consent"] and folder.exists()


def test_a_file_resumes_where_it_ended(room):
    server, identity, spool = room
    folder = clip(spool.parent / "resumed", identity, 8)
    with client(server, identity) as http:
        begun = begin(http, folder).json()
        file = Bundle.open(folder).manifest.file("video.mp4")
        data = (folder / "video.mp4").read_bytes()
        address = f"/v1/uploads/{begun['upload_id']}/{file.sha256}"
        assert (
            http.patch(address, content=data[:700], headers=chunk(identity, data[:700])).headers[
                "Upload-Offset"
            ]
            == "700"
        )
        seen = http.head(address)
        assert (seen.headers["Upload-Offset"], seen.headers["Upload-Length"]) == ("700", str(len(data)))
        wrong = http.patch(address, content=data[500:], headers=chunk(identity, data[500:], 500))
        assert (wrong.status_code, wrong.headers["Upload-Offset"]) == (409, "700")
        incomplete = http.post(f"/v1/uploads/{begun['upload_id']}/complete")
        assert incomplete.status_code == 409 and incomplete.json()["code"] == "missing"
        rest = data[700:]
        assert http.patch(address, content=rest, headers=chunk(identity, rest, 700)).status_code == 204
        assert http.head(address).headers["Upload-Offset"] == str(len(data))


def test_a_chunk_that_was_altered_is_always_refused(room):
    server, identity, spool = room
    folder = clip(spool.parent / "altered", identity, 9)
    data = (folder / "video.mp4").read_bytes()
    with client(server, identity) as http:
        begun = begin(http, folder).json()
        address = f"/v1/uploads/{begun['upload_id']}/{Bundle.open(folder).manifest.file('video.mp4').sha256}"
        for at in range(0, len(data), max(1, len(data) // 25)):
            bad = bytearray(data)
            bad[at] ^= 1 << (at % 8)
            response = http.patch(address, content=bytes(bad), headers=chunk(identity, data))
            assert (response.status_code, response.json()["code"]) == (460, "checksum")
        assert http.head(address).headers["Upload-Offset"] == "0"


def test_without_a_checksum_the_whole_file_s_hash_decides(room):
    server, identity, spool = room
    folder = clip(spool.parent / "unchecked", identity, 10)
    manifest = Bundle.open(folder).manifest
    plain = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    with client(server, identity) as http:
        begun = begin(http, folder).json()
        for file in manifest.files:
            data = bytearray((folder / file.name).read_bytes())
            data[10] ^= file.name == "video.mp4"
            address = f"/v1/uploads/{begun['upload_id']}/{file.sha256}"
            if file.sha256 in begun["missing"]:
                assert http.patch(address, content=bytes(data), headers=plain).status_code == 204
        refused = http.post(f"/v1/uploads/{begun['upload_id']}/complete")
        assert (refused.status_code, refused.json()["sha256"]) == (422, manifest.file("video.mp4").sha256)
        assert not (server.store.root / "clips" / manifest.folder).exists()
        query = "SELECT count(*) FROM jobs WHERE clip = ?"
        assert server.store.books.number(query, (manifest.clip_uuid,)) == 0
        deliver(http, identity, folder)
    assert check_bundle(server.store.clip_path(manifest)).findings == []


def test_an_upload_without_end_stops_at_the_limit(fresh):
    server, identity, spool = fresh(chunk_bytes=64 << 10)
    folder = clip(spool, identity)
    manifest = Bundle.open(folder).manifest
    file = manifest.file("video.mp4")
    with client(server, identity) as http:
        begun = begin(http, folder).json()
        address = f"/v1/uploads/{begun['upload_id']}/{file.sha256}"

        def endless():
            for _ in range(10_000):
                yield bytes(16 << 10)

        given = chunk(identity, b"")
        del given["Upload-Checksum"]
        with contextlib.suppress(httpx.TransportError):  # the server may hang up on it
            assert http.patch(address, content=endless(), headers=given).status_code == 413
        longer = (folder / "video.mp4").read_bytes() + b"x"
        assert http.patch(address, content=longer, headers=chunk(identity, longer)).status_code == 413
        assert http.head(address).headers["Upload-Offset"] == "0"
    assert stored(server.store.root) == []


def test_a_body_that_never_ends_is_given_up(fresh):
    server, identity, spool = fresh(body_s=0.3)
    folder = clip(spool, identity)
    with client(server, identity) as http:

        def slow():
            yield b"{"
            time.sleep(1.0)
            yield b"}"

        with contextlib.suppress(httpx.TransportError):
            assert http.post("/v1/clips", content=slow()).status_code == 408
        assert begin(http, folder).status_code == 201


def test_tokens(room, tmp_path):
    server, identity, _ = room
    folder = clip(tmp_path, identity, 11)
    books = server.store.books
    manifest = (folder / "manifest.json").read_bytes()

    def ask(**changes):
        given = {**headers(identity), **changes}
        return httpx.post(f"{server.url}/v1/clips", content=manifest, headers=given)

    assert ask(Authorization="").json()["code"] == "token"
    assert ask(Authorization="Bearer nonsense").status_code == 401
    assert ask(**{"Haversack-Install": ""}).json()["code"] == "other-device"
    copied = ask(**{"Haversack-Install": "the-install-of-another-phone"})
    assert (copied.status_code, copied.json()["code"]) == (403, "other-device")
    other = enrolled(server, tmp_path / "other")
    stolen = httpx.post(f"{server.url}/v1/clips", content=manifest, headers=headers(other))
    assert (stolen.status_code, stolen.json()["code"]) == (403, "other-device")
    with books.change() as change:
        change.execute("UPDATE devices SET expires = 1 WHERE id = ?", (other["device"],))
    expired = httpx.post(f"{server.url}/v1/clips", content=manifest, headers=headers(other))
    assert (expired.status_code, expired.json()["code"]) == (401, "token-expired")
    theirs = clip(tmp_path / "other", other)
    with pusher(tmp_path / "other", server.url) as push, pytest.raises(UserError, match="expired"):
        push.push()
    assert theirs.exists()


def test_a_code_enrols_one_device_once(room, tmp_path):
    server, _, _ = room
    code = invite(server.store.books, "c-carl", policy_version="1", retention_days=30)
    first = enrol(tmp_path / "one", server.url, code)
    assert first["consent"]["contributor_pseudonym"] == "c-carl"
    assert (tmp_path / "one" / "device.json").stat().st_mode & 0o077 == 0
    with pytest.raises(UserError, match="used or expired"):
        enrol(tmp_path / "two", server.url, code)
    late = invite(server.store.books, "c-carl", policy_version="1", retention_days=30, hours=1e-9)
    with pytest.raises(UserError, match="used or expired"):
        enrol(tmp_path / "two", server.url, late)
    text = "\n".join(map(str, server.store.books.rows("SELECT * FROM devices")))
    assert first["token"] not in text and code not in text


def test_quota_open_uploads_and_a_full_disk(fresh):
    server, identity, spool = fresh(
        {"quota_mib": 0.05}, limits=StoreLimits(open_uploads=2, keep_free_bytes=0)
    )
    folders = [clip(spool, identity, seed) for seed in range(4)]
    with client(server, identity) as http:
        answers = [begin(http, folder) for folder in folders]
        said = [(answer.status_code, answer.json().get("code")) for answer in answers]
        assert said[0] == (201, None)
        assert set(said[1:]) & {(413, "quota"), (429, "uploads")}
    assert stored(server.store.root) == []


def test_a_disk_without_room_is_told_before_a_byte_is_stored(fresh):
    server, identity, spool = fresh(limits=StoreLimits(keep_free_bytes=1 << 60))
    folder = clip(spool, identity)
    with client(server, identity) as http:
        answer = begin(http, folder)
    assert (answer.status_code, answer.json()["code"]) == (507, "disk-full")
    quick = Patience(first_s=0.01, most_s=0.02, give_up_s=0.1)
    with (
        Pusher(spool, server.url, patience=quick) as push,
        pytest.raises(UnreachableError, match="disk is full"),
    ):
        push.push()
    assert folder.exists() and stored(server.store.root) == []


def test_ten_percent_of_requests_lost_cost_little_and_lose_nothing(fresh):
    server, identity, spool = fresh()
    device = DeviceRecord(id=identity["device"], model="m", os="o", lens_id="back")
    folders = [noisy(spool, 2 << 20, seed, device=device) for seed in range(3)]
    expected = {Bundle.open(folder).manifest.clip_uuid for folder in folders}
    proxy = Proxy(int(server.url.rsplit(":", 1)[1]), share=0.1, seed=4)
    with pusher(spool, proxy.url, chunk_bytes=64 << 10) as push:
        done = push.push()
    proxy.close()
    assert set(done.clips) == expected and proxy.cut > 5 and done.retries >= proxy.cut // 2
    assert proxy.sent <= 1.10 * done.payload_bytes
    rows = server.store.books.rows("SELECT clip FROM jobs")
    assert sorted(row["clip"] for row in rows) == sorted(expected)


def test_the_public_client_of_the_protocol_resumes_here(room):
    from tusclient.client import TusClient

    server, identity, spool = room
    folder = clip(spool.parent / "tus", identity, 12)
    with client(server, identity) as http:
        begun = begin(http, folder).json()
        for file in Bundle.open(folder).manifest.files:
            if file.sha256 not in begun["missing"]:
                continue
            address = f"{server.url}/v1/uploads/{begun['upload_id']}/{file.sha256}"
            tus = TusClient(address, headers=headers(identity))
            tus.uploader(str(folder / file.name), url=address, chunk_size=900).upload_chunk()
            rest = tus.uploader(str(folder / file.name), url=address, chunk_size=900, upload_checksum=True)
            assert rest.offset == min(900, file.bytes)
            rest.upload()
        assert http.post(f"/v1/uploads/{begun['upload_id']}/complete").status_code == 200


def test_uploads_that_nobody_goes_on_with_are_dropped(fresh):
    server, identity, spool = fresh(limits=StoreLimits(stale_s=0.0, keep_free_bytes=0))
    folder = clip(spool, identity)
    with client(server, identity) as http:
        begun = begin(http, folder).json()
        file = Bundle.open(folder).manifest.file("video.mp4")
        part = (folder / "video.mp4").read_bytes()[:100]
        http.patch(
            f"/v1/uploads/{begun['upload_id']}/{file.sha256}", content=part, headers=chunk(identity, part)
        )
        assert stored(server.store.root)
        assert server.store.sweep() == 1
        assert stored(server.store.root) == [] and begin(http, folder).status_code == 201


def test_paths_that_no_upload_has(room):
    server, identity, _ = room
    with client(server, identity) as http:
        for path in (
            "/v1/uploads/../../etc/passwd",
            "/v1/uploads/x/..%2f..%2fx",
            f"/v1/uploads/{'a' * 32}/{'b' * 64}",
        ):
            assert http.head(path).status_code == 404
        assert http.delete("/v1/clips").status_code == 405
        assert http.get("/healthz").json() == {"status": "ok"}
        assert "haversack_collect_clips" in http.get("/metrics").text
        assert http.get("/v1/state").json()["clips"] >= 1
        options = http.options(f"/v1/uploads/{'a' * 32}/{'b' * 64}")
        assert (
            options.headers["Tus-Version"] == "1.0.0" and "sha1" in options.headers["Tus-Checksum-Algorithm"]
        )


def test_the_dashboard_shows_what_the_state_says(room):
    server, _, _ = room
    page = httpx.get(f"{server.url}/dashboard")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["Content-Security-Policy"]
    state = httpx.get(f"{server.url}/v1/state").json()
    asked = set(re.findall(r"state\.([a-z_]+)", page.text))
    assert asked and asked <= set(state)


def test_what_tells_about_everybody_needs_the_server_s_token(fresh):
    server, identity, _ = fresh(token="a token of the server")
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    assert httpx.get(f"{server.url}/v1/state", headers=headers(identity)).status_code == 401
    given = {"Authorization": "Bearer a token of the server"}
    assert httpx.get(f"{server.url}/v1/state", headers=given).status_code == 200
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert json.loads(httpx.get(f"{server.url}/v1/state", headers=given).text)["devices"] == 1
