"""The result of an evaluation: intervals, the journal of an interrupted run, table, files and pictures."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from ortcam.errors import OccupiedError, OptionError, OutputError
from ortcam.evaluation.journal import Journal
from ortcam.evaluation.plots import draw_curves, mean_curve
from ortcam.evaluation.result import Comparison, Result
from ortcam.evaluation.rows import Column, Failure, Row
from ortcam.evaluation.statistics import Interval, mean_interval, mean_intervals, paired

HEADER = {"model": {"name": "a.onnx", "sha256": "aa"}, "metrics": ("insertion", "drop"), "seed": 0}
INSERTION = Column("insertion", "insertion", "higher", (0.0, 0.5, 1.0))
DROP = Column("drop", "drop", "lower")
SIZE = Column("size", "size", None)


def row(photo: str, method: str, insertion: float | None, drop: float | None = 0.0, **more: Any) -> Row:
    reasons = {name: "flat map" for name, value in (("insertion", insertion), ("drop", drop)) if value is None}
    curves = {} if insertion is None else {"insertion": (0.0, insertion, 1.0)}
    return Row(
        photo, method, 3, 4, {"insertion": insertion, "drop": drop, "size": 0.5}, more.pop("reasons", reasons), curves
    )


def small(**changes: Any) -> Result:
    """Two methods and a control on four photos; the second method has a flat map."""
    values = {"good": (0.9, 0.8, 0.7, 0.6), "poor": (0.5, 0.9, None, 0.2), "centre": (0.4, 0.3, 0.2, 0.1)}
    rows = [row(f"{place}.jpg", name, each) for name, found in values.items() for place, each in enumerate(found)]
    result = Result(
        columns=(INSERTION, DROP, SIZE),
        methods=("centre", "good", "poor"),
        controls=("centre",),
        rows=tuple(rows),
        failures=(Failure("broken.jpg", "cannot read broken.jpg: it is not a picture"),),
        record={"model": "a.onnx", "photos": ("0.jpg", "1.jpg"), "seed": np.int64(0)},
    )
    return replace(result, **changes)


# Intervals


@pytest.mark.parametrize("kind", ["uniform", "skewed", "hits"])
def test_the_interval_is_that_of_scipy(kind: str) -> None:
    generator = np.random.default_rng(5)
    uniform = generator.random(26)
    values = {"uniform": uniform, "skewed": uniform**6, "hits": uniform < 0.85}[kind].astype(np.float64)
    interval = mean_interval(values, resamples=100_000)
    judge = stats.bootstrap((values,), np.mean, n_resamples=100_000, method="BCa", rng=np.random.default_rng(1))
    assert interval.mean == pytest.approx(values.mean(), abs=1e-12)
    assert interval.count == 26
    # Two seeds of 100000 resamples differ by up to 0.4 % of the width, BCa without its bias by 2 % or more on skewed
    # values; means of hits come in steps of 1/26.
    width = judge.confidence_interval.high - judge.confidence_interval.low
    most = 0.01 * width + (1 / 26 if kind == "hits" else 0)
    assert interval.low == pytest.approx(judge.confidence_interval.low, abs=most)
    assert interval.high == pytest.approx(judge.confidence_interval.high, abs=most)


def test_the_interval_covers_the_true_mean_of_skewed_values() -> None:
    generator = np.random.default_rng(1)
    values = np.where(generator.random((1000, 26)) < 0.75, 0, generator.random((1000, 26)))
    intervals = mean_intervals(list(values), resamples=1000)
    covered = np.mean([each.low is not None and each.low <= 0.125 <= (each.high or 0) for each in intervals])
    assert covered == pytest.approx(0.95, abs=0.02)  # three standard errors of 1000 samples; percentile bounds: 0.91


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12), st.randoms())
@example([0.0, 1e-150], Random(0))  # whose cube is 0
@example([0.3, 0.3, 0.3 + 1e-16], Random(0))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_photos_changes_no_interval(values: list[float], random: Any) -> None:
    shuffled = random.sample(values, len(values))
    interval = mean_interval(values, resamples=200)
    assert mean_interval(shuffled, resamples=200) == interval
    assert interval.low is not None and interval.high is not None
    assert min(values) - 1e-6 <= interval.low <= interval.high <= max(values) + 1e-6


def test_intervals_of_few_photos_and_of_equal_values() -> None:
    assert mean_interval([]) == Interval(None, None, None, 0)
    assert mean_interval([0.25]) == Interval(0.25, None, None, 1)
    assert mean_interval([1.0, 1.0, 1.0]) == Interval(1.0, 1.0, 1.0, 3)
    assert mean_interval([0.1] * 7) == Interval(pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1), 7)


def test_a_narrower_level_and_another_seed() -> None:
    values = np.random.default_rng(0).random(30)
    wide, narrow, other = mean_interval(values), mean_interval(values, level=0.5), mean_interval(values, seed=1)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high  # type: ignore[operator]
    assert other != wide
    assert other.low == pytest.approx(wide.low, abs=0.005)


def test_samples_of_many_sizes_keep_their_places() -> None:
    samples = [[1.0, 2.0], [5.0], [], [3.0, 4.0, 8.0], [2.0, 4.0]]
    assert mean_intervals(samples) == [mean_interval(each) for each in samples]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": [0.1, float("nan")]}, "nan"),
        ({"values": [[0.1, 0.2]]}, "shape"),
        ({"values": [0.1, 0.2], "level": 95}, "level is 95"),
        ({"values": [0.1, 0.2], "resamples": 0}, "resamples is 0"),
    ],
)
def test_values_that_have_no_interval(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        mean_interval(**arguments)


def test_pairs_differ_photo_by_photo() -> None:
    generator = np.random.default_rng(2)
    easy = generator.random(26)  # photos differ far more than methods
    found = paired(easy + 0.02, easy)
    assert found.differences == pytest.approx([0.02] * 26)
    assert (found.above, found.below) == (26, 0)
    assert found.interval.low == pytest.approx(0.02) == found.interval.high
    swapped = paired([1.0, 0.0, 5.0], [0.0, 0.0, 7.0])
    assert (swapped.differences, swapped.above, swapped.below) == ((1.0, 0.0, -2.0), 1, 1)
    with pytest.raises(OptionError, match="3 and 2 values"):
        paired([1, 2, 3], [1, 2])


# The journal


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    rows = (row("ä.jpg", "good", 0.1 + 0.2, 1e-300), row("ä.jpg", "poor", None, None))
    with Journal(folder, HEADER) as journal:
        assert journal.done == {}
        journal.add("ä.jpg", rows)
        lines = (folder / "progress.jsonl").read_text(encoding="utf-8").splitlines()  # before it is closed
        assert len(lines) == 2
        journal.add("b\udcff\n.jpg", (row("b\udcff\n.jpg", "good", 1 / 3),))  # a file name need not be Unicode
    with Journal(folder, HEADER) as journal:
        assert journal.done == {"ä.jpg": rows, "b\udcff\n.jpg": (row("b\udcff\n.jpg", "good", 1 / 3),)}
        journal.add("c.jpg", (row("c.jpg", "good", 0.5),))
    with Journal(folder, dict(reversed(HEADER.items()))) as journal:
        assert list(journal.done) == ["ä.jpg", "b\udcff\n.jpg", "c.jpg"]


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_half_written_line_is_dropped(tmp_path: Path, cut: int) -> None:
    with Journal(tmp_path, HEADER) as journal:
        journal.add("a.jpg", (row("a.jpg", "good", 0.1),))
        journal.add("b.jpg", (row("b.jpg", "good", 0.2),))
    path = tmp_path / "progress.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(tmp_path, HEADER) as journal:
        assert list(journal.done) == ["a.jpg"]
        journal.add("c.jpg", (row("c.jpg", "good", 0.3),))
    with Journal(tmp_path, HEADER) as journal:
        assert list(journal.done) == ["a.jpg", "c.jpg"]


def test_a_half_written_header_is_written_again(tmp_path: Path) -> None:
    Journal(tmp_path, HEADER).close()
    path = tmp_path / "progress.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    Journal(tmp_path, HEADER).close()
    assert path.read_bytes() == whole


def test_a_damaged_line_is_not_skipped(tmp_path: Path) -> None:
    with Journal(tmp_path, HEADER) as journal:
        for name in ("a.jpg", "b.jpg"):
            journal.add(name, (row(name, "good", 0.1),))
    path = tmp_path / "progress.jsonl"
    path.write_text(path.read_text().replace('"photo": "a.jpg", "rows"', '"photo": "a.jpg", "ro'))
    with pytest.raises(OccupiedError, match=r"line 2 of its progress.jsonl is damaged; give another folder"):
        Journal(tmp_path, HEADER)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": {"name": "a.onnx", "sha256": "bb"}}, r'model\.sha256 = "aa"; expected "bb"'),
        ({"metrics": ["insertion", "energy"]}, r'metrics\[1\] = "drop"; expected "energy"'),
        ({"metrics": ["insertion"]}, r'metrics = \["insertion", "drop"\]; expected \["insertion"\]'),
        ({"budget": 32}, r"budget = no value; expected 32"),
        ({"seed": False}, r"seed = 0; expected false"),
    ],
)
def test_results_of_other_options_are_kept(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with Journal(tmp_path, HEADER) as journal:
        journal.add("a.jpg", (row("a.jpg", "good", 0.1),))
    small().save(tmp_path)
    with pytest.raises(OccupiedError, match=message + r"; give another folder, or overwrite=True") as caught:
        Journal(tmp_path, {**HEADER, **changed})
    assert "\n" not in str(caught.value)
    with Journal(tmp_path, HEADER) as journal:
        assert list(journal.done) == ["a.jpg"]
    with Journal(tmp_path, {**HEADER, **changed}, overwrite=True) as journal:
        assert journal.done == {}
    assert [path.name for path in tmp_path.iterdir()] == ["progress.jsonl"]


def test_an_option_that_is_gone_is_named(tmp_path: Path) -> None:
    Journal(tmp_path, HEADER).close()
    with pytest.raises(OccupiedError, match="with seed = 0; expected no value; give another folder"):
        Journal(tmp_path, {name: value for name, value in HEADER.items() if name != "seed"})


def test_long_values_are_shown_where_they_differ(tmp_path: Path) -> None:
    Journal(tmp_path, {"photos": "x" * 500 + "old" + "y" * 500}).close()
    with pytest.raises(OccupiedError, match=r"\.\.\.x+oldy+\.\.\.; expected \.\.\.x+newy+\.\.\.") as caught:
        Journal(tmp_path, {"photos": "x" * 500 + "new" + "y" * 500})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("name", "text"), [("notes.txt", "mine"), ("progress.jsonl", '{"epoch": 1}\n'), ("progress.jsonl", "my notes")]
)
def test_a_folder_with_other_files_is_never_touched(tmp_path: Path, name: str, text: str, overwrite: bool) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(OccupiedError, match="it holds other files; give an empty or new directory"):
        Journal(tmp_path, HEADER, overwrite)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text


def test_results_without_progress_are_kept(tmp_path: Path) -> None:
    small().save(tmp_path)
    with pytest.raises(OccupiedError, match=r"results without progress.jsonl; give another folder, or overwrite=True"):
        Journal(tmp_path, HEADER)
    assert Result.from_json(tmp_path / "results.json") == small()
    assert not (tmp_path / "progress.jsonl").exists()


def test_two_runs_never_write_one_folder(tmp_path: Path) -> None:
    program = f"""
        from pathlib import Path
        from ortcam.evaluation.journal import Journal
        try:
            Journal(Path({str(tmp_path)!r}), {{"seed": 0}}, overwrite=True)
        except Exception as error:
            print(type(error).__name__, error)
        else:
            import os
            os._exit(9)  # killed with the journal open
    """

    def other() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)

    with Journal(tmp_path, {"seed": 0}) as journal:
        journal.add("a.jpg", ())
        refused = other()
        assert refused.stdout.startswith("OccupiedError cannot write"), refused.stderr
        assert "another process evaluates there" in refused.stdout
    with Journal(tmp_path, {"seed": 0}) as journal:
        assert list(journal.done) == ["a.jpg"]
    assert other().returncode == 9
    Journal(tmp_path, {"seed": 0}).close()  # a killed process leaves no lock


def test_leftovers_of_a_killed_process_are_deleted(tmp_path: Path) -> None:
    (tmp_path / ".results.json.0123abcd").mkdir()
    (tmp_path / ".results.json.0123abcd" / "results.json").write_text("{")
    Journal(tmp_path, HEADER).close()
    assert [path.name for path in tmp_path.iterdir()] == ["progress.jsonl"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot write .*: .*file is a file; give the name of a folder"):
        Journal(tmp_path / "file" / "out", HEADER)
    with pytest.raises(OutputError, match="cannot write"):
        Journal(Path("/proc/nowhere/out"), HEADER)
    with pytest.raises(OptionError, match="the header holds"):
        Journal(tmp_path / "out", {"score": float("nan")})
    assert not (tmp_path / "out").exists()


def test_a_score_that_is_not_finite_has_no_value(tmp_path: Path) -> None:
    bad = replace(row("a.jpg", "good", 0.5), values={"insertion": float("nan"), "drop": float("inf"), "size": 0.5})
    bad = replace(bad, curves={"insertion": (0.0, float("nan"), 1.0)})
    with Journal(tmp_path, HEADER) as journal:
        journal.add("a.jpg", (bad,))
    (kept,) = Journal(tmp_path, HEADER).done["a.jpg"]
    assert kept.values == {"insertion": None, "drop": None, "size": 0.5}
    assert kept.reasons == {"insertion": "not a finite number", "drop": "not a finite number"}
    assert kept.curves == {}
    assert Result((INSERTION, DROP, SIZE), ("good",), (), (bad,), (), {}).rows == (kept,)


# The result


def test_a_summary_counts_what_has_no_value() -> None:
    summary = small().summary()
    assert summary["good"]["drop"].interval.count == 4
    poor = summary["poor"]["insertion"]
    assert poor.interval == mean_interval([0.5, 0.9, 0.2])
    assert (poor.maps, poor.undefined, poor.flat) == (4, {"flat map": 1}, 1)
    assert summary["centre"]["insertion"].flat == 0


def test_means_are_those_of_the_same_photos() -> None:
    """A flat map of one method leaves its photo out of the means of all; a method without any value leaves out none."""
    result = small()
    assert result.shared_photos("insertion") == {"0.jpg", "1.jpg", "3.jpg"}
    assert result.shared_photos("drop") == {f"{n}.jpg" for n in range(4)}
    summary = result.summary()
    for name, values in (("good", [0.9, 0.8, 0.6]), ("poor", [0.5, 0.9, 0.2]), ("centre", [0.4, 0.3, 0.1])):
        assert summary[name]["insertion"].interval == mean_interval(values)
    assert summary["good"]["insertion"].undefined == {}
    note = "insertion: the means are those of the 3 of 4 photos on which every method has a value"
    assert note in result.table(100)
    np.testing.assert_allclose(mean_curve(result, "good", "insertion")[0], [0, (0.9 + 0.8 + 0.6) / 3, 1])
    assert draw_curves(result).get_suptitle().startswith("line: mean over 3 photos")
    rows = [each for each in result.rows if each.method != "poor"]
    empty = small(rows=(*rows, *(row(f"{n}.jpg", "poor", None) for n in range(4))))
    assert empty.summary()["good"]["insertion"].interval == mean_interval([0.9, 0.8, 0.7, 0.6])
    assert "the means are those of" not in empty.table(100)
    apart = small(rows=(row("0.jpg", "good", 0.5), row("1.jpg", "good", None), row("1.jpg", "poor", 0.5)))
    assert apart.summary()["good"]["insertion"].interval == Interval(None, None, None, 0)
    assert "no means, because there is no photo on which every method has a value" in apart.table(100)
    draw_curves(apart)
    with pytest.raises(OptionError, match="column 'size2' is unknown"):
        result.shared_photos("size2")


def test_methods_are_compared_on_the_photos_of_both() -> None:
    found = small().compare("good", "poor")
    assert found["insertion"] == Comparison(mean_interval([0.9 - 0.5, 0.8 - 0.9, 0.6 - 0.2]), better=2, worse=1)
    assert found["drop"].better == found["drop"].worse == 0
    assert found["size"].better is None
    drops = small(
        rows=tuple(row(f"{n}.jpg", name, 0.1, n * k) for k, name in enumerate(("good", "poor")) for n in (1, 2))
    )
    assert drops.compare("good", "poor")["drop"] == Comparison(mean_interval([-1.0, -2.0]), better=2, worse=0)
    with pytest.raises(OptionError, match=r"method 'goood' is unknown; expected one of .*; nearest: good"):
        small().compare("goood", "poor")


@given(st.permutations(small().rows))
@settings(max_examples=10, deadline=None)
def test_the_order_of_the_photos_changes_no_result(rows: list[Row]) -> None:
    result = small(rows=tuple(rows))
    assert result.summary() == small().summary()
    assert result.compare("good", "poor") == small().compare("good", "poor")
    assert result.table(100) == small().table(100)


def test_the_table() -> None:
    lines = small().table(100).splitlines()
    assert lines[0].startswith("4 photos; mean over photos ± half the width of its 95 % bootstrap interval")
    names, directions, good, poor, centre = (line.split("  ") for line in lines[2:7])
    assert [name for name in map(str.strip, names) if name] == ["insertion", "drop", "size"]
    assert [text for text in map(str.strip, directions) if text] == ["high is good", "low is good"]
    assert good[0] == "good" and poor[0] == "poor" and centre[0] == "centre (control)"
    interval = small().summary()["good"]["insertion"].interval
    assert interval.low is not None and interval.high is not None
    assert f"0.767 ±{(interval.high - interval.low) / 2:.3f} *" in lines[4]
    assert "0.533" in lines[5] and "*" not in lines[5].split("0.000")[0]
    assert "*" not in lines[6]
    notes = "\n".join(lines[8:])
    assert "poor: no value in insertion for 1 of 4 maps: flat map" in notes
    assert "insertion: no method is clearly better than the control centre" in notes  # of four photos
    assert "drop: no method is clearly better than the control centre" in notes
    assert "1 photo could not be evaluated" in notes and "\n- cannot read broken.jpg: it is" in notes
    assert str(small()) == small().table()


@pytest.mark.parametrize("photos", [5, 6])
def test_a_method_that_does_not_beat_the_control_is_named(photos: int) -> None:
    values = {"good": 0.2, "poor": 0.0, "centre": 0.0}
    rows = [
        row(f"{n}.jpg", name, 0.1 * n + more + (n % 2) * 0.05 * (name == "poor") * (-1) ** (n // 2), -more)
        for name, more in values.items()
        for n in range(photos)
    ]
    table = small(rows=tuple(rows)).table(160)
    which = "no method is" if photos == 5 else "poor: not"
    assert f"\ninsertion: {which} clearly better than the control centre, photo by photo (95 %)\n" in table
    assert f"\ndrop: {which} clearly better than the control centre, photo by photo (95 %)\n" in table


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_table_goes_on_below(width: int) -> None:
    lines = small().table(width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("poor ") for line in lines) == 3 if width == 40 else True
    assert [name for line in lines for name in ("insertion", "drop", "size") if f"  {name}" in line] == [
        "insertion",
        "drop",
        "size",
    ]


def test_a_table_of_one_photo_has_no_intervals() -> None:
    rows = tuple(each for each in small().rows if each.photo == "0.jpg")
    table = small(rows=rows, failures=()).table(100)
    assert table.startswith("1 photo; one photo has no intervals")
    assert "±" not in table and "0.900 *" in table


def test_a_method_without_any_value() -> None:
    rows = tuple(row(f"{n}.jpg", "poor", None, None) for n in range(3))
    result = small(rows=rows, failures=())
    assert result.summary()["poor"]["insertion"].interval == Interval(None, None, None, 0)
    assert "poor: no value in insertion, drop for 3 of 3 maps: flat map" in result.table(100)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["summary"]["poor"]["drop"]["undefined"] == {
        "flat map": 3
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("good", "good")}, "method 'good' is there twice"),
        ({"controls": ("random",)}, "method 'random' is unknown; expected one of centre, good, poor"),
        ({"methods": ("centre", "good")}, "method 'poor' is unknown"),
        ({"rows": (row("a", "good", 1.0), row("a", "good", 0.5))}, "row 'good, a' is there twice"),
        (
            {"rows": (replace(row("a", "good", 1.0), curves={"insertion": (0.0, 1.0)}),)},
            "curve 'insertion' of good, a has 2 points; expected 3",
        ),
        ({"record": {"time": object()}}, "the record holds a value of the type object"),
    ],
)
def test_results_that_contradict_themselves(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        small(**changes)


numbers = st.none() | st.floats(allow_nan=True, allow_infinity=True, width=32)  # scores are float32


@given(st.lists(st.tuples(numbers, numbers), max_size=5), st.text(max_size=5))
@settings(max_examples=15, deadline=None)
def test_json_gives_the_same_result_back(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], text: str
) -> None:
    path = tmp_path_factory.mktemp("json") / "results.json"
    rows = tuple(
        replace(row(f"{text}{place}", "good", 0.5), values={"insertion": a, "drop": b, "size": 0.1})
        for place, (a, b) in enumerate(values)
    )
    result = small(rows=rows, record={"text": text})
    result.to_json(path)
    assert Result.from_json(path) == result
    assert "NaN" not in path.read_text().replace(json.dumps(text), "") and "Infinity" not in path.read_text()


def test_the_json_holds_all_that_a_reader_needs(tmp_path: Path) -> None:
    small().to_json(tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found == small().to_dict()
    assert (found["format"], found["photos"], found["methods"]) == (1, 4, ["centre", "good", "poor"])
    assert found["record"] == {"model": "a.onnx", "photos": ["0.jpg", "1.jpg"], "seed": 0}
    assert found["summary"]["poor"]["insertion"]["maps"] == 4
    pairs = {(each["first"], each["second"]): each["columns"] for each in found["comparisons"]}
    assert set(pairs) == {("centre", "good"), ("centre", "poor"), ("good", "poor")}
    assert pairs["good", "poor"]["insertion"]["better"] == 2
    assert found["rows"][1]["values"] == {"insertion": 0.8, "drop": 0.0, "size": 0.5}
    assert found["failures"][0]["photo"] == "broken.jpg"


def test_many_methods_are_compared_with_the_first_and_the_controls() -> None:
    methods = ("random", *(f"m{number}" for number in range(8)), "centre")
    result = small(methods=methods, controls=("random", "centre"), rows=())
    pairs = [(each["first"], each["second"]) for each in result.to_dict()["comparisons"]]
    assert len(pairs) == len(set(pairs)) == 7 + 8 * 2
    assert {("m3", "m0"), ("m3", "random"), ("m0", "centre")} <= set(pairs)


def test_files_that_are_not_a_result(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(OptionError, match="cannot read"):
        Result.from_json(path)
    for text in ("{", "[]", '{"format": 1}'):
        path.write_text(text)
        with pytest.raises(OptionError, match=r"is not the result of an evaluation; expected a results\.json"):
            Result.from_json(path)
    path.write_text('{"format": 2}')
    with pytest.raises(OptionError, match="has format 2; expected format 1"):
        Result.from_json(path)


def test_the_csv_has_a_line_for_each_map(tmp_path: Path) -> None:
    small().to_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 12
    assert float(lines[1]["insertion"]) == 0.8
    assert lines[6] == {
        "photo": "2.jpg",
        "method": "poor",
        "control": "no",
        "explained": "3",
        "scored": "4",
        "insertion": "",
        "drop": "0.0",
        "size": "0.5",
        "reason": "insertion: flat map",
    }
    assert lines[8]["control"] == "yes"


def test_save_writes_three_files_beside_the_journal(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with Journal(folder, HEADER) as journal:
        journal.add("0.jpg", ())
        assert small().save(folder) is None
        names = ["curves.png", "per-photo.csv", "progress.jsonl", "results.json"]
        assert sorted(path.name for path in folder.iterdir()) == names
        assert small().save(folder) is None  # again
    assert Result.from_json(folder / "results.json") == small()
    with Image.open(folder / "curves.png") as picture:
        assert picture.format == "PNG"
    no_curves = small(rows=tuple(replace(each, curves={}) for each in small().rows))
    assert no_curves.save(folder) is None
    assert not (folder / "curves.png").exists()  # it showed other values
    with Journal(folder, HEADER) as journal:
        assert list(journal.done) == ["0.jpg"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="file is a file, not a directory"):
        small().save(tmp_path / "file")


def test_without_matplotlib_the_picture_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    note = small().save(tmp_path)
    assert note == "curves.png is left out: curves need matplotlib: pip install 'ortcam[evaluation]'"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["per-photo.csv", "results.json"]
    with pytest.raises(OptionError, match=r"pip install 'ortcam\[evaluation\]'"):
        small().plot()


# Curves


def test_the_curves_of_the_picture(tmp_path: Path) -> None:
    mean, low, high = mean_curve(small(), "poor", "insertion")
    assert mean == pytest.approx([0, (0.5 + 0.9 + 0.2) / 3, 1])
    assert low[1] < mean[1] < high[1]
    figure = draw_curves(small())
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("pixels shown", "probability of the class")
    assert axes.get_legend().get_texts()[0].get_text().startswith("0.767 ±")
    styles = [line.get_linestyle() for line in axes.get_lines()]
    assert styles == ["--", "-", "-"]  # the control, and below the methods
    for name in ("a.png", "a.svg", "a.pdf"):
        small().plot(tmp_path / name)
    assert (tmp_path / "a.pdf").read_bytes()[:4] == b"%PDF"
    with pytest.raises(OptionError, match=r"expected a name that ends in \.png, \.svg, \.pdf"):
        small().plot(tmp_path / "a.gif")


def test_curves_of_one_photo_and_of_none() -> None:
    rows = tuple(each for each in small().rows if each.photo == "0.jpg")
    mean, low, _ = mean_curve(small(rows=rows), "good", "insertion")
    assert mean[1] == 0.9 and np.isnan(low).all()
    assert draw_curves(small(rows=rows)).get_suptitle() == "one photo: 0.jpg"
    with pytest.raises(OptionError, match="add insertion or deletion"):
        small(rows=()).plot()


def test_the_result_needs_no_extra() -> None:
    program = (
        "import sys, ortcam.evaluation.result, ortcam.evaluation.journal, ortcam.evaluation.plots;"
        "print({'matplotlib', 'scipy', 'skimage', 'torch', 'onnxruntime'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
