"""Forgetting a contributor: everything of theirs is gone, nothing of others', and nothing new is taken."""

from __future__ import annotations

import json

import pytest
from bundles import make
from filled import device, fill, put, stored

from haversack.cli import main
from haversack.collect import forget as forgetting
from haversack.collect._books import Books
from haversack.collect._devices import invite
from haversack.collect._findings import check_bundle
from haversack.collect._objects import fetched
from haversack.collect.bundle import DeviceRecord
from haversack.collect.process import Settings, process
from haversack.collect.store import Store, StoreLimits
from haversack.core._asgi import RefusedError
from haversack.core.errors import UserError


@pytest.fixture(autouse=True)
def prepared(tmp_path, place):
    place(tmp_path / "store")


def test_everything_goes_and_the_proof_reads_all_that_is_left(tmp_path, capsys):
    root = tmp_path / "store"
    gone, kept = fill(root, 2, "c-anna"), fill(root, 2, "c-anna2")
    process(root, ["c1-ingest"], settings=Settings(workers=1))
    note = root / "exports"
    note.mkdir()
    (tmp_path / "set-a").mkdir()
    (tmp_path / "set-b").mkdir()
    (note / "a.json").write_text(json.dumps({"path": str(tmp_path / "set-a"), "clips": [gone[0].clip_uuid]}))
    (note / "b.json").write_text(json.dumps({"path": str(tmp_path / "set-b"), "clips": [kept[0].clip_uuid]}))
    assert main(["collect", "forget", "c-anna", "--root", str(root), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["clips"], said["devices"], said["traces"]) == (2, 1, [])
    assert said["searched_files"] > 10 and said["exports"] == [str(tmp_path / "set-a")]
    assert not (tmp_path / "set-a").exists() and (tmp_path / "set-b").exists()
    for path in root.rglob("*"):
        for clip in gone:
            assert clip.clip_uuid not in str(path) and clip.device.id not in str(path)
            if path.is_file():
                data = path.read_bytes()
                assert clip.clip_uuid.encode() not in data and clip.device.id.encode() not in data
    left = list(fetched(root))
    assert len(left) == 2 and all(check_bundle(folder).findings == [] for folder in left)
    books = Books(root)
    assert books.number("SELECT count(*) FROM jobs WHERE state = 'done'") == 2
    assert "c-anna2" in (root / "collect.sqlite").read_bytes().decode("latin-1")
    line = json.loads((root / "audit.jsonl").read_text().splitlines()[-1])
    assert line["action"] == "forget" and line["who"] == said["mark"] and line["clips"] == 2


def test_nothing_new_is_taken_from_somebody_forgotten(tmp_path):
    root = tmp_path / "store"
    fill(root, 1)
    store = Store(root, StoreLimits(keep_free_bytes=0))
    owner = device(store)
    folder = make(tmp_path / "late", 8, device=DeviceRecord(id=owner.id, model="m", os="o", lens_id="b"))
    forgetting.forget(root, "c-anna")
    with pytest.raises(RefusedError) as caught:
        put(store, owner, folder)
    assert (caught.value.status, caught.value.code) == (403, "consent")
    with pytest.raises(UserError, match="asked to be forgotten"):
        invite(store.books, "c-anna", policy_version="1", retention_days=1)
    with pytest.raises(UserError, match="knows no contributor"):
        forgetting.forget(root, "c-anna")


def test_a_killed_run_is_gone_on_with(tmp_path, monkeypatch):
    """Rows go last, so that the second run knows what the first had begun."""
    root = tmp_path / "store"
    fill(root, 2)

    def killed(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "_remove_exports", killed)
        with pytest.raises(KeyboardInterrupt):
            forgetting.forget(root, "c-anna")
    done = forgetting.forget(root, "c-anna")
    assert done.clips == 2 and done.traces == []


def test_clips_go_when_their_time_is_over(tmp_path):
    root = tmp_path / "store"
    clip = fill(root, 2)[0]
    books = Books(root)
    day = 86_400 * 1_000_000_000
    assert forgetting.expire(root, books, clip.t0_wall_ns + 364 * day) == 0
    assert len(list(fetched(root))) == 2
    assert forgetting.expire(root, books, clip.t0_wall_ns + 366 * day) == 2
    assert stored(root) == [] and not any((root / "stages").iterdir())
    assert books.number("SELECT count(*) FROM clips") == books.number("SELECT count(*) FROM jobs") == 0
    assert json.loads((root / "audit.jsonl").read_text())["action"] == "expire"


@pytest.mark.parametrize("what", ["name", "uuid", "copy"])
def test_the_proof_can_fail(tmp_path, what):
    root = tmp_path / "store"
    clip = fill(root, 1)[0]
    left = root / "clips" / "left.bin"
    video = next(fetched(root)) / "video.mp4"
    left.write_bytes(
        {"name": b"x c-anna y", "uuid": b"_" + clip.clip_uuid.encode(), "copy": video.read_bytes()}[what]
    )
    with pytest.raises(forgetting.TracesLeftError, match=r"left\.bin"):
        forgetting.forget(root, "c-anna")


def test_a_file_that_another_clip_of_the_device_has_stays(tmp_path):
    root = tmp_path / "store"
    store = Store(root, StoreLimits(keep_free_bytes=0))
    one, two = device(store, "c-anna"), device(store, "c-bert")
    assert one.id != two.id
    fill(root, 1, "c-anna")
    fill(root, 1, "c-bert")  # the same pictures, on another device: its own copy
    forgetting.forget(root, "c-anna")
    assert all(check_bundle(folder).findings == [] for folder in fetched(root))
