"""Verdict: say in one line whether maps changed when the weights became random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ortcam.evaluation.sanity_result import Mode, Stage, Verdict

# A map that does not depend on the weights has Spearman's correlation 1 and SSIM 1, exactly. When all weights of
# EfficientNet-Lite0 are random, the maps of single photos (24 photos, 5 seeds, steps=1) reach by chance:
#                                        Spearman: mean  95 %  99 %  largest    SSIM: mean  95 %  99 %  largest
#   Score-CAM, budget 32, gaussian                  .21   .69   .76   .87              .49   .75   .81   .84
#   Score-CAM, budget 32, permutation               .23   .80   .84   .86              .49   .75   .81   .88
#   Recipro-CAM, gaussian                           .06   .53   .64   .65              .45   .67   .71   .78
#   Recipro-CAM, permutation                       -.06   .44   .56   .62              .44   .59   .64   .67
# No photo of these 480 reaches 0.9 in both measures, and 2 reach 0.8. Maps of different photos of the trained network:
# Spearman .46, SSIM .50 on average (largest .90 and .81).
# Maps of few cells agree by chance more often: of an untrained ResNet-18 with 3 x 3 cells, 7 % of the photos reach 0.8
# and 2.5 % reach 0.9, though the means over the photos are .03 and .45. A verdict therefore needs several photos.
UNCHANGED = 0.9
PARTLY = 0.8


def judge(stages: Sequence[Stage], mode: Mode, layer: str) -> Verdict:
    """Return the verdict on the maps of a run.

    Cascading: the last stage counts, where the most weights are random. Independent: the stage with the lowest Spearman
    correlation counts. A map is unchanged if the mean Spearman correlation and the mean SSIM are both at least 0.9, and
    partly changed if both are at least 0.8. Flat maps are no part of the means.

    Args:
        stages: the stages in order, at least one.
        mode: the mode of the run.
        layer: the name of the target layer.
    """
    above = [stage for stage in stages if not stage.changes_activations]
    line = _judge_above(above[-1], layer) if above and mode == "cascading" else ""
    last = stages[-1]
    known = [stage for stage in stages if stage.measures["spearman"] is not None]
    if not known or (mode == "cascading" and known[-1] is not last):
        if last.flat:
            return Verdict("changes", f"the maps change with the weights: at stage {last.number}, all are flat", line)
        return Verdict("unknown", f"no verdict: no photo has a map to compare at stage {last.number}", line)
    stage = known[-1] if mode == "cascading" else min(known, key=_ranks)
    numbers, kind = _numbers(stage), _kind(stage)
    where = f"at stage {stage.number}"
    where += ", the last" if mode == "cascading" else ", the most changed"
    if kind == "unchanged":
        text = (
            f"THE MAPS DO NOT CHANGE with the weights, so they cannot explain what the model learned: {numbers} {where}"
        )
    elif kind == "partly":
        text = f"the maps change little with the weights: {numbers} {where}"
    else:
        text = f"the maps change with the weights: {numbers} {where}"
    ranks = stage.measures["spearman"]
    if ranks is not None and ranks.count == 1:
        text += "; chance decides with one photo: give several"
    left_out = stage.flat + stage.flat_original + stage.failed
    return Verdict(kind, text + (f"; {left_out} photos without a map were left out" if left_out else ""), line)


def _judge_above(stage: Stage, layer: str) -> str:
    if stage.measures["spearman"] is None:
        return f"the layers above {layer}: no map to compare at stage {stage.number}"
    said = {
        "unchanged": f"THE MAPS DO NOT DEPEND on the layers above {layer}, which make the class scores",
        "partly": f"the maps depend little on the layers above {layer}, which make the class scores",
        "changes": f"the maps depend on the layers above {layer}, which make the class scores",
    }
    return f"{said[_kind(stage)]}: {_numbers(stage)} with only these randomised (stage {stage.number})"


def _kind(stage: Stage) -> Literal["changes", "partly", "unchanged"]:
    alike = stage.measures["ssim"]  # None for maps too small for it
    lowest = min(_ranks(stage), _ranks(stage) if alike is None else alike.mean)
    return "unchanged" if lowest >= UNCHANGED else "partly" if lowest >= PARTLY else "changes"


def _ranks(stage: Stage) -> float:
    ranks = stage.measures["spearman"]
    assert ranks is not None
    return ranks.mean


def _numbers(stage: Stage) -> str:
    alike = stage.measures["ssim"]
    return f"Spearman {_ranks(stage):.2f}" + ("" if alike is None else f", SSIM {alike.mean:.2f}")
