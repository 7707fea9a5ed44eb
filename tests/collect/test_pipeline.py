"""The queue and its workers: at least once, committed exactly once, whatever dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from bundles import make
from filled import device, fill, put
from serving import COMMAND

from haversack.cli import main
from haversack.collect._books import Books
from haversack.collect._jobs import Jobs
from haversack.collect._stages import METRICS, Outcome, Stage, load_stages
from haversack.collect._worker import run_one
from haversack.collect.bundle import DeviceRecord
from haversack.collect.process import Settings, process
from haversack.collect.store import Store, StoreLimits
from haversack.core.errors import UserError

INGEST = {"c1-ingest": "1"}


@pytest.fixture(autouse=True)
def stages_of_tests(monkeypatch):
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))


def states(root):
    return {row["clip"]: dict(row) for row in Books(root).rows("SELECT * FROM jobs")}


def test_clips_are_ingested(tmp_path):
    clips = fill(tmp_path / "store", 3)
    done = process(tmp_path / "store", ["c1-ingest"], settings=Settings(workers=2))
    assert done.deaths == 0 and not done.quarantined and not done.dropped
    assert [(job["state"], job["count"]) for job in done.jobs] == [("done", 3)]
    for clip in clips:
        folder = tmp_path / "store" / "stages" / clip.clip_uuid / "c1-ingest@1"
        report = json.loads((folder / "report.json").read_text())
        assert report["findings"] == [] and report["numbers"]["frames"] == 12
        assert 40 < report["numbers"]["brightness"] < 215
        assert json.loads((folder / METRICS).read_text())["cpu_s"] > 0
    again = process(tmp_path / "store", ["c1-ingest"])
    assert again.jobs == done.jobs and again.seconds < done.seconds  # what is done is not done again
    assert all(row["commits"] == 1 and row["attempts"] == 1 for row in states(tmp_path / "store").values())


def test_a_stage_that_is_added_later_runs_on_clips_that_passed_the_ones_before(tmp_path):
    root = tmp_path / "store"
    fill(root, 2)
    process(root, ["c1-ingest"], Settings(workers=1))
    with Books(root).change() as change:
        change.execute("UPDATE jobs SET drop_reason = 'dark' WHERE rowid = 1")
    done = process(root, ["c1-ingest", "poisonous.stage"], Settings(workers=1))
    assert [(job["stage"], job["state"], job["count"]) for job in done.jobs] == [
        ("c1-ingest", "done", 2),
        ("poisonous", "done", 1),
    ]


def test_a_clip_that_does_not_hold_is_dropped_with_its_reason(tmp_path):
    """What the upload cannot see, a truncated stream under a hash that agrees, ingest does."""
    from bundles import reseal

    store = Store(tmp_path / "store", StoreLimits(keep_free_bytes=0))
    owner = device(store)
    folder = make(tmp_path / "spool", 60, device=DeviceRecord(id=owner.id, model="m", os="o", lens_id="b"))
    data = (folder / "video.mp4").read_bytes()
    (folder / "video.mp4").write_bytes(data[: len(data) // 2])
    reseal(folder, "video.mp4")
    put(store, owner, folder)
    done = process(tmp_path / "store", ["c1-ingest"])
    assert [(row["reason"], row["count"]) for row in done.dropped] in ([("video", 1)], [("count", 1)])
    assert not done.quarantined


@pytest.mark.parametrize(
    ("session", "said"), [("poison", "SIGSEGV"), ("hang", "longer than"), ("raise", "RuntimeError")]
)
def test_a_poisoned_clip_is_set_aside_and_the_others_go_on(tmp_path, session, said):
    root = tmp_path / "store"
    good = fill(root, 2)
    bad = fill(root, 1, "c-bert", session=session)[0]
    settings = Settings(workers=2, attempts=2, timeout_s=1.5 if session == "hang" else 60)
    done = _process(root, settings)
    found = states(root)
    assert {found[clip.clip_uuid]["state"] for clip in good} == {"done"}
    assert found[bad.clip_uuid]["state"] == "quarantined" and found[bad.clip_uuid]["attempts"] == 2
    assert said in found[bad.clip_uuid]["error"]
    assert done["deaths"] == (0 if session == "raise" else 2)
    assert [row["clip"] for row in done["quarantined"]] == [bad.clip_uuid]
    left = [path.name for path in (root / "stages" / bad.clip_uuid).iterdir()]
    assert not [name for name in left if ".partial-" not in name]


def _workers(root):
    """Processes that work on a store; they are given five seconds to notice that they are alone."""
    until = time.monotonic() + 5
    while True:
        found = [
            path.parent.name
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if b"haversack.collect._worker" in (line := _read(path)) and str(root).encode() in line
        ]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.05)


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _process(root, settings):
    words = ["--workers", settings.workers, "--attempts", settings.attempts, "--timeout", settings.timeout_s]
    line = [*COMMAND, "collect", "process", str(root), "--stages", "poisonous.stage", "--json"]
    done = subprocess.run([*line, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_workers_and_the_command_itself_are_killed_and_each_result_is_committed_once(tmp_path):
    root = tmp_path / "store"
    clips = fill(root, 10, frames=40)
    draws = random.Random(5)
    books = Books(root)
    line = [*COMMAND, "collect", "process", str(root), "--workers", "2", "--attempts", "50", "--json"]
    line += ["--stages", "c1-ingest"]
    running, kills = None, 0
    while books.number("SELECT count(*) FROM jobs WHERE state != 'done'"):
        if running is None or running.poll() is not None:
            running = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        row = books.row("SELECT worker FROM jobs WHERE state = 'leased' ORDER BY random() LIMIT 1")
        if row is not None and kills < 8 and row["worker"]:
            time.sleep(draws.random() * 0.05)
            kills += 1
            if kills % 4 == 0:
                running.kill()
                running.wait()
                continue
            try:
                os.kill(int(row["worker"].split(":")[1]), signal.SIGKILL)
            except ProcessLookupError:
                kills -= 1
        time.sleep(0.01)
    assert running is not None and running.wait(60) == 0 and kills == 8
    assert not _workers(root)  # those of the killed runs have ended, too
    found = states(root)
    assert sorted(found) == sorted(clip.clip_uuid for clip in clips)
    assert all(row["commits"] == 1 for row in found.values())
    assert sum(row["attempts"] for row in found.values()) > len(clips)
    for clip in clips:
        whole = [
            path.name for path in (root / "stages" / clip.clip_uuid).iterdir() if ".partial" not in path.name
        ]
        assert whole == ["c1-ingest@1"]


def test_a_worker_killed_in_any_stage_at_any_point_leaves_one_whole_result(tmp_path):
    root = tmp_path / "store"
    clips = fill(root, 2)
    stages = ["mortal.early", "mortal.midway", "mortal.late"]
    done = process(root, stages, Settings(workers=2, attempts=4))
    assert done.deaths == 6 and not done.quarantined
    rows = Books(root).rows("SELECT * FROM jobs WHERE stage LIKE 'mortal%'")
    assert len(rows) == 6 and all(row["commits"] == 1 and row["state"] == "done" for row in rows)
    assert all(row["attempts"] >= 2 for row in rows)
    for clip in clips:
        folder = root / "stages" / clip.clip_uuid
        assert sorted(path.name for path in folder.iterdir()) == [
            "mortal-early@1",
            "mortal-late@1",
            "mortal-midway@1",
        ]
        for path in folder.iterdir():
            assert sorted(each.name for each in path.iterdir()) == [
                *(f"{at}.txt" for at in range(4)),
                METRICS,
            ]


def test_tasks_of_a_cluster_share_the_queue_and_an_engine_that_is_none_is_refused(tmp_path, capsys):
    """What a Ray task does, run here; where Ray is absent, the line that installs it is named."""
    import importlib.util

    from haversack.collect._ray import work

    root = tmp_path / "store"
    fill(root, 3)
    process(root, ["c1-ingest"], Settings(workers=1))
    with Books(root).change() as change:
        change.execute("UPDATE jobs SET state = 'queued', commits = 0")
    assert work(str(root), "ray0", 60.0, 3, ["c1-ingest"]) == 3
    assert work(str(root), "ray1", 60.0, 3, ["c1-ingest"]) == 0
    assert all(row["commits"] == 1 for row in states(root).values())
    line = ["collect", "process", str(root), "--stages", "c1-ingest", "--json", "--engine"]
    assert main([*line, "spark"]) == 2
    assert "local, ray" in json.loads(capsys.readouterr().out)["error"]
    if importlib.util.find_spec("ray") is None:
        assert main([*line, "ray"]) == 2
        assert "haversack[cluster]" in json.loads(capsys.readouterr().out)["error"]


class Stalled(Jobs):
    """Of a worker that is not given the processor: its leases are not renewed in time."""

    def renew(self, job):
        return True


def test_two_workers_with_one_job_commit_it_once(tmp_path):
    """The lease of the first ended while it worked on: both finish, one result stays."""
    root = tmp_path / "store"
    clip = fill(root, 1)[0]
    books = Books(root)
    slow, quick = Stalled(books, lease_s=1e-3), Jobs(books, lease_s=60)
    runs = []

    def run(given, out):
        runs.append(out)
        if len(runs) == 1:
            time.sleep(0.01)
            assert run_one(root, quick, "here:0:second", [stage])
        (out / "who.txt").write_text(str(len(runs)))
        return Outcome({})

    stage = Stage("c1-ingest", "1", run)
    assert run_one(root, slow, "here:0:first", [stage])
    assert len(runs) == 2
    folder = root / "stages" / clip.clip_uuid / "c1-ingest@1"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["c1-ingest@1"]
    assert states(root)[clip.clip_uuid]["commits"] == 1


def test_leases(tmp_path):
    root = tmp_path / "store"
    fill(root, 1)
    books = Books(root)
    jobs = Jobs(books, attempts=2, lease_s=0.01)
    first = jobs.lease("a", INGEST)
    assert first is not None and first.attempt == 1
    time.sleep(0.02)
    second = jobs.lease("b", INGEST)
    assert second is not None and second.attempt == 2
    assert not jobs.renew(first) and jobs.renew(second)
    assert jobs.lease("c", INGEST) is None
    jobs.given_back("b")
    third = jobs.lease("b", INGEST)
    assert third is not None and third.attempt == 2
    jobs.failed(third, "no")
    assert books.number("SELECT count(*) FROM jobs WHERE state = 'quarantined'") == 1
    assert jobs.waiting(INGEST) == 0


def test_stages_that_are_none(tmp_path, capsys):
    fill(tmp_path / "store", 1)
    for names in (
        ["c1-ingset"],
        ["no.such.module"],
        ["c1-ingest", "c1-ingest"],
        ["haversack.collect.bundle"],
    ):
        with pytest.raises(UserError):
            load_stages(names)
    line = ["collect", "process", str(tmp_path / "store"), "--stages", "c1-ingset", "--json"]
    assert main(line) == 2
    assert json.loads(capsys.readouterr().out)["nearest"] == "c1-ingest"
    assert main(["collect", "process", str(tmp_path), "--json"]) == 2
    assert "no store" in json.loads(capsys.readouterr().out)["error"]
