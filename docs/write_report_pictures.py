"""Draw docs/report.jpg: the report of 21 photos in a browser.

    python docs/write_report_pictures.py

The photos come with foolbox and scikit-image, the network is EfficientNet-Lite0 (tests/models.txt). Playwright takes
the picture with an installed Chromium.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from write_method_pictures import folder_of

import ortcam
from ortcam.cli.demo import load_efficientnet_lite0
from ortcam.exporters import export

SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
PICTURE = Path(__file__).parent / "report.jpg"


def write_report(folder: Path) -> Path:
    """Explain the photos, and return the path of their report."""
    data = folder_of("skimage") / "data"
    photos = [*(data / name for name in SKIMAGE), *sorted((folder_of("foolbox") / "data").glob("imagenet_*.jpg"))[:17]]
    model = export(load_efficientnet_lite0(), folder / "lite0.onnx", preprocess="lite", labels="imagenet").path
    with ortcam.load_explainer(model) as explainer, ortcam.Report(folder / "report.html") as report:
        for explanation in explainer.explain_batch(photos):
            report.add(explanation)
    return folder / "report.html"


def take_picture(page: Path, picture: Path) -> None:
    """Open a report in Chromium, and write a picture of its first screen."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": 1280, "height": 1050}, color_scheme="light", bypass_csp=True)
        tab.goto(page.as_uri())
        tab.wait_for_function(
            "[...document.querySelectorAll('.card img')].slice(0, 12).every((i) => i.naturalWidth > 1)"
        )
        tab.screenshot(path=picture, type="jpeg", quality=82)
        chromium.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        take_picture(write_report(Path(folder)), PICTURE)


if __name__ == "__main__":
    main()
