"""Two versions of ortcam side by side, in turns: whether a change made anything slower or larger.

    python benchmarks/versions.py OLD/.venv/bin/python NEW/.venv/bin/python

Each version runs in a process of its own, in the environment of its Python. The processes take turns, so that a change
of the machine's speed meets both. EfficientNet-Lite0 and ResNet-50 (untrained, seeded) are exported by the old version,
whose files both read. Printed are medians and ranges of both, and the median of the new time over the old one, turn by
turn. Whole commands are timed from outside, with the peak memory that the kernel counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TURNS = {"lite0, exact": 7, "resnet50, budget 32": 9}  # of runs that take long; the others have 21
COMMANDS = 11  # turns of whole commands


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="the Python of the old version's environment")
    parser.add_argument("new", type=Path, help="the Python of the new version's environment")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker)
        return
    pythons = [options.old.absolute(), options.new.absolute()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([pythons[0], "-c", EXPORT, folder], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        workers = [Worker(python, folder) for python in pythons]
        print(f"{'':26}{'old, ms':>24}{'new, ms':>24}{'new/old':>9}")
        for run in workers[0].ask("names"):
            rounds = TURNS.get(run, 21)
            compare(run, [lambda one=one, run=run: one.ask(run) for one in workers], rounds)
        for one in workers:
            one.process.terminate()
        photo = find_photo(pythons[0])
        for label, command in {
            "ortcam --help": ["--help"],
            "explain, budget 32": ["explain", folder / "lite0.onnx", photo, "--budget", "32", "-o", folder / "out"],
        }.items():
            peaks: list[list[int]] = [[], []]
            runs = [
                lambda python=python, kept=kept, command=command: whole([python.parent / "ortcam", *command], kept)
                for python, kept in zip(pythons, peaks, strict=True)
            ]
            compare(label, runs, COMMANDS)
            old, new = (statistics.median(kept) / 1024 for kept in peaks)
            print(f"{label + ', peak MiB':26}{old:>24.0f}{new:>24.0f}{new / old:>9.3f}")


EXPORT = """
import sys, torch, torchvision
from ortcam.cli.demo import load_efficientnet_lite0
from ortcam.exporters import export
import ortcam
folder = sys.argv[1]
export(load_efficientnet_lite0(), f"{folder}/lite0.onnx", preprocess="lite", labels="imagenet")
torch.manual_seed(0)
export(torchvision.models.resnet50(weights=None).eval(), f"{folder}/resnet50.onnx", preprocess="imagenet")
ortcam.pack(f"{folder}/lite0.onnx", f"{folder}/packed.onnx", budget=32, verify=False)
"""


class Worker:
    """A process of one version, which runs what it is asked to and answers in JSON."""

    def __init__(self, python: Path, folder: Path) -> None:
        command = [python, __file__, "-", "-", "--worker", folder]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, run: str) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(run + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def work(folder: Path) -> None:
    """Run what is asked for on standard input, and answer with the seconds."""
    import ortcam
    from ortcam.cli.demo import find_photos

    photos = find_photos()[:20]
    lite0, resnet50 = (ortcam.ScoreCAM(folder / f"{name}.onnx", "cpu") for name in ("lite0", "resnet50"))
    packed = ortcam.PackedExplainer(folder / "packed.onnx", "cpu")
    runs: dict[str, Callable[[], Any]] = {
        "lite0, exact": lambda: lite0.explain(photos[6]),
        "lite0, budget 16": lambda: lite0.explain(photos[6], budget=16),
        "lite0, budget 32": lambda: lite0.explain(photos[6], budget=32),
        "lite0, 8 photos, budget 32": lambda: list(lite0.explain_batch(photos[:8], budget=32)),
        "lite0, 100 classes": lambda: lite0.explain(photos[6], targets=list(range(100)), budget=32),
        "resnet50, budget 32": lambda: resnet50.explain(photos[6], budget=32),
        "lite0, packed, budget 32": lambda: packed.explain(photos[6]),
    }
    for line in sys.stdin:
        asked = line.strip()
        answer: Any = list(runs)
        if asked != "names":
            begin = time.perf_counter()
            runs[asked]()
            answer = time.perf_counter() - begin
        print(json.dumps(answer), flush=True)


def whole(command: list[Any], peaks: list[int]) -> float:
    """Run a command; return its seconds and note its peak memory in KiB."""
    begin = time.perf_counter()
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    peaks.append(usage.ru_maxrss)
    return time.perf_counter() - begin


def compare(name: str, runs: list[Callable[[], float]], rounds: int) -> None:
    """Let two runs take turns, one warm-up each, and print their times."""
    for run in runs:
        run()
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            seconds[which].append(runs[which]())
    ratio = statistics.median(new / old for old, new in zip(*seconds, strict=True))
    columns = [f"{1e3 * statistics.median(s):.0f} ({1e3 * min(s):.0f}-{1e3 * max(s):.0f})" for s in seconds]
    print(f"{name:26}{columns[0]:>24}{columns[1]:>24}{ratio:>9.3f}", flush=True)


def find_photo(python: Path) -> str:
    code = "from ortcam.cli.demo import find_photos; print(find_photos()[6])"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd="/").stdout.strip()


if __name__ == "__main__":
    main()
