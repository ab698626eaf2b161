"""Choose the sizes of batches of changed inputs, and make the inputs of each batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from numpy.typing import NDArray

from ortcam.core.query import Rows
from ortcam.graph.names import AFFINE, NUMBERS, PHOTO_INDEX, TARGETS

Inputs = dict[str, NDArray[Any]]
# How batches are filled up: not at all; so that a device sees few shapes; to powers of two, with a CUDA graph for each;
# to the model's own size.
Padding = Literal["none", "few", "powers", "full"]
_SMALLEST_POWER = 8  # below, filling rows cost next to nothing
_WASTE = 8  # at most an eighth of a larger batch is filling


def batch_sizes(count: int, most: int, padding: Padding) -> list[int]:
    """Return the sizes of the batches for `count` changed inputs. Rows beyond `count` are filling.

    Without padding, the batches are as even as possible. So no pass is wasted, and ONNX Runtime does not plan memory
    for a short last batch of another size with every photo. For example, 40 inputs in batches of at most 16 are
    14 + 13 + 13. With ``full`` and ``few``, they are 16 + 16 + 16; ``few`` fills up less than one batch to a power of
    two. With ``powers``, they are 16 + 16 + 8, and 90 inputs in batches of at most 64 are 64 + 16 + 8 + 2.
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

    As much as possible is done for all batches at once, because Python is slow between two runs: its data has left the
    processor's cache.

    Args:
        rows: the rows of all batches.
        per_photo: the number of masks of each photo in the bank; 0 if all photos share the bank.
        sizes: the number of rows of each batch.
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
