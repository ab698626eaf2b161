"""docs/migrating.md: the blocks before and after make the same map."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import correlation
from torch import nn

import ortcam

PAGE = (Path(__file__).parent.parent / "docs" / "migrating.md").read_text()


def blocks(library: str) -> tuple[str, str]:
    """Return the blocks before and after of a library."""
    (section,) = re.findall(rf"^## {library}\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    before, after = re.findall(r'```python title="(?:before|after)"\n(.*?)```', section, re.DOTALL)
    return before, after


def photo_of(path: Path, side: int) -> np.ndarray[Any, Any]:
    """Return a square photo of the size of the input, so that nothing is cut off or resized."""
    pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(cv2.resize(pixels[:300, :300], (side, side), interpolation=cv2.INTER_AREA))


@pytest.mark.slow
@pytest.mark.parametrize("library", ["pytorch-grad-cam", "torchcam"])
def test_pytorch(
    library: str, resnet18: nn.Module, photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photo = photo_of(photos["chelsea"], 96)
    preprocess = ortcam.Preprocessing(96, 96, scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    tensor = torch.from_numpy(preprocess.apply(photo))
    known: dict[str, Any] = {"model": resnet18, "photo": photo, "tensor": tensor, "preprocess": preprocess}
    for block in blocks(library):
        exec(block, known)
    theirs = np.squeeze(np.asarray(known["theirs"]))
    if theirs.shape != known["ours"].shape:  # torchcam's map has the size of the layer
        assert theirs.shape == known["explanation"].raw_maps.shape[1:]
        theirs = cv2.resize(theirs, (96, 96), interpolation=cv2.INTER_LINEAR)
    assert correlation(known["ours"], theirs) >= 0.999
    assert library == "torchcam" or known["picture"].shape == (96, 96, 3)


@pytest.mark.slow
def test_keras(photos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    layers, wide = keras.layers, keras.initializers.RandomNormal(stddev=0.2)
    model = keras.Sequential(
        [
            keras.Input((64, 64, 3)),
            layers.Conv2D(16, 5, 4, activation="relu", kernel_initializer=wide),
            layers.Conv2D(32, 3, activation="relu", kernel_initializer=wide, name="block5_conv3"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(300, activation="softmax", kernel_initializer=wide),
        ]
    )
    photo = photo_of(photos["chelsea"], 64)
    known: dict[str, Any] = {"model": model, "photo": photo, "tensor": photo[None].astype(np.float32) / 127.5 - 1}
    for block in blocks("tf-keras-vis"):
        exec(block, known)
    assert correlation(known["ours"], np.asarray(known["theirs"])) >= 0.999


def test_every_name_of_ours_exists() -> None:
    """Each `ortcam.X` on the page is public."""
    names = set(re.findall(r"ortcam\.([A-Z]\w+)", PAGE))
    assert len(names) > 8
    assert names <= set(ortcam.__all__)
