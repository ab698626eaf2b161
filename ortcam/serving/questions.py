"""Question: what a client asks of a model, read from a request of the protocol."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ortcam.core.references import Box, Similarity
from ortcam.core.references import Output as Value
from ortcam.core.targets import is_index
from ortcam.errors import nearest
from ortcam.serving.limits import ServingLimits
from ortcam.serving.protocol import InferRequest
from ortcam.serving.refusal import Kind, Refusal, invalid
from ortcam.serving.tensors import JSON_BYTES, Tensor, show

# The outputs by name: datatype and shape. N photos have R targets in all, in the order of the photos.
OUTPUTS = {
    "target_class": ("INT64", ("R",)),
    "label": ("BYTES", ("R",)),
    "probability": ("FP32", ("R",)),
    "saliency": ("FP32", ("R", "h", "w")),
    "scored": ("INT64", ("N",)),
    "error": ("FP32", ("R", 3)),
    "image_index": ("INT64", ("R",)),
    "target_box": ("FP32", ("R", 4)),
    "overlay": ("BYTES", ("R",)),
}
PREDICTIONS = ("target_class", "label", "probability", "image_index")  # need no map
USUAL = ("target_class", "label", "probability", "saliency", "scored", "error")
_LONGEST_LABEL = 1000  # bytes
BOXED = ("detect", "segment")  # tasks whose targets have a box
INPUTS = ("image", "target", "box", "like")
# Parameters of other servers that ortcam has no use for; clients send them unasked.
_IGNORED = frozenset({"binary_data_output", "priority", "sequence_id", "sequence_start", "sequence_end"})
_PARAMETERS = frozenset({"budget", "tolerance", "top_k", "size", "sign", "caption", "timeout"})
_CHOICES: dict[str, tuple[Any, ...]] = {"size": ("input", "photo"), "sign": (1, -1), "caption": (True, False)}


@dataclass(frozen=True)
class Facts:
    """What a question must know of a model.

    Attributes:
        task: its task, such as ``classify``.
        input_shape: the shape of one input tensor, (C,H,W) or (H,W,C).
        input_size: (H,W) of it.
        takes: which images it takes: ``photos``, ``tensors`` or both.
        sizes: the sizes of its maps: ``input``, ``photo`` or both; the first is the usual one.
        has_labels: whether its classes have names.
        has_budgets: whether a budget can be given.
    """

    task: str
    input_shape: tuple[int | None, ...]
    input_size: tuple[int | None, int | None]
    takes: frozenset[str]
    sizes: tuple[str, ...]
    has_labels: bool
    has_budgets: bool


@dataclass(frozen=True, eq=False)
class Question:
    """What a client asks of a model.

    Attributes:
        images: the photos: each the bytes of a file, uint8 [H,W,3], or an input tensor float32 [1,...].
        targets: the targets of every photo, as `explain` takes them; None for the surest.
        top_k: how many, if `targets` is None.
        budget, tolerance: as for `explain`.
        size: the size of the maps.
        caption: whether overlays have a caption.
        outputs: the names of the outputs, in order.
        value_bytes: the bytes of a value of a map in the answer, which are more in JSON.
    """

    images: tuple[Any, ...]
    targets: tuple[Any, ...] | None = None
    top_k: int = 1
    budget: int | None = None
    tolerance: float | None = None
    size: Literal["input", "photo"] = "input"
    caption: bool = False
    outputs: tuple[str, ...] = USUAL
    value_bytes: int = 4

    @property
    def wants_maps(self) -> bool:
        """Whether the answer needs an explanation, and not only a prediction."""
        return any(name not in PREDICTIONS for name in self.outputs)

    @property
    def rows(self) -> int:
        """The most targets of one photo."""
        return self.top_k if self.targets is None else len(self.targets)

    @property
    def together(self) -> tuple[Any, ...] | None:
        """Questions of equal values can be explained together; None stands alone."""
        plain = self.targets is None or all(isinstance(one, int | str) for one in self.targets)
        return (self.targets, self.top_k, self.budget, self.tolerance, self.wants_maps) if plain else None

    @property
    def cost(self) -> tuple[Any, ...]:
        """Photos with questions of equal values take about the same time."""
        return self.rows, self.budget, self.tolerance, self.wants_maps


def read_question(request: InferRequest, facts: Facts, limits: ServingLimits) -> Question:
    """Return the question of a request.

    Raises:
        Refusal: the request is wrong for this model, or exceeds a limit.
    """
    for name in request.inputs:
        if name not in INPUTS:
            raise invalid(f"input {show(name)} is unknown{nearest(name, INPUTS)}; expected {', '.join(INPUTS)}")
    if "image" not in request.inputs:
        raise invalid("the input image is missing")
    options = read_options(request.parameters, limits)
    images = tuple(_read_images(request.inputs["image"], facts, limits))
    targets = _read_targets(request.inputs, facts, limits, options.pop("sign", 1))
    if targets is not None and "top_k" in options:
        raise invalid("the request has targets and top_k; give one of them")
    if facts.has_budgets and "tolerance" not in options:
        options.setdefault("budget", limits.budget)
    size = options.setdefault("size", facts.sizes[0])
    if size not in facts.sizes:
        raise invalid(f"size is {size}; this packed file makes maps of size {' or '.join(facts.sizes)}")
    binary = {output.name: output.binary for output in request.outputs}.get("saliency", request.binary)
    each = 4 if binary else JSON_BYTES
    return Question(images, targets, outputs=_read_outputs(request, facts), value_bytes=each, **options)


def read_options(given: Mapping[str, Any], limits: ServingLimits) -> dict[str, Any]:
    """Return the parameters of a request as arguments of `Question`, and ``sign``.

    Raises:
        Refusal: a parameter is unknown or invalid.
    """
    for name in given:
        if name not in _PARAMETERS | _IGNORED:
            known = ", ".join(sorted(_PARAMETERS))
            raise invalid(f"parameter {show(name)} is unknown{nearest(name, _PARAMETERS)}; expected {known}")
    made: dict[str, Any] = {}
    if "budget" in given:
        made["budget"] = _whole("budget", given["budget"], 1, 1_000_000)
    if "tolerance" in given:
        value = given["tolerance"]
        if isinstance(value, bool | str) or not 0 < value < 1:
            raise invalid(f"tolerance is {show(value)}; expected a number between 0 and 1")
        made["tolerance"] = float(value)
    if "top_k" in given:
        made["top_k"] = _whole("top_k", given["top_k"], 1, limits.targets)
    for name, choices in _CHOICES.items():
        if name in given:
            if given[name] not in choices or type(given[name]) is not type(choices[0]):
                raise invalid(f"{name} is {show(given[name])}; expected {' or '.join(map(str, choices))}")
            made[name] = given[name]
    return made


def read_timeout(given: Mapping[str, Any], most: float) -> float:
    """Return the seconds that a client waits for: its parameter ``timeout``, in microseconds as Triton has it.

    Raises:
        Refusal: it is no whole number from 1.
    """
    if "timeout" not in given:
        return most
    return min(most, _whole("timeout", given["timeout"], 1, 2**62) / 1e6)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise invalid(f"{name} is {show(value)}; expected a whole number from {least} to {most}")
    return value


def _read_images(tensor: Tensor, facts: Facts, limits: ServingLimits) -> list[Any]:
    found: list[Any]
    if tensor.datatype == "BYTES":
        _check_images(len(tensor.items), limits)
        found = [picture_bytes(one) for one in tensor.items]
    elif tensor.datatype == "UINT8":
        shape = tensor.shape
        if len(shape) not in (3, 4) or shape[-1] != 3:
            raise invalid(f"image is UINT8 of shape {list(shape)}; expected RGB photos [H,W,3] or [N,H,W,3]")
        if 0 in shape[-3:]:
            raise invalid(f"image has no pixels (shape {list(shape)})")
        _check_images(1 if len(shape) == 3 else shape[0], limits)
        found = [tensor.array] if len(shape) == 3 else list(tensor.array)
    elif tensor.datatype in ("FP16", "FP32", "FP64"):
        found = _read_tensors(tensor, facts, limits)
    else:
        raise invalid(f"image is {tensor.datatype}; expected BYTES (JPEG, PNG, ...), UINT8 or FP32")
    kind = "tensors" if tensor.datatype.startswith("FP") else "photos"
    if kind not in facts.takes:
        raise invalid(f"image is {tensor.datatype}; this model takes {' and '.join(facts.takes)}, not {kind}")
    if tensor.datatype != "BYTES" and math.prod(tensor.shape[-3:]) > 3 * limits.pixels:
        raise Refusal(Kind.TOO_LARGE, f"image has shape {list(tensor.shape)}; at most {limits.pixels} pixels are taken")
    return found


def _check_images(count: int, limits: ServingLimits) -> None:
    if not 1 <= count <= limits.images:
        raise invalid(f"image has {count} photos; expected 1 to {limits.images}")


def _read_tensors(tensor: Tensor, facts: Facts, limits: ServingLimits) -> list[NDArray[Any]]:
    wanted = facts.input_shape
    shown = ["N", *(dim or "any" for dim in wanted)]
    fits = len(tensor.shape) == len(wanted) + 1 and all(
        has == dim or (dim is None and has > 0) for has, dim in zip(tensor.shape[1:], wanted, strict=True)
    )
    if not fits:
        raise invalid(f"image has shape {list(tensor.shape)}; expected the input tensor [{', '.join(map(str, shown))}]")
    _check_images(tensor.shape[0], limits)
    with np.errstate(over="ignore"):
        values = tensor.array.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise invalid("image has NaN or infinite values; expected finite numbers")
    return [values[[row]] for row in range(len(values))]


def picture_bytes(item: bytes) -> bytes:
    """Return the bytes of a picture that may have come as base64, since JSON holds only text."""
    if not item[:64].isascii():
        return item
    try:
        return base64.b64decode(item, validate=True)
    except binascii.Error:  # a picture such as GIF, which begins with text
        return item


def _read_targets(
    inputs: Mapping[str, Tensor], facts: Facts, limits: ServingLimits, sign: int
) -> tuple[Any, ...] | None:
    for name in inputs:
        if name != "image":
            _check_targets(inputs[name], limits)
    targets = _read_words(inputs["target"], facts) if "target" in inputs else None
    if "like" in inputs and facts.task != "embed":
        raise invalid("the input like belongs to models that return an embedding")
    if "box" in inputs and facts.task != "detect":
        raise invalid("the input box belongs to detectors")
    if sign != 1 and facts.task != "value":
        raise invalid("the parameter sign belongs to models that return plain values")
    if "like" in inputs:
        if targets is not None:
            raise invalid("the request has the inputs like and target; give one of them")
        targets = _read_likes(inputs["like"])
    elif "box" in inputs:
        targets = _read_boxes(inputs["box"], targets)
    elif sign != 1:
        targets = [_signed(one, sign) for one in targets or [None]]
    return None if targets is None else tuple(targets)


def _signed(word: Any, sign: int) -> Value:
    """Return a value with a sign; digits are its index."""
    if isinstance(word, str) and is_index(word):
        word = int(word)
    if not isinstance(word, int):
        raise invalid(f"sign is {sign} and target is {show(word)}; give the indices of the values as targets")
    return Value(word, sign)


def _check_targets(tensor: Tensor, limits: ServingLimits) -> None:
    each_a_row = tensor.name != "target" and tensor.datatype != "BYTES" and tensor.shape
    count = tensor.shape[0] if each_a_row else math.prod(tensor.shape)
    if not 1 <= count <= limits.targets:
        raise invalid(f"input {tensor.name} has {count} targets; expected 1 to {limits.targets}")


def _read_words(tensor: Tensor, facts: Facts) -> list[Any]:
    if tensor.datatype == "BYTES":
        longest = max(map(len, tensor.items))
        if longest > _LONGEST_LABEL:
            raise invalid(f"a target has {longest} bytes; expected a label of at most {_LONGEST_LABEL}")
        try:
            words = [one.decode("utf-8") for one in tensor.items]
        except UnicodeDecodeError as error:
            raise invalid("a target is no text in UTF-8; expected a label") from error
        if "all" in words:
            raise invalid("target is 'all'; expected labels, one by one")
        return words
    if tensor.datatype in ("INT64", "INT32"):
        return [int(one) for one in tensor.array.reshape(-1)]
    raise invalid(f"target is {tensor.datatype}; expected INT64 (class indices) or BYTES (labels)")


def _read_likes(tensor: Tensor) -> list[Any]:
    if tensor.datatype == "BYTES":
        return [Similarity(picture_bytes(one)) for one in tensor.items]
    if tensor.datatype == "FP32" and len(tensor.shape) == 2 and np.isfinite(tensor.array).all():
        return [Similarity(row) for row in tensor.array]
    raise invalid(
        f"like is {tensor.datatype} of shape {list(tensor.shape)}; expected BYTES (pictures) or finite FP32 [T,D]"
    )


def _read_boxes(tensor: Tensor, labels: list[Any] | None) -> list[Any]:
    if tensor.datatype != "FP32" or len(tensor.shape) != 2 or tensor.shape[1] != 4:
        raise invalid(f"box is {tensor.datatype} of shape {list(tensor.shape)}; expected FP32 [T,4]")
    if not np.isfinite(tensor.array).all():
        raise invalid("box has NaN or infinite values; expected left, top, right, bottom in pixels of the photo")
    boxes = [tuple(map(float, row)) for row in tensor.array]
    names = [None] * len(boxes) if labels is None else labels
    if len(names) != len(boxes):
        raise invalid(f"the request has {len(boxes)} boxes and {len(names)} targets; expected as many")
    return [Box((box[0], box[1], box[2], box[3]), name) for box, name in zip(boxes, names, strict=True)]


def _read_outputs(request: InferRequest, facts: Facts) -> tuple[str, ...]:
    names = tuple(output.name for output in request.outputs)
    for name in names:
        if name not in OUTPUTS:
            raise invalid(f"output {show(name)} is unknown{nearest(name, OUTPUTS)}; expected {', '.join(OUTPUTS)}")
        if name == "target_box" and facts.task not in BOXED:
            raise invalid("the output target_box belongs to detectors and segmenters")
    if len(set(names)) < len(names):
        raise invalid("the request asks for the same output twice")
    return names or (USUAL + (("target_box",) if facts.task in BOXED else ()))


def check_photo(question: Question, photo: tuple[int, int], facts: Facts, limits: ServingLimits) -> None:
    """Refuse a photo whose maps and overlays would exceed the limit of the answer.

    Args:
        question: the question.
        photo: (H, W) of the photo.
        facts, limits: of the model and the server.

    Raises:
        Refusal: they would.
    """
    height, width = facts.input_size
    pixels = photo[0] * photo[1] if question.size == "photo" else (height or photo[0]) * (width or photo[1])
    size = question.value_bytes * pixels if "saliency" in question.outputs else 0
    size += 3 * photo[0] * photo[1] if "overlay" in question.outputs else 0
    total = size * question.rows * len(question.images)
    if total > limits.output:
        raise Refusal(
            Kind.TOO_LARGE,
            f"the answer would have {total / 1e6:.0f} MB; at most {limits.output / 1e6:.0f} MB are sent: "
            "ask for fewer targets or photos, for size input, or for binary data",
        )
