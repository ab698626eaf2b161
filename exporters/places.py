"""Check that the cells of a target layer are places of the image: change patches of an image, see which cells change.

The shape of a layer does not show it. Windows of tokens, a map with rows and columns swapped, channels read as rows:
all of them have the shape of a map. The exported file is therefore run on an image with one patch at a time replaced,
and the change of every cell (its answer) is compared with the distance between cell and patch. This also works for
layers whose cells all see the whole image: without the part of the answer that all cells share, the cells at the patch
answer most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from ortcam.core.convention import Floats, upsample
from ortcam.graph.maps import Tokens
from ortcam.model.contract import Layout
from ortcam.runtime.session import CPU, RUNTIME_ERRORS, create_session

if TYPE_CHECKING:
    from ortcam.exporters.sources import Converted

Verdict = Literal["confirmed", "moved", "none", "silent", "followed"]
# The least correlation of answers and nearness. 65 layers of 40 networks reach 0.69 and more. Maps whose cells were put
# in another order stay below 0.42, unless nearly all cells of a small map (4 x 4) kept their places.
ENOUGH = 0.5
# Another order counts only if it fits this much better than the layer's own: orders that differ in few cells fit alike.
CLEARLY = 0.1
# Above this correlation, no other order is tried: a wrong order never fits so well.
PLAINLY = 0.75
# Patches in a row and in a column of the image.
PATCHES = 4
# How far from a patch cells answer, as a part of the image: for layers whose cells see little of it, and for others.
_REACHES = (0.03, 0.15)
# Answers below this part of the largest activation are rounding errors of float32.
_ROUNDING = 1e-5
# Of larger layers, only this many cells are compared with other orders.
_MANY_CELLS = 256
_IMAGES_AT_ONCE = 4


@dataclass(frozen=True)
class Cells:
    """A tensor of a file, and how to read it as a map.

    Attributes:
        name: the tensor.
        layout: where its channels are.
        tokens: the tokens that make the map, if the tensor is a sequence [batch,T,D].
    """

    name: str
    layout: Layout
    tokens: Tokens | None = None

    def arrange(self, tensor: NDArray[Any]) -> Floats:
        """Return the tensor as [batch,K,h,w]."""
        if self.tokens is not None:
            patches = tensor[:, self.tokens.first : self.tokens.end]
            tensor = patches.reshape(len(tensor), self.tokens.rows, self.tokens.columns, -1)
        if self.layout == "NHWC":
            tensor = tensor.transpose(0, 3, 1, 2)
        return tensor.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Places:
    """The result of comparing a layer's cells with the places where the image changes.

    Attributes:
        verdict: one of these:

            - ``confirmed``: the cells answer where the image changes;
            - ``moved``: the cells answer in another known order;
            - ``none``: no order fits, as after a global mixing;
            - ``silent``: the layer hardly depends on the image;
            - ``followed``: no order fits, as for 2 x 2 cells that all see the whole image, but the graph shows that the
              cells are places.
        correlation: of the answers with the nearness of cell and patch, in [-1,1]: the least of those over all cells,
            over rows and over columns.
        order: for ``moved``, the name of the order.
    """

    verdict: Verdict
    correlation: float
    order: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether a map of the layer would show the wrong places."""
        return self.verdict in ("moved", "none")

    @property
    def reason(self) -> str:
        """The fault, as part of a message."""
        return self.order or "the cells do not answer where the image changes"

    def to_dict(self) -> dict[str, Any]:
        return {"places": self.order or self.verdict, "places_correlation": round(self.correlation, 3)}


def check_places(
    model: onnx.ModelProto | Path, folder: Path, converted: Converted, layers: Sequence[Cells]
) -> list[Places]:
    """Run a file on images with changed patches, and return the verdict for each layer.

    If no layer is confirmed, other images are tried.

    Args:
        model: the exported file, or its graph with the layers among its outputs.
        folder: where external weights are.
        converted: the source, for its images and batches.
        layers: tensors of rank 4, or 3 with tokens.
    """
    session = create_session(model, CPU, "the exported model", folder, log_severity=4)
    found = [Places("silent", 0.0)] * len(layers)
    order: list[Verdict] = ["silent", "none", "moved", "confirmed"]
    for image, other in _pictures(converted):
        try:
            answers = _ask(session, image, other, converted, layers)
        except RUNTIME_ERRORS:  # the verification will report it
            break
        judged = [judge(*answer) for answer in answers]
        found = [max(pair, key=lambda places: order.index(places.verdict)) for pair in zip(found, judged, strict=True)]
        verdicts = {places.verdict for places in found}
        if "confirmed" in verdicts or verdicts == {"moved"}:
            break
    return found


def _pictures(converted: Converted) -> Iterator[tuple[Floats, Floats]]:
    """Yield pairs of different images [1,...] in the form of the source's input, as smooth as photos.

    If the preprocessing is unknown, the first pair has values like standard normal numbers, and the second like bytes.
    """
    first, *_ = shape = converted.input_shape
    height, width = shape[1:] if converted.image_layout == "NCHW" else shape[:2]
    channels = first if converted.image_layout == "NCHW" else shape[2]
    random = np.random.default_rng(0)
    for attempt in range(2):
        pair = []
        for _ in range(2):
            octaves = [random.standard_normal((channels, 2**n, 2**n), np.float32) * 0.6**n for n in range(1, 7)]
            noise = np.sum([upsample(octave.astype(np.float32), (height, width)) for octave in octaves], axis=0)
            noise /= noise.std()
            photo = np.clip(127.5 + 64 * noise, 0, 255).astype(np.uint8)
            if converted.preprocessing is not None:
                colours = photo if channels == 3 else np.repeat(photo[:1], 3, axis=0)
                tensor = converted.preprocessing.apply(colours.transpose(1, 2, 0), converted.image_layout)
            else:
                planes = photo if converted.takes_bytes or attempt else noise
                tensor = (planes if converted.image_layout == "NCHW" else planes.transpose(1, 2, 0))[None]
            pair.append(np.ascontiguousarray(tensor, np.float32))
        yield pair[0], pair[1]


def _ask(
    session: Any, image: Floats, other: Floats, converted: Converted, layers: Sequence[Cells]
) -> list[tuple[Floats, float]]:
    """Return the answers [patches,h,w] of each layer's cells, and its largest activation."""
    height, width = image.shape[2:] if converted.image_layout == "NCHW" else image.shape[1:3]
    bounds = [np.linspace(0, side, PATCHES + 1).round().astype(int) for side in (height, width)]
    changed = []
    for row, column in itertools.product(range(PATCHES), repeat=2):
        patch = (slice(*bounds[0][row : row + 2]), slice(*bounds[1][column : column + 2]))
        place = (slice(None), slice(None), *patch) if converted.image_layout == "NCHW" else (slice(None), *patch)
        changed.append(image.copy())
        changed[-1][place] = other[place]
    names = list(dict.fromkeys(layer.name for layer in layers))
    at_once = 1 if max(converted.batches) == 1 else _IMAGES_AT_ONCE
    before = dict(zip(names, session.run(names, {"image": image}), strict=True))
    answers: list[list[Floats]] = [[] for _ in layers]
    for begin in range(0, len(changed), at_once):
        after = session.run(names, {"image": np.concatenate(changed[begin : begin + at_once])})
        for number, layer in enumerate(layers):
            difference = layer.arrange(after[names.index(layer.name)]) - layer.arrange(before[layer.name])
            answers[number].append(np.nan_to_num(np.abs(difference).mean(1), posinf=0))
    largest = [float(np.nan_to_num(np.abs(before[layer.name].astype(np.float32))).max()) for layer in layers]
    return list(zip(map(np.concatenate, answers), largest, strict=True))


def judge(answers: NDArray[np.floating], largest: float = 0.0) -> Places:
    """Compare the answers of a layer's cells with the places of the patches.

    Args:
        answers: [patches,h,w], the mean change of a cell over all channels; the patches form a square grid, row by row.
        largest: the layer's largest activation; much smaller answers are rounding errors.
    """
    count, height, width = answers.shape
    side = math.isqrt(count)
    centred = _level(answers.reshape(count, -1))
    if centred is None or answers.max() <= _ROUNDING * largest:
        return Places("silent", 0.0)
    own = [_fit(centred, [_nearness(side, height, width, reach) for reach in _REACHES])]
    for cells, axis in ((height, 0), (width, 1)):  # a map whose rows are right and whose columns are not is wrong
        along = _level(answers.mean(2 - axis))
        if cells > 1 and along is not None:
            high, wide = (cells, 1) if axis == 0 else (1, cells)
            own.append(_fit(along, [_nearness(side, high, wide, reach) for reach in _REACHES]))
    weakest = min(own)
    if weakest < PLAINLY:
        best, name = _best_other_order(centred, height, width)
        if best >= max(ENOUGH, own[0] + CLEARLY):
            return Places("moved", weakest, name)
    return Places("confirmed" if weakest >= ENOUGH else "none", weakest)


def _nearness(side: int, height: int, width: int, reach: float) -> Floats:
    """Return the nearness of patches and cells, [patches,cells]: 1 if the cell lies in the patch, less outside."""
    axes = []
    for cells in (height, width):
        centres, middles = (np.arange(cells) + 0.5) / cells, (np.arange(side) + 0.5) / side
        beyond = np.maximum(np.abs(middles[:, None] - centres) - 0.5 / side, 0) * (cells > 1)
        axes.append(np.exp(-((beyond / reach) ** 2) / 2))
    near: Floats = np.einsum("ih,jw->ijhw", *axes).reshape(side * side, height * width)
    return near


def _level(answers: NDArray[np.floating]) -> Floats | None:
    """Remove the mean answer of each cell and of each patch; return None if nothing is left."""
    answers = answers.astype(np.float64)
    floor = 1e-9 * float(answers.max())
    if not floor > 0:
        return None
    answers = answers / (answers.mean(1, keepdims=True) + floor)
    answers = answers / (answers.mean(0, keepdims=True) + floor)
    centred = _centre(answers)
    return centred if np.abs(centred).max() > 1e-9 else None


def _centre(table: Floats) -> Floats:
    centred: Floats = table - table.mean(0, keepdims=True) - table.mean(1, keepdims=True) + table.mean()
    return centred


def _fit(answers: Floats, tables: list[Floats]) -> float:
    """Return the best correlation of the answers with one of the tables [patches,cells]."""
    best = -1.0
    for table in map(_centre, tables):
        size = math.sqrt(float((answers**2).sum() * (table**2).sum()))
        best = max(best, float((answers * table).sum() / size) if size > 0 else 0.0)
    return best


def _best_other_order(answers: Floats, height: int, width: int) -> tuple[float, str]:
    """Return how well the answers [patches,cells] fit the best of all other orders of the cells, and its name."""
    side, cells = math.isqrt(len(answers)), answers.shape[1]
    some = np.arange(cells)
    if cells > _MANY_CELLS:
        some = np.sort(np.random.default_rng(0).choice(cells, _MANY_CELLS, replace=False))
        answers = _centre(answers[:, some])
    best, best_name, tables = -1.0, "", {}
    for name, rows, columns, order in _other_orders(height, width):
        if (rows, columns) not in tables:
            tables[rows, columns] = [_nearness(side, rows, columns, reach) for reach in _REACHES]
        fit = _fit(answers, [table[:, order.ravel()[some]] for table in tables[rows, columns]])
        if fit > best + 1e-6:
            best, best_name = fit, name
    return best, best_name


def _other_orders(height: int, width: int) -> Iterator[tuple[str, int, int, NDArray[np.intp]]]:
    """Yield possible orders of a layer's cells: a name, a grid, and the place of each cell in the grid."""
    own = np.arange(height * width).reshape(height, width)
    swapped = np.arange(height * width).reshape(width, height).T
    yield "rows and columns are swapped", width, height, swapped
    yield "the rows are upside down", height, width, own[::-1]
    yield "the columns are mirrored", height, width, own[:, ::-1]
    yield "the map is turned by half", height, width, own[::-1, ::-1]
    for down, across in ((-1, 1), (1, -1), (-1, -1)):
        yield "rows and columns are swapped and turned over", width, height, swapped[::down, ::across]
    steps = (max(1, height // 8), max(1, width // 8))
    for down, across in itertools.product(range(0, height, steps[0]), range(0, width, steps[1])):
        if down or across:
            yield "the cells are shifted around the edges", height, width, np.roll(own, (down, across), (0, 1))
    for rows, columns in _grids(height, width):
        order = np.arange(rows * columns).reshape(rows, columns)
        if rows != height:
            yield f"the cells are a grid of {rows} x {columns}", rows, columns, order
        for high, wide in itertools.product(_divisors(rows), _divisors(columns)):
            blocks = order.reshape(rows // high, high, columns // wide, wide)
            for axes in itertools.permutations(range(4)):
                name = f"the cells are windows of {high} x {wide}" if axes == (0, 2, 1, 3) else "the order is another"
                if axes not in ((0, 1, 2, 3), (2, 3, 0, 1)):
                    yield name, rows, columns, blocks.transpose(axes)


def _grids(height: int, width: int) -> list[tuple[int, int]]:
    """Return the layer's own grid; for a small layer, also other grids with as many cells, at most 3 times as long."""
    cells = height * width
    if cells > 4 * _MANY_CELLS:
        return [(height, width)]
    grids = [(rows, cells // rows) for rows in _divisors(cells) if cells <= 3 * rows**2 <= 9 * cells]
    return list(dict.fromkeys([(height, width), *grids]))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
