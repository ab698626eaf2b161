"""docs/clients.md and docs/serving.md: their examples run, and their tables say what the server does."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from serving import Server, serving
from test_report import write_classifier
from test_runtimes import need

import ortcam
from ortcam.cli.app import app
from ortcam.serving.limits import ServingLimits
from ortcam.serving.metrics import Metrics
from ortcam.serving.questions import OUTPUTS
from ortcam.serving.refusal import Kind
from ortcam.serving.service import Service

DOCS = Path(__file__).parent.parent / "docs"
CLIENTS = (DOCS / "clients.md").read_text(encoding="utf-8")
SERVING = (DOCS / "serving.md").read_text(encoding="utf-8")
KSERVE = """
import importlib.util, sys, types
package = types.ModuleType("kserve")  # its client alone: the whole SDK needs 30 packages more
package.__path__ = list(importlib.util.find_spec("kserve").submodule_search_locations)
sys.modules["kserve"] = package
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, Path]) -> Path:
    """A folder with a model and two photos."""
    made = tmp_path_factory.mktemp("folder")
    write_classifier(made / "model.onnx")
    for name, photo in (("photo.jpg", "chelsea"), ("other.jpg", "rocket")):
        cv2.imwrite(str(made / name), cv2.resize(cv2.imread(str(photos[photo])), (90, 60)))
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(f"cats={folder / 'model.onnx'}") as one:
        yield one


@pytest.fixture(scope="module")
def cam(folder: Path) -> ortcam.ScoreCAM:
    return ortcam.ScoreCAM(folder / "model.onnx")


def blocks(language: str, server: Server, title: str = "") -> list[str]:
    """Return the blocks of docs/clients.md in a language, with the addresses of a server."""
    fence = rf'```{language} title="{title}[^"]*"' if title else rf"```{language}"
    found = re.findall(rf"^{fence}\n(.*?)^```", CLIENTS, re.MULTILINE | re.DOTALL)
    assert found
    addresses = {"localhost:8080": server.rest.removeprefix("http://"), "localhost:8081": server.rpc}
    return [re.sub("localhost:808[01]", lambda one: addresses[one[0]], block) for block in found]


def run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    known: dict[str, Any] = {}
    monkeypatch.chdir(folder)
    exec(code, known)
    return known


@pytest.mark.slow
def test_rest(server: Server, folder: Path, cam: ortcam.ScoreCAM, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("python", server, "over REST")
    known, ours = run(code, folder, monkeypatch), cam.explain(folder / "photo.jpg", top_k=3, budget=32)
    assert known["classes"].tolist() == [one.index for one in ours.targets]
    assert np.array_equal(known["maps"], ours.input_maps)
    (code,) = blocks("python", server, "a prediction")
    assert run(code, folder, monkeypatch)["photo_of_row"].tolist() == [0, 0, 1, 1]


@pytest.mark.slow
def test_grpc(server: Server, folder: Path, cam: ortcam.ScoreCAM, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("python", server, "over gRPC")
    known, ours = run(code, folder, monkeypatch), cam.explain(folder / "photo.jpg", targets=[2, 0])
    assert np.array_equal(known["maps"], [ours.map_at(0), ours.map_at(1)])
    drawn = cv2.cvtColor(cv2.imread(str(folder / "overlay.png")), cv2.COLOR_BGR2RGB)
    assert np.array_equal(drawn, ours.overlay_at(0))


@pytest.mark.slow
def test_httpx(server: Server, folder: Path, cam: ortcam.ScoreCAM, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("python", server, "with httpx")
    known, ours = run(code, folder, monkeypatch), cam.explain(folder / "photo.jpg", top_k=3, budget=32)
    assert known["best"]["label"] == ours.targets[0].label
    with pytest.raises(RuntimeError, match="budget is 0; expected a whole number"):
        known["explain"]((folder / "photo.jpg").read_bytes(), budget=0)


@pytest.mark.slow
def test_curl(server: Server, folder: Path) -> None:
    for block in blocks("bash", server):
        for line in block.splitlines():
            done = subprocess.run(["bash", "-c", line.replace("curl", "curl -sSf", 1)], cwd=folder, timeout=30,
                                  capture_output=True, text=True)  # fmt: skip
            assert done.returncode == 0, done.stderr
            if "-o overlay.png" in line:
                assert cv2.imread(str(folder / "overlay.png")) is not None
            else:
                assert json.loads(done.stdout)


@pytest.mark.slow
def test_javascript(server: Server, folder: Path, cam: ortcam.ScoreCAM) -> None:
    need(shutil.which("node") is not None, "node")
    (code,) = blocks("javascript", server)
    call = f"""
        const photo = new Blob([require("fs").readFileSync("photo.jpg")]);
        explain("{server.rest}", "cats", photo).then((found) => console.log(JSON.stringify(found)));
    """
    done = subprocess.run(["node", "-e", code + call], cwd=folder, timeout=30, capture_output=True, text=True)
    ours = cam.explain(folder / "photo.jpg", top_k=3, budget=32)
    assert [one["name"] for one in json.loads(done.stdout)] == [one.label for one in ours.targets], done.stderr
    assert json.loads(done.stdout)[0]["picture"].startswith("data:image/png;base64,iVBOR")


@pytest.mark.slow
@pytest.mark.parametrize("title", ["first protocol", "second protocol"])
def test_kserve(title: str, server: Server, folder: Path, cam: ortcam.ScoreCAM) -> None:
    need(importlib.util.find_spec("kserve") is not None, "kserve")
    (code,) = blocks("python", server, title)
    last = "print(__import__('json').dumps({name: globals()[name] for name in ('maps',) if name in globals()} or "
    last += "{'maps': saliency.tolist()}))"
    done = subprocess.run([sys.executable, "-c", KSERVE + code + last], cwd=folder, timeout=60,
                          capture_output=True, text=True)  # fmt: skip
    targets = [2, 0] if title == "first protocol" else None
    ours = cam.explain(folder / "photo.jpg", targets=targets, budget=32)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.array(json.loads(done.stdout)["maps"], np.float32), ours.input_maps)


def test_the_tables_of_clients() -> None:
    rows = {(int(one[0]), one[1]) for one in re.findall(r"^\| (\d{3}) \| ([A-Z_]+) \|", CLIENTS, re.MULTILINE)}
    assert rows == {(kind.http, kind.grpc) for kind in Kind if kind != Kind.GONE}
    assert re.findall(r"^\| `(\w+)` \| (?:INT64|FP32|BYTES) \[[RN]", CLIENTS, re.MULTILINE)[-len(OUTPUTS) :] == list(
        OUTPUTS
    )


def test_the_tables_of_operators() -> None:
    """The metrics and the limits are those of the server."""
    text = Metrics(Service(lambda path: pytest.fail("nothing is loaded"))).text().decode()
    names = {one for one in re.findall(r"^# TYPE (ortcam_\w+)", text, re.MULTILINE) if not one.endswith("_created")}
    assert set(re.findall(r"^\| `(ortcam_\w+)`", SERVING, re.MULTILINE)) == names
    (outcomes,) = re.findall(r"requests by outcome: (.*) \|", SERVING)
    assert sorted(re.findall(r"`(\w+)`", outcomes)) == sorted(["ok", *(kind.name.lower() for kind in Kind)])
    defaults = ServingLimits()
    said = dict(re.findall(r"^\| `(--[a-z-]+)` \| ([\d.]+)", SERVING, re.MULTILINE))
    assert {name: float(value) for name, value in said.items()} == {
        "--queue": defaults.queue, "--timeout": defaults.timeout, "--max-body": defaults.body / 1e6,
        "--max-pixels": defaults.pixels / 1e6, "--max-images": defaults.images, "--max-targets": defaults.targets,
        "--max-output": defaults.output / 1e6, "--max-connections": defaults.connections, "--drain": 0,
    }  # fmt: skip


def test_every_option_exists() -> None:
    """The manifest and the commands of docs/serving.md use options of `ortcam serve`."""
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", SERVING))
    assert len(used) > 15
    assert used - known == {"--data-binary", "--triton", "--workers"}  # of curl, of ortcam pack, of uvicorn
