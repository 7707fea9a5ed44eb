"""Worker processes: requests and replies, honest ends, no process left behind."""

import sys
import time

import numpy as np
import pytest

from haversack.bench import Unavailable
from haversack.bench._workers import Worker
from haversack.bench.peers import _equal_weights, llama_cpp

ECHO = """
import json, os, sys, time
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "die":
        print("out of luck", file=sys.stderr)
        os._exit(3)
    if request["do"] == "sleep":
        time.sleep(60)
    if request["do"] == "refuse":
        request = {"error": "ValueError: no"}
    print(json.dumps(request), flush=True)
"""


def worker(**options):
    return Worker([sys.executable, "-c", ECHO], **options)


def test_requests_are_answered_in_order_and_long_replies_come_whole():
    with worker() as one:
        assert one.ask("echo", tokens=[1, 2])["tokens"] == [1, 2]
        long = list(range(200_000))
        assert one.ask("echo", tokens=long)["tokens"] == long
        assert 0 < one.since_start() < 60
        process = one.process
    assert process.returncode == 0


def test_the_environment_is_added_to():
    reply = "print(json.dumps({'isa': os.environ['HAVERSACK_ISA']}), flush=True)"
    script = f"import json, os, sys\nfor line in sys.stdin: {reply}"
    with Worker([sys.executable, "-c", script], env={"HAVERSACK_ISA": "portable"}) as one:
        assert one.ask("isa") == {"isa": "portable"}


@pytest.mark.parametrize(
    ("do", "said"), [("die", "ended at 'die': out of luck"), ("refuse", "cannot refuse: ValueError: no")]
)
def test_a_worker_that_fails_makes_the_row_unavailable(do, said):
    with worker() as one, pytest.raises(Unavailable, match=said):
        one.ask(do)


def test_a_silent_worker_is_ended():
    with worker(patience=0.5) as one:
        start = time.monotonic()
        with pytest.raises(Unavailable, match="did not answer 'sleep'"):
            one.ask("sleep")
        assert time.monotonic() - start < 10
        process = one.process
    assert process.returncode not in (None, 0)


def test_a_worker_that_cannot_start_its_work_says_so():
    fails = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with Worker(fails) as one, pytest.raises(Unavailable, match="no such model"):
        one.ask("open")


def test_random_weights_are_the_same_every_time_and_have_no_bias():
    values, scales = _equal_weights.int4_matrix("model.layers.3.mlp.up_proj.weight", 64, 256)
    again, _ = _equal_weights.int4_matrix("model.layers.3.mlp.up_proj.weight", 64, 256)
    other, _ = _equal_weights.int4_matrix("model.layers.4.mlp.up_proj.weight", 64, 256)
    assert (values == again).all() and (values != other).mean() > 0.8
    assert values.min() == -7 and values.max() == 7 and abs(values.mean()) < 0.1
    assert scales.dtype == np.float16 and scales.shape == (64, 8)
    # the bit generator's raw stream is what numpy promises to keep; these bytes pin it
    assert list(_equal_weights._raw("tokens", 8)) == [25, 161, 247, 111, 148, 75, 201, 13]


def test_the_shape_is_tinyllama():
    shape = _equal_weights.Shape()
    weights = sum(rows * columns for _, rows, columns in shape.matrices()) + shape.vocabulary * shape.width
    assert 1.0e9 < weights < 1.2e9
    assert len(set(name for name, _, _ in shape.matrices())) == 1 + 7 * 22


def test_quick_runs_do_not_build_the_peer(tmp_path, monkeypatch):
    monkeypatch.setenv("HAVERSACK_CACHE", str(tmp_path))
    with pytest.raises(Unavailable, match="not built on this machine"):
        llama_cpp.python(build=False)
    assert list(tmp_path.iterdir()) == []
