"""Client and server are killed at random points, in processes of their own: nothing is lost or doubled."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import time

import pytest
from bundles import noisy
from serving import COMMAND, Command, Proxy

from haversack.cli import main
from haversack.collect._books import Books
from haversack.collect._findings import check_bundle
from haversack.collect.bundle import Bundle, DeviceRecord, bundles_in


def enrol_by_command(root, server, spool, capsys):
    words = ["collect", "enrol", "--root", str(root), "--contributor", "c-anna", "--policy", "1.2", "--json"]
    assert main([*words, "--url", server.url]) == 0
    code = json.loads(capsys.readouterr().out)["code"]
    spool.mkdir()
    assert main(["collect", "push", str(spool), "--to", server.url, "--enrol", code, "--json"]) == 0
    capsys.readouterr()
    identity = json.loads((spool / "device.json").read_text())
    return DeviceRecord(id=identity["device"], model="m", os="o", lens_id="back")


def test_nothing_is_lost_and_nothing_comes_twice(tmp_path, capsys):
    root, spool = tmp_path / "store", tmp_path / "spool"
    draws = random.Random(7)
    with Command(root) as server:
        device = enrol_by_command(root, server, spool, capsys)
        manifests = [Bundle.open(noisy(spool, 2 << 20, seed, device=device)).manifest for seed in range(4)]
        proxy = Proxy(server.port, share=0.1, seed=1)
        words = [
            "--chunk-kib",
            "64",
            "--first-wait",
            "0.02",
            "--most-wait",
            "0.2",
            "--give-up",
            "30",
            "--json",
        ]
        line = [*COMMAND, "collect", "push", str(spool), "--to", proxy.url, *words]
        kills = 0
        while bundles_in(spool):
            push = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            aim = proxy.requests + draws.randrange(4, 14)
            while push.poll() is None:
                if kills < 8 and proxy.requests >= aim:
                    kills += 1
                    aim = proxy.requests + draws.randrange(4, 14)
                    if kills % 2:
                        server.kill()
                        server.start()
                    else:
                        push.kill()
                time.sleep(0.002)
            push.communicate()
        assert kills == 8
        proxy.close()
    books = Books(root)
    jobs = [row["clip"] for row in books.rows("SELECT clip FROM jobs")]
    assert sorted(jobs) == sorted(manifest.clip_uuid for manifest in manifests)
    folders = bundles_in(root / "clips")
    assert len(folders) == len(manifests)
    assert all(check_bundle(folder, decode=False).findings == [] for folder in folders)
    assert proxy.sent <= 1.10 * sum(manifest.nbytes for manifest in manifests)
    assert not list((root / "uploads").iterdir())


def test_told_to_stop_it_finishes_and_ends_with_0(tmp_path):
    with Command(tmp_path / "store") as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
    with Command(tmp_path / "store") as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 130


def test_a_disk_that_fills_up_is_told_and_the_clip_arrives_later(tmp_path, capsys):
    """Files of the server may not grow beyond a limit: to it that is a full disk."""
    root, spool = tmp_path / "store", tmp_path / "spool"
    with Command(root) as server:
        device = enrol_by_command(root, server, spool, capsys)
        manifest = Bundle.open(noisy(spool, 1 << 20, 0, device=device)).manifest
        pid = server.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (600 << 10, hard))
        line = [
            "collect",
            "push",
            str(spool),
            "--to",
            server.url,
            "--chunk-kib",
            "64",
            "--first-wait",
            "0.01",
        ]
        assert main([*line, "--most-wait", "0.02", "--give-up", "0.2", "--json"]) == 2
        assert "disk is full" in json.loads(capsys.readouterr().out)["error"]
        assert bundles_in(spool)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        assert main([*line, "--json"]) == 0
        done = json.loads(capsys.readouterr().out)
    assert done["clips"] == [manifest.clip_uuid]
    assert done["sent_bytes"] < manifest.nbytes  # what had arrived was not sent again
    assert check_bundle(bundles_in(root / "clips")[0]).findings == []


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["collect", "push", "SPOOL", "--to", "http://127.0.0.1:9"], "enrol"),
        (["collect", "push", "SPOOL", "--to", "no address", "--enrol", "x"], "to"),
        (["collect", "enrol", "--root", "SPOOL", "--contributor", "c"], "root"),
        (["collect", "server", "--root", "SPOOL", "--host", "0.0.0.0"], "token"),
    ],
)
def test_mistakes_are_told_in_one_sentence(tmp_path, capsys, words, field):
    (tmp_path / "spool").mkdir()
    line = [str(tmp_path / "spool") if word == "SPOOL" else word for word in words]
    assert main([*line, "--json"]) == 2
    record = json.loads(capsys.readouterr().out)
    assert record["field"] == field and "\n" not in record["error"]
