"""Start `ortcam serve` as a process, for tests."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS_TO_START = 60


@dataclass(frozen=True)
class Served:
    """A server that runs: its REST address with http://, its gRPC address, and its process."""

    url: str
    rpc: str
    process: subprocess.Popen[str]


@contextmanager
def served(log: Path, *options: str | Path) -> Iterator[Served]:
    """Run a server on free ports until the end of the block; `log` is the file of its log lines."""
    command = [sys.executable, "-m", "ortcam", "serve", "--port", "0", "--grpc-port", "0", *map(str, options)]
    with log.open("w") as lines, subprocess.Popen(command, stderr=lines, text=True) as process:
        try:
            end = time.monotonic() + SECONDS_TO_START
            while (found := re.search(r"REST on (http://\S+), gRPC on (\S+)", log.read_text())) is None:
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.02)
            yield Served(found[1], found[2], process)
        finally:
            process.kill()
