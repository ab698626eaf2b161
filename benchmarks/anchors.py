"""Anchors of MediaPipe's detectors, for benchmarks and tests."""

from __future__ import annotations

import numpy as np


def ssd_anchors() -> np.ndarray:
    """Return the anchors of MediaPipe's SSD for 300 x 300, [1917,4]: centre x and y, width, height, 0 to 1.

    Source: SsdAnchorsCalculator with the options of the package's graph: 6 layers, scales 0.2 to 0.95.
    """
    scales = [0.2 + 0.75 * place / 5 for place in range(6)] + [1.0]
    anchors = []
    for place, stride in enumerate((16, 32, 64, 128, 256, 512)):
        shapes = [(ratio, scales[place]) for ratio in (1, 2, 0.5, 3, 1 / 3)]
        shapes.append((1, (scales[place] * scales[place + 1]) ** 0.5))
        if place == 0:
            shapes = [(1, 0.1), (2, scales[0]), (0.5, scales[0])]
        side = -(-300 // stride)
        for row in range(side):
            for column in range(side):
                centre = (column + 0.5) / side, (row + 0.5) / side
                anchors += [(*centre, scale * ratio**0.5, scale / ratio**0.5) for ratio, scale in shapes]
    return np.array(anchors)


def face_anchors() -> np.ndarray:
    """Return the anchors of BlazeFace's front model for 128 x 128, [896,4]."""
    cells = ((16, 2), (8, 6))
    return np.array([
        ((column + 0.5) / side, (row + 0.5) / side, 1, 1)
        for side, count in cells for row in range(side) for column in range(side) for _ in range(count)
    ])  # fmt: skip
