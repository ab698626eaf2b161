"""Verdict: say in one line whether maps changed when the weights became random."""

from __future__ import annotations

from collections.abc import Sequence

from ortcam.evaluation.sanity_result import Mode, Stage, Verdict

UNCHANGED = 0.9
PARTLY = 0.6


def judge(stages: Sequence[Stage], mode: Mode) -> Verdict:
    return Verdict("unknown", "")
