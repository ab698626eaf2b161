"""Exact Score-CAM: ortcam beside its own bare forward passes, torchcam and pytorch-grad-cam.

    python benchmarks/explain.py                 all of it, about ten minutes on two cores
    python benchmarks/explain.py --rounds 1      half of that

EfficientNet-Lite0 (ImageNet weights), the same layer (the head after its ReLU6, 1280 x 7 x 7), float32, batches of
16, three photos. On each photo the candidates take turns in one process, so that a change of the machine's speed
meets all of them; medians and ranges over the rounds are printed. Whole processes are measured from outside: wall
time of `ortcam explain` less the forward passes that it reports, and its peak memory (the kernel's own accounting).
"""

from __future__ import annotations

import argparse
import contextlib
import io
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

import numpy as np
import onnxruntime as ort
import torch
from pytorch_grad_cam import ScoreCAM as GradCamScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchcam.methods import ScoreCAM as TorchcamScoreCAM

import ortcam
from ortcam.cli.demo import find_photos, load_efficientnet_lite0
from ortcam.exporters import export

BATCH = 16
PHOTOS = (0, 5, 6)  # of the demo: a dog, a cat, a cup
RESULTS = Path(__file__).parent / "results" / "explain-cpu.json"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=2, help="turns on each photo")
    arguments.add_argument("--output", type=Path, default=RESULTS, help="the JSON to write")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        network, path = prepare(Path(folder))
        results = {
            "machine": describe_machine(),
            "command": "python benchmarks/explain.py" + (f" --rounds {options.rounds}" if options.rounds != 2 else ""),
            "photos": compare(network, path, options.rounds),
            "process": measure_processes(path, Path(folder), 5),
        }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print_results(results)


def prepare(folder: Path) -> tuple[nn.Module, Path]:
    """Return the network with a module that peers can hook (ReLU6 of ReLU6 is ReLU6), and its exported file."""
    network = load_efficientnet_lite0()
    network._bn1 = nn.Sequential(network._bn1, nn.ReLU6())
    network.eval()
    return network, export(network, folder / "lite0.onnx", preprocess="lite", labels="imagenet").path


def compare(network: nn.Module, path: Path, rounds: int) -> list[dict[str, Any]]:
    """Explain each photo in turns; return seconds of every turn, and how well the peers' maps agree with ours."""
    presets = ("official", "torchcam", "pytorch-grad-cam")
    cams = {preset: ortcam.ScoreCAM(path, preset=preset, batch_size=BATCH) for preset in presets}
    return [compare_on(find_photos()[number], network, path, cams, rounds) for number in PHOTOS]


def compare_on(
    photo: Path, network: nn.Module, path: Path, cams: dict[str, ortcam.ScoreCAM], rounds: int
) -> dict[str, Any]:
    _, tensor, _ = cams["official"].model.prepare(photo)
    first = cams["official"].explain(photo)
    target = first.targets[0].index
    candidates: dict[str, Callable[[], Any]] = {
        "bare": bare_passes(path, tensor, first.live),
        "ortcam": lambda: cams["official"].explain(photo, targets=target),
        "torchcam": lambda: torchcam_map(network, tensor, target),
        "pytorch-grad-cam": lambda: grad_cam_map(network, tensor, target),
    }
    candidates["bare"]()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    agreement = {}
    for turn in range(rounds):
        for name, run in candidates.items():
            show(f"{photo.name}, turn {turn + 1} of {rounds}: {name}")
            for _ in range(1 if name in cams else 3):  # the short ones are noisier
                spent, result = timed(run)
                seconds[name].append(spent)
            if name in cams and turn == 0:
                ours = cams[name].explain(photo, targets=target).input_maps[0]
                agreement[name] = float(np.corrcoef(ours.ravel(), result.ravel())[0, 1])
    return {
        "photo": photo.name,
        "channels": first.channels,
        "live": first.live,
        "scored": first.scored,
        "batch_size": BATCH,
        "seconds": seconds,
        "pearson_r_with_the_same_preset": agreement,
    }


def bare_passes(path: Path, tensor: np.ndarray, count: int) -> Callable[[], None]:
    """Return what runs the exported model itself on as many images as there are live channels."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    batch = np.repeat(tensor, BATCH, axis=0)

    def run() -> None:
        for begin in range(0, count, BATCH):
            session.run(["logits"], {"image": batch[: min(BATCH, count - begin)]})

    return run


def torchcam_map(network: nn.Module, tensor: np.ndarray, target: int) -> np.ndarray:
    inputs = torch.from_numpy(tensor)
    with TorchcamScoreCAM(network, network._bn1, batch_size=BATCH) as cam:
        with torch.inference_mode():
            network(inputs)
        (small,) = cam(target)
    return nn.functional.interpolate(small[None], inputs.shape[2:], mode="bilinear")[0, 0].numpy()


def grad_cam_map(network: nn.Module, tensor: np.ndarray, target: int) -> np.ndarray:
    with contextlib.redirect_stderr(io.StringIO()), GradCamScoreCAM(network, [network._bn1]) as cam:
        cam.batch_size = BATCH
        result: np.ndarray = cam(torch.from_numpy(tensor), [ClassifierOutputTarget(target)])[0]
    return result


def measure_processes(path: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Run `ortcam explain` from outside: time beside the forward passes, and peak memory."""
    photo = str(find_photos()[6])
    spread = export(load_efficientnet_lite0(), folder / "block.onnx", layer="_blocks.15", preprocess="lite").path
    twenty = [str(p) for p in sorted(find_photos()[0].parent.glob("imagenet_*.jpg"))]
    one = [run_process(path, [photo], folder) for _ in range(rounds)]
    show("peak memory of 20 photos")
    return {
        "seconds_outside_the_forward_passes": [run["wall"] - run["scoring"] for run in one],
        "peak_mib": {
            "1 photo, 1280 channels": [run["peak_mib"] for run in one],
            "20 photos, 1280 channels": [run_process(path, twenty, folder)["peak_mib"]],
            "1 photo, 320 channels": [run_process(spread, [photo], folder)["peak_mib"] for _ in range(rounds)],
        },
    }


def run_process(path: Path, photos: list[str], folder: Path) -> dict[str, float]:
    """Run `ortcam explain --json` once; wall seconds, the seconds of its masked passes, peak resident memory."""
    program = Path(sys.executable).with_name("ortcam")
    arguments = ["explain", path, *photos, "-o", folder / "out", "--batch-size", BATCH, "--json"]
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
    packages = ("onnxruntime", "torch", "torchcam", "grad-cam", "numpy")
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {"ortcam": ortcam.__version__, **{name: metadata.version(name) for name in packages}},
    }


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
    print(
        "| photo | channels: all, live, scored | bare passes of the live, s | ortcam, s | torchcam | pytorch-grad-cam |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for photo in results["photos"]:
        seconds = photo["seconds"]
        ours = statistics.median(seconds["ortcam"])
        peers = " | ".join(
            f"{spread_of(seconds[name], 1)} s, {statistics.median(seconds[name]) / ours:.1f} times"
            for name in ("torchcam", "pytorch-grad-cam")
        )
        counts = f"{photo['channels']}, {photo['live']}, {photo['scored']}"
        print(
            f"| {photo['photo']} | {counts} | {spread_of(seconds['bare'])} | {spread_of(seconds['ortcam'])} | {peers} |"
        )
    ratios = [
        ours / bare
        for photo in results["photos"]
        for ours, bare in zip(photo["seconds"]["ortcam"], photo["seconds"]["bare"], strict=True)
    ]
    lowest = min(r for photo in results["photos"] for r in photo["pearson_r_with_the_same_preset"].values())
    outside = process["seconds_outside_the_forward_passes"]
    print(f"\none explanation over the bare passes of its live channels: {spread_of(ratios, 3)}")
    print(f"lowest Pearson r with a peer, same preset: {lowest:.9f}")
    print(f"`ortcam explain`, seconds outside the masked passes: {spread_of(outside)}")
    for name, values in process["peak_mib"].items():
        print(f"peak memory, {name}: {spread_of(values, 0)} MiB")


if __name__ == "__main__":
    main()
