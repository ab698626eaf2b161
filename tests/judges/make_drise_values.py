"""Make the reference map of D-RISE from vision-explanation-methods ("judge").

    pip install --no-deps vision-explanation-methods==0.1.1 pandas tqdm        (beside torch 2.14.1, torchvision 0.29.1)
    python make_drise_values.py

The detector is the toy model of tests/test_tasks.py, the photo `chelsea` of scikit-image, the target detection 0. The
judge draws masks of its own; here `generate_mask` returns RISE's grids of seed 0 instead, so that both see the same 200
masks. The judge multiplies by the cosine of class vectors; here each has one class, the target's, so the cosine is 1.
Written: `map` float32 [24,24], its result before resizing, in [0,1].
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from vision_explanation_methods.explanations import common, drise

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import package_folder
from test_tasks import SIDE, read_photo, run_model, tensor_of, toy

from ortcam.core.grids import draw_grids, shifted_matrices
from ortcam.core.query import Grids
from ortcam.core.references import suppress

COUNT = 200


class Wrapped(common.GeneralObjectDetectionModelWrapper):
    """The toy detector as the judge calls it."""

    def __init__(self, index: int) -> None:
        self._model, self._index = toy("detect"), index

    def predict(self, x: torch.Tensor) -> list[common.DetectionRecord]:
        outputs = run_model(self._model, x.numpy()[None] if x.ndim == 3 else x.numpy())
        return [record(outputs["boxes"][0], outputs["scores"][0][:, self._index])]


def record(boxes: np.ndarray, scores: np.ndarray) -> common.DetectionRecord:
    return common.DetectionRecord(torch.tensor(boxes), torch.tensor(scores), torch.ones(len(boxes), 1))


def main() -> None:
    """Run the judge and write its map."""
    photo = read_photo(package_folder("skimage") / "data" / "chelsea.png")
    tensor = tensor_of(photo)
    outputs = run_model(toy("detect"), tensor)
    rows, classes = suppress(outputs["boxes"][0], outputs["scores"][0])
    shown, shifts = draw_grids(Grids((7, 7), 0.5, 0), np.arange(COUNT), (SIDE, SIDE))
    matrices = shifted_matrices(SIDE, 7)
    masks = matrices[shifts[:, 0]] @ shown @ matrices[shifts[:, 1]].transpose(0, 2, 1)
    numbers = itertools.count()
    drise.generate_mask = lambda *_: torch.tensor(masks[next(numbers)], dtype=torch.float32).repeat(3, 1, 1)
    target = record(outputs["boxes"][0][rows[:1]], outputs["scores"][0][rows[0], classes[:1]])
    (found,) = drise.DRISE_saliency(Wrapped(int(classes[0])), torch.tensor(tensor), [target], COUNT)
    values = found[0]["detection"][0].numpy()
    np.savez_compressed(Path(__file__).parent / "drise.npz", map=values.astype(np.float32))


if __name__ == "__main__":
    main()
