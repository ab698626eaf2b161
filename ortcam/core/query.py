"""Query: changed inputs of one photo, as data. A model is run on them.

    mask_m = upsample(bank[number_m] * scale_m ...)        one mask for each row m of a query
    input_m = x * mask_m + baseline * (1 - mask_m)         x is the photo, or the target layer's features

The scoring graph makes masks and inputs (`ortcam.graph.masks`): for each batch, the device receives the numbers of a
query, and returns scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ortcam.core.convention import Floats
from ortcam.core.targets import Wanted


@dataclass(frozen=True)
class Channels:
    """A bank of masks: the K channels of a layer of the photo. The k-th mask is the k-th channel."""


@dataclass(frozen=True, eq=False)
class Maps:
    """A bank of given masks, such as windows, a saliency map, or the ranks of pixels.

    Attributes:
        values: float32 [A,h,w], at most as large as the input.
    """

    values: Floats


@dataclass(frozen=True)
class Grids:
    """An unlimited bank of masks: grids of random cells, made from a seed (`ortcam.core.grids`).

    Attributes:
        cells: rows and columns of a grid.
        probability: the probability that a cell is shown.
        seed: the same seed makes the same masks on every device.
    """

    cells: tuple[int, int] = (7, 7)
    probability: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Ablations:
    """A bank of masks over the channels of a layer: the k-th mask hides channel k, and shows all other channels.

    A mask is 0 or 1, whatever the affine of its row. The scores are logits alone.
    """


Bank = Channels | Maps | Grids | Ablations


@dataclass(frozen=True, eq=False)
class Baseline:
    """The replacement for the part that a mask hides, such as a colour or the blurred photo. It goes up once.

    Attributes:
        values: float32, a preprocessed input [1,C,H,W] (or the model's own layout), or features of the layer. An axis
            of 1 is repeated, so a colour is [1,C,1,1]. It replaces parts of every photo of a group.
    """

    values: Floats


@dataclass(frozen=True)
class Noise:
    """Normal noise that is added to upsampled masks: for each mask, a cut of one plane of random numbers.

    Attributes:
        sigma: its standard deviation.
        seed: the same seed makes the same plane on every device.
        sample: the number of the draw; masks get other cuts in another sample.
    """

    sigma: float
    seed: int = 0
    sample: int = 0


@dataclass(frozen=True)
class Change:
    """The change of an input that all rows of a query share.

    Attributes:
        bank: the source of the masks.
        binary: a mask is 1 where its value is above 0, else 0. If the bank holds the ranks of pixels, the shift of a
            row is then a number of pixels.
        baseline: the replacement for the hidden part; None for zeros.
        at: the splice point: masks change the ``image``, or the features of a ``layer``. At a layer, only the nodes
            that follow it are run.
        layer: the layer whose channels are the bank, or whose features are changed: the target layer (0), or an earlier
            stage (from 1).
        align_corners: masks are upsampled with aligned corners, else with half-pixel centres.
        upsampled: masks are upsampled; false if the bank's `Maps` have the size of the input or the layer already.
        noise: noise that is added to the upsampled masks; None for none.
        copied: at a layer, the m-th mask multiplies the features of the m-th place, copied to all places.
    """

    bank: Bank
    binary: bool = False
    baseline: Baseline | None = None
    at: Literal["image", "layer"] = "image"
    layer: int = 0
    align_corners: bool = False
    upsampled: bool = True
    copied: bool = False
    noise: Noise | None = None


@dataclass(frozen=True)
class Query:
    """M changed inputs of one photo.

    Attributes:
        change: the change that they share.
        numbers: int64 [M], the numbers of the masks in the bank.
        affine: float32 [M,3], shift, scale and offset: a mask is (bank[number] - shift) * scale + offset. Masks of
            `Grids` lie in [0,1] already: 0, 1, 0.
    """

    change: Change
    numbers: NDArray[np.int64]
    affine: Floats

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def unscaled(cls, change: Change, numbers: NDArray[np.int64]) -> Query:
        """Return a query whose masks are those of the bank."""
        return cls(change, numbers, np.tile(np.array([0, 1, 0], np.float32), (len(numbers), 1)))


@dataclass(frozen=True)
class Rows:
    """M changed inputs of a group of photos.

    Attributes:
        photos: int64 [M], the number of the photo in the group.
        numbers: int64 [M], the number of the mask in the bank of the photo.
        affine: float32 [M,3], the columns shift, scale and offset of the mask.
        targets: int64 [M,T], the classes to score.
    """

    photos: NDArray[np.int64]
    numbers: NDArray[np.int64]
    affine: Floats
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.photos)

    def take(self, begin: int, count: int) -> Rows:
        """Return `count` rows from `begin`; the last row is repeated if there are fewer."""
        at: Any = slice(begin, begin + count)
        if begin + count > len(self):
            at = np.minimum(np.arange(begin, begin + count), len(self) - 1)
        return Rows(self.photos[at], self.numbers[at], self.affine[at], self.targets[at])

    @classmethod
    def of_query(cls, query: Query, photo: int, targets: Sequence[Wanted]) -> Rows:
        """Return the rows of a query of the `photo`-th photo of a group."""
        indices = np.array([one.index for one in targets], np.int64)
        photos = np.full(len(query), photo, np.int64)
        return cls(photos, query.numbers, query.affine, np.tile(indices, (len(query), 1)))

    @classmethod
    def plain(cls, photos: int) -> Rows:
        """Return one unmasked row for each photo."""
        affine = np.tile(np.array([0, 0, 1], np.float32), (photos, 1))
        zeros = np.zeros(photos, np.int64)
        return cls(np.arange(photos), zeros, affine, zeros[:, None])

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """Concatenate the rows of several parts."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))
