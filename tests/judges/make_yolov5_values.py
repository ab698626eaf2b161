"""Make the decoded rows of YOLOv5's own head from the package yolov5 ("judge").

    pip install --no-deps yolov5==7.0.14 ultralytics "setuptools<80" pandas requests psutil tqdm seaborn \
        ultralytics-thop                                      (beside torch 2.14.1, torchvision 0.29.1)
    python make_yolov5_values.py

The head is `Detect` with 2 classes, the anchors of yolov5n.yaml, and identities instead of its last convolutions, for
an input of 64 x 96. The maps [1,21,h,w] that it decodes are standard normal numbers, times 2, from NumPy's generator of
seed 0, level after level. Written: `rows` float32 [1,378,7]: centre, size, objectness, classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
import yolov5
from yolov5.models.yolo import Detect

STRIDES = (8, 16, 32)


def main() -> None:
    config = yaml.safe_load((Path(yolov5.__file__).parent / "models" / "yolov5n.yaml").read_text())
    strides = torch.tensor(STRIDES, dtype=torch.float32)
    head = Detect(2, config["anchors"], (21, 21, 21)).eval()
    head.m = torch.nn.ModuleList([torch.nn.Identity() for _ in STRIDES])
    head.stride = strides
    head.anchors /= strides.view(-1, 1, 1)
    random = np.random.default_rng(0)
    maps = [2 * random.standard_normal((1, 21, 64 // stride, 96 // stride)) for stride in STRIDES]
    rows, _ = head([torch.from_numpy(each.astype(np.float32)) for each in maps])
    np.savez(Path(__file__).parent / "yolov5.npz", rows=rows.numpy())


if __name__ == "__main__":
    main()
