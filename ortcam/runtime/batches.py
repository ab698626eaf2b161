"""In which batches changed inputs are run, and the inputs that differ from batch to batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from numpy.typing import NDArray

from ortcam.core.query import Rows
from ortcam.graph.names import AFFINE, NUMBERS, PHOTO_INDEX, TARGETS

Inputs = dict[str, NDArray[Any]]
# How batches are filled up: not at all; so that a device sees few shapes; to powers of two, for a graph of each; to the
# model's own size.
Padding = Literal["none", "few", "powers", "full"]
_SMALLEST_POWER = 8  # below, rows that fill up cost next to nothing
_WASTE = 8  # a larger batch is filled up by an eighth at most


def batch_sizes(count: int, most: int, padding: Padding) -> list[int]:
    """Return the sizes of the batches that `count` masked images are run in; rows beyond `count` are filling.

    Without padding the batches are as even as can be, which wastes no pass, and keeps ONNX Runtime from planning
    memory for a short last batch of another size for every photo: 40 in batches of at most 16 are 14 + 13 + 13. With
    ``full`` they are 16 + 16 + 16, with ``few`` as well, where less than one batch is filled up to a power of two. With
    ``powers`` they are 16 + 16 + 8, and 90 in batches of at most 64 are 64 + 16 + 8 + 2.
    """
    batches = -(-count // most)
    if padding == "none":
        return [count // batches + (number < count % batches) for number in range(batches)]
    if padding == "full" or (padding == "few" and batches > 1):
        return [most] * batches
    sizes, left = [most] * (count // most), count % most
    while left > 0:
        size = 1 << (left - 1).bit_length()
        if padding == "powers" and size > _SMALLEST_POWER and (size - left) * _WASTE > size:
            size //= 2
        sizes.append(min(size, most))
        left -= size
    return sizes


def row_inputs(rows: Rows, per_photo: int, sizes: Sequence[int]) -> Iterator[Inputs]:
    """Yield the inputs that differ from batch to batch.

    What can be done for all batches at once is: between two runs Python is slow, its own data having left the cache.

    Args:
        rows: of all batches.
        per_photo: how many masks of the bank each photo has; 0 where all photos share the bank.
        sizes: how many rows each batch has.
    """
    whole = {
        NUMBERS: rows.photos * per_photo + rows.numbers,
        AFFINE: rows.affine.reshape(-1, 3, 1, 1),
        TARGETS: rows.targets,
    }
    one_photo = bool((rows.photos == rows.photos[:1]).all())
    begin = 0
    for size in sizes:
        photos = rows.photos[begin : begin + size]
        index = photos[:1] if one_photo or (photos == photos[0]).all() else photos
        yield {PHOTO_INDEX: index} | {name: array[begin : begin + size] for name, array in whole.items()}
        begin += size
