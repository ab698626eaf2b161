"""Draw docs/methods.jpg: eight photos, each explained by five methods for its most probable class.

    python docs/write_method_pictures.py

The photos come with foolbox and scikit-image, the network is EfficientNet-Lite0 (tests/models.txt).
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import ortcam
from ortcam.cli.demo import load_efficientnet_lite0
from ortcam.exporters import export
from ortcam.output.explanation import Pictures

METHODS = ("score-cam", "cam", "recipro-cam", "eigen-cam", "fused")
FOOLBOX = (0, 3, 6, 9, 12, 15)
SKIMAGE = ("chelsea.png", "coffee.png")
PICTURE = Path(__file__).parent / "methods.jpg"


def find_photos() -> list[Path]:
    """Return the paths of eight photos."""
    foolbox = sorted((folder_of("foolbox") / "data").glob("imagenet_*.jpg"))
    return [*(foolbox[number] for number in FOOLBOX), *(folder_of("skimage") / "data" / name for name in SKIMAGE)]


def folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    return Path(spec.origin).parent


def explain_all(model: Path, photos: list[Path]) -> dict[str, list[Pictures]]:
    """Return the explanations of the photos by each method."""
    made: dict[str, list[Pictures]] = {}
    for method in METHODS:
        with ortcam.load_explainer(model, method) as explainer:
            made[method] = [explainer.explain(photo) for photo in photos]
    return made


def draw(made: dict[str, list[Pictures]], path: Path) -> None:
    """Draw a row for each photo: the part that the model saw, then its overlay by each method."""
    rows = len(made[METHODS[0]])
    figure, axes = plt.subplots(rows, 1 + len(METHODS), figsize=(9, 1.56 * rows), layout="constrained")
    for row in range(rows):
        first = made[METHODS[0]][row]
        assert first.photo is not None
        seen = slice(first.crop.top, first.crop.bottom), slice(first.crop.left, first.crop.right)
        pictures = [first.photo, *(made[method][row].overlay(opacity=0.5) for method in METHODS)]
        for axis, picture in zip(axes[row], pictures, strict=True):
            axis.imshow(picture[seen], aspect="equal")
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, title in zip(axes[0], ("photo", *METHODS), strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 70})


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = export(load_efficientnet_lite0(), Path(folder) / "lite0.onnx", preprocess="lite").path
        draw(explain_all(model, find_photos()), PICTURE)


if __name__ == "__main__":
    main()
