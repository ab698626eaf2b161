"""Preprocessing, and the placing of maps on the photo, as nodes: `ortcam.model.preprocessing` for any size.

    photo uint8 [H,W,3] -> input float32 [1,C,h,w] or [1,h,w,C]
    map float32 [T,h,w] -> at the photo's size, float32 [T,H,W]

The nodes use the same filters (Pillow's) in the same precision. They resize a few rows at a time, so that a photo of a
hundred million pixels needs no float copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ortcam.graph.builder import Builder, Value
from ortcam.model.contract import Layout
from ortcam.model.preprocessing import GRAY_WEIGHTS, Preprocessing
from ortcam.model.resampling import SUPPORT, Interpolation

_BLOCK = 16  # rows that are resized at a time


@dataclass(frozen=True)
class Side:
    """One direction of the resized photo, all int64 [1].

    Attributes:
        length: the length of the photo, in pixels.
        full: the length of the whole resized photo.
        begin: where the model's input begins in the resized photo; below 0 if padding comes first.
    """

    length: Value
    full: Value
    begin: Value


def photo_sides(graph: Builder, photo: Value, preprocessing: Preprocessing, nothing: Value) -> tuple[Side, Side]:
    """Return rows and columns of a photo uint8 [H,W,3], as `Preprocessing` places them; `nothing` is a checked 0."""
    lengths = graph.size(photo, 0) + nothing, graph.size(photo, 1) + nothing
    sizes = preprocessing.height, preprocessing.width
    if preprocessing.fit == "letterbox":
        return _letterbox(graph, lengths, preprocessing)
    if preprocessing.resize is None:
        zero = graph.constant([0], np.int64)
        rows, columns = (
            Side(length, graph.constant([size], np.int64), zero) for length, size in zip(lengths, sizes, strict=True)
        )
        return rows, columns
    if isinstance(preprocessing.resize, tuple):
        fulls = [graph.constant([full], np.int64) for full in preprocessing.resize]
    else:
        short = graph.minimum(*lengths)
        fulls = [length * preprocessing.resize // short for length in lengths]
    rounding = "Floor" if preprocessing.crop_rounding == "down" else "Round"  # half to even, as Python
    rows, columns = (
        _cut(graph, length, full, size, rounding) for length, full, size in zip(lengths, fulls, sizes, strict=True)
    )
    return rows, columns


def _cut(graph: Builder, length: Value, full: Value, size: int, rounding: str) -> Side:
    half = graph.cast(full - size, np.float64) / 2.0
    return Side(length, full, graph.cast(graph.op(rounding, half), np.int64))


def _letterbox(graph: Builder, lengths: tuple[Value, Value], preprocessing: Preprocessing) -> tuple[Side, Side]:
    sizes = preprocessing.height, preprocessing.width
    exact = [graph.cast(length, np.float64) for length in lengths]
    factor = graph.minimum(*(float(size) / length for size, length in zip(sizes, exact, strict=True)))
    fulls = [graph.maximum(graph.cast(graph.op("Round", one * factor), np.int64), 1) for one in exact]
    begins = [graph.constant([0], np.int64)] * 2
    if preprocessing.pad_place == "centre":
        begins = [-((size - full) // 2) for size, full in zip(sizes, fulls, strict=True)]
    rows, columns = map(Side, lengths, fulls, begins)
    return rows, columns


def write_preprocessing(
    graph: Builder, photo: Value, rows: Side, columns: Side, preprocessing: Preprocessing, layout: Layout
) -> Value:
    """Write `Preprocessing.apply`: photo uint8 [H,W,3] -> the model's input float32 [1,C,h,w] or [1,h,w,C]."""
    height, width, interpolation = preprocessing.height, preprocessing.width, preprocessing.interpolation
    places = graph.constant(np.arange(width))
    across, x_begin, x_end = _filters(graph, columns, places, interpolation)  # [w,n]
    narrow = graph.slice(photo, x_begin, x_end, 1)
    blocks = -(-height // _BLOCK)

    def block(number: Value) -> list[Value]:
        places = number * _BLOCK + graph.constant(np.arange(_BLOCK))
        down, y_begin, y_end = _filters(graph, rows, graph.minimum(places, height - 1), interpolation)
        part = graph.cast(graph.slice(narrow, y_begin, y_end, 0), np.float32)  # [m,n,3]
        flat = graph.reshape(part, graph.size(part, 0), -1)
        return [down @ flat]  # [16,3n]

    (stacked,) = graph.loop(graph.constant(blocks, np.int64), [], block)
    lines = graph.slice(graph.reshape(stacked, blocks * _BLOCK, -1, 3), 0, height, 0)  # [h,n,3]
    planes = graph.op("Transpose", lines, perm=[2, 0, 1]) @ across.T  # [3,h,w]
    planes = graph.op("Clip", planes, graph.constant(0.0), graph.constant(255.0))
    if preprocessing.channels == "GRAY":
        flat = graph.constant(GRAY_WEIGHTS[None]) @ graph.reshape(planes, 3, -1)
        planes = graph.reshape(flat, 1, height, width)
    elif preprocessing.channels == "BGR":
        planes = graph.gather(planes, graph.constant([2, 1, 0], np.int64))
    if preprocessing.fit == "letterbox":
        shown = graph.expand_dims(_is_photo(graph, rows, height), 1) & _is_photo(graph, columns, width)  # [h,w]
        padding = np.array(preprocessing.pad_value, np.float32).reshape(-1, 1, 1)
        planes = graph.where(shown, planes, graph.constant(padding))
    mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    tensor = (planes * preprocessing.scale - mean) / std
    if layout == "NHWC":
        tensor = graph.op("Transpose", tensor, perm=[1, 2, 0])
    return graph.expand_dims(tensor, 0)


def _is_photo(graph: Builder, side: Side, size: int) -> Value:
    """Return which of the `size` samples of the input show the photo, bool [size]; the others are padding."""
    at = graph.constant(np.arange(size)) + side.begin
    return (at >= 0) & (side.full > at)


def _filters(graph: Builder, side: Side, places: Value, interpolation: Interpolation) -> tuple[Value, Value, Value]:
    """Return the weights of the photo's pixels from `begin` to `end` at `places` [n] of the crop.

    They equal `resampling.filter_taps`; other pixels have weight 0. Padding has the weights of the nearest sample.

    Returns:
        The weights float32 [n,end-begin]; begin and end, int64 [1].
    """
    scale = graph.cast(side.length, np.float64) / graph.cast(side.full, np.float64)
    at = graph.minimum(graph.maximum(places + side.begin, 0), side.full - 1)
    centre = (graph.cast(at, np.float64) + 0.5) * scale  # [n]
    stretch = graph.constant([1.0], np.float64) if interpolation == "linear" else graph.maximum(scale, 1.0)
    if interpolation == "nearest":
        steps = graph.concat([scale / 2.0, graph.full(side.full - 1, 1.0, np.float64) * scale], 0)
        added = graph.op("CumSum", steps, graph.constant(0, np.int64))
        centre = graph.op("Floor", graph.gather(added, at)) + 0.5
        stretch = graph.constant([1.0], np.float64)
    reach = stretch * SUPPORT[interpolation]
    lowest, highest = (graph.reduce(kind, centre, 0, keep=True) for kind in ("Min", "Max"))
    begin = graph.maximum(graph.cast(graph.op("Floor", lowest - reach), np.int64), 0)
    end = graph.minimum(graph.cast(graph.op("Ceil", highest + reach), np.int64), side.length)
    pixels = graph.cast(graph.arange(end - begin) + begin, np.float64) + 0.5
    centre = graph.expand_dims(centre, 1)
    weights = _weigh(graph, (pixels - centre) / stretch, interpolation)
    if interpolation == "box":  # rounding decides to which box a pixel on an edge belongs
        weights = graph.where(pixels >= graph.op("Floor", centre - reach + 0.5), weights, 0.0)
    return graph.cast(weights / graph.reduce("Sum", weights, 1, keep=True), np.float32), begin, end


def _weigh(graph: Builder, signed: Value, interpolation: Interpolation) -> Value:
    """Return the weights of pixels at these distances, float64, by the kernels of `resampling`."""
    if interpolation in ("nearest", "box"):
        return graph.cast((signed > -0.5) & ~(signed > 0.5), np.float64)
    distance = graph.op("Abs", signed)
    if interpolation in ("bilinear", "linear"):
        return graph.maximum(1.0 - distance, 0.0)
    if interpolation == "bicubic":
        return _cubic(graph, distance)
    if interpolation == "hamming":
        window = graph.op("Sin", (0.5 - distance) * np.pi) * 0.46 + 0.54  # a cosine
    else:
        window = _sinc(graph, distance / 3.0)
    return graph.where(distance >= SUPPORT[interpolation], 0.0, _sinc(graph, distance) * window)


def _sinc(graph: Builder, distance: Value) -> Value:
    angle = graph.maximum(distance, 1e-9) * np.pi  # sin(x) / x is 1 there
    return graph.op("Sin", angle) / angle


def _cubic(graph: Builder, distance: Value, a: float = -0.5) -> Value:
    square = distance * distance
    near = (distance * (a + 2) - (a + 3)) * square + 1.0
    far = ((distance - 5.0) * distance + 8.0) * distance * a - 4.0 * a
    return graph.where(distance >= 2.0, 0.0, graph.where(distance >= 1.0, far, near))


def write_placing(graph: Builder, maps: Value, rows: Side, columns: Side, preprocessing: Preprocessing) -> Value:
    """Write `Explanation.maps`: maps float32 [T,h,w] -> [T,H,W], with 0 outside the part that the model saw."""
    if preprocessing.fit == "letterbox":
        drawn = _resize_part(graph, maps, rows, preprocessing.height, 1)
        drawn = _resize_part(graph, drawn, columns, preprocessing.width, 2)
        return graph.op("Clip", drawn, graph.constant(0.0), graph.constant(1.0))
    top, bottom = photo_span(graph, rows, preprocessing.height)
    left, right = photo_span(graph, columns, preprocessing.width)
    count = graph.size(maps, 0)
    sizes = graph.shape(graph.constant([1], np.int64), count, bottom - top, right - left)
    drawn = graph.op(
        "Resize", graph.expand_dims(maps, 0), None, None, sizes,
        mode="linear", coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    zero = graph.constant([0], np.int64)
    pads = graph.shape(zero, top, left, zero, rows.length - bottom, columns.length - right)
    placed = graph.op("Pad", graph.op("Squeeze", drawn, zero), pads, graph.constant(0.0))
    return graph.op("Clip", placed, graph.constant(0.0), graph.constant(1.0))


def _resize_part(graph: Builder, maps: Value, side: Side, size: int, axis: int) -> Value:
    """Return the part of maps [T,...] over the photo, resized to its length along one axis, as `place_map` does."""
    per_pixel = graph.cast(side.full, np.float64) / graph.cast(side.length, np.float64)
    places = (graph.cast(graph.arange(side.length), np.float64) + 0.5) * per_pixel
    places = places - graph.cast(side.begin, np.float64) - 0.5
    places = graph.minimum(graph.maximum(places, 0.0), float(size - 1))
    first = graph.cast(places, np.int64)
    share = graph.cast(places - graph.cast(first, np.float64), np.float32)
    share = graph.expand_dims(share, 1) if axis == 1 else share
    second = graph.minimum(first + 1, size - 1)
    return graph.gather(maps, first, axis) * (1.0 - share) + graph.gather(maps, second, axis) * share


def photo_span(graph: Builder, side: Side, size: int) -> tuple[Value, Value]:
    """Return the photo's pixels that the crop covers, as `Preprocessing.crop` does."""

    def on_photo(place: Value) -> Value:
        at = graph.cast(place * side.length, np.float64) / graph.cast(side.full, np.float64)
        return graph.cast(graph.op("Round", at), np.int64)  # half to even, as Python

    first = graph.minimum(on_photo(side.begin), side.length - 1)
    return first, graph.minimum(graph.maximum(on_photo(side.begin + size), first + 1), side.length)
