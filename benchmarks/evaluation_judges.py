"""A judge in an environment of its own: times its insertion and deletion when it is asked to.

    PYTHON benchmarks/evaluation_judges.py openvino FOLDER      started by benchmarks/evaluation_peers.py
    PYTHON benchmarks/evaluation_judges.py xplique FOLDER

FOLDER holds lite0.onnx and given.npz: the picture uint8 [H,W,3], its tensor float32 [1,3,H,W], the map float32 [H,W],
the class, steps, threads, the scale, mean and deviation of the preprocessing, and the photo and map at the photo's own
size. The judge prints a line of JSON with its runs and versions. Then it reads the name of a run from each line of
standard input, runs it once, and prints its seconds and values.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], dict[str, float]]


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error
    with np.load(folder / "given.npz") as given:
        runs, packages = {"openvino": openvino, "xplique": xplique}[kind](folder / "lite0.onnx", dict(given))
    versions = {name: importlib.metadata.version(name) for name in packages}
    print(json.dumps({"runs": list(runs), "versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        run = runs[line.strip()]
        begin = time.perf_counter()
        values = run()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "values": values}), file=answers, flush=True)


def openvino(path: Path, given: dict[str, Any]) -> tuple[dict[str, Run], tuple[str, ...]]:
    """OpenVINO at its best, a batch of 1 and preprocessing inside the model; and as in its manual."""
    import cv2
    import openvino as ov
    from openvino_xai.metrics.insertion_deletion_auc import InsertionDeletionAUC

    def model(preprocessed: bool) -> Any:
        whole = ov.convert_model(path)
        logits = ov.Model([whole.output("logits")], whole.get_parameters(), "logits")
        logits.reshape([1, 3, *given["picture"].shape[:2]])
        if preprocessed:
            return logits
        steps = ov.preprocess.PrePostProcessor(logits)
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        steps.input().model().set_layout(ov.Layout("NCHW"))
        change = steps.input().preprocess().convert_element_type(ov.Type.f32)
        change.scale([1 / float(given["scale"])] * 3).mean(given["mean"].tolist()).scale(given["std"].tolist())
        return steps.build()

    def prepare(photo: np.ndarray) -> np.ndarray:
        """Cut out the middle square, resize it and normalise it."""
        side = min(photo.shape[:2])
        top, left = ((length - side) // 2 for length in photo.shape[:2])
        small = cv2.resize(photo[top : top + side, left : left + side], given["picture"].shape[1::-1])
        planes = (small * np.float32(given["scale"]) - given["mean"]) / given["std"]
        return np.ascontiguousarray(planes.transpose(2, 0, 1)[None], np.float32)

    def make(precision: str | None, own_size: bool = False) -> Run:
        wanted = model(preprocessed=own_size)
        before = prepare if own_size else lambda picture: picture[None]
        curves = InsertionDeletionAUC(wanted, before, lambda out: softmax(out[0]))
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": int(given["threads"])}
        options |= {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
        curves.model_compiled = ov.Core().compile_model(wanted, "CPU", options)
        picture, saliency = (given[name] for name in (("whole", "whole_map") if own_size else ("picture", "map")))
        target, steps = int(given["class"]), int(given["steps"])

        def run() -> dict[str, float]:
            return {name: float(value) for name, value in curves(saliency, target, picture, steps=steps).items()}

        return run

    runs = {
        "openvino_xai, default precision": make(None),
        "openvino_xai, float32": make("f32"),
        "openvino_xai, float32, photo of its own size": make("f32", own_size=True),
    }
    return runs, ("openvino_xai", "openvino")


def xplique(path: Path, given: dict[str, Any]) -> tuple[dict[str, Run], tuple[str, ...]]:
    """xplique measures a function of pictures; here ONNX Runtime computes it, so the network is as fast as ours."""
    import onnxruntime
    from xplique.metrics import Deletion, Insertion

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(given["threads"])
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    pictures = np.ascontiguousarray(given["tensor"].transpose(0, 2, 3, 1))

    def scores(batch: Any) -> np.ndarray:
        tensors = np.ascontiguousarray(np.asarray(batch).transpose(0, 3, 1, 2))
        return softmax(session.run(["logits"], {"image": tensors})[0])

    target = np.eye(scores(pictures).shape[1], dtype=np.float32)[[int(given["class"])]]

    def run() -> dict[str, float]:
        kinds = {"insertion": Insertion, "deletion": Deletion}
        options = {"steps": int(given["steps"])}
        return {
            name: float(kind(scores, pictures, target, **options)(given["map"][None])) for name, kind in kinds.items()
        }

    runs = {"xplique, scored by ONNX Runtime": run}
    return runs, ("xplique", "tensorflow", "onnxruntime")


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    scores: np.ndarray = exponentials / exponentials.sum(-1, keepdims=True)
    return scores


if __name__ == "__main__":
    main()
