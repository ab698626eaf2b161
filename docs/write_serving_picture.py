"""Draw docs/serving.jpg: the page of `ortcam serve` with a photo.

    python docs/write_serving_picture.py

The photo comes with scikit-image, the network is EfficientNet-Lite0 (tests/models.txt). Playwright takes the picture
with an installed Chromium.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from write_method_pictures import folder_of

from ortcam.cli.demo import load_efficientnet_lite0
from ortcam.exporters import export

PICTURE = Path(__file__).parent / "serving.jpg"


def take_picture(address: str, photo: Path, picture: Path) -> None:
    """Give the page at an address a photo, and write a picture of it."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": 1100, "height": 790}, color_scheme="light")
        tab.goto(address)
        tab.set_input_files("#file", photo)
        tab.wait_for_selector("#targets button")
        tab.wait_for_timeout(500)
        tab.screenshot(path=picture, type="jpeg", quality=82)
        chromium.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = export(load_efficientnet_lite0(), Path(folder) / "cats.onnx", preprocess="lite", labels="imagenet").path
        command = [sys.executable, "-m", "ortcam", "serve", str(model), "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            found = next(filter(None, (re.search(r"http://\S+", line) for line in server.stderr)))
            take_picture(found[0], folder_of("skimage") / "data" / "chelsea.png", PICTURE)
            server.terminate()
            server.stderr.read()


if __name__ == "__main__":
    main()
