"""Draw docs/debugging.jpg: the report of a classifier's mistakes in a browser.

    python docs/write_debug_picture.py

The 20 photos come with foolbox. Each is there blurred, dark and turned as well, so that the network makes mistakes.
The network is EfficientNet-Lite0 (tests/models.txt). Playwright takes the picture with an installed Chromium.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import sync_playwright
from write_method_pictures import folder_of

from ortcam.cli.demo import load_efficientnet_lite0
from ortcam.evaluation import debug
from ortcam.exporters import export
from ortcam.report import DebugReport

PICTURE = Path(__file__).parent / "debugging.jpg"
Photo = NDArray[np.uint8]
VERSIONS: dict[str, Callable[[Photo], Photo]] = {
    "": lambda photo: photo,
    "-blurred": lambda photo: cv2.GaussianBlur(photo, (0, 0), 6).astype(np.uint8),
    "-dark": lambda photo: (photo * 0.18).astype(np.uint8),
    "-turned": lambda photo: cv2.rotate(photo, cv2.ROTATE_90_CLOCKWISE).astype(np.uint8),
}


def write_photos(folder: Path) -> tuple[list[Path], list[int]]:
    """Write the photos in four versions; return their paths and their true classes, which the names state."""
    photos, labels = [], []
    for path in sorted((folder_of("foolbox") / "data").glob("imagenet_*.jpg")):
        photo = cv2.imread(str(path)).astype(np.uint8)
        for name, change in VERSIONS.items():
            photos.append(folder / f"{path.stem}{name}.jpg")
            cv2.imwrite(str(photos[-1]), change(photo))
            labels.append(int(path.stem.split("_")[-1]))
    return photos, labels


def write_report(folder: Path) -> Path:
    """Debug the network, and return the path of the report."""
    model = export(load_efficientnet_lite0(), folder / "lite0.onnx", preprocess="lite", labels="imagenet").path
    photos, labels = write_photos(folder)
    with DebugReport(folder / "report.html") as report:
        report.write(debug(model, photos, labels, on_explained=report.add))
    return folder / "report.html"


def take_picture(page: Path, picture: Path) -> None:
    """Open the report in Chromium, and write a picture of its summary and its first photos."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": 1280, "height": 2100}, color_scheme="light", bypass_csp=True)
        tab.goto(page.as_uri())
        shown = (
            "[...document.querySelectorAll('#first img'), ...document.querySelector('.card').querySelectorAll('img')]"
        )
        tab.wait_for_function(f"{shown}.every((one) => one.naturalWidth > 1)")
        bottom = tab.evaluate("document.querySelector('.card').getBoundingClientRect().bottom")
        clip = {"x": 0, "y": 0, "width": 1280, "height": min(2100, bottom + 16)}
        tab.screenshot(path=picture, type="jpeg", quality=80, clip=clip)
        chromium.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        take_picture(write_report(Path(folder)), PICTURE)


if __name__ == "__main__":
    main()
