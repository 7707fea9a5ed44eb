import os
import pty
import subprocess
import sys

from haversack.core.progress import progress

WORK = """
import time
from haversack.core import progress as p
p.SHOW_AFTER_S = {after}
with p.progress("packing blocks", total=3) as bar:
    for _ in range(3):
        bar.advance()
        time.sleep(0.05)
"""


def on_a_terminal(after):
    """What a terminal on standard error is shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", WORK.format(after=after)], stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the other end of a terminal closes with an error
        pass
    assert process.wait() == 0
    os.close(ours)
    return shown


def test_long_work_shows_a_bar_and_short_work_does_not():
    assert b"packing blocks" in on_a_terminal(after=0.0)
    assert on_a_terminal(after=60.0) == b""


def test_no_terminal_no_output():
    done = subprocess.run([sys.executable, "-c", WORK.format(after=0.0)], capture_output=True, check=True)
    assert done.stdout == b"" and done.stderr == b""


def test_steps_are_counted():
    with progress("counting") as bar:
        bar.advance()
        bar.advance(2.5, label="still counting")
    assert bar.done == 3.5 and bar.label == "still counting"
