"""The building blocks of every preset, each against torch or against the formula written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from ortcam.core import selection
from ortcam.core.convention import (
    PRESETS,
    interpolation_matrix,
    normalize,
    resolve_convention,
    upsample,
    upsampled_extremes,
)
from ortcam.core.selection import select_distinct
from ortcam.errors import OptionError

sides = st.integers(1, 12)
sizes = st.integers(1, 70)


@settings(max_examples=200, deadline=None)
@given(sides, sides, sizes, sizes, st.booleans(), st.integers(0, 2**32 - 1))
def test_upsampling_is_torchs(h: int, w: int, height: int, width: int, align_corners: bool, seed: int) -> None:
    maps = np.random.default_rng(seed).standard_normal((2, h, w)).astype(np.float32)
    theirs = F.interpolate(torch.from_numpy(maps)[None], (height, width), mode="bilinear", align_corners=align_corners)[
        0
    ].numpy()
    # torch computes where to sample in float32, at a relative 1e-7 of at most 70 places
    assert np.allclose(upsample(maps, (height, width), align_corners), theirs, atol=5e-5)


@settings(max_examples=300, deadline=None)
@given(sides, sides, sizes, sizes, st.booleans(), st.integers(0, 2**32 - 1))
def test_extremes_are_those_of_the_whole_map(
    h: int, w: int, height: int, width: int, align_corners: bool, seed: int
) -> None:
    activations = np.random.default_rng(seed).standard_normal((3, h, w)).astype(np.float32)
    whole = upsample(activations, (height, width), align_corners)
    lowest, highest = upsampled_extremes(activations, (height, width), align_corners)
    # the same products, which another matrix size may add up in another order
    assert np.allclose(lowest, whole.min(axis=(1, 2)), atol=1e-6)
    assert np.allclose(highest, whole.max(axis=(1, 2)), atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(sides, sizes, st.booleans())
def test_interpolation_weights_sum_to_one(length: int, size: int, align_corners: bool) -> None:
    matrix = interpolation_matrix(size, length, align_corners)
    assert np.allclose(matrix.sum(axis=1), 1, atol=1e-6)
    assert (matrix >= 0).all()
    assert ((matrix > 0).sum(axis=1) <= 2).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_masks_reach_zero_and_one(preset: str) -> None:
    activations = np.random.default_rng(0).random((8, 5, 6), np.float32) * 7 - 2
    masks = PRESETS[preset].masks(activations, (40, 50))
    shift, scale, offset = masks.affine.T[:, :, None, None]
    made = upsample((activations - shift) * scale + offset, (40, 50), PRESETS[preset].mask_align_corners)
    low, high = made.min(axis=(1, 2)), made.max(axis=(1, 2))
    assert masks.live.all()
    if PRESETS[preset].mask_normalized == "layer":  # half-pixel upsampling reaches a peak only in a corner
        assert (low >= 0).all()
        assert (high <= 1).all()
        assert (low > 0).sum() >= 4
        assert (high < 1).sum() >= 4
    else:
        assert np.allclose(low, 0, atol=1e-6)
        assert np.allclose(high, 1, atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_constant_channels_are_left_out_or_scored_once(preset: str) -> None:
    activations = np.zeros((4, 3, 3), np.float32)
    activations[1] = np.arange(9).reshape(3, 3)
    activations[3] = 2.5
    convention = PRESETS[preset]
    masks = convention.masks(activations, (9, 9))
    assert masks.live.tolist() == [False, True, False, False]
    selection = select_distinct(activations, masks, convention)
    scores = np.arange(1.0, len(selection) + 1, dtype=np.float32)[:, None]
    spread = selection.spread(scores)[:, 0]
    if convention.constant_channels == "skip":
        assert selection.channels.tolist() == [1]
        assert spread.tolist() == [-np.inf, 1, -np.inf, -np.inf]
        assert convention.weights(spread[:, None])[0, [0, 2, 3]].tolist() == [0, 0, 0]
    else:
        assert len(selection) == 2
        assert selection.affine[0].tolist() == [0, 0, 0]  # the blank mask of channel 0
        assert spread.tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize("preset", PRESETS)
def test_equal_masks_are_run_once(preset: str) -> None:
    """Channels active in the same single place have the same mask, whatever their strength."""
    activations = np.zeros((5, 4, 4), np.float32)
    for channel, (row, column, strength) in enumerate([(1, 2, 0.3), (1, 2, 7.0), (2, 2, 0.3), (1, 2, 1e-4)]):
        activations[channel, row, column] = strength
    activations[4] = np.random.default_rng(0).random((4, 4))
    convention = PRESETS[preset]
    selection = select_distinct(activations, convention.masks(activations, (32, 32)), convention)
    if convention.mask_epsilon == 0:
        assert selection.channels.tolist() == [0, 2, 4]
        assert selection.rows.tolist() == [0, 0, 1, 0, 2]
    else:  # an epsilon makes the mask of a faint channel a little weaker
        assert selection.channels.tolist() == [0, 2, 3, 4]
        assert selection.rows.tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_layer_without_variation_gives_zero_maps(preset: str) -> None:
    convention = PRESETS[preset]
    activations = np.full((3, 4, 4), 1.5, np.float32)
    selection = select_distinct(activations, convention.masks(activations, (8, 8)), convention)
    scores = selection.spread(np.zeros((len(selection), 2), np.float32))
    weights = convention.weights(scores)
    maps = convention.saliency(np.tensordot(weights, activations, axes=1), (8, 8))
    assert maps.shape == (2, 8, 8)
    assert (maps == 0).all()


def test_tiny_ranges_give_no_infinities() -> None:
    activations = np.zeros((2, 3, 3), np.float32)
    activations[0, 0, 0] = np.finfo(np.float32).smallest_subnormal
    activations[1, 0, 0] = 1e-37
    for convention in PRESETS.values():
        assert np.isfinite(convention.masks(activations, (9, 9)).affine).all()


def test_softmax_over_channels_is_softmax() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32) * 30 + 200
    expected = torch.softmax(torch.from_numpy(logits).double(), 0).numpy().T
    assert np.allclose(PRESETS["paper"].weights(logits), expected, atol=1e-7)


def test_normalize_of_a_flat_map_is_zero() -> None:
    maps = np.stack([np.full((3, 3), 7.0), np.arange(9.0).reshape(3, 3)]).astype(np.float32)
    normalized = normalize(maps)
    assert (normalized[0] == 0).all()
    assert np.allclose(normalized[1].ravel(), np.arange(9) / 8)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(OptionError, match="nearest: torchcam"):
        resolve_convention("torch-cam")


@pytest.mark.parametrize("sums_agree", [False, True])
@pytest.mark.parametrize("preset", ["official", "torchcam"])
def test_equal_masks_are_found_whatever_their_sums(
    preset: str, sums_agree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a dictionary of the masks; also where sums of different masks agree, which takes some luck."""
    if sums_agree:
        monkeypatch.setattr(selection, "_sum_up", lambda lines: lines[:, 0])
    convention = PRESETS[preset]
    random = np.random.default_rng(4)
    activations = np.maximum(random.integers(-1, 2, (300, 2, 2)), 0).astype(np.float32)
    masks = convention.masks(activations, (32, 32))
    found = select_distinct(activations, masks, convention)
    known: dict[bytes, int] = {}
    for channel, activation in enumerate(activations):
        if not masks.live[channel] and convention.constant_channels == "skip":
            assert found.rows[channel] == -1
            continue
        mask = (activation > 0) & masks.live[channel]
        if mask.tobytes() not in known:
            assert found.channels[len(known)] == channel
            known[mask.tobytes()] = len(known)
        assert found.rows[channel] == known[mask.tobytes()]
    assert len(found) == len(known) == (14 if preset == "official" else 15)
