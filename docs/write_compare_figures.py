"""Quantise EfficientNet-Lite0, compare it with its float model on 37 photos, and draw docs/compare.jpg.

    python docs/write_compare_figures.py             exact maps: some minutes on two cores
    python docs/write_compare_figures.py --budget 32 half a minute

Prints the table and the verdict of docs/compare.md; the picture shows the four photos with the least r. The photos come
with foolbox, scikit-image, scikit-learn and matplotlib. ONNX Runtime quantises statically (QDQ, int8, weights per
channel) and calibrates with the same photos.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from ortcam import CamModel
from ortcam.cli.demo import load_efficientnet_lite0
from ortcam.comparison import Column, compare
from ortcam.exporters import export

ROOT = Path(__file__).parents[1]
PICTURE = Path(__file__).parent / "compare.jpg"
SHOWN = 4


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
    result = compare(columns, photos, budget=budget, folder=folder / "all")
    print(result.table())
    least = {name for name, _ in result.summaries[0].lowest[:SHOWN]}
    compare(columns, [photo for photo in photos if photo.name in least], budget=budget, folder=folder / "least")
    page = cv2.imread(str(folder / "least" / "grid.png"))
    cv2.imwrite(str(PICTURE), page, [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
