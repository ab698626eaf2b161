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

from ortcam.errors import OptionError, OrtcamWarning
from ortcam.model.image import read_photo
from ortcam.model.preprocessing import Preprocessing

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
        ("[1, 2]", "not a JSON object"),
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


# --- What other projects write down ---

VIT = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "image_processor_type": "ViTImageProcessor"}
BIT = {
    "image_processor_type": "BitImageProcessor",
    "do_center_crop": True,
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
CONVNEXT = {**VIT, "image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875, "resample": 3}
EFFICIENTNET = {
    **VIT,
    "image_processor_type": "EfficientNetImageProcessor",
    "size": {"height": 130, "width": 140},
    "do_center_crop": True,
    "crop_size": {"height": 97, "width": 99},
    "resample": 0,
    "include_top": True,
}
UNNORMALISED = {"do_normalize": False, "include_top": False}
DEIT, CLIP, LEVIT, POOLFORMER = (
    {**BIT, "image_processor_type": kind}
    for kind in ("DeiTImageProcessor", "CLIPImageProcessorFast", "LevitImageProcessor", "PoolFormerImageProcessor")
)
HALVES, IMAGENET = (np.full(3, 0.5), np.full(3, 0.5)), (np.array(BIT["image_mean"]), np.array(BIT["image_std"]))
WHOLE = (300, 451)  # the photo's rows and columns


@pytest.mark.parametrize(
    ("fields", "full", "cut", "code", "scale", "mean_std"),
    [  # full: rows and columns after Pillow's resize; cut: of the centre, half a pixel rounded down, as transformers do
        ({**VIT, "size": {"height": 224, "width": 200}}, (224, 200), (224, 200), 2, 1 / 255, HALVES),
        ({**VIT, "size": 224, "resample": 5}, (224, 224), (224, 224), 5, 1 / 255, HALVES),
        ({"feature_extractor_type": "ViTFeatureExtractor"}, (224, 224), (224, 224), 2, 1 / 255, HALVES),
        ({"image_processor": {**VIT, "size": [224, 200]}}, (224, 200), (224, 200), 2, 1 / 255, HALVES),
        (
            {**VIT, "size": 99, "do_rescale": False, "do_normalize": False},
            (99, 99), (99, 99), 2, 1, (np.zeros(3), np.ones(3)),
        ),
        (BIT, (256, 384), (224, 224), 3, 1 / 255, IMAGENET),
        ({**CLIP, "size": 243}, (243, 365), (224, 224), 3, 1 / 255, IMAGENET),
        ({**LEVIT, "size": 224}, (256, 384), (224, 224), 3, 1 / 255, IMAGENET),
        (
            {**POOLFORMER, "size": {"shortest_edge": 224}, "crop_pct": 0.9},
            (248, 372), (224, 224), 3, 1 / 255, IMAGENET,
        ),
        ({**CONVNEXT, "size": {"shortest_edge": 224}}, (256, 384), (224, 224), 3, 1 / 255, HALVES),
        ({**CONVNEXT, "size": {"shortest_edge": 384}, "resample": 1}, (384, 384), (384, 384), 1, 1 / 255, HALVES),
        ({**DEIT, "size": 256}, (256, 256), (224, 224), 3, 1 / 255, IMAGENET),
        (EFFICIENTNET, (130, 140), (97, 99), 0, 1 / 255, (np.full(3, 0.5), np.full(3, 0.25))),
        (
            {**EFFICIENTNET, "rescale_offset": True, "rescale_factor": 1 / 127.5, **UNNORMALISED},
            (130, 140), (97, 99), 0, 1 / 127.5, (np.ones(3), np.ones(3)),
        ),
    ],
)  # fmt: skip
def test_a_preprocessor_config_does_what_pillow_does(
    photos: dict[str, Path],
    tmp_path: Path,
    fields: dict,
    full: tuple,
    cut: tuple,
    code: int,
    scale: float,
    mean_std: tuple,
) -> None:
    """By hand with Pillow, from what transformers' own processors compute (5.24 was compared in all of these)."""
    photo = np.asarray(Image.open(photos["chelsea"]).convert("RGB"))
    assert photo.shape[:2] == WHOLE
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    resized = np.asarray(Image.fromarray(photo).resize(full[::-1], code)).astype(float)
    top, left = ((whole - side) // 2 for whole, side in zip(full, cut, strict=True))
    mean, std = mean_std
    theirs = ((resized[top : top + cut[0], left : left + cut[1]] * scale - mean) / std).transpose(2, 0, 1)
    known = Preprocessing.from_file(tmp_path / "preprocessor_config.json")
    ours = known.apply(photo)[0]
    assert ours.shape == theirs.shape
    levels = np.abs(ours - theirs) / scale * std[:, None, None]
    assert levels.max() <= (2 if code == 1 else 1.3)  # half a level a pass of Pillow, and filters that overshoot
    assert levels.mean() <= 0.35
    assert Preprocessing.from_dict(json.loads(json.dumps(known.to_dict()))) == known


def test_nearest_takes_the_samples_that_pillow_takes() -> None:
    """Centres lie between two samples in many of these sizes: rounding decides."""
    for rows, columns in ((300, 451), (130, 140), (65, 77)):
        photo = np.random.default_rng(0).integers(0, 256, (rows, columns, 3)).astype(np.uint8)
        for size in ((130, 140), (39, 91), (26, 22), (260, 154)):
            theirs = np.asarray(Image.fromarray(photo).resize(size[::-1], Image.Resampling.NEAREST))
            assert np.array_equal(Preprocessing(*size, interpolation="nearest").apply(photo, "NHWC")[0], theirs)


def test_mobilevit_takes_bgr() -> None:
    fields = {
        "image_processor_type": "MobileViTImageProcessor",
        "size": {"shortest_edge": 9},
        "crop_size": 8,
        "resample": 2,
    }
    tensor = Preprocessing.from_dict(fields).apply(np.full((40, 30, 3), (255, 0, 51), np.uint8))
    assert np.allclose(tensor[0, :, 3, 3], [0.2, 0, 1], atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"},
        {"crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bilinear"},
        {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "lanczos"},
    ],
)
def test_a_config_of_timm_does_what_timm_does(photos: dict[str, Path], config: dict) -> None:
    from timm.data import create_transform

    values = {"input_size": [3, 192, 192], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], **config}
    image = Image.open(photos["chelsea"]).convert("RGB")
    theirs = create_transform(**values, is_training=False)(image).numpy()
    ours = Preprocessing.from_dict({"architecture": "vit", "pretrained_cfg": values}).apply(np.asarray(image))[0]
    assert np.abs(ours - theirs).max() <= 1.3 / 255 / 0.2
    assert np.abs(ours - theirs).mean() <= 0.35 / 255 / 0.2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**VIT, "size": 224, "do_resize": False}, "do_resize is false"),
        ({**VIT, "size": 224, "resample": 9}, "filter for resizing is 9"),
        ({**VIT, "size": {"longest_edge": 224}}, "expected height and width, or shortest_edge"),
        ({**VIT, "size": {"shortest_edge": 224, "longest_edge": 300}}, "expected height and width, or shortest_edge"),
        ({**VIT, "size": {"shortest_edge": 224}}, "do_center_crop is false"),
        ({**VIT, "size": 224, "do_pad": True}, "the step do_pad is unsupported"),
        ({**BIT, "crop_size": {"height": 300, "width": 224}}, "less than the input size 300x224"),
        ({**BIT, "crop_size": "big"}, "crop_size is 'big'"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}, "does not state resample"),
        ({"image_processor_type": "BeitImageProcessor", "size": 224}, "does not state do_center_crop"),
        ({"image_processor_type": "PerceiverImageProcessor"}, "is unsupported"),
        ({**VIT, "size": 224, "rescale_factor": "1/255"}, "rescale_factor is '1/255'"),
        ({**VIT, "size": 224, "image_std": [0.5, 0, 0.5]}, "std has a 0"),
        ({"do_normalize": True, "size": 224, "resample": 2}, "size is 224"),
        ({"model_type": "vit", "id2label": {}}, "expected the preprocessor_config.json"),
        ({"pretrained_cfg": {"input_size": [3, 224, 224], "crop_mode": "border"}}, "crop_mode 'border'"),
        ({"pretrained_cfg": {"input_size": [3, 224, 192]}}, "224x192 is unsupported"),
        ({"pretrained_cfg": {"input_size": 224}}, "input_size is 224"),
        ({"height": 8, "width": 8, "resize": [9, 7]}, "less than the input size 8x8"),
        ({"height": 8, "width": 8, "resize": [9]}, r"or \[height, width\]"),
        ({"height": 8, "width": 8, "crop_rounding": "up"}, "expected even or down"),
        ({"height": 8, "width": 8, "interpolation": "cubic"}, "hamming, bicubic or lanczos"),
    ],
)
def test_what_cannot_be_done_exactly_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        Preprocessing.from_dict(fields)
    assert "\n" not in str(caught.value)


def test_an_unknown_processor_is_read_with_a_warning() -> None:
    with pytest.warns(OrtcamWarning, match="MyImageProcessor is unknown"):
        known = Preprocessing.from_dict(
            {**VIT, "image_processor_type": "MyImageProcessor", "size": {"height": 8, "width": 9}}
        )
    assert (known.height, known.width, known.resize) == (8, 9, None)


def test_another_input_size_keeps_the_proportion_of_a_stretched_crop() -> None:
    known = Preprocessing(100, 50, resize=(120, 75), crop_rounding="down").resized(200, 100)
    assert (known.height, known.width, known.resize) == (200, 100, (240, 150))
