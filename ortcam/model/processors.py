"""Read the preprocessing files of other projects: transformers' preprocessor_config.json, timm's config.json.

Sources: the Pillow processors of transformers 5.24 (models/*/image_processing_*.py, image_processing_backends.py) and
timm 1.0 (data/transforms_factory.py, transforms_imagenet_eval).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

from ortcam.errors import OptionError, OrtcamWarning

_STANDARD = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_CUT = {"do_center_crop": True, "default_to_square": False}
_SQUARE = {"default_to_square": True}
_BILINEAR, _BICUBIC = {"resample": 2}, {"resample": 3}
_EDGE_224 = {"size": {"shortest_edge": 224}, "crop_size": 224}

# The defaults of each processor. A default that changed between versions is left out; the file has to state the value.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {**_SQUARE, "size": 224, **_BILINEAR, **_STANDARD},
    "deit": {**_SQUARE, "do_center_crop": True, "size": 256, "crop_size": 224, **_BICUBIC, **_STANDARD},
    "beit": {**_SQUARE, "do_center_crop": None, **_BICUBIC, **_STANDARD},
    "efficientnet": {**_SQUARE, "size": 346, "crop_size": 289, "include_top": True, **_STANDARD},
    "segformer": {**_SQUARE, "size": 512, **_BILINEAR, **_IMAGENET},
    "pvt": {**_SQUARE, "size": 224, **_IMAGENET},
    "siglip": {**_SQUARE, "size": 224, **_BICUBIC, **_STANDARD},
    "dinov3vit": {**_SQUARE, "size": 224, **_BILINEAR, **_IMAGENET},
    "bit": {**_CUT, **_EDGE_224, **_BICUBIC, **_CLIP},
    "clip": {**_CUT, **_EDGE_224, **_BICUBIC, **_CLIP},
    "chineseclip": {**_CUT, **_EDGE_224, **_BICUBIC, **_CLIP},
    "levit": {**_CUT, **_EDGE_224, **_BICUBIC, **_IMAGENET},
    "poolformer": {**_CUT, **_EDGE_224, "crop_pct": 0.9, **_BICUBIC, **_IMAGENET},
    "mobilenetv1": {**_CUT, "size": {"shortest_edge": 256}, "crop_size": 224, **_BILINEAR, **_STANDARD},
    "mobilenetv2": {**_CUT, "size": {"shortest_edge": 256}, "crop_size": 224, **_BILINEAR, **_STANDARD},
    "mobilevit": {
        **_CUT,
        "size": {"shortest_edge": 224},
        "crop_size": 256,
        "do_normalize": False,
        "do_flip_channel_order": True,
    },
    "convnext": {"default_to_square": False, "size": {"shortest_edge": 384}, "crop_pct": 224 / 256, **_STANDARD},
}
_ALWAYS = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_center_crop": False,
}
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's codes 0 to 5
_STEPS = {
    "do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_flip_channel_order",
    "do_convert_rgb", "do_reduce_labels",  # photos are RGB always; the latter is about segmentation maps
}  # fmt: skip
_MARKS = ("image_processor_type", "feature_extractor_type", "image_mean", "do_resize", "do_normalize", "do_rescale")


def translate(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Translate another project's file into the fields of a `Preprocessing`; return other objects unchanged.

    Args:
        fields: a preprocessor_config.json or processor_config.json of transformers, or a config.json of timm.

    Raises:
        OptionError: the file has a step that `Preprocessing` cannot do exactly, or lacks a value.
    """
    if isinstance(fields.get("image_processor"), Mapping):  # processor_config.json
        return translate(fields["image_processor"])
    if isinstance(fields.get("pretrained_cfg"), Mapping):
        return _from_timm(fields["pretrained_cfg"])
    if "input_size" in fields and "height" not in fields:
        return _from_timm(fields)
    if any(mark in fields for mark in _MARKS):
        return _from_transformers(fields)
    if "architectures" in fields or "model_type" in fields:
        raise OptionError(
            "this config.json describes a model and has no preprocessing; expected the preprocessor_config.json that "
            "lies beside it"
        )
    return fields


def _from_timm(fields: Mapping[str, Any]) -> dict[str, Any]:
    size = fields.get("input_size")
    if not isinstance(size, list | tuple) or len(size) != 3 or not all(_is_length(side) for side in size):
        raise OptionError(f"timm's input_size is {size!r}; expected [channels, height, width]")
    _, height, width = size
    share, mode = fields.get("crop_pct") or 0.875, fields.get("crop_mode") or "center"
    full = math.floor(height / _number(share, "crop_pct")), math.floor(width / share)
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise OptionError(
            f"timm's crop_mode {mode!r} with an input of {height}x{width} is unsupported; expected 'center' with a "
            "square input, or 'squash'"
        )
    return {
        "height": height,
        "width": width,
        "resize": full[0] if mode == "center" else list(full),
        "interpolation": _filter(fields.get("interpolation") or "bicubic"),
        "scale": 1 / 255,
        "mean": fields.get("mean") or _IMAGENET["image_mean"],
        "std": fields.get("std") or _IMAGENET["image_std"],
    }


def _from_transformers(given: Mapping[str, Any]) -> dict[str, Any]:
    name = given.get("image_processor_type") or given.get("feature_extractor_type")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(name or "")).lower()
    if kind in ("perceiver", "imagegpt", "textnet"):
        raise OptionError(f"the processor {name} is unsupported; {_WRITE}")
    if name and kind not in _DEFAULTS:
        warnings.warn(
            f"the processor {name} is unknown to ortcam: its file was read like the files of other processors",
            OrtcamWarning,
            stacklevel=5,
        )
    stated = {key: value for key, value in given.items() if value is not None or key == "resample"}
    fields = {**_ALWAYS, **_DEFAULTS.get(kind, {}), **stated}
    for step in fields:
        if step.startswith("do_") and step not in _STEPS and fields[step]:
            raise OptionError(f"the step {step} is unsupported; {_WRITE}")
    if not fields["do_resize"]:
        raise OptionError("do_resize is false: photos would reach the model at any size; expected do_resize true")
    return {
        **_geometry(kind, fields),
        **_values(kind, fields),
        "interpolation": _filter(_stated(fields, "resample")),
        "crop_rounding": "down",
    }


_WRITE = (
    "expected a processor that resizes, cuts out the centre and normalises, or ortcam's own fields (height, width, ...)"
)


def _geometry(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields for resizing and cutting the photo."""
    edge, sides = _read_size(_stated(fields, "size"), fields.get("default_to_square"), "size")
    if kind == "convnext":
        if edge is None:
            raise OptionError(f"size is {fields['size']!r}; expected shortest_edge, which ConvNext's processor reads")
        square = {"height": edge, "width": edge}
        return {**square, "resize": int(edge / _number(fields["crop_pct"], "crop_pct")) if edge < 384 else None}
    if kind == "levit" and edge is not None:
        edge = int(256 / 224 * edge)
    elif kind == "poolformer" and edge is not None:
        edge = int(edge / _number(fields["crop_pct"], "crop_pct"))
    cuts = _stated(fields, "do_center_crop")
    if not cuts and sides is None:
        raise OptionError(
            f"size is {fields['size']!r} and do_center_crop is false: photos would reach the model at any size; "
            "expected height and width, or a crop"
        )
    cut = sides
    if cuts:
        _, cut = _read_size(_stated(fields, "crop_size"), True, "crop_size")
    assert cut is not None
    resize: Any = edge if sides is None else None if sides == cut else list(sides)
    return {"height": cut[0], "width": cut[1], "resize": resize}


def _values(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields for scaling and normalising the values 0 to 255."""
    scale = _number(fields["rescale_factor"], "rescale_factor") if fields["do_rescale"] else 1.0
    mean, std, flips = 0.0, 1.0, fields.get("do_flip_channel_order")
    values: dict[str, Any] = {"scale": scale, "channels": "BGR" if flips else "RGB", "mean": mean, "std": std}
    if fields["do_normalize"]:
        values |= {"mean": _stated(fields, "image_mean"), "std": _stated(fields, "image_std")}
        if flips:
            raise OptionError(f"do_flip_channel_order with do_normalize is unsupported; {_WRITE}")
    if kind == "efficientnet" and fields.get("rescale_offset") and fields["do_rescale"]:
        values["mean"] = [number + 1 for number in _numbers(values["mean"], "image_mean")]
    if kind == "efficientnet" and fields.get("include_top"):  # divides by the deviation once more
        once = _numbers(values["std"], "image_std")
        again = _numbers(_stated(fields, "image_std"), "image_std")
        values["std"] = [a * b for a, b in zip(once, again, strict=True)]
    return values


def _read_size(size: Any, square: Any, name: str) -> tuple[int | None, tuple[int, int] | None]:
    """Return the length of the shorter side, or (height, width)."""
    if _is_length(size) and square is not None:
        return (None, (size, size)) if square else (size, None)
    if isinstance(size, list | tuple) and len(size) == 2 and all(_is_length(side) for side in size):
        return None, (size[0], size[1])
    if isinstance(size, Mapping):
        size = {key: side for key, side in size.items() if side is not None}
        if set(size) == {"height", "width"} and all(_is_length(side) for side in size.values()):
            return None, (size["height"], size["width"])
        if set(size) == {"shortest_edge"} and _is_length(size["shortest_edge"]) and name == "size":
            return size["shortest_edge"], None
    expected = "height and width" + (", or shortest_edge" if name == "size" else "")
    raise OptionError(f"{name} is {size!r}; expected {expected}, in pixels")


def _filter(resample: Any) -> str:
    if resample is None:
        return "bilinear"  # as transformers
    if resample in _RESAMPLE:
        return str(resample)
    if type(resample) is int and 0 <= resample < len(_RESAMPLE):
        return _RESAMPLE[resample]
    known = ", ".join(f"{code} ({name})" for code, name in enumerate(_RESAMPLE))
    raise OptionError(f"the filter for resizing is {resample!r}; expected Pillow's code or name: {known}")


def _stated(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields or (fields[name] is None and name == "do_center_crop"):
        raise OptionError(f"the file does not state {name}; add it, since its default differs between processors")
    return fields[name]


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise OptionError(f"{name} is {value!r}; expected a number above 0")
    return float(value)


def _numbers(values: Any, name: str) -> list[float]:
    numbers = values if isinstance(values, list | tuple) else [values] * 3
    if len(numbers) not in (1, 3) or not all(isinstance(number, int | float) for number in numbers):
        raise OptionError(f"{name} is {values!r}; expected 3 numbers")
    return [float(number) for number in (numbers * 3)[:3]]


def _is_length(value: Any) -> bool:
    return type(value) is int and value >= 1
