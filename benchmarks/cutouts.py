"""Pictures with exact masks: photos cut out along their outline, pasted on gravel and grass.

    python benchmarks/cutouts.py OUT             writes OUT/images, OUT/masks and OUT/labels.csv
    python benchmarks/cutouts.py OUT --check     and prints what EfficientNet-Lite0 answers to each picture

The objects are photos with an alpha channel, from Debian's package `tuxpaint-stamps-default` 2022.06.04. If the package
is not installed, apt-get downloads it, and it is unpacked below build/. Its copyright file names Bill Kendrick
(2002-2022) and the licence GPL-2 for all files, so the pictures that this script writes are not part of ortcam. The
backgrounds are `gravel` and `grass` of scikit-image, public domain (CC0), grey, at half of their contrast.

The 24 stamps have names that begin with a to m. Each is a photo, not a drawing, of a thing with an ImageNet class of
its own. EfficientNet-Lite0 gives this class first when the object stands alone (`--check`). A stamp that the network
takes for something else was left out, because a map of its class says little about the object.

24 pictures show one object: its longer side takes 65 % of the picture. 24 pictures show two, left and right: the first
stamp of the table with the thirteenth, and so on, once in this order on gravel and once in the other on grass. Places
are drawn with a fixed seed. The outer sixteenth of a picture has no object: preprocessing for ImageNet crops it.

labels.csv has the columns photo, label (the ImageNet index) and mask, and a row for each object. A mask is 255 where
the object covers at least half of a pixel, else 0. In pictures of two, the network gives the smaller or less typical
object a low probability (`--check` prints it).
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ortcam.core.files import only, replace_directory

PACKAGE = "tuxpaint-stamps-default"
INSTALLED = Path("usr/share/tuxpaint/stamps")
CACHE = Path(__file__).parents[1] / "build" / PACKAGE
BACKGROUNDS = ("gravel", "grass")
SIDE = 384  # pixels of a picture
MARGIN = SIDE // 16
CONTRAST = 0.5  # of the backgrounds
ALONE = (0.65, 0.65)  # an object is at most this wide and high, of the picture's side
TOGETHER = (0.43, 0.6)
SEED = 19

# The file below INSTALLED, and the ImageNet index and name of its class.
STAMPS = {
    "animals/birds/hen.png": (8, "hen"),
    "animals/birds/duck.png": (97, "drake"),
    "animals/birds/gander.png": (99, "goose"),
    "animals/birds/crowned_crane.png": (134, "crane"),
    "animals/insects/mantis.png": (315, "mantis"),
    "animals/mammals/apes/gorilla.png": (366, "gorilla"),
    "animals/mammals/bears/european-bear.png": (294, "brown bear"),
    "animals/mammals/bovines/bison.png": (347, "bison"),
    "hobbies/music/string/guitar_electric.png": (546, "electric guitar"),
    "animals/mammals/dogs/dingo.png": (273, "dingo"),
    "household/dishes/mug.png": (504, "coffee mug"),
    "animals/mammals/rodents/beaver.png": (337, "beaver"),
    "animals/mammals/rodents/marmot.png": (336, "marmot"),
    "food/fruit/lemon.png": (951, "lemon"),
    "food/vegetables/broccoli.png": (937, "broccoli"),
    "hobbies/binoculars.png": (447, "binoculars"),
    "hobbies/camera_35mm.png": (759, "reflex camera"),
    "hobbies/music/string/guitar_classical.png": (402, "acoustic guitar"),
    "household/garbagecan.png": (412, "ashcan"),
    "military/vehicles/f22_raptor.png": (895, "warplane"),
    "plants/mushrooms/cep.png": (997, "bolete"),
    "sports/basketball.png": (430, "basketball"),
    "vehicles/emergency/firetruck.png": (555, "fire engine"),
    "vehicles/flight/balloon360.png": (417, "balloon"),
}


@dataclass(frozen=True, eq=False)
class Object:
    """A stamp in a picture.

    Attributes:
        label: its ImageNet index.
        mask: bool [H,W], its pixels.
    """

    name: str
    label: int
    mask: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture uint8 [H,W,3], BGR, with its objects."""

    name: str
    pixels: NDArray[np.uint8]
    objects: tuple[Object, ...]


def find_stamps() -> Path:
    """Return the folder of the stamps; download and unpack the package if it is neither installed nor there already."""
    for root in (Path("/"), CACHE):
        if (root / INSTALLED).is_dir():
            return root / INSTALLED
    with replace_directory(CACHE, only(lambda _: True)) as folder, tempfile.TemporaryDirectory() as work:
        subprocess.run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", PACKAGE], cwd=work, check=True)
        (package,) = Path(work).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    return CACHE / INSTALLED


def read_stamp(path: Path, widest: float, highest: float) -> NDArray[np.float32]:
    """Return a stamp, cut to its outline and scaled to these pixels: float32 [h,w,4], BGR times alpha, alpha."""
    stamp = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stamp is None or stamp.ndim != 3 or stamp.shape[2] != 4:
        raise SystemExit(f"{path} is not a picture with alpha; expected that of {PACKAGE} 2022.06.04")
    opaque = stamp[..., 3] >= 128
    rows, columns = np.flatnonzero(opaque.any(axis=1)), np.flatnonzero(opaque.any(axis=0))
    cut = stamp[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / 255
    cut[..., :3] *= cut[..., 3:]
    scale = min(highest / cut.shape[0], widest / cut.shape[1])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    size = [max(1, int(side * scale)) for side in cut.shape[1::-1]]
    return np.asarray(cv2.resize(cut, size, interpolation=how), np.float32)


def read_background(name: str) -> NDArray[np.float32]:
    """Return a background of scikit-image: float32 [SIDE,SIDE,3] in [0,1]."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.origin is not None, "scikit-image is not installed"
    pixels = cv2.imread(str(Path(spec.origin).parent / "data" / f"{name}.png"), cv2.IMREAD_COLOR)
    assert pixels is not None and min(pixels.shape[:2]) >= SIDE
    background = pixels[:SIDE, :SIDE].astype(np.float32) / 255
    mean = background.mean()
    return mean + CONTRAST * (background - mean)


def paste(background: NDArray[np.float32], stamp: NDArray[np.float32], top: int, left: int) -> NDArray[np.bool_]:
    """Paste a stamp on the background, in place; return its mask."""
    height, width = stamp.shape[:2]
    part = background[top : top + height, left : left + width]
    part *= 1 - stamp[..., 3:]
    part += stamp[..., :3]
    mask = np.zeros(background.shape[:2], np.bool_)
    mask[top : top + height, left : left + width] = stamp[..., 3] >= 0.5
    return mask


def make_picture(stamps: Path, files: tuple[str, ...], background: str, generator: np.random.Generator) -> Picture:
    """Return a picture with one object anywhere, or with two, left and right."""
    pixels, objects = read_background(background), []
    room = SIDE - 2 * MARGIN
    part = room // len(files)
    for index, file in enumerate(files):
        widest, highest = ALONE if len(files) == 1 else TOGETHER
        stamp = read_stamp(stamps / file, widest * SIDE, highest * SIDE)
        height, width = stamp.shape[:2]
        top = MARGIN + int(generator.integers(room - height + 1))
        left = MARGIN + index * part + int(generator.integers(part - width + 1))
        objects.append(Object(Path(file).stem, STAMPS[file][0], paste(pixels, stamp, top, left)))
    name = "-".join(one.name for one in objects)
    return Picture(f"{name}-{background}", np.rint(pixels.clip(0, 1) * 255).astype(np.uint8), tuple(objects))


def make_pictures(stamps: Path) -> Iterator[Picture]:
    """Yield all pictures: each object alone, on gravel and grass by turns, then pairs of objects in both orders."""
    generator = np.random.default_rng(SEED)
    files = list(STAMPS)
    half = len(files) // 2
    for index, file in enumerate(files):
        yield make_picture(stamps, (file,), BACKGROUNDS[index % 2], generator)
    for one, other in zip(files[:half], files[half:], strict=True):
        yield make_picture(stamps, (one, other), BACKGROUNDS[0], generator)
        yield make_picture(stamps, (other, one), BACKGROUNDS[1], generator)


def write(folder: Path, pictures: Iterator[Picture]) -> None:
    """Write pictures, masks and labels.csv; the folder appears whole, and replaces only one that this script made.

    Raises:
        OccupiedError: the folder holds other files.
    """
    ours = {"images", "masks", "labels.csv"}
    rows = []
    with replace_directory(folder, only(lambda path: path.name in ours)) as unfinished:
        for part in ("images", "masks"):
            (unfinished / part).mkdir()
        for picture in pictures:
            photo = f"images/{picture.name}.png"
            cv2.imwrite(str(unfinished / photo), picture.pixels)
            for one in picture.objects:
                mask = f"masks/{picture.name}{f'#{one.label}' if len(picture.objects) > 1 else ''}.png"
                cv2.imwrite(str(unfinished / mask), one.mask.astype(np.uint8) * 255)
                rows.append({"photo": photo, "label": one.label, "mask": mask})
        with (unfinished / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["photo", "label", "mask"])
            writer.writeheader()
            writer.writerows(rows)


def check(folder: Path) -> None:
    """Print for each object the probability and rank of its class, by EfficientNet-Lite0, and the first answer."""
    import onnxruntime

    from ortcam import CamModel
    from ortcam.cli.demo import load_efficientnet_lite0
    from ortcam.exporters import export

    with tempfile.TemporaryDirectory() as work:
        path = export(load_efficientnet_lite0(), Path(work) / "lite0.onnx", preprocess="lite", labels="imagenet").path
        model: Any = CamModel(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ranks: dict[bool, list[int]] = {True: [], False: []}
    probabilities: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        tensor = model.prepare(folder / row["photo"])[1]
        logits = session.run(["logits"], {session.get_inputs()[0].name: tensor})[0][0].astype(np.float64)
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
        label, best = int(row["label"]), int(scores.argmax())
        alone = sum(other["photo"] == row["photo"] for other in rows) == 1
        rank = int((scores > scores[label]).sum()) + 1
        ranks[alone].append(rank)
        probabilities[alone].append(scores[label])
        first = f"{model.labels[best].split(',')[0]} {scores[best]:.3f}"
        name = model.labels[label].split(",")[0]
        print(f"{Path(row['photo']).stem:44} {name:22} {scores[label]:.3f}  rank {rank:3}  first: {first}")
    for alone, found in ranks.items():
        what = "alone" if alone else "one of two"
        top = [sum(rank <= most for rank in found) for most in (1, 2, 5)]
        print(f"{what}: {len(found)} objects; class first {top[0]}, among two {top[1]}, among five {top[2]}; "
              f"median probability {np.median(probabilities[alone]):.3f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Write pictures with exact masks of their objects.")
    parser.add_argument("out", type=Path, help="folder for images/, masks/ and labels.csv")
    parser.add_argument("--check", action="store_true", help="print what EfficientNet-Lite0 answers to each picture")
    arguments = parser.parse_args()
    write(arguments.out, make_pictures(find_stamps()))
    print(f"{arguments.out}: {len(list((arguments.out / 'images').iterdir()))} pictures")
    if arguments.check:
        check(arguments.out)


if __name__ == "__main__":
    sys.exit(main())
