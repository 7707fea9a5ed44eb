"""The thread pool: starts at first use, survives fork, serves several callers, yields, ends cleanly."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels._native import native

pytestmark = pytest.mark.skipif(native() is None, reason="numpy twins only: no thread pool")

PREPARE = """
import os, sys, threading, time
import numpy as np
from haversack import kernels
rng = np.random.default_rng(0)
matrix = kernels.pack_int4(rng.integers(-8, 8, (4096, 1024)), rng.random((4096, 32)) * 0.1, 32)
x = rng.standard_normal((4, 1024)).astype(np.float32)
def product():
    return kernels.matmul(x, matrix, activations="int8-dynamic")
"""


def run(script: str, seconds: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `script` after PREPARE in a process of its own; a process that hangs fails the test."""
    return subprocess.run(
        [sys.executable, "-c", PREPARE + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=dict(os.environ, HAVERSACK_KERNELS="native", **environment),
        check=False,
    )


def output_of(script: str, **environment: str) -> str:
    done = run(script, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_threads_start_at_first_use_and_no_earlier():
    counts = output_of(
        """
        def running():
            return len(os.listdir("/proc/self/task"))
        kernels.set_threads(3)
        before = running()
        product()
        print(running() - before)
        """,
        OPENBLAS_NUM_THREADS="1",
    )
    assert counts == "2"


def test_default_is_the_processors_this_process_may_use():
    assert output_of("print(kernels.threads() == len(os.sched_getaffinity(0)))") == "True"
    one = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(kernels.threads())"
    assert output_of(one) == "1"


@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_child_makes_its_own_threads():
    answer = output_of(
        """
        kernels.set_threads(3)
        expected = product()
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                same = all(np.array_equal(product(), expected) for _ in range(20))
                threads = len(os.listdir("/proc/self/task"))
                os._exit(0 if same and threads == 3 else 1)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(codes, np.array_equal(product(), expected))
        """,
        OPENBLAS_NUM_THREADS="1",
    )
    assert answer == "[0, 0, 0, 0] True"


def test_fork_while_other_threads_compute():
    answer = output_of(
        """
        kernels.set_threads(2)
        expected = product()
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                product()
        callers = [threading.Thread(target=busy) for _ in range(3)]
        for caller in callers: caller.start()
        codes = []
        for _ in range(10):
            child = os.fork()
            if child == 0:
                os._exit(0 if np.array_equal(product(), expected) else 1)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        stop.set()
        for caller in callers: caller.join()
        print(sum(codes))
        """
    )
    assert answer == "0"


def test_the_interpreter_is_free_while_a_kernel_runs():
    ticks = output_of(
        """
        kernels.set_threads(1)
        wide = rng.standard_normal((256, 1024)).astype(np.float32)
        done = threading.Event()
        def long():
            for _ in range(10): kernels.matmul(wide, matrix)
            done.set()
        caller = threading.Thread(target=long); caller.start()
        ticks = 0
        while not done.is_set():
            ticks += 1; time.sleep(0.001)
        caller.join(); print(ticks)
        """
    )
    assert int(ticks) > 10


def test_exit_while_threads_compute():
    done = run(
        """
        kernels.set_threads(4)
        product()
        def busy():
            while True: product()
        for _ in range(2): threading.Thread(target=busy, daemon=True).start()
        time.sleep(0.2)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_number_of_threads_may_change_between_calls_and_callers():
    answer = output_of(
        """
        expected = product()
        wrong = []
        def call(seed):
            own = np.random.default_rng(seed)
            for _ in range(60):
                kernels.set_threads(int(own.integers(1, 9)))
                if not np.array_equal(product(), expected): wrong.append(seed)
        callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
        for caller in callers: caller.start()
        for caller in callers: caller.join()
        print(wrong)
        """
    )
    assert answer == "[]"


def test_idle_threads_sleep():
    spent = output_of(
        """
        kernels.set_threads(4)
        product()
        time.sleep(0.05)
        before = time.process_time(); time.sleep(0.5); print(time.process_time() - before)
        """
    )
    assert float(spent) < 0.05


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor: nothing to compete for")
def test_a_busy_neighbour_does_not_bring_the_pool_to_a_halt():
    """Another process takes a core: work goes on at no less than a quarter, not a tenth."""
    script = """
        kernels.set_threads(len(os.sched_getaffinity(0)))
        def rate(seconds):
            n, end = 0, time.perf_counter() + seconds
            while time.perf_counter() < end: product(); n += 1
            return n / seconds
        rate(0.2)
        import subprocess
        ratios = []
        for _ in range(3):
            alone = rate(0.4)
            spin = [sys.executable, "-c", "while True: pass"]
            others = [subprocess.Popen(spin) for _ in range(kernels.threads() - 1)]
            time.sleep(0.1)
            crowded = rate(0.6)
            for other in others: other.kill(); other.wait()
            ratios.append(crowded / alone)
        print(max(ratios))
        """
    assert float(output_of(script)) >= 0.25


def test_set_threads_refuses_what_makes_no_sense():
    for wrong in (0, -1, 65, 1.5, "2", True):
        with pytest.raises(UserError, match="threads="):
            kernels.set_threads(wrong)


def test_calls_from_several_threads_do_not_block_each_other_for_good():
    kernels.set_threads(3)
    module, rounds = native(), []

    def call():
        for _ in range(300):
            module.pool_round(64)
        rounds.append(1)

    callers = [threading.Thread(target=call) for _ in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    kernels.set_threads(2)
    assert len(rounds) == 5
