"""Preprocessing agrees with the projects whose names it carries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from ortcam.errors import OptionError
from ortcam.image import read_photo
from ortcam.preprocessing import Preprocessing

SIZES = [(512, 512), (300, 700), (90, 61), (3, 400), (1, 1), (224, 224), (1500, 1000)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_agrees_with_torchvision(photos: dict[str, Path], size: tuple[int, int], interpolation: str) -> None:
    """Resize(256) and CenterCrop(224) of a Pillow image. Pillow rounds to 8 bits after each of its two passes."""
    image = Image.open(photos["chelsea"]).convert("RGB").resize(size[::-1])
    pipeline = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(224),
            transforms.PILToTensor(),
        ]
    )
    ours = Preprocessing(224, 224, resize=256, interpolation=interpolation).apply(np.asarray(image))[0]
    difference = np.abs(ours - pipeline(image).numpy())
    assert difference.max() <= 1.2  # of 255: half a level a pass, and the cubic filter overshoots
    assert difference.mean() <= 0.35


def test_imagenet_is_torchvisions_evaluation_pipeline(photos: dict[str, Path]) -> None:
    """Source: torchvision.transforms._presets.ImageClassification, the weights' own pipeline."""
    from torchvision.models import ResNet18_Weights

    theirs = ResNet18_Weights.IMAGENET1K_V1.transforms()(Image.open(photos["coffee"]).convert("RGB")).numpy()
    ours = Preprocessing.named("imagenet", 224, 224).apply(read_photo(photos["coffee"]))[0]
    assert np.abs(ours - theirs).max() <= 1.2 / 255 / 0.224


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # of a pixel (R, G, B) = (255, 0, 51); Keras' preprocess_input for tf and caffe, EfficientNet-Lite's own
        ("imagenet", [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]),
        ("tf", [1.0, -1.0, -0.6]),
        ("caffe", [51 - 103.939, -116.779, 255 - 123.68]),
        ("lite", [1.0, -127 / 128, (51 - 127) / 128]),
        ("raw", [255.0, 0.0, 51.0]),
    ],
)
def test_named_values(name: str, expected: list[float]) -> None:
    photo = np.full((40, 30, 3), (255, 0, 51), np.uint8)
    tensor = Preprocessing.named(name, 8, 8).apply(photo)
    assert tensor.shape == (1, 3, 8, 8)
    assert np.allclose(tensor[0, :, 3, 3], expected, atol=1e-4)
    assert np.allclose(Preprocessing.named(name, 8, 8).apply(photo, "NHWC")[0, 3, 3], expected, atol=1e-4)


def test_grey_is_the_luma_of_bt601() -> None:
    photo = np.full((10, 10, 3), (200, 100, 50), np.uint8)
    tensor = Preprocessing.named("raw", 8, 8, channels=1).apply(photo)
    assert tensor.shape == (1, 1, 8, 8)
    assert np.allclose(tensor, 0.299 * 200 + 0.587 * 100 + 0.114 * 50, atol=1e-3)


def test_invert_gives_the_photo_back(photos: dict[str, Path]) -> None:
    photo = read_photo(photos["chelsea"])[:96, :128].copy()
    for name in ("imagenet", "tf", "caffe", "raw"):
        preprocessing = Preprocessing.named(name, 96, 128)
        whole = Preprocessing.from_dict({**preprocessing.to_dict(), "resize": None})
        for layout in ("NCHW", "NHWC"):
            assert np.array_equal(whole.invert(whole.apply(photo, layout), layout), photo)


def test_the_crop_is_what_the_model_sees() -> None:
    """A white frame around the crop box must not reach the input, and what is inside must fill it."""
    preprocessing = Preprocessing(64, 64, resize=128)
    photo = np.full((200, 400, 3), 255, np.uint8)
    crop = preprocessing.crop(200, 400)
    photo[crop.top - 2 : crop.bottom + 2, crop.left - 2 : crop.right + 2] = 0  # two for the filter's reach
    assert preprocessing.apply(photo).max() == 0
    assert (crop.height, crop.width) == (100, 100)


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    side=st.integers(1, 64),
    margin=st.one_of(st.none(), st.integers(0, 64)),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    level=st.integers(0, 255),
)
def test_any_size_of_photo_keeps_a_plain_colour(
    height: int, width: int, side: int, margin: int | None, interpolation: str, level: int
) -> None:
    preprocessing = Preprocessing(
        side, side, resize=None if margin is None else side + margin, interpolation=interpolation
    )
    tensor = preprocessing.apply(np.full((height, width, 3), level, np.uint8))
    assert tensor.shape == (1, 3, side, side)
    assert np.allclose(tensor, level, atol=1e-2)
    crop = preprocessing.crop(height, width)
    assert 0 <= crop.top < crop.bottom <= height
    assert 0 <= crop.left < crop.right <= width


def test_it_survives_json(tmp_path: Path) -> None:
    for name in ("imagenet", "tf", "caffe", "lite", "raw"):
        preprocessing = Preprocessing.named(name, 224, 192)
        (tmp_path / "p.json").write_text(json.dumps(preprocessing.to_dict()))
        assert Preprocessing.from_file(tmp_path / "p.json") == preprocessing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "no JSON object"),
        ("not json", "cannot read"),
        ('{"height": 8}', "width"),
        ('{"height": 8, "width": 8, "means": [1]}', "nearest: mean"),
        ('{"height": 8, "width": 8, "std": [1, 0, 1]}', "std has a 0"),
        ('{"height": 8, "width": 8, "mean": [1, 2]}', "3 finite numbers"),
        ('{"height": 8, "width": 8, "channels": "XYZ"}', "expected RGB, BGR or GRAY"),
        ('{"height": 0, "width": 8}', "whole number of pixels"),
        ('{"height": "8", "width": 8}', "height is '8'"),
        ('{"height": 8.0, "width": 8}', "height is 8.0"),
        ('{"height": 8, "width": 8, "resize": 100.7}', "resize is 100.7"),
        ('{"height": 8, "width": 8, "scale": 0}', "scale is 0"),
        ('{"height": 8, "width": 8, "scale": null}', "scale is None"),
        ('{"height": 8, "width": 8, "scale": "abc"}', "scale is 'abc'"),
        ('{"height": 8, "width": 8, "mean": "123"}', "mean is '123'"),
        ('{"height": 64, "width": 64, "resize": 32}', "less than the input size"),
    ],
)
def test_a_bad_json_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(OptionError, match=message) as caught:
        Preprocessing.from_file(tmp_path / "p.json")
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(OptionError, match="nearest: imagenet"):
        Preprocessing.named("imagnet", 224, 224)
