"""The server under load: throughput beside the engine's own, overload, and a long run of mixed requests.

    python benchmarks/serving.py                      all of it, a quarter of an hour on two idle cores
    python benchmarks/serving.py throughput --quick   one part of it, short: the figures say little

Parts:

- throughput: photos a second over POST /v2/models/M/infer (a JPEG as binary tensor; the usual outputs, binary) at 1, 4
  and 16 clients, with budgets of 16 and 32, beside `ScoreCAM.explain_batch` on the same bytes in this process. They
  take turns, so that a change of the machine's speed meets all of them. Then the latency at half of the rate that 16
  clients reached, with random arrivals.
- overload: ten times that rate for a minute; what is answered and refused, how fast, the server's memory, and the
  delay of /v2/health/live, asked every 50 ms.
- soak: 20,000 requests of all kinds and doors to a small model, one in a hundred of them broken; the server's memory,
  and what became of every request, by the client's count and by the server's.

EfficientNet-Lite0 with ImageNet weights; five JPEGs of 512 x 512 and one of 640 x 427 pixels. The load comes from
benchmarks/load.py, a process of its own on the same cores: its processor time is in the table. Writes a JSON file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from soak import infer_request, soak_requests

import ortcam
from ortcam.cli.demo import find_photos

RESULTS = Path(__file__).parent / "results" / "serving.json"
CLIENTS = (1, 4, 16)
BUDGETS = (16, 32)
PARTS = ("throughput", "overload", "soak")
SEED = 23
TAKEN = 1.0  # seconds; a 504 after a longer time was a request that the server had taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument(
        "--quick", action="store_true", help="a short try, which writes no JSON unless --output is given"
    )
    parser.add_argument("--model", type=Path, help="an exported EfficientNet-Lite0; default: export it")
    parser.add_argument("--output", type=Path, help=f"the JSON to write (default: {RESULTS.name})")
    options = parser.parse_args()
    output = options.output or (None if options.quick else RESULTS)
    results = json.loads(output.read_text()) if output is not None and output.exists() else {}
    results["machine"] = apart(describe)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in options.parts:
            model = folder / "small.onnx" if part == "soak" else options.model or folder / "lite0.onnx"
            if not model.exists():
                apart(export_model, model)
            with Server(model, folder) as server:
                results[part] = globals()[f"measure_{part}"](server, folder, options.quick)
                results[part]["command"] = " ".join(["python", "benchmarks/serving.py", *sys.argv[1:]])
            if output is not None:
                output.write_text(json.dumps(results, indent=2) + "\n")  # what is measured stays, whatever comes
    print_results(results)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a process of its own: PyTorch's memory and threads stay out of the engine's way."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def describe() -> dict[str, Any]:
    from explain import describe_machine, version_of

    machine = describe_machine()
    machine["versions"] |= {name: version_of(name) for name in ("uvicorn", "starlette", "h11", "grpcio")}
    return machine


def export_model(path: Path) -> None:
    import torch
    from torch import nn

    from ortcam.cli.demo import load_efficientnet_lite0
    from ortcam.exporters import export

    if path.stem == "lite0":
        export(load_efficientnet_lite0(), path, preprocess="lite", labels="imagenet")
        return
    torch.manual_seed(SEED)
    features = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
    small = nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    export(small.eval(), path, layer="3", preprocess="imagenet", input_size=64, output_kind="logits")


class Server:
    """`ortcam serve` as a process, with one model named m."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._log = folder / "server.log"
        program = Path(sys.executable).with_name("ortcam")
        command = [str(program), "serve", f"m={model}", "--port", "0", "--grpc-port", "0"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log)
        said = None
        while said is None:
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.1)
            said = re.search(r"REST on http://127.0.0.1:(\d+), gRPC on 127.0.0.1:(\d+)", self._log.read_text())
        self.port, self.grpc_port = int(said[1]), int(said[2])

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    @property
    def cpu_seconds(self) -> float:
        """The processor time of all threads until now."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def mib(self) -> float:
        """The resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]

    @contextlib.contextmanager
    def watched(self, every: float = 0.5) -> Iterator[list[tuple[float, float]]]:
        """Collect (seconds, MiB) while the block runs."""
        samples, stop, begin = [], threading.Event(), time.perf_counter()

        def watch() -> None:
            while not stop.wait(every):
                samples.append((time.perf_counter() - begin, self.mib))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield samples
        finally:
            stop.set()
            thread.join()

    def start_load(self, **plan: Any) -> subprocess.Popen[str]:
        plan |= {"host": "127.0.0.1", "port": self.port, "grpc_port": self.grpc_port}
        program = [sys.executable, str(Path(__file__).with_name("load.py"))]
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps(plan))
        process.stdin.close()
        process.stdin = None
        return process

    def load(self, **plan: Any) -> dict[str, Any]:
        return result_of(self.start_load(**plan))

    def counts(self) -> dict[str, float]:
        """Return the server's own counts of requests by door and outcome."""
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10).read().decode()
        found: Counter[str] = Counter()
        for labels, value in re.findall(r"^ortcam_requests_total\{(.*)\} (\S+)$", text, re.MULTILINE):
            said = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            found[f"{said['door']} {said['outcome']}"] += float(value)
        return dict(found)


def show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def jpegs() -> list[Path]:
    return [path for path in find_photos() if path.suffix == ".jpg"]


def result_of(load: subprocess.Popen[str]) -> dict[str, Any]:
    printed, _ = load.communicate()
    assert load.returncode == 0
    result: dict[str, Any] = json.loads(printed)
    return result


# Throughput


def measure_throughput(server: Server, folder: Path, quick: bool) -> dict[str, Any]:
    seconds, turns = (3.0, 2) if quick else (12.0, 3)
    cam = ortcam.ScoreCAM(server_model(server))
    pictures = [path.read_bytes() for path in jpegs()]
    made = {}
    for budget in BUDGETS:
        requests = [infer_request(folder, picture, {"budget": budget}) for picture in pictures]
        runs: dict[str, list[dict[str, float]]] = {}
        for turn in range(-1, turns):  # the first warms up
            for clients in (0, *CLIENTS):
                name = f"{clients} clients" if clients else "engine"
                show(f"throughput, budget {budget}, turn {turn + 1} of {turns}: {name}")
                if clients:
                    run = run_clients(server, requests, clients, seconds)
                else:
                    run = run_engine(cam, pictures, budget, seconds)
                if turn >= 0:
                    runs.setdefault(name, []).append(run)
        rate = statistics.median(one["per_second"] for one in runs[f"{CLIENTS[-1]} clients"])
        show(f"throughput, budget {budget}: latency at half load")
        half = server.load(mode="open", rate=rate / 2, seconds=5 * seconds, requests=requests, seed=SEED)
        check(half)
        made[f"budget {budget}"] = {
            "runs": runs,
            "at_half_load": {"rate": rate / 2, "unexpected": len(half["unexpected"]), **spread(latencies(half))},
        }
    return made


def server_model(server: Server) -> str:
    args = [str(one) for one in server.process.args]  # type: ignore[union-attr]
    return args[2].removeprefix("m=")


def run_engine(cam: ortcam.ModelExplainer, pictures: list[bytes], budget: int, seconds: float) -> dict[str, float]:
    begin, cpu, count = time.perf_counter(), time.process_time(), 0

    def given() -> Iterator[bytes]:
        turn = 0
        while time.perf_counter() - begin < seconds:
            yield pictures[turn % len(pictures)]
            turn += 1

    for _ in cam.explain_batch(given(), budget=budget):
        count += 1
    spent = time.perf_counter() - begin
    return {"per_second": count / spent, "cpu_per_photo": (time.process_time() - cpu) / count}


def run_clients(server: Server, requests: list[Any], clients: int, seconds: float) -> dict[str, float]:
    cpu = server.cpu_seconds
    done = server.load(mode="closed", clients=clients, seconds=seconds, requests=requests)
    check(done)
    count, spent = len(done["done"]), done["seconds"]
    return {
        "per_second": count / spent,
        "cpu_per_photo": (server.cpu_seconds - cpu) / count,
        "cpu_per_photo_of_the_load": done["cpu_seconds"] / count,
        "unexpected": len(done["unexpected"]),
        **spread(latencies(done)),
    }


def check(load: dict[str, Any]) -> None:
    """Say which answers were not the expected ones; the measurement goes on."""
    for one in load["unexpected"]:
        show(f"unexpected: {one}")


def latencies(load: dict[str, Any], *statuses: int) -> list[float]:
    return [seconds for _, seconds, status, _ in load["done"] if not statuses or status in statuses]


def spread(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {"count": 0}
    p50, p99 = np.percentile(seconds, [50, 99])
    return {"count": len(seconds), "p50": float(p50), "p99": float(p99), "max": max(seconds)}


# Overload


def measure_overload(server: Server, folder: Path, quick: bool) -> dict[str, Any]:
    warm, seconds = (4.0, 12.0) if quick else (20.0, 60.0)
    pictures = [path.read_bytes() for path in jpegs()]
    requests = [infer_request(folder, picture, {"budget": 16}) for picture in pictures]
    run_clients(server, requests, 16, warm / 2)
    peak = run_clients(server, requests, 16, warm)["per_second"]
    for one in requests:
        one["expect"] = [200, 503, 504]
    health = [{"kind": "health", "method": "GET", "target": "/v2/health/live", "expect": [200]}]
    show(f"overload: {10 * peak:.0f} requests a second")
    with server.watched() as memory:
        begin, cpu = time.perf_counter(), server.cpu_seconds
        asked = server.start_load(mode="even", rate=20, seconds=seconds, requests=health)
        load = server.load(mode="open", rate=10 * peak, seconds=seconds, requests=requests, seed=SEED)
        spent, cpu = time.perf_counter() - begin, server.cpu_seconds - cpu
        asked_result = result_of(asked)
    check(load)
    check(asked_result)
    in_time = sum(1 for at, took, status, _ in load["done"] if status == 200 and at + took <= seconds)
    late = latencies(load, 504)
    first = [mib for at, mib in memory if at <= seconds / 6]
    last = [mib for at, mib in memory if seconds * 5 / 6 <= at <= seconds]
    return {
        "peak_per_second": peak,
        "asked_per_second": len(load["done"]) / seconds,
        "answered_per_second": in_time / seconds,
        "statuses": dict(Counter(str(one[2]) for one in load["done"])),
        "seconds_of_answers": spread(latencies(load, 200)),
        "seconds_of_refusals": spread([*latencies(load, 503), *(took for took in late if took <= TAKEN)]),
        "unexpected": len(load["unexpected"]) + len(asked_result["unexpected"]),
        "taken_and_too_late": sum(1 for took in late if took > TAKEN),
        "seconds_of_health": spread(latencies(asked_result)),
        "mib_first_and_last_sixth": [statistics.mean(first), statistics.mean(last)],
        "cores_of_the_server": cpu / spent,
        "cores_of_the_load": load["cpu_seconds"] / load["seconds"],
    }


# Soak


def measure_soak(server: Server, folder: Path, quick: bool) -> dict[str, Any]:
    count = 1500 if quick else 20_000
    requests = soak_requests(folder, jpegs()[-1])
    show(f"soak: {count} requests of {len(requests)} kinds")
    server.load(
        mode="closed", clients=8, count=5 * len(requests), requests=[{**one, "share": None} for one in requests]
    )
    before = server.counts()
    with server.watched() as memory:
        load = server.load(mode="closed", clients=8, count=count, requests=requests, seed=SEED)
    counted = {name: value - before.get(name, 0) for name, value in server.counts().items()}
    tenth = max(1, len(memory) // 10)
    first = statistics.median(mib for _, mib in memory[tenth : 2 * tenth])  # the first tenth warms up
    last = statistics.median(mib for _, mib in memory[-tenth:])
    return {
        "requests": len(load["done"]),
        "seconds": load["seconds"],
        "lost": sum(1 for one in load["done"] if str(one[2]).startswith("lost")),
        "unexpected": load["unexpected"],
        "answers_by_kind_and_status": dict(sorted(Counter(f"{one[3]}: {one[2]}" for one in load["done"]).items())),
        "counted_by_the_server": {name: value for name, value in sorted(counted.items()) if value},
        "mib_after_warm_up_and_at_the_end": [first, last],
        "growth": last / first - 1,
    }


# Tables


def print_results(results: dict[str, Any]) -> None:
    machine = results["machine"]
    names = ("ortcam", "onnxruntime", "uvicorn", "starlette", "h11", "grpcio")
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in names)
    print(f"{machine['processor']}, {machine['cores']} cores; Python {machine['python']}, {versions}")
    if "throughput" in results:
        print_throughput({name: one for name, one in results["throughput"].items() if name != "command"})
    for part in ("overload", "soak"):
        print("".join(f"\n{part}, {name}: {rounded(one)}" for name, one in results.get(part, {}).items()))


def print_throughput(found: dict[str, Any]) -> None:
    from explain import spread_of  # late: it loads PyTorch

    print("\n| | photos a second | over the engine's | CPU s a photo | of the load | p50 s | p99 s |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for budget, one in found.items():
        engine = one["runs"]["engine"]
        for name, runs in one["runs"].items():
            ratios = [run["per_second"] / beside["per_second"] for run, beside in zip(runs, engine, strict=True)]
            cells = [spread_of([run[key] for run in runs], 3) for key in ("per_second", "cpu_per_photo")]
            more = [
                f"{statistics.median(run[key] for run in runs):.4f}" if key in runs[0] else ""
                for key in ("cpu_per_photo_of_the_load", "p50", "p99")
            ]
            print(f"| {budget}, {name} | {cells[0]} | {spread_of(ratios, 3)} | {cells[1]} | {' | '.join(more)} |")
        half = one["at_half_load"]
        print(f"| {budget}, half load | {half['rate']:.2f} | | | | {half['p50']:.4f} | {half['p99']:.4f} |")


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
