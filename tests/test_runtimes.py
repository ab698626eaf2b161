"""A packed explainer where there is no ortcam: each runtime's map against the engine's, r >= 0.999."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import correlation, package_folder

import ortcam
from ortcam.deploy.page import RUNTIME_VERSION, write_page
from ortcam.errors import ImageError, ModelError, OptionError, OutputError
from ortcam.model.image import read_photo

HERE = Path(__file__).parent
RUNTIMES = HERE / "runtimes"
HEADERS = HERE.parent / "build" / "headers"
BUDGET = 16


def need(there: bool, what: str) -> None:
    """Skip a test whose runtime cannot be had on this machine; CI has them all."""
    if not there:
        assert not os.environ.get("CI"), f"{what} is missing: make .venv/runtimes"
        pytest.skip(f"{what} is missing")


@pytest.fixture(scope="module")
def explainer(lite0_file: Path, models: Path) -> Path:
    return ortcam.pack(lite0_file, models / "lite0.explainer.onnx", budget=BUDGET, verify=False).path


@pytest.fixture(scope="module")
def photo(photos: dict[str, Path]) -> np.ndarray:
    return read_photo(photos["chelsea"])


@pytest.fixture(scope="module")
def expected(lite0_file: Path, photo: np.ndarray) -> list[ortcam.Explanation]:
    """The engine's, of two classes, each alone: with a budget, what is asked for decides which masks are run."""
    cam = ortcam.ScoreCAM(lite0_file, provider="cpu")
    return [cam.explain(photo, targets=target, budget=BUDGET) for target in (282, 285)]


def run_script(
    command: list[Any], explainer: Path, photo: np.ndarray, target: int | str, folder: Path
) -> dict[str, Any]:
    """Run `command EXPLAINER PIXELS HEIGHT WIDTH TARGET MAP`; return what it printed, and the map."""
    (folder / "pixels").write_bytes(photo.tobytes())
    arguments = [explainer, folder / "pixels", *photo.shape[:2], target, folder / "map"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in [*command, *arguments]], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    result["map"] = np.fromfile(folder / "map", np.float32).reshape(photo.shape[:2])
    return result


def assert_same(result: dict[str, Any], expected: ortcam.Explanation) -> None:
    assert result["target"] == expected.targets[0].index
    assert result["scored"] == expected.scored
    assert result["scores"][result["target"]] == pytest.approx(expected.targets[0].logit, abs=1e-2)
    assert correlation(result["map"], expected.maps[0]) >= 0.999
    # Runtimes round differently, and the estimate is a difference of sums of a thousand products.
    assert result["error"] == pytest.approx(list(vars(expected.errors[0]).values()), rel=0.01)


@pytest.mark.parametrize("version", [pytest.param("1.21.0", marks=pytest.mark.slow), onnxruntime.__version__])
def test_python_with_onnxruntime_and_numpy_alone(
    version: str, explainer: Path, photo: np.ndarray, expected: list[ortcam.Explanation], tmp_path: Path
) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    wanted = f"onnxruntime=={version}"
    subprocess.run([python, "-m", "pip", "install", "-q", wanted, "numpy"], check=True, capture_output=True)
    assert subprocess.run([python, "-c", "import ortcam"], capture_output=True, check=False, cwd=tmp_path).returncode
    for row, target in enumerate((-1, 285)):
        result = run_script([python, RUNTIMES / "explain.py"], explainer, photo, target, tmp_path)
        assert_same(result, expected[row])


@pytest.mark.parametrize("kind", ["node", "web"])
def test_javascript(
    kind: str, explainer: Path, photo: np.ndarray, expected: list[ortcam.Explanation], tmp_path: Path
) -> None:
    """onnxruntime-node, and onnxruntime-web's wasm with one thread."""
    need((RUNTIMES / "node_modules" / f"onnxruntime-{kind}").is_dir(), f"onnxruntime-{kind}")
    for row, target in enumerate((-1, 285)):
        result = run_script(["node", RUNTIMES / "explain.mjs", kind], explainer, photo, target, tmp_path)
        assert_same(result, expected[row])


def test_c_plus_plus(explainer: Path, photo: np.ndarray, expected: list[ortcam.Explanation], tmp_path: Path) -> None:
    """The example of the docs, compiled against Debian's headers and the library in onnxruntime's wheel."""
    need((HEADERS / "onnxruntime_cxx_api.h").is_file() and shutil.which("g++") is not None, "headers or g++")
    (library,) = (package_folder("onnxruntime") / "capi").glob("libonnxruntime.so.1.*")
    (tmp_path / "lib").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / "lib" / name).symlink_to(library)
    source, program = HERE.parent / "docs" / "examples" / "explain.cpp", tmp_path / "explain"
    where = ["-I", HEADERS, "-L", tmp_path / "lib", "-lonnxruntime", f"-Wl,-rpath,{tmp_path / 'lib'}"]
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Werror", source, *where, "-o", program], check=True)
    height, width = photo.shape[:2]
    (tmp_path / "photo.ppm").write_bytes(f"P6\n{width} {height}\n255\n".encode() + photo.tobytes())
    for row, target in enumerate(([], ["285"])):
        command = [program, explainer, tmp_path / "photo.ppm", tmp_path / "map.pgm", *target]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"class {expected[row].targets[0].index}, score ")
        assert f"masked images {BUDGET}, error " in done.stdout
        stated = [float(number) for number in re.findall(r"error (\S+) \((\S+) to (\S+)\)", done.stdout)[0]]
        assert stated == pytest.approx(list(vars(expected[row].errors[0]).values()), rel=0.01)
        levels = np.frombuffer((tmp_path / "map.pgm").read_bytes()[-height * width :], np.uint8)
        assert correlation(levels, expected[row].maps[0]) >= 0.999
    for arguments, message in [
        ([explainer, tmp_path / "photo.ppm", tmp_path / "map.pgm", "1000"], "target is out of range"),
        ([explainer, tmp_path / "map.pgm", tmp_path / "map.pgm"], "error: photo is no 8-bit PPM"),
        ([], "error: usage"),
    ]:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert message in done.stderr


def test_openvino(explainer: Path, photo: np.ndarray, expected: list[ortcam.Explanation]) -> None:
    """In float32; bfloat16 is its own choice where the processor has it."""
    openvino = pytest.importorskip("openvino") if not os.environ.get("CI") else __import__("openvino")
    core = openvino.Core()
    model = core.read_model(explainer)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for row, target in enumerate((-1, 285)):
        made = compiled([photo, np.array([target], np.int64)])
        scores, chosen, saliency, scored, error = (made[place] for place in range(5))
        result = {"target": chosen[0], "scored": scored[0], "scores": scores, "map": saliency[0], "error": error[0]}
        assert_same(result, expected[row])
    made = compiled([photo, np.array([285, 1000])])  # it checks no index
    assert made[1].tolist() == [285, 1000]
    assert made[2][0].max() > 0.9
    np.testing.assert_array_equal(made[2][1], 0)


# --- The page ---


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(explainer: Path, photos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page, served as any static files are; yields its address."""
    runtime = RUNTIMES / "node_modules" / "onnxruntime-web"
    need(runtime.is_dir(), "onnxruntime-web")
    folder = tmp_path_factory.mktemp("page") / "site"
    write_page(explainer, folder, [photos["chelsea"], photos["coffee"]], runtime, title="What does it <see>?")
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    need(chromium is not None, "chromium")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield started
        started.close()


def test_the_page_explains_a_photo(
    site: str, browser: Any, expected: list[ortcam.Explanation], photos: dict[str, Path]
) -> None:
    """A photo is chosen, its top class drawn; another class is clicked, and its map is the engine's."""
    page = browser.new_page()
    faults: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(site)
    assert page.inner_text("h1") == "What does it <see>?"
    page.wait_for_function("document.getElementById('status').textContent === 'Ready.'", timeout=60_000)
    page.set_input_files("#file", photos["chelsea"])
    page.wait_for_selector("#classes button[aria-pressed=true]", timeout=60_000)
    names = page.locator("#classes button span:first-child").all_inner_texts()
    assert len(names) == 5
    assert names[:2] == ["tiger cat", "Egyptian cat"]
    shares = [float(text.split()[0]) for text in page.locator("#classes button span:last-child").all_inner_texts()]
    assert shares[0] == pytest.approx(100 * expected[0].targets[0].probability, abs=0.1)
    for row, name in enumerate(names[:2]):
        page.click(f"#classes button:has-text('{name}')")
        page.wait_for_function(f"shown === {expected[row].targets[0].index}", timeout=60_000)
        assert page.inner_text("#status") == f"Where the model sees {name}."
        assert f"{BUDGET} masked images" in page.inner_text("#cost")
        error = expected[row].errors[0]
        assert error is not None
        told = [float(number) / 100 for number in re.findall(r"\d+\.\d", page.inner_text("#error"))]
        assert told == pytest.approx([1 - error.expected, 1 - error.high, 1 - error.low], abs=6e-4)  # 0.1 % is told
        drawn = np.array(page.evaluate("Array.from(photo.maps.get(shown).map)"), np.float32)
        assert correlation(drawn, expected[row].maps[0]) >= 0.999
    assert faults == []
    assert all(url.startswith((site, "blob:", "data:")) for url in requests), "everything comes with the page"
    page.close()


@pytest.mark.slow
def test_the_page_without_a_mouse(site: str, browser: Any) -> None:
    """An example, a class and the slider by the keyboard; the picture changes with the opacity."""
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.goto(site)
    page.focus("#file")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.firstElementChild.alt") == "Example 1"
    page.keyboard.press("Enter")
    page.wait_for_selector("#classes button[aria-pressed=true]", timeout=60_000)
    picture = "document.getElementById('picture').toDataURL()"
    before = page.evaluate(picture)
    page.focus("#opacity")
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert page.input_value("#opacity") == "50"
    assert page.evaluate(picture) != before
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_selector("#classes li:nth-child(2) button[aria-pressed=true]", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a phone need not scroll sideways"
    page.close()


@pytest.mark.slow
def test_the_page_says_what_is_wrong(site: str, browser: Any) -> None:
    page = browser.new_page()
    page.goto(site)
    for name, data in [("notes.txt", b"hello"), ("cut.png", b"\x89PNG\r\n\x1a\n" + bytes(40)), ("empty.jpg", b"")]:
        page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})
        page.wait_for_selector(f"#fault:has-text('“{name}” cannot be opened as an image')")
    page.set_input_files("#file", package_folder("skimage") / "data" / "coffee.png")
    page.wait_for_selector("#classes button[aria-pressed=true]", timeout=60_000)
    assert page.is_hidden("#fault")
    # A file that is no image, while a photo is being explained: the photo is explained all the same.
    page.evaluate("shown = null")
    page.click("#examples button:nth-child(1)")
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    page.wait_for_selector("#fault:has-text('notes.txt')")
    page.wait_for_function("shown === 282", timeout=60_000)
    # Two photos, one right after the other: the later one stays, with its own classes.
    page.evaluate("document.querySelectorAll('#examples button').forEach((button) => button.click())")
    page.wait_for_function("photo.name === 'example 2' && shown === 967", timeout=60_000)
    assert page.locator("#classes button").first.inner_text().startswith("espresso")
    page.close()
    broken = browser.new_page()
    broken.route("**/explainer.onnx", lambda route: route.fulfill(status=404, body="gone"))
    broken.goto(site)
    broken.wait_for_selector("#fault:has-text('explainer.onnx cannot be read (404)')")
    broken.close()


def test_a_page_that_cannot_be_written(explainer: Path, resnet18_file: Path, tmp_path: Path) -> None:
    runtime = RUNTIMES / "node_modules" / "onnxruntime-web"
    need(runtime.is_dir(), "onnxruntime-web")
    with pytest.raises(
        OptionError, match="expected the npm package onnxruntime-web, its folder or .tgz".replace(".", r"\.")
    ):
        write_page(explainer, tmp_path / "site", runtime=tmp_path)
    with pytest.raises(ModelError, match="is not a packed explainer"):
        write_page(resnet18_file, tmp_path / "site", runtime=runtime)
    with pytest.raises(ImageError, match="no such file"):
        write_page(explainer, tmp_path / "site", ["nothing.jpg"], runtime)
    tensors = ortcam.pack(resnet18_file, tmp_path / "tensors.onnx", raw=False, budget=2, verify=False).path
    with pytest.raises(OptionError, match="takes preprocessed tensors; expected an explainer"):
        write_page(tensors, tmp_path / "site", runtime=runtime)
    assert not (tmp_path / "site").exists()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="it holds other files"):
        write_page(explainer, tmp_path / "site", runtime=runtime)


@pytest.mark.slow
def test_the_runtime_comes_from_npm_and_is_kept(
    resnet18_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ortcam page` fetches onnxruntime-web once; the next page needs no npm."""
    need(shutil.which("npm") is not None, "npm")
    monkeypatch.setenv("ORTCAM_CACHE", str(tmp_path / "cache"))
    packed = ortcam.pack(resnet18_file, tmp_path / "a.onnx", budget=2, target=3, verify=False).path
    write_page(packed, tmp_path / "one")
    assert (tmp_path / "cache" / f"onnxruntime-web-{RUNTIME_VERSION}.tgz").is_file()
    monkeypatch.setenv("PATH", str(tmp_path))
    write_page(packed, tmp_path / "two")
    sizes = [
        {path.name: path.stat().st_size for path in folder.iterdir()}
        for folder in map(tmp_path.joinpath, ("one", "two"))
    ]
    assert sizes[0] == sizes[1]
    session = onnxruntime.InferenceSession(tmp_path / "two" / "explainer.onnx")
    assert [value.name for value in session.get_inputs()] == ["image", "target"], "JavaScript must be able to give it"
    monkeypatch.setenv("ORTCAM_CACHE", "")
    with pytest.raises(OptionError, match=r"npm, which fetches the runtime, cannot be run .* give the npm package"):
        write_page(packed, tmp_path / "three")
    assert not (tmp_path / "three").exists()
