"""ortcam explain-many on one machine: photos a second, seconds to start, memory of a worker.

    python benchmarks/cluster.py                 five minutes on two cores
    python benchmarks/cluster.py --photos 40 --output /tmp/cluster.json

EfficientNet-Lite0 with its ImageNet weights, the photos of the demo again and again, budget 32, maps as float16. One
and two workers of one thread each are compared with `explain_batch` of one process that has as many threads in all.
Photos a second count from the first worker's first photo to the last row, the model's load included; cases take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from explain import describe_machine

from ortcam.cli.demo import find_photos, load_efficientnet_lite0
from ortcam.exporters import export

RESULTS = Path(__file__).parent / "results" / "cluster.json"
BUDGET = 32
# A process of its own, as a worker has; it loads the model within the measured time, as workers do.
ONE_PROCESS = """
import json, sys, time
from pathlib import Path
import ortcam
model, folder, threads, budget = sys.argv[1:]
begin = time.perf_counter()
with ortcam.ScoreCAM(model, threads=int(threads), provider="cpu") as cam:
    done = sum(1 for _ in cam.explain_batch(sorted(Path(folder).iterdir()), budget=int(budget)))
print(json.dumps({"photos_per_second": done / (time.perf_counter() - begin)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="the JSON to write")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = export(load_efficientnet_lite0(), folder / "lite0.onnx", preprocess="lite", labels="imagenet").path
        make_photos(folder / "photos", options.photos)
        for turn in range(options.turns):
            for count in (1, 2):
                words = [sys.executable, "-c", ONE_PROCESS, model, folder / "photos", count, BUDGET]
                found.setdefault(("explain_batch", count), []).append(run(words))
                words = [Path(sys.executable).with_name("ortcam"), "explain-many", model, folder / "photos"]
                words += [folder / f"out-{turn}-{count}", "--workers", count, "--budget", BUDGET, "--json"]
                found.setdefault(("explain-many", count), []).append(run([*words, "--photos-per-file", 10]))
    rows = [summary(how, count, turns) for (how, count), turns in found.items()]
    for row in rows:
        print(json.dumps(row))
    result = {"machine": describe_machine(), "photos": options.photos, "budget": BUDGET, "rows": rows}
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def make_photos(folder: Path, count: int) -> None:
    """Link the demo's photos again and again under new names."""
    folder.mkdir()
    sources = find_photos()
    for number in range(count):
        source = sources[number % len(sources)]
        (folder / f"{number:05d}{source.suffix}").symlink_to(source)


def run(words: list[Any]) -> dict[str, float]:
    """Run a command that prints JSON; add the largest memory of a worker of Ray, in MiB."""
    started = subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, text=True)
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            peak[0] = max(peak[0], memory_of_workers())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    printed, _ = started.communicate()
    ended.set()
    watcher.join()
    if started.returncode:
        sys.exit(f"{words[1]} ended with {started.returncode}")
    return {**json.loads(printed), "wall": time.perf_counter() - begin, "worker_mib": peak[0]}


def memory_of_workers() -> float:
    """Return the largest resident memory of a process of Ray that explains, in MiB."""
    largest = 0.0
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and b"MapWorker" in (entry / "cmdline").read_bytes():
                pages = int((entry / "statm").read_text().split()[1])
                largest = max(largest, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        except OSError:  # it has ended
            continue
    return largest


def summary(how: str, count: int, turns: list[dict[str, float]]) -> dict[str, Any]:
    """Return the medians of the turns, with the range of photos a second."""
    rates = [turn["photos_per_second"] for turn in turns]
    row: dict[str, Any] = {
        "how": how, "workers_or_threads": count, "photos_per_second": statistics.median(rates),
        "range": [min(rates), max(rates)],
    }  # fmt: skip
    if how == "explain-many":
        for name in ("seconds_to_start", "worker_mib"):
            row[name] = statistics.median(turn[name] for turn in turns)
    return row


if __name__ == "__main__":
    main()
