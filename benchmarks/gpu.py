"""ortcam on a GPU: see gpu.sh. `--provider cpu --networks resnet18 --size 64 --photos 2` tries it without one."""

from __future__ import annotations

import argparse
import gc
import json
import os
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
from ortcam.errors import one_line
from ortcam.exporters import export
from ortcam.runtime.engine import Engine
from ortcam.runtime.providers import count_nodes

LEAST_R = {"fp32": 0.9999, "fp16": 0.999}  # against the CPU, float32
# What is measured beside the plain provider: a name, the file's precision, ONNX Runtime's options.
VARIANTS = [
    ("fp32, no CUDA graphs", "fp32", {"enable_cuda_graph": "0"}),
    ("fp32, TF32", "fp32", {"use_tf32": "1"}),
    ("fp16, no CUDA graphs", "fp16", {"enable_cuda_graph": "0"}),
    ("fp16, NHWC", "fp16", {"prefer_nhwc": "1"}),
]
SEVERAL = 6  # photos, for the exact map of many
BEGIN = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--provider", default="cuda")
    parser.add_argument(
        "--networks",
        nargs="+",
        default=["resnet50", "vgg16"],
        help="names in torchvision, or files that ortcam exported",
    )
    parser.add_argument("--variants-of", nargs="*", default=["resnet50"], help="networks to measure all options with")
    parser.add_argument("--variants", nargs="*", default=[name for name, *_ in VARIANTS], help="which of these options")
    parser.add_argument("--images", type=Path, help="a folder of photos; without it, pictures made from a seed")
    parser.add_argument("--size", type=int, default=224, help="input size of torchvision's networks in pixels")
    parser.add_argument("--photos", type=int, default=64, help="photos of the throughput with a budget")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ort.set_default_logger_severity(4)  # cuDNN says of every plan that it does not have that it has none
    measured: list[dict[str, Any]] = []
    results = {"machine": describe_machine(), "command": " ".join(sys.argv), "networks": measured}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            measured.append({"network": Path(name).stem})
            for _ in measure(name, Path(folder), options, measured[-1]):  # what is known so far is kept
                options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(table(measured))
    failed = [f"{entry['network']} ({name})" for entry in measured for name, one in entry["runs"].items()
              if one["r"] < LEAST_R["fp16" if "fp16" in name or "TF32" in name else "fp32"]]  # fmt: skip
    if failed:
        sys.exit(f"maps differ from the CPU's: {', '.join(failed)}")


def measure(name: str, folder: Path, options: argparse.Namespace, entry: dict[str, Any]) -> Any:
    """Fill the entry of a network, and yield whenever there is more in it."""
    files = export_both(name, folder, options.size)
    photos = find_photos(options.images, options.photos)
    reference = ortcam.ScoreCAM(files["fp32"], provider="cpu")
    on_cpu = reference.explain(photos[0])
    show(f"{entry['network']}: exact map on the CPU, {on_cpu.seconds:.1f} s")
    target = on_cpu.targets[0].index
    budget_on_cpu = reference.explain(photos[0], targets=target, budget=32)
    entry |= {"channels": on_cpu.channels, "scored": on_cpu.scored, "runs": {}}
    entry["exact_seconds_on_the_cpu"] = on_cpu.seconds
    entry["nodes"] = nodes_of(files["fp32"], options.provider)
    entry["copies"] = copies_of(files["fp32"], options.provider, photos[0])
    yield
    variants = [one for one in VARIANTS if one[0] in options.variants and name in options.variants_of]
    wanted = [("fp32", "fp32", {}), ("fp16", "fp16", {}), *variants]
    batches: dict[str, int] = {}
    for title, precision, more in wanted:
        provider = ortcam.Provider(options.provider, more if options.provider == "cuda" else {})
        cam = ortcam.ScoreCAM(files[precision], provider, batch_size=batches.get(precision, "auto"))
        batches[precision] = cam.batch_size
        show(f"{entry['network']}, {title}: batches of {cam.batch_size}")
        there = cam.explain(photos[0], targets=target)
        r = correlation(there, on_cpu)
        r_of_a_budget = correlation(cam.explain(photos[0], targets=target, budget=32), budget_on_cpu)
        run = {"r": r, "r_with_budget_32": r_of_a_budget, "batch_size": cam.batch_size}
        run |= timings(cam, files[precision], provider, photos, options.rounds)
        graphs = cam._running.get()._whole._captured
        entry["runs"][title] = run | {"CUDA graphs": 0 if graphs is None else len(graphs._graphs)}
        del cam, graphs  # a GPU holds the memory of one network at a time
        gc.collect()
        yield


def timings(
    cam: ortcam.ScoreCAM, path: Path, provider: ortcam.Provider, photos: list[Any], rounds: int
) -> dict[str, Any]:
    """Return the seconds of an exact map and of as many bare passes, and of maps with a budget of 32."""
    count, batch = cam.explain(photos[0]).scored, cam.batch_size
    tensor = cam.model.prepare(photos[0])[1]
    shares: dict[int, float] = {}  # of the last batch only what is needed counts
    quickest: dict[int, float] = {}
    for size in (max(batch // 2, 1), batch, batch * 2):
        run = bare_passes(path, provider, tensor, -(-count // size), size)
        share = count / (size * -(-count // size))
        try:
            quickest[size] = share * min(seconds_of(run) for _ in range(3))
            shares[size] = share
        except RuntimeError as error:  # more than the memory that is left
            show(f"bare passes, batches of {size}: {one_line(error)}")
        del run
        gc.collect()
    best = min(quickest, key=lambda size: quickest[size])
    runs: dict[str, Callable[[], Any]] = {
        "exact": lambda: cam.explain(photos[0]),
        "bare": bare_passes(path, provider, tensor, -(-count // best), best),
        f"{SEVERAL} photos, exact": lambda: list(cam.explain_batch(photos[:SEVERAL])),
        "one photo, budget 32": lambda: cam.explain(photos[0], budget=32),
        "all photos, budget 32": lambda: list(cam.explain_batch(photos, budget=32)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            taken = seconds_of(run)
            if turn:  # the first warms up
                seconds[name].append(taken)
    seconds["bare"] = [taken * shares[best] for taken in seconds["bare"]]
    ratios = [exact / plain for exact, plain in zip(seconds["exact"], seconds["bare"], strict=True)]
    passes = sum(one.scored for one in cam.explain_batch(photos[:SEVERAL])) / count
    several = seconds[f"{SEVERAL} photos, exact"]
    ratios_of_several = [taken / passes / plain for taken, plain in zip(several, seconds["bare"], strict=True)]
    rates = [len(photos) / taken for taken in seconds["all photos, budget 32"]]
    return {
        "bare_batch_size": best,
        "seconds": seconds,
        "exact_over_bare": statistics.median(ratios),
        "exact_of_several_over_bare": statistics.median(ratios_of_several),
        "photos_a_second_with_budget_32": statistics.median(rates),
        "photos": len(photos),
    }


def bare_passes(
    path: Path, provider: ortcam.Provider, tensor: np.ndarray, batches: int, size: int
) -> Callable[[], None]:
    """Return what runs the model file by itself on the provider, its input and output on the device throughout."""
    options = {**provider.session_options({}), "enable_cuda_graph": "0"} if provider.name == "cuda" else {}
    session = ort.InferenceSession(path, providers=[(provider.ort_name, options)])
    device, output = provider.device, session.get_outputs()[0].name
    batch = ort.OrtValue.ortvalue_from_numpy(np.repeat(tensor, size, axis=0), device.type, device.id)
    binding = session.io_binding()
    binding.bind_ortvalue_input("image", batch)

    def run() -> None:
        for _ in range(batches):
            binding.bind_output(output, device.type, device.id)
            session.run_with_iobinding(binding)

    return run


def nodes_of(path: Path, provider: str) -> dict[str, Any]:
    """Return how many nodes of the scoring graph run on which provider, and which of them not on this one."""
    engine = Engine(ortcam.CamModel(path), "logits", ortcam.Provider(provider), None, None, record_assignment=True)
    nodes = count_nodes(engine.session)
    elsewhere = {name: counts for name, counts in nodes.items() if name != engine.provider.ort_name}
    fused = sum(counts.get("FusedConv", 0) for counts in nodes.values())
    on = {name: sum(counts.values()) for name, counts in nodes.items()}
    return {"on": on, "elsewhere": elsewhere, "fused_convolutions": fused}


def copies_of(path: Path, provider: str, photo: Any) -> dict[str, Any]:
    """Return what is copied between host and GPU for one exact map, as CUDA's profiler (CUPTI) sees it."""
    cam = ortcam.ScoreCAM(path, provider, batch_size=64)
    for _ in range(3):  # CUDA graphs are there by then; to capture them under the profiler crashed once
        explanation = cam.explain(photo)
    masked = int(cam.model.prepare(photo)[1].nbytes)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        cam.explain(photo)
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    copies: dict[str, list[int]] = {}
    for event in events:
        if event.get("cat") == "gpu_memcpy":
            kind = event["name"].removeprefix("Memcpy ").split(" (")[0]
            copies.setdefault(kind, []).append(int(event["args"]["bytes"]))
    kernels = [event for event in events if event.get("cat") == "kernel"]
    found = {kind: {"copies": len(sizes), "bytes": sum(sizes), "largest": max(sizes)} for kind, sizes in copies.items()}
    return {
        "bytes_of_a_masked_image": masked,
        "masked_images": explanation.scored,
        "batch_size": 64,
        "kernels": len(kernels),
        "seconds_of_kernels": sum(event["dur"] for event in kernels) / 1e6,
        "seconds": explanation.seconds,
        "copies": found,
    }


def export_both(name: str, folder: Path, size: int) -> dict[str, Path]:
    """Return the network's files in float32 and float16; one of torchvision's has seeded weights."""
    halved = folder / f"{Path(name).stem}-fp16.onnx"
    if name.endswith(".onnx"):
        whole = Path(name)
    else:
        torch.manual_seed(0)
        module = sharpened(torchvision.models.get_model(name, weights=None))
        whole = export(module, folder / f"{name}.onnx", preprocess="imagenet", input_size=size).path
        show(f"{name}: exported")
    export(whole, halved, precision="fp16")
    return {"fp32": whole, "fp16": halved}


def find_photos(folder: Path | None, count: int) -> list[Any]:
    """Return photos of a folder, over and over until there are enough; or smooth seeded pictures [240,320,3]."""
    if folder is not None:
        found = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
        return [found[number % len(found)] for number in range(count)]
    coarse = np.random.default_rng(0).random((count, 12, 16, 3))
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
    versions |= {"CUDA of torch": torch.version.cuda, "cuDNN": str(torch.backends.cudnn.version())}
    return {"device": device, "processors": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def table(measured: list[dict[str, Any]]) -> str:
    lines = [
        "| | r | batch | exact, s | over bare | of several | budget 32, s | photos/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for entry in measured:
        for title, run in entry["runs"].items():
            seconds = {name: statistics.median(values) for name, values in run["seconds"].items()}
            lines.append(
                f"| {entry['network']}, {title} | {run['r']:.6f} | {run['batch_size']} | {seconds['exact']:.3f} | "
                f"{run['exact_over_bare']:.3f} | {run['exact_of_several_over_bare']:.3f} | "
                f"{seconds['one photo, budget 32']:.4f} | {run['photos_a_second_with_budget_32']:.0f} |"
            )
    return "\n".join(lines)


def correlation(ours: ortcam.Explanation, reference: ortcam.Explanation) -> float:
    return float(np.corrcoef(ours.input_maps.ravel(), reference.input_maps.ravel())[0, 1])


def seconds_of(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def show(text: str) -> None:
    print(f"{time.perf_counter() - BEGIN:6.1f} s  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
