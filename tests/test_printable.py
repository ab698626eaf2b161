"""Names of files that hold control characters: shown as escapes, and true in records."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import Tiny
from PIL import Image

import ortcam
from ortcam.errors import ImageError, OrtcamWarning, one_line, printable
from ortcam.exporters import export

ORTCAM = Path(sys.executable).with_name("ortcam")
# ESC with a command that clears the screen, an end of line, C1's CSI, a tab, and a mark that turns the direction.
NAME = "a\x1b[2J\nerror: b\x9b\t\u202egnp"
SHOWN = r"a\x1b[2J\nerror: b\x9b\t\u202egnp"
RAW = "\x1b[2J", "\x9b", "\u202e"


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    return export(Tiny().eval(), models / "tiny-printable.onnx", preprocess="raw", input_size=32).path


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """A model, a photo and a file that is none, each with such a name."""
    (tmp_path / f"{NAME}.onnx").write_bytes(model.read_bytes())
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / f"{NAME}.png")
    (tmp_path / f"{NAME} bad.png").write_bytes(b"no picture")
    return tmp_path


def test_escapes() -> None:
    assert printable(NAME) == SHOWN
    for text in ("ä 日本 😀 e\u0301 \u200d", r"a\x1b", "\udc80"):  # letters, marks, joiners; bytes that are no text
        assert printable(text) == text
    assert one_line(ValueError(f"x  {NAME}")) == r"x a\x1b[2J error: b\x9b \u202egnp"  # ends of lines become spaces


def test_errors_and_warnings_are_one_line(folder: Path) -> None:
    with pytest.raises(ImageError) as caught:
        ortcam.ScoreCAM(folder / f"{NAME}.onnx").explain(folder / f"{NAME} bad.png")
    assert f"{SHOWN} bad.png" in str(caught.value)
    assert printable(str(caught.value)) == str(caught.value)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.warn(f"the map of {NAME}", OrtcamWarning, stacklevel=1)
    assert [str(one.message) for one in told] == [f"the map of {SHOWN}"]


def test_json_and_records_hold_the_true_name(folder: Path) -> None:
    names = [f"{NAME}.onnx", f"{NAME}.png", f"{NAME} bad.png"]
    done = subprocess.run(
        [ORTCAM, "explain", *names, "-o", "out", "--json"], cwd=folder, capture_output=True, check=False
    )
    assert done.returncode == 1
    out, err = done.stdout.decode(), done.stderr.decode()
    for raw in (*RAW, "\t"):
        assert raw not in out
        assert raw not in err
    told = json.loads(out)
    assert told["explanations"][0]["source"] == f"{NAME}.png"
    assert told["errors"][0]["source"] == f"{NAME} bad.png"
    (record,) = folder.glob("out/*/explanation.json")
    assert json.loads(record.read_text(encoding="utf-8"))["source"] == f"{NAME}.png"
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert line.count(SHOWN) == 1


def test_a_terminal_is_shown_escapes(folder: Path) -> None:
    """In the progress bar, the table, notes and errors."""
    ours, theirs = pty.openpty()
    # A name in brackets is no markup of the progress bar.
    (folder / f"[b]{NAME}.png").write_bytes((folder / f"{NAME}.png").read_bytes())
    command = [ORTCAM, "explain", f"{NAME}.onnx", f"[b]{NAME}.png", f"{NAME} bad.png", "-o", f"{NAME}-out"]
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    process = subprocess.Popen(command, cwd=folder, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # Linux's end of a terminal
        pass
    os.close(ours)
    assert process.wait() == 1
    text = shown.decode()
    for raw in RAW:
        assert raw not in text
    assert text.count(f"[b]{SHOWN}.png") > 1  # in the progress bar and in the table
    for part in (f"written to {SHOWN}-out", f"{SHOWN} bad.png"):
        assert part in text
    assert "Traceback" not in text
