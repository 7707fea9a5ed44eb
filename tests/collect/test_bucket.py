"""A store whose files are in a bucket: what of it only a bucket can do wrong, and sets in a bucket."""

from __future__ import annotations

import json

import boto3
import pytest
from bundles import make
from filled import device, fill, put, stored

from haversack.cli import main
from haversack.collect import _objects
from haversack.collect import forget as forgetting
from haversack.collect._bucket import Bucket, BucketError
from haversack.collect._objects import fetched, name_bucket, objects_of
from haversack.collect.bundle import Consent, DeviceRecord
from haversack.collect.process import Settings, process
from haversack.collect.store import Store, StoreLimits
from haversack.core._asgi import RefusedError
from haversack.core.errors import DamagedFileError, MissingExtraError, UserError


@pytest.fixture
def root(tmp_path, new_bucket):
    name_bucket(tmp_path / "store", new_bucket())
    return tmp_path / "store"


def bucket_of(root):
    return objects_of(root).bucket


def test_files_are_in_the_bucket_alone_until_a_clip_is_worked_on(root):
    clips = fill(root, 2)
    names = stored(root)
    assert not any(name.startswith(("objects/", "clips/", "uploads/")) for name in names)
    assert {name.rpartition("/")[2] for name in names} == {f.sha256 for clip in clips for f in clip.files}
    process(root, ["c1-ingest"], settings=Settings(workers=1))
    assert [path.name for path in sorted((root / "clips").glob("*/*/*"))] == sorted(
        c.clip_uuid for c in clips
    )
    assert main(["collect", "validate", str(root)]) == 0


def test_clips_used_longest_ago_make_room_and_come_again(root, monkeypatch):
    fill(root, 3)
    monkeypatch.setattr(_objects, "SPARED_S", 0.0)
    url = bucket_of(root).url
    (root / "files.toml").write_text(f'url = "{url}"\ncache_mib = 0\n')
    for _ in range(2):
        seen = [(folder.is_dir(), len(list((root / "clips").glob("*/*/*")))) for folder in fetched(root)]
        assert seen[1:] == [(True, 1)] * 2 and seen[0][0]
    name_bucket(root, url)  # the same place again is fine, another is not
    with pytest.raises(UserError, match="elsewhere"):
        name_bucket(root, url + "other")


def test_an_object_that_was_altered_is_not_taken(root):
    fill(root, 1)
    bucket = bucket_of(root)
    key = next(iter(bucket.keys("objects/")))
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + key, Body=b"other")
    with pytest.raises(DamagedFileError, match="SHA-256"):
        list(fetched(root))
    assert not list((root / "clips").glob("*/*/*"))


def test_old_versions_and_unfinished_uploads_are_forgotten_too(root):
    bucket = bucket_of(root)
    bucket.client.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    gone, kept = fill(root, 1, "c-anna"), fill(root, 1, "c-bert")
    key = f"{bucket.prefix}{objects_of(root).key(gone[0].device.id, gone[0].files[0].sha256)}"
    bucket.client.put_object(Bucket=bucket.name, Key=key, Body=b"a later version")
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
    forgetting.forget(root, "c-anna")
    found = bucket.client.list_object_versions(Bucket=bucket.name)
    left = [*found.get("Versions", ()), *found.get("DeleteMarkers", ())]
    assert left and all(kept[0].device.id in each["Key"] for each in left)
    assert not bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads")


def test_a_stray_object_is_a_trace(root):
    clip = fill(root, 1)[0]
    bucket = bucket_of(root)
    bucket.client.put_object(
        Bucket=bucket.name, Key=f"{bucket.prefix}objects/x/{clip.files[0].sha256}", Body=b"x"
    )
    with pytest.raises(forgetting.TracesLeftError, match=r"x/"):
        forgetting.forget(root, "c-anna")


def test_a_service_that_is_away_costs_nothing_but_time(root, monkeypatch):
    store = Store(root, StoreLimits(keep_free_bytes=0))
    owner = device(store)
    folder = make(
        root.parent / "spool",
        8,
        device=DeviceRecord(id=owner.id, model="m", os="o", lens_id="b"),
        consent=Consent(contributor_pseudonym="c-anna", policy_version="1.2", retention_days=365),
    )
    bucket, right = store.objects.bucket, store.objects.bucket.client
    away = boto3.client("s3", endpoint_url="http://127.0.0.1:9", config=_once())
    object.__setattr__(bucket, "client", away)
    with pytest.raises(RefusedError) as caught:
        put(store, owner, folder)
    assert (caught.value.status, caught.value.code) == (503, "files")
    object.__setattr__(bucket, "client", right)
    assert put(store, owner, folder).clip_uuid == folder.name
    assert store.books.number("SELECT count(*) FROM jobs") == 1
    store.books.close()


def _once():
    from botocore.config import Config

    return Config(retries={"max_attempts": 0}, connect_timeout=1)


def test_a_clip_that_was_cut_off_while_it_was_sent_to_the_bucket_is_completed(root, monkeypatch):
    store = Store(root, StoreLimits(keep_free_bytes=0))
    owner = device(store)
    folder = make(
        root.parent / "spool",
        8,
        device=DeviceRecord(id=owner.id, model="m", os="o", lens_id="b"),
        consent=Consent(contributor_pseudonym="c-anna", policy_version="1.2", retention_days=365),
    )
    sent = []
    whole = Bucket.put

    def cut(self, key, path):
        if len(sent) == 2:
            raise KeyboardInterrupt
        sent.append(key)
        whole(self, key, path)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "put", cut)
        with pytest.raises(KeyboardInterrupt):
            put(store, owner, folder)
    put(store, owner, folder)
    assert store.books.number("SELECT count(*) FROM jobs") == 1
    assert [path.name for path in fetched(root)] == [folder.name]
    store.books.close()


def test_sets_go_to_a_bucket_and_are_forgotten_there(root, new_bucket, capsys, monkeypatch):
    fill(root, 2)
    process(root, ["c1-ingest"], settings=Settings(workers=1))
    url = new_bucket() + "set"
    words = ["collect", "export", str(root), "--out", url, "--json"]
    with monkeypatch.context() as patch:  # cut off on the way: the next run begins anew
        calls = []
        whole = Bucket.put

        def cut(self, key, path):
            calls.append(key)
            if len(calls) == 3:
                raise KeyboardInterrupt
            whole(self, key, path)

        patch.setattr(Bucket, "put", cut)
        assert main(words) == 130
    capsys.readouterr()
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["path"] == f"{url}/"
    keys = set(Bucket.open(url).keys())
    assert {"meta/info.json", "meta/tasks.parquet", "data/chunk-000/file-000.parquet"} <= keys
    assert main(words) == 2  # what is whole is not written over
    assert "objects already" in capsys.readouterr().out
    forgetting.forget(root, "c-anna")
    assert set(Bucket.open(url).keys()) == set()


def test_a_set_is_converted_into_a_bucket(root, new_bucket, tmp_path):
    fill(root, 1)
    process(root, ["c1-ingest"], settings=Settings(workers=1))
    assert main(["collect", "export", str(root), "--out", str(tmp_path / "set")]) == 0
    url = new_bucket() + "old"
    assert main(["collect", "export", str(tmp_path / "set"), "--out", url, "--format", "lerobot-v2.1"]) == 0
    assert "meta/episodes.jsonl" in set(Bucket.open(url).keys())


@pytest.mark.parametrize("url", ["s3://", "s3://A_B/x", "gs://bucket/x", "s3://ab/../x", "s3:///x"])
def test_urls_that_name_no_bucket(url, tmp_path):
    with pytest.raises(UserError, match="names no bucket"):
        name_bucket(tmp_path / "store", url)
    assert not (tmp_path / "store").exists()


def test_places_that_cannot_be_used_are_told(new_bucket, tmp_path, monkeypatch):
    with pytest.raises(BucketError, match="cannot be used"):
        name_bucket(tmp_path / "store", new_bucket().replace("s3://b-", "s3://c-"))
    fill(tmp_path / "full", 1)
    with pytest.raises(UserError, match="elsewhere"):
        name_bucket(tmp_path / "full", new_bucket())
    for text, why in (
        ("x", "no TOML"),
        ('a = "b"', "url"),
        ('url = "s3://abc/"\ncache_mib = -1', "more than"),
    ):
        (tmp_path / "full" / "files.toml").write_text(text)
        with pytest.raises(DamagedFileError, match=why):
            objects_of(tmp_path / "full")
    import importlib

    real = importlib.import_module

    def absent(name):
        if name.startswith("boto"):
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"haversack\[s3\]"):
        Bucket.open("s3://abc/x")
