"""Quantise EfficientNet-Lite0, compare it with its float model on 37 photos, and draw the pictures of docs/compare.md.

    python docs/write_compare_figures.py             exact maps: some minutes on two cores
    python docs/write_compare_figures.py --budget 32 half a minute

Prints the table and the verdict. docs/compare.jpg shows the four photos with the least r, docs/compare-report.jpg the
report with a budget of 32 in a browser (Playwright, with an installed Chromium). The photos come with foolbox,
scikit-image, scikit-learn and matplotlib. ONNX Runtime quantises statically (QDQ, int8, weights per channel) and
calibrates with the same photos.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from write_report_pictures import take_picture

from ortcam import CamModel
from ortcam.cli.demo import load_efficientnet_lite0
from ortcam.comparison import Column, compare
from ortcam.exporters import export
from ortcam.report import CompareReport

ROOT = Path(__file__).parents[1]
PICTURE = Path(__file__).parent / "compare.jpg"
SHOWN = 4
BUDGET = 32  # of the report


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Preprocessed photos."""

    def __init__(self, model: CamModel, photos: list[Path]) -> None:
        self._tensors = ({"image": model.prepare(photo)[1]} for photo in photos)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._tensors, None)


def main() -> None:
    """Export, quantise, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, help="at most this many masked inputs per map")
    budget = parser.parse_args().budget
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from budget import find_photos

    folder, photos = ROOT / "build" / "compare", find_photos()
    folder.mkdir(parents=True, exist_ok=True)
    models = [folder / "float.onnx", folder / "int8.onnx"]
    export(load_efficientnet_lite0(), models[0], preprocess="lite", labels="imagenet")
    calibration = Calibration(CamModel(models[0]), photos)
    quantize_static(models[0], models[1], calibration, quant_format=QuantFormat.QDQ, per_channel=True)
    columns = [Column(model) for model in models]
    result = compare(columns, photos, budget=budget)
    print(result.table())
    least = {name for name, _ in result.summaries[0].lowest[:SHOWN]}
    shown = [photo for photo in photos if photo.name in least]
    compare(columns, shown, budget=budget, folder=folder / "least", overwrite=True)
    page = cv2.imread(str(folder / "least" / "grid.png"))
    cv2.imwrite(str(PICTURE), page, [cv2.IMWRITE_JPEG_QUALITY, 88])
    with CompareReport(folder / "report.html") as report:
        report.write(compare(columns, photos, budget=BUDGET, on_compared=report.add))
    take_picture(folder / "report.html", PICTURE.with_name("compare-report.jpg"))


if __name__ == "__main__":
    main()
