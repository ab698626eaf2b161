"""A packed method of one pass where there is no ortcam: each runtime's map against the engine's."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import correlation, package_folder
from test_runtimes import HEADERS, HERE, RUNTIMES, Quiet, browser, need, photo, run_script

import ortcam
from ortcam.deploy.page import write_page
from ortcam.explain.explainer import ModelExplainer
from ortcam.methods import make_method

__all__ = ["browser", "photo"]  # fixtures
pytestmark = pytest.mark.slow
METHODS = ["cam", "recipro-cam", "ablation-cam", "eigen-cam"]
TARGET = 285


@pytest.fixture(scope="module", params=METHODS)
def packed(request: pytest.FixtureRequest, lite0_file: Path, photo: np.ndarray, models: Path) -> Any:
    """The file, and the engine's explanation."""
    path = ortcam.pack(lite0_file, models / f"{request.param}.onnx", method=request.param, verify=False).path
    engine = ModelExplainer(lite0_file, make_method(request.param), "cpu")
    return path, engine.explain(photo, targets=TARGET)


@pytest.mark.parametrize("kind", ["node", "web"])
def test_javascript(kind: str, packed: Any, photo: np.ndarray, tmp_path: Path) -> None:
    """onnxruntime-node, and onnxruntime-web's wasm with one thread."""
    need((RUNTIMES / "node_modules" / f"onnxruntime-{kind}").is_dir(), f"onnxruntime-{kind}")
    path, expected = packed
    result = run_script(["node", RUNTIMES / "explain.mjs", kind], path, photo, TARGET, tmp_path)
    assert (result["target"], result["scored"]) == (TARGET, expected.scored)
    assert result["error"] == [None] * 3  # JSON has no NaN
    assert correlation(result["map"], expected.maps[0]) >= 0.9999


def test_c_plus_plus(packed: Any, photo: np.ndarray, tmp_path: Path) -> None:
    """The example of the docs, with the library in onnxruntime's wheel; its map has 256 levels."""
    need((HEADERS / "onnxruntime_cxx_api.h").is_file() and shutil.which("g++") is not None, "headers or g++")
    path, expected = packed
    (library,) = (package_folder("onnxruntime") / "capi").glob("libonnxruntime.so.1.*")
    (tmp_path / "lib").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / "lib" / name).symlink_to(library)
    source, program = HERE.parent / "docs" / "examples" / "explain.cpp", tmp_path / "explain"
    where = ["-I", HEADERS, "-L", tmp_path / "lib", "-lonnxruntime", f"-Wl,-rpath,{tmp_path / 'lib'}"]
    subprocess.run(["g++", "-std=c++17", source, *where, "-o", program], check=True)
    height, width = photo.shape[:2]
    (tmp_path / "photo.ppm").write_bytes(f"P6\n{width} {height}\n255\n".encode() + photo.tobytes())
    command = [program, path, tmp_path / "photo.ppm", tmp_path / "map.pgm", str(TARGET)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"class {TARGET}, score ")
    levels = np.frombuffer((tmp_path / "map.pgm").read_bytes()[-height * width :], np.uint8)
    assert correlation(levels, expected.maps[0]) >= 0.9999


def test_openvino(packed: Any, photo: np.ndarray) -> None:
    openvino = pytest.importorskip("openvino")
    path, expected = packed
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    made = compiled([photo, np.array([TARGET], np.int64)])
    assert made[3].tolist() == [expected.scored]
    assert correlation(made[2][0], expected.maps[0]) >= 0.9999


def test_the_page(packed: Any, browser: Any, photos: dict[str, Path], tmp_path: Path) -> None:
    """The page draws the engine's map, and says what was run instead of an error."""
    path, expected = packed
    runtime = RUNTIMES / "node_modules" / "onnxruntime-web"
    need(runtime.is_dir(), "onnxruntime-web")
    write_page(path, tmp_path / "site", [photos["chelsea"]], runtime)
    handler = functools.partial(Quiet, directory=tmp_path / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        page.set_input_files("#file", photos["chelsea"])
        page.wait_for_selector("#classes button[aria-pressed=true]", timeout=60_000)
        page.click("#classes button:has-text('Egyptian cat')")
        page.wait_for_function(f"shown === {TARGET}", timeout=60_000)
        ran = f"its last layers {expected.scored} times more." if expected.scored else "the model ran once."
        assert page.inner_text("#cost").endswith(ran)
        assert page.inner_text("#error") == ""
        assert f"Method {path.stem}" in page.inner_text("body")
        drawn = np.array(page.evaluate("Array.from(photo.maps.get(shown).map)"), np.float32)
        assert correlation(drawn, expected.maps[0]) >= 0.9999
        page.close()
        server.shutdown()
