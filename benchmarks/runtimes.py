"""Packed explainers in every runtime: seconds a map and agreement with the engine; Score-CAM and one-pass methods.

    python benchmarks/runtimes.py                             ten minutes on two cores, after `make .venv/runtimes`
    python benchmarks/runtimes.py --runs 16 cam recipro-cam   one minute

EfficientNet-Lite0 with its ImageNet weights, chelsea.png (451x300), the photo as bytes; what is timed is one run of
the file, resizing included, in a session that is open: the median, and the range where a runtime took several turns.
Runtimes take all their turns one after the other. wasm runs with one thread.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from explain import describe_machine

import ortcam
from ortcam.cli.demo import find_photos, load_efficientnet_lite0
from ortcam.deploy.page import write_page
from ortcam.exporters import export
from ortcam.model.image import read_photo

ROOT = Path(__file__).parents[1]
RUNTIMES = ROOT / "tests" / "runtimes"
RESULTS = Path(__file__).parent / "results" / "runtimes.json"
RUNS = ("exact", "32", "16", "cam", "recipro-cam", "ablation-cam", "eigen-cam")  # budgets of Score-CAM, and methods
_HEADS = {"exact": "exact ({passes} passes)", "32": "budget 32", "16": "budget 16"}
Measured = tuple[list[float], np.ndarray, str]  # seconds, the map, the runtime's version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="the JSON to write")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, help="budgets, or methods of one pass")
    options = parser.parse_args()
    photo = next(path for path in find_photos() if path.name == "chelsea.png")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = export(load_efficientnet_lite0(), folder / "lite0.onnx", preprocess="lite", labels="imagenet").path
        for run in options.runs:
            budget = int(run) if run.isdecimal() else None
            method = "score-cam" if budget or run == "exact" else run
            path = ortcam.pack(model, folder / f"explainer-{run}.onnx", method=method, budget=budget, verify=False).path
            with ortcam.load_explainer(model, method, provider="cpu") as engine:
                explain = functools.partial(engine.explain, budget=budget)
                expected = explain(photo)
                for name, measure in measures(explain, photo, run, folder).items():
                    print(f"{name}, {run}", file=sys.stderr, flush=True)
                    seconds, saliency, version = measure(path)
                    r = float(np.corrcoef(saliency.ravel(), expected.maps[0].ravel())[0, 1])
                    rows.append(
                        {"runtime": name, "version": version, "method": method, "budget": budget, "run": run,
                         "passes": expected.scored, "seconds": seconds, "r": r}
                    )  # fmt: skip
    command = " ".join(["python benchmarks/runtimes.py", *(["--runs", *options.runs] if options.runs != RUNS else [])])
    results = {"machine": describe_machine(), "command": command, "rows": rows}
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print_table(rows, options.runs)


def measures(
    explain: Callable[[np.ndarray], ortcam.Explanation], photo: Path, run: str, folder: Path
) -> dict[str, Callable[[Path], Measured]]:
    pixels, exact = read_photo(photo), run == "exact"
    turns = 3 if exact else 9 if run.isdecimal() else 25
    warm = 0 if exact else 1 if run.isdecimal() else 25  # until V8 has compiled the wasm a second time, for speed
    return {
        "ortcam's engine": lambda _: timed(lambda: explain(pixels).maps[0], turns, ort.__version__),
        "ONNX Runtime, Python": lambda path: run_python(path, pixels, turns),
        "ONNX Runtime, C++": lambda path: run_cpp(path, pixels, folder, turns),
        "onnxruntime-node": lambda path: run_node("node", path, pixels, folder, turns, 1),
        "onnxruntime-web (wasm) in Node.js": lambda path: run_node(
            "web", path, pixels, folder, 1 if exact else turns, warm
        ),
        "onnxruntime-web (wasm) in Chromium": lambda path: run_page(path, photo, folder, 1 if exact else turns, warm),
        "OpenVINO": lambda path: run_openvino(path, pixels, turns),
    }


def timed(run: Callable[[], np.ndarray], turns: int, version: str) -> Measured:
    saliency, seconds = run(), []
    for _ in range(turns):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return seconds, saliency, version


def run_python(path: Path, pixels: np.ndarray, turns: int) -> Measured:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {"image": pixels, "target": np.array([-1])}
    return timed(lambda: session.run(["saliency"], feed)[0][0], turns, ort.__version__)


def run_openvino(path: Path, pixels: np.ndarray, turns: int) -> Measured:
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return timed(lambda: model([pixels, np.array([-1])])[2][0].copy(), turns, metadata.version("openvino"))


def run_node(kind: str, path: Path, pixels: np.ndarray, folder: Path, turns: int, warm: int) -> Measured:
    pixels.tofile(folder / "pixels")
    height, width = pixels.shape[:2]
    arguments = [kind, path, folder / "pixels", height, width, -1, folder / "map", turns + warm]
    done = subprocess.run(
        ["node", *map(str, [RUNTIMES / "explain.mjs", *arguments])], check=True, capture_output=True, text=True
    )
    seconds = json.loads(done.stdout)["seconds"]
    version = json.loads((RUNTIMES / "node_modules" / f"onnxruntime-{kind}" / "package.json").read_text())["version"]
    saliency = np.fromfile(folder / "map", np.float32).reshape(height, width)
    return seconds[warm:], saliency, str(version)


def run_cpp(path: Path, pixels: np.ndarray, folder: Path, turns: int) -> Measured:
    """The example of the docs: a process a turn, with the library of onnxruntime's wheel."""
    program, libraries = folder / "explain", folder / "lib"
    if not program.exists():
        (library,) = (Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.1.*")
        libraries.mkdir()
        for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
            (libraries / name).symlink_to(library)
        where = ["-I", ROOT / "build" / "headers", "-L", libraries, "-lonnxruntime", f"-Wl,-rpath,{libraries}"]
        source = ROOT / "docs" / "examples" / "explain.cpp"
        subprocess.run(["g++", "-std=c++17", "-O2", source, *where, "-o", program], check=True)
    height, width = pixels.shape[:2]
    (folder / "photo.ppm").write_bytes(f"P6\n{width} {height}\n255\n".encode() + pixels.tobytes())
    seconds = []
    for _ in range(turns):
        command = [program, path, folder / "photo.ppm", folder / "map.pgm"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds.append(float(done.stdout.rsplit("seconds ", 1)[1]))
    levels = np.frombuffer((folder / "map.pgm").read_bytes()[-height * width :], np.uint8)
    return seconds, levels.astype(np.float32).reshape(height, width), ort.__version__


def run_page(path: Path, photo: Path, folder: Path, turns: int, warm: int) -> Measured:
    """A real page in headless Chromium; its own clock."""
    from playwright.sync_api import sync_playwright

    site = folder / f"site-{path.stem}"
    runtime = RUNTIMES / "node_modules" / "onnxruntime-web"
    write_page(path, site, runtime=runtime)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        seconds = []
        for _ in range(turns + warm):
            page.evaluate("shown = null")
            page.set_input_files("#file", photo)
            page.wait_for_function("shown !== null && at('status').textContent.startsWith('Where')", timeout=300_000)
            seconds.append(float(page.evaluate("photo.maps.get(shown).seconds")))
        saliency = np.array(page.evaluate("Array.from(photo.maps.get(shown).map)"), np.float32)
        version = json.loads((runtime / "package.json").read_text())["version"]
        described = f"{version}, Chromium {browser.version.split('.')[0]}"
        browser.close()
        server.shutdown()
    return seconds[warm:], saliency, described


def print_table(rows: list[dict[str, Any]], runs: Sequence[str]) -> None:
    names = list(dict.fromkeys(row["runtime"] for row in rows))
    passes = {row["run"]: row["passes"] for row in rows}
    heads = [f"{_HEADS.get(run, run)}, ms".format(passes=passes[run]) for run in runs]
    print(f"| runtime | version | {' | '.join(heads)} | least r |\n|---|---|{'---:|' * (len(heads) + 1)}")
    for name in names:
        mine = {row["run"]: row for row in rows if row["runtime"] == name}
        cells = [f"{1000 * statistics.median(mine[run]['seconds']):.3g}" for run in runs]
        least = min(row["r"] for row in mine.values())
        print(f"| {name} | {mine[runs[0]]['version']} | {' | '.join(cells)} | {least:.5f} |")


if __name__ == "__main__":
    main()
