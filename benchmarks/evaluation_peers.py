"""Insertion and deletion of one map side by side: ortcam, its own bare forward passes, and the peers.

    python benchmarks/evaluation_peers.py                            torchcam alone
    python benchmarks/evaluation_peers.py --openvino PYTHON --xplique PYTHON

A peer in an environment of its own (openvino_xai 1.1.0; xplique 2.0.2 with onnxruntime and TensorFlow) is a process of
that environment's PYTHON. It stays open, and runs when it is asked to, so that all candidates take turns and a change
of the machine's speed meets all of them.

EfficientNet-Lite0 with its ImageNet weights, coffee.png as the model sees it (224 x 224), the top class, 31 points, all
candidates with the same number of threads. The map holds the place of each pixel in the order of Score-CAM's map
(budget 32), so that no two pixels are equal and every candidate hides them in the same order. The values of each
candidate are compared with ours under its own convention (baseline, points, area). Ratios are medians over the turns.
Peers run at their best: torch in inference mode; OpenVINO with a fixed batch of 1 and with preprocessing inside the
model. A row of openvino_xai shows the photo at its own size, preprocessed by a function, as its manual does.

Peak memory is that of whole processes of `ortcam evaluate` (the kernel's accounting), with few and many photos, steps
and methods. Prints tables of Markdown and writes a JSON file.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import networks
import numpy as np
import onnxruntime as ort
import torch
from explain import describe_machine, show
from torchcam.metrics import DeletionInsertionMetric

import ortcam
from ortcam import evaluation
from ortcam.cli.demo import find_photos
from ortcam.core.targets import Class
from ortcam.evaluation.maps import GivenMaps
from ortcam.evaluation.metrics import choose_metrics
from ortcam.evaluation.photo import Case, PhotoRun
from ortcam.evaluation.samples import Sample
from ortcam.explain.jobs import prepare
from ortcam.model.cam_model import CamModel
from ortcam.model.image import read_photo
from ortcam.runtime.providers import resolve_provider
from ortcam.runtime.threads import usable_processors

RESULTS = Path(__file__).parent / "results" / "evaluation-speed.json"
STEPS, BATCH = 30, 8
THREADS = usable_processors()
WHOLE = 5  # photos of a whole evaluation
OURS, PASSES, BOUND = "ortcam, one map", "bare passes", "bare passes, IO binding"
REST = 0.1  # seconds until the threads of the candidate before are asleep
METHODS = (  # all run in the sessions of the first two; a method of another kind adds a session
    "rise:masks=16",
    "score-cam:budget=16",
    *(f"rise:masks=16,seed={seed}" for seed in (1, 2, 3)),
    *(f"score-cam:budget={budget}" for budget in (8, 24, 32)),
)
LOADS = {"photos": (5, 20), "steps": (10, 100), "methods": (2, 8)}  # few and many

Run = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="turns of each candidate")
    parser.add_argument("--openvino", type=Path, metavar="PYTHON", help="the Python of openvino_xai's environment")
    parser.add_argument("--xplique", type=Path, metavar="PYTHON", help="the Python of xplique's environment")
    parser.add_argument("--without-memory", action="store_true", help="measure times alone")
    parser.add_argument("--json", "--output", dest="output", type=Path, default=RESULTS, help="the JSON to write")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = networks.build("EfficientNet-Lite0", folder)
        results: dict[str, Any] = {
            "machine": describe_machine(),
            "command": " ".join(["python", "benchmarks/evaluation_peers.py", *sys.argv[1:]]),
            "steps": STEPS,
            "batch_size": BATCH,
            "threads": THREADS,
        }
        judges = {"openvino": options.openvino, "xplique": options.xplique}
        judges = {kind: python for kind, python in judges.items() if python is not None}
        for python in judges.values():
            results["command"] = results["command"].replace(str(python), "PYTHON")
        results |= compare(network, judges, options.rounds, folder)
        options.output.write_text(json.dumps(results, indent=2) + "\n")  # what is measured stays, whatever comes
        if not options.without_memory:
            results["memory"] = measure_memory(network.path, folder)
            options.output.write_text(json.dumps(results, indent=2) + "\n")
    print_results(results)


class Given:
    """What every candidate receives.

    Attributes:
        path: the model file.
        picture: uint8 [H,W,3], the photo as the model sees it.
        tensor: float32 [1,3,H,W], the input made of that picture.
        saliency: float32 [H,W] in [0,1], the map, without equal pixels.
        whole, whole_map: uint8 [h,w,3], the photo at its own size, and a map of it, float32 [h,w].
        target: the top class.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, CamModel(path)
        photo = find_photos()[6]
        self.photo = photo.name
        seen = self.model.contract.preprocessing
        assert seen is not None
        self.picture = seen.invert(self.model.prepare(photo)[1])
        self.facts = {"scale": seen.scale, "mean": np.float32(seen.mean), "std": np.float32(seen.std)}
        planes = (self.picture * np.float32(seen.scale) - self.facts["mean"]) / self.facts["std"]
        self.tensor = np.ascontiguousarray(planes.transpose(2, 0, 1)[None], np.float32)
        explained = ortcam.ScoreCAM(self.model, provider="cpu").explain(self.tensor, budget=32)
        self.target = explained.targets[0].index
        order = np.argsort(explained.input_maps[0], axis=None, kind="stable")
        rank = np.empty(order.size, np.float32)
        rank[order] = np.arange(order.size)
        self.saliency = (rank / order.size).reshape(explained.input_maps[0].shape)
        self.whole = read_photo(photo)
        small = cv2.resize(explained.input_maps[0], self.whole.shape[1::-1])
        self.whole_map = small + np.float32(1e-4) * np.random.default_rng(0).random(small.shape, np.float32)

    def save(self, folder: Path) -> None:
        """Write given.npz for judges in other environments."""
        of_the_run = {"class": self.target, "steps": STEPS, "threads": THREADS}
        arrays: dict[str, Any] = {"picture": self.picture, "tensor": self.tensor, "map": self.saliency}
        arrays |= {"whole": self.whole, "whole_map": self.whole_map}
        np.savez(folder / "given.npz", **arrays, **of_the_run, **self.facts)


def compare(network: networks.Network, judges: Mapping[str, Path], rounds: int, folder: Path) -> dict[str, Any]:
    """Let all candidates measure the map in turns. Return the seconds of every turn, and the values."""
    given = Given(network.path)
    given.save(folder)
    with contextlib.ExitStack() as stack:
        runs = dict(ours(given, stack))
        runs |= {PASSES: bare_passes(given, binds=False), BOUND: bare_passes(given, binds=True)}
        runs |= torchcam(network, given)
        versions: dict[str, Any] = {}
        for kind, python in judges.items():
            judge = stack.enter_context(Judge(kind, python, folder))
            runs |= judge.runs
            versions[kind] = judge.versions
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        values: dict[str, Any] = {}
        for turn in range(-1, rounds):  # the first turn warms up
            names = list(runs)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                show(f"turn {turn + 1} of {rounds}: {name}")
                time.sleep(REST)
                begin = time.perf_counter()
                result = runs[name]()
                spent = time.perf_counter() - begin
                if isinstance(result, dict):
                    spent = result.get("seconds", spent)
                    values[name] = result["values"]
                if turn >= 0:
                    seconds[name].append(spent / WHOLE if name.startswith("ortcam.evaluate") else spent)
        own = {preset: measure_ours(given, preset, stack)()["values"] for preset in PRESETS.values()}
    return {
        "network": network.name,
        "photo": given.photo,
        "seconds": seconds,
        "values": values,
        "difference": {
            name: max(abs(found[end] - own[preset][end]) for end in ("insertion", "deletion"))
            for name, found in values.items()
            for prefix, preset in PRESETS.items()
            if name.startswith(prefix) and "own size" not in name  # there, a pixel is another one
        },
        "judges": versions,
    }


PRESETS = {"torchcam": "torchcam", "openvino_xai": "openvino-xai", "xplique": "xplique"}  # ours, by candidate


def ours(given: Given, stack: contextlib.ExitStack) -> Iterator[tuple[str, Run]]:
    """Yield our runs: of one map in an open model, and whole evaluations with maps that are given."""
    yield OURS, measure_ours(given, "ortcam", stack)
    photos = photos_of_many()[:WHOLE]
    maps = {"given": lambda _photo, _target: given.saliency}

    def whole() -> None:
        evaluation.evaluate(
            given.path, photos, (), metrics_of(STEPS, "ortcam"), maps=maps, controls=(), provider="cpu", threads=THREADS
        )

    yield f"ortcam.evaluate of {WHOLE} photos, per photo", whole


def metrics_of(steps: int, preset: str) -> list[str]:
    return [f"{metric}:{preset},steps={steps}" for metric in ("insertion", "deletion")]


def measure_ours(given: Given, preset: str, stack: contextlib.ExitStack) -> Run:
    """Return what measures the map in a model that stays open: the plain pass and the changed inputs."""
    maps = (GivenMaps("given", {"photo": given.saliency}),)
    metrics = choose_metrics(metrics_of(STEPS, preset))
    run = PhotoRun(given.model, (), maps, (), metrics, 0, resolve_provider("cpu"), BATCH, THREADS, None)
    stack.callback(run.close)
    job, target = prepare(given.model, given.tensor), Class(given.target)
    case = Case(Sample(given.tensor, "photo"), target, target)

    def measure() -> dict[str, Any]:
        with run.open(job) as photo:
            (row,) = photo.measure({"photo": case})["photo"]
        return {"values": {name.partition(":")[0]: value for name, value in row.values.items() if " - " not in name}}

    return measure


def bare_passes(given: Given, binds: bool) -> Run:
    """Return what runs the exported model itself on as many inputs as there are points."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(given.path, options, providers=["CPUExecutionProvider"])
    count = 2 * (STEPS + 1)
    batch = np.repeat(given.tensor, BATCH, axis=0)
    sizes = [BATCH] * (count // BATCH) + [count % BATCH] * (count % BATCH > 0)

    def run() -> None:
        for size in sizes:
            session.run(["logits"], {"image": batch[:size]})

    binding = session.io_binding()

    def run_bound() -> None:
        for size in sizes:
            binding.bind_cpu_input("image", batch[:size])
            binding.bind_output("logits")
            session.run_with_iobinding(binding)
            binding.copy_outputs_to_cpu()

    return run_bound if binds else run


class StoredMap:
    """What torchcam's metrics need of a CAM extractor: a model and a map."""

    def __init__(self, model: torch.nn.Module, saliency: np.ndarray) -> None:
        self.model, self._saliency = model, torch.from_numpy(saliency)[None]

    def __call__(self, _class_idx: Any, _scores: Any) -> list[torch.Tensor]:
        return [self._saliency]

    def fuse_cams(self, cams: list[torch.Tensor]) -> torch.Tensor:
        return cams[0]

    def _hooks_off(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def torchcam(network: networks.Network, given: Given) -> dict[str, Run]:
    """Return torchcam's runs, with two sizes of batches and two orders of memory."""
    torch.set_num_threads(THREADS)
    runs: dict[str, Run] = {}
    orders = {"": torch.contiguous_format, ", channels last": torch.channels_last}
    for batch_size, (label, order) in itertools.product((32, BATCH), orders.items()):
        module = copy.deepcopy(network.module).to(memory_format=order)
        tensor = torch.from_numpy(given.tensor).to(memory_format=order)
        measure = functools.partial(_run_torchcam, module, tensor, given, batch_size)
        runs[f"torchcam, batches of {batch_size}{label}"] = measure
    return runs


def _run_torchcam(module: torch.nn.Module, tensor: torch.Tensor, given: Given, batch_size: int) -> dict[str, Any]:
    softmax = functools.partial(torch.softmax, dim=-1)
    with torch.inference_mode():
        metric = DeletionInsertionMetric(StoredMap(module, given.saliency), softmax, steps=STEPS, batch_size=batch_size)
        metric.update(tensor, given.target)
        summary = metric.summary()
    return {"values": {name: summary[f"{name}_auc"] for name in ("insertion", "deletion")}}


class Judge:
    """A process of evaluation_judges.py.

    Attributes:
        runs: asks for each of its runs.
        versions: of its packages.
    """

    def __init__(self, kind: str, python: Path, folder: Path) -> None:
        show(f"opening {kind}")
        command = [str(part) for part in (python, Path(__file__).with_name("evaluation_judges.py"), kind, folder)]
        quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)
        described = self._read()
        self.versions: dict[str, str] = described["versions"]
        self.runs: dict[str, Run] = {name: functools.partial(self._ask, name) for name in described["runs"]}

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    def _ask(self, name: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended; see above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def photos_of_many() -> list[Path]:
    """Return the packaged photos of ImageNet, 20."""
    return sorted(find_photos()[0].parent.glob("imagenet_*.jpg"))


def measure_memory(path: Path, folder: Path) -> list[dict[str, Any]]:
    """Run `ortcam evaluate` with each combination of LOADS; photos, steps, methods, seconds and peak memory of each."""
    program = Path(sys.executable).with_name("ortcam")
    found = []
    for photos, steps, methods in itertools.product(*LOADS.values()):
        show(f"memory: {photos} photos, {steps} steps, {methods} methods")
        chosen = folder / f"{photos} photos"
        chosen.mkdir(exist_ok=True)
        for photo in photos_of_many()[:photos]:
            shutil.copy(photo, chosen)
        arguments = [part for spec in metrics_of(steps, "ortcam") for part in ("--metric", spec)]
        arguments += [part for method in METHODS[:methods] for part in ("--method", method)]
        arguments += ["--control", "none", "--provider", "cpu", "-o", str(folder / f"{photos}-{steps}-{methods}")]
        command = [sys.executable, Path(__file__).with_name("process.py"), program, "evaluate", path, chosen]
        done = subprocess.run([*map(str, command), *arguments], stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(done.stdout)
        load = {"photos": photos, "steps": steps, "methods": methods}
        found.append({**load, "seconds": result["wall"], "peak_mib": result["peak_mib"]})
    return found


def print_results(results: dict[str, Any]) -> None:
    machine, seconds = results["machine"], results["seconds"]
    packages = {name: machine["versions"][name] for name in ("ortcam", "onnxruntime", "torch", "torchcam", "numpy")}
    print(f"{machine['processor']}, {machine['cores']} cores, {results['threads']} threads; Python {machine['python']}")
    for of_one in (packages, *results["judges"].values()):
        print(", ".join(f"{name} {version}" for name, version in of_one.items()))
    print(f"{results['command']}\n")
    print(
        f"{results['network']}, {results['photo']}, insertion and deletion of one map, {results['steps'] + 1} points:"
    )
    print(f"medians of {len(seconds[OURS])} turns, with quartiles\n")
    print("| | seconds | quartiles | its time / ours | difference of values |\n|---|---:|---:|---:|---:|")
    for name, values in seconds.items():
        low, middle, high = quartiles(values)
        ratio = statistics.median(its / own for its, own in zip(values, seconds[OURS], strict=True))
        difference = results["difference"].get(name)
        print(
            f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} | {ratio:.2f} | "
            f"{'' if difference is None else f'{difference:.1e}'} |"
        )
    for bound in (PASSES, BOUND):
        low, middle, high = quartiles([own / its for own, its in zip(seconds[OURS], seconds[bound], strict=True)])
        print(f"\nours over {bound}: {middle:.3f} ({low:.3f} to {high:.3f})")
    if "memory" in results:
        print("\n| photos | steps | methods | seconds | peak MiB |\n|---:|---:|---:|---:|---:|")
        for row in results["memory"]:
            load = " | ".join(str(row[name]) for name in LOADS)
            print(f"| {load} | {row['seconds']:.1f} | {row['peak_mib']:.0f} |")


def quartiles(values: list[float]) -> tuple[float, ...]:
    return tuple(np.percentile(values, (25, 50, 75)).tolist())


if __name__ == "__main__":
    main()
