"""ortcam on a GPU: see gpu.sh. `--provider cpu --networks resnet18 --size 64 --photos 2` tries it without one."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
import torchvision
from torch import nn

import ortcam
from ortcam.exporters import export
from ortcam.runtime.binding import Rows
from ortcam.runtime.engine import Engine
from ortcam.runtime.providers import count_nodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--networks", nargs="+", default=["resnet50", "vgg16"], help="names in torchvision")
    parser.add_argument("--size", type=int, default=224, help="input size in pixels")
    parser.add_argument("--photos", type=int, default=64, help="photos of the throughput with a budget")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = [measure(name, Path(folder), options) for name in options.networks]
    results = {"machine": describe_machine(), "command": " ".join(sys.argv), "networks": measured}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    failed = [entry["network"] for entry in measured if not entry["parity_holds"]]
    if failed:
        sys.exit(f"maps differ from the CPU's: {', '.join(failed)}")


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    module = sharpened(torchvision.models.get_model(name, weights=None))
    files = {
        precision: export(
            module, folder / f"{name}-{precision}.onnx", preprocess="imagenet", input_size=options.size,
            precision=precision,
        ).path
        for precision in ("fp32", "fp16")
    }  # fmt: skip
    photos = make_photos(options.photos)
    on_cpu = ortcam.ScoreCAM(files["fp32"], provider="cpu").explain(photos[0])
    target = on_cpu.targets[0].index
    entry: dict[str, Any] = {"network": name, "channels": on_cpu.channels, "parity_holds": True}
    for precision, path in files.items():
        show(f"{name}, {precision}")
        cam = ortcam.ScoreCAM(path, provider=options.provider, batch_size="auto")
        there = cam.explain(photos[0], targets=target)
        r = float(np.corrcoef(there.input_maps.ravel(), on_cpu.input_maps.ravel())[0, 1])
        entry["parity_holds"] &= r >= (0.9999 if precision == "fp32" else 0.999)
        entry[precision] = {"pearson_r_with_the_cpu": r, "batch_size": cam.batch_size} | timings(cam, photos, options)
    engine = Engine(ortcam.CamModel(files["fp32"]), "logits", ortcam.Provider(options.provider), None, None, True)
    nodes = count_nodes(engine.session)
    entry["nodes"] = {provider: sum(counts.values()) for provider, counts in nodes.items()}
    entry["nodes_elsewhere"] = {k: v for k, v in nodes.items() if k != engine.provider.ort_name}
    return entry


def timings(cam: ortcam.ScoreCAM, photos: list[np.ndarray], options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of the exact map, of as many plain passes, and photos a second with a budget of 32."""
    exact = cam.explain(photos[0])
    runs: dict[str, Callable[[], Any]] = {
        "exact": lambda: cam.explain(photos[0]),
        "bare": bare_passes(cam, photos[0], exact.scored),
        "budget 32": lambda: list(cam.explain_batch(photos, budget=32)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "scored": exact.scored,
        "seconds": seconds,
        "exact_over_bare": median["exact"] / median["bare"],
        "photos_a_second_with_budget_32": len(photos) / median["budget 32"],
    }


def bare_passes(cam: ortcam.ScoreCAM, photo: np.ndarray, count: int) -> Callable[[], None]:
    """Return what runs the same session on unmasked rows of one photo that lies on the device."""
    group = cam._scorer.forward(cam.model.prepare(photo)[1])
    rows = Rows.plain(1).take(0, count)
    return lambda: cam._scorer.score(group, rows, align_corners=False) and None


def make_photos(count: int) -> list[np.ndarray]:
    """Return smooth random pictures uint8 [240,320,3], seeded: without weights that see, no photo means more."""
    random = np.random.default_rng(0)
    coarse = random.random((count, 12, 16, 3))
    return [(255 * np.kron(picture, np.ones((20, 20, 1)))).astype(np.uint8) for picture in coarse]


def sharpened(module: nn.Module) -> nn.Module:
    """Scale the last linear layer, so that the classes of an untrained network differ as a trained one's do."""
    last = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(4.0)
    return module.eval()


def describe_machine() -> dict[str, Any]:
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        device = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        device = "no NVIDIA GPU"
    versions = {"ortcam": ortcam.__version__, "onnxruntime": ort.__version__, "torch": torch.__version__}
    return {"device": device, "python": platform.python_version(), "versions": versions}


def show(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
