"""`haversack collect server` in a process of its own, that can be killed and started again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())"]


class Command:
    """`haversack collect server` in a process of its own, on a port that is the same after a restart."""

    def __init__(self, root: Path, *words: str) -> None:
        self.root, self.words, self.port = root, words, 0

    def start(self) -> None:
        """Start it, and wait until it answers."""
        line = [*COMMAND, "collect", "server", "--root", str(self.root), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*line, "--json", *self.words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        said = b""
        while not said.rstrip().endswith(b"\n}"):
            line_read = self.process.stdout.readline()
            assert line_read, (said, self.process.stderr and self.process.stderr.read())
            said += line_read
        self.url = json.loads(said)["url"]
        self.port = int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Command:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
