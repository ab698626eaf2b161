"""Score-CAM side by side: ortcam, exact and with budgets, its own bare forward passes, and the peers.

    python benchmarks/explain.py                                  all of it, about an hour on two cores
    python benchmarks/explain.py --networks EfficientNet-Lite0    ten minutes of it

One photo (coffee.png), float32, the same layer for all, ortcam at the batch size that it measures, peers at 16. The
candidates take turns in one process, so that a change of the machine's speed meets all of them; medians and ranges
over the turns are printed. EfficientNet-Lite0 has its ImageNet weights, the others are untrained (seeded): their
times are those of trained ones, their maps mean nothing. tf-keras-vis runs Keras twins. Whole processes are measured
from outside: wall time of `ortcam explain` less the forward passes that it reports, and peak memory (the kernel's
own accounting). Writes a JSON file and the plot of docs/figures.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnxruntime as ort
import peers
import plot

import ortcam
from ortcam.cli.demo import find_photos, load_efficientnet_lite0
from ortcam.exporters import export

PEER_BATCH = 16
BUDGETS = (16, 32, 64)
RESULTS = Path(__file__).parent / "results" / "explain-cpu.json"
PEERS = {"torchcam": peers.torchcam, "pytorch-grad-cam": peers.grad_cam, "tf-keras-vis": peers.tf_keras_vis}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=networks.NETWORKS, default=networks.NETWORKS)
    parser.add_argument("--output", type=Path, default=RESULTS, help="the JSON to write")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, Any] = {
            "machine": describe_machine(),
            "command": " ".join(["python", "benchmarks/explain.py", *sys.argv[1:]]),
            "process": measure_processes(Path(folder), 5),
            "networks": [],
        }
        for name in options.networks:
            results["networks"].append(compare(networks.build(name, Path(folder))))
            options.output.write_text(json.dumps(results, indent=2) + "\n")  # what is measured stays, whatever comes
    if options.output == RESULTS:
        plot.draw(results["networks"], plot.PLOT)
    print_results(results)


def compare(network: networks.Network) -> dict[str, Any]:
    """Let all candidates explain the photo in turns; seconds of every turn, passes, agreement with the exact map."""
    show(f"{network.name}: the best batch size")
    cam = ortcam.ScoreCAM(network.path, batch_size="auto")
    photo = find_photos()[6]
    tensor = cam.model.prepare(photo)[1]
    exact = cam.explain(photo)
    target = exact.targets[0].index
    runs: dict[str, Callable[[], Any]] = {
        "bare": bare_passes(network.path, tensor, exact.scored, cam.batch_size),
        "ortcam": lambda: cam.explain(photo, targets=target),
        **{f"budget {m}": lambda m=m: cam.explain(photo, targets=target, budget=m) for m in BUDGETS},
        "top-std 32": lambda: cam.explain(photo, targets=target, budget=32, selection="top-std"),
    }
    peers_here = {name: make for name, make in PEERS.items() if name != "tf-keras-vis" or network.keras is not None}
    runs |= {name: make(network, tensor, target, PEER_BATCH) for name, make in peers_here.items()}
    runs["bare"]()
    turns = {
        name: network.rounds if name in PEERS else network.rounds + 1 if name in ("bare", "ortcam") else 9
        for name in runs
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    maps: dict[str, np.ndarray] = {}
    rounds = max(turns[name] for name in ("bare", *peers_here))
    for turn in range(rounds):
        for name, run in runs.items():
            for _ in range(share(turns[name], rounds, turn)):
                show(f"{network.name}, turn {turn + 1} of {rounds}: {name}")
                spent, result = timed(run)
                seconds[name].append(spent)
                if isinstance(result, ortcam.Explanation):
                    maps[name] = result.input_maps[0]
    agreement = {
        name: float(np.corrcoef(saliency.ravel(), exact.input_maps[0].ravel())[0, 1])
        for name, saliency in maps.items()
        if network.trained
    }
    return {
        "network": network.name,
        "photo": photo.name,
        "channels": exact.channels,
        "live": exact.live,
        "passes": {"ortcam": exact.scored} | {f"budget {m}": min(m, exact.scored) for m in BUDGETS},
        "batch_size": cam.batch_size,
        "seconds": seconds,
        "pearson_r_with_the_exact_map": agreement,
    }


def share(count: int, rounds: int, turn: int) -> int:
    """Return how many of `count` runs fall to this turn of `rounds`, as even as can be."""
    return count * (turn + 1) // rounds - count * turn // rounds


def bare_passes(path: Path, tensor: np.ndarray, count: int, batch_size: int) -> Callable[[], None]:
    """Return what runs the exported model itself, as often and in the same batches as the exact map does."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    batches = -(-count // batch_size)
    sizes = [count // batches + (number < count % batches) for number in range(batches)]
    batch = np.repeat(tensor, batch_size, axis=0)

    def run() -> None:
        for size in sizes:
            session.run(["logits"], {"image": batch[:size]})

    return run


def measure_processes(folder: Path, rounds: int) -> dict[str, Any]:
    """Run `ortcam explain` and torchcam from outside: time beside the forward passes, and peak memory."""
    path = export(load_efficientnet_lite0(), folder / "process.onnx", preprocess="lite", labels="imagenet").path
    photo = str(find_photos()[6])
    twenty = [str(p) for p in sorted(find_photos()[0].parent.glob("imagenet_*.jpg"))]
    show("whole processes")
    run_process(path, [photo], folder)
    one = [run_process(path, [photo], folder) for _ in range(rounds)]
    budget = [run_process(path, [photo], folder, "--budget", "32") for _ in range(rounds)]
    return {
        "seconds_outside_the_forward_passes": [run["wall"] - run["scoring"] for run in one],
        "seconds_of_a_process_with_budget_32": [run["wall"] for run in budget],
        "seconds_until_torchcam_is_ready": [start_of_torchcam() for _ in range(rounds)],
        "peak_mib": {
            "1 photo, exact": [run["peak_mib"] for run in one],
            "1 photo, budget 32": [run["peak_mib"] for run in budget],
            "20 photos, exact": [run_process(path, twenty, folder)["peak_mib"]],
        },
    }


def start_of_torchcam() -> float:
    """Return the seconds from the start of Python until torch, torchcam and the network are loaded."""
    code = (
        "import torch, torchcam.methods; from ortcam.cli.demo import load_efficientnet_lite0 as load; "
        "m = load(); torchcam.methods.ScoreCAM(m, m._bn1)"
    )
    return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))[0]


def run_process(path: Path, photos: list[str], folder: Path, *more: str) -> dict[str, float]:
    """Run `ortcam explain --json` once; wall seconds, the seconds of its masked passes, peak resident memory."""
    program = Path(sys.executable).with_name("ortcam")
    arguments = ["explain", path, *photos, "-o", folder / "out", "--json", *more]
    command = [sys.executable, Path(__file__).with_name("process.py"), program, *arguments]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    scoring = sum(entry["seconds_scoring"] for entry in json.loads(result["printed"])["explanations"])
    return {"wall": result["wall"], "scoring": scoring, "peak_mib": result["peak_mib"]}


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def describe_machine() -> dict[str, Any]:
    processor = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    packages = ("onnxruntime", "torch", "torchcam", "grad-cam", "tensorflow-cpu", "tf-keras-vis", "numpy")
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {"ortcam": ortcam.__version__, **{name: version_of(name) for name in packages}},
    }


def version_of(package: str) -> str:
    names = (package, package.removesuffix("-cpu"))
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "not installed"


def show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def spread_of(values: list[float], digits: int = 2) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def print_results(results: dict[str, Any]) -> None:
    machine, process = results["machine"], results["process"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['processor']}, {machine['cores']} cores; Python {machine['python']}, {versions}\n")
    for network in results["networks"]:
        seconds, passes = network["seconds"], network["passes"]
        median = {name: statistics.median(values) for name, values in seconds.items()}
        best_peer = min(median[name] for name in PEERS if name in median)
        ratio = spread_of([a / b for a, b in zip(seconds["ortcam"], seconds["bare"], strict=True)], 3)
        print(
            f"{network['network']}, {network['photo']}: {network['channels']} channels, {network['live']} live, batch "
            f"{network['batch_size']}; exact over bare passes: {ratio}\n"
        )
        print("| | passes | seconds | best peer's over it | r with the exact map |\n|---|---:|---:|---:|---:|")
        for name in seconds:
            count = passes.get(name, passes["ortcam"] if name == "bare" else 32 if name == "top-std 32" else "")
            agreement = network["pearson_r_with_the_exact_map"].get(name)
            print(
                f"| {name} | {count or network['channels']} | {spread_of(seconds[name], 3)} | "
                f"{best_peer / median[name]:.1f} | {'' if agreement is None else f'{agreement:.4f}'} |"
            )
        print()
    for name, values in process.items():
        if name != "peak_mib":
            print(f"{name.replace('_', ' ')}: {spread_of(values)}")
    for name, values in process["peak_mib"].items():
        print(f"peak memory, {name}: {spread_of(values, 0)} MiB")


if __name__ == "__main__":
    main()
