"""Say in words what the similarity of two columns means, and which photos to look at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ortcam.comparison.result import Summary

SAME, SIMILAR = 0.95, 0.8  # the least r for these words
_MOST_CHANGED = 5  # photos that are named


@dataclass(frozen=True)
class Verdict:
    """The verdict on one column.

    Attributes:
        word: ``same``: r is at least 0.95 on every photo. ``similar``: the mean r is at least 0.8. ``different``: the
            mean r is lower. ``unrelated``: the mean r is no higher than that of maps of different photos. ``flat``: no
            photo has an r.
        text: the verdict in a sentence.
        look: the photos to look at first; "" if all maps are the same and no class changed.
    """

    word: Literal["same", "similar", "different", "unrelated", "flat"]
    text: str
    look: str


def judge(summary: Summary, photos: int, unrelated: float | None) -> Verdict:
    """Return the verdict on a column against the first.

    Args:
        summary: the column's.
        photos: the number of photos.
        unrelated: the mean r of maps of different photos; None if it is unknown.
    """
    mean, least = summary.r.mean, summary.least_r
    said = {
        "same": "THE SAME MAPS",
        "similar": "SIMILAR MAPS",
        "different": "DIFFERENT MAPS",
        "unrelated": "UNRELATED MAPS",
        "flat": "NOTHING TO COMPARE: a map of every photo is flat",
    }
    word = _word(mean, least, unrelated)
    values = "" if mean is None else f" (r {mean:.3f} on average, {least:.3f} at least)"
    if mean is not None and summary.r.count == 1:
        values = f" (r {mean:.3f})"
    agreed = ""
    if summary.same_class is not None:
        same = round((summary.same_class.mean or 0) * summary.same_class.count)
        count = summary.same_class.count
        agreed = f"; the same top class on {same} of {count} photo{'' if count == 1 else 's'}"
        if summary.largest_difference is not None:
            agreed += f"; the probability of the explained class moves by {abs(summary.largest_difference):.2f} at most"
    flat = f"; a map is flat on {summary.flat} of {photos}" if summary.flat and mean is not None else ""
    return Verdict(word, f"{summary.column}: {said[word]}{values}{agreed}{flat}", _look(summary, word))


def _word(
    mean: float | None, least: float | None, unrelated: float | None
) -> Literal["same", "similar", "different", "unrelated", "flat"]:
    if mean is None or least is None:
        return "flat"
    if least >= SAME:
        return "same"
    if unrelated is not None and mean <= unrelated:
        return "unrelated"
    return "similar" if mean >= SIMILAR else "different"


def _look(summary: Summary, word: str) -> str:
    lowest = [f"{name} (r {r:.2f})" for name, r in summary.lowest if r < SAME]
    changed = list(summary.changed[:_MOST_CHANGED])
    more = len(summary.changed) - len(changed)
    parts = []
    if lowest and word != "same":
        parts.append(f"look first at {', '.join(lowest)}")
    if changed:
        parts.append(f"another top class on {', '.join(changed)}{f' and {more} more' if more else ''}")
    return "; ".join(parts)
