"""Metrics against the values of other implementations, on the same maps, inputs and models.

tests/judges/make_metric_values.py made the values, and says how; each file states its origin.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch import nn

import ortcam
from ortcam import evaluation
from ortcam.core.targets import Class
from ortcam.evaluation import Sample
from ortcam.evaluation.metrics import choose_metrics
from ortcam.evaluation.photo import Case, PhotoRun
from ortcam.evaluation.result import Result
from ortcam.explain.jobs import prepare
from ortcam.exporters import export
from ortcam.runtime.providers import resolve_provider

JUDGES = Path(__file__).parent / "judges"
CLOSE = 1e-3  # absolute, on the metric


def load(name: str) -> dict[str, Any]:
    with np.load(JUDGES / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_metric_values", JUDGES / "make_metric_values.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SPECS = [
    *(f"{metric}:{name}" for name in ("torchcam", "xplique", "smdl", "rise") for metric in ("insertion", "deletion")),
    *(f"{metric}:torchcam,score=logit" for metric in ("insertion", "deletion", "drop", "increase")),
    *(f"{metric}:{name}" for name in ("torchcam", "xplique", "pytorch-grad-cam") for metric in ("drop", "increase")),
    "gain:xplique",
]
ROADS = [f"road:pytorch-grad-cam,noise=0,order={order}" for order in ("morf", "lerf", "combined")]
OF_THE_PICTURE = ["insertion:openvino-xai", "deletion:openvino-xai", "adcc:openvino-xai", "highest-confidence"]


def evaluated(script: ModuleType, path: Path, model: str, specs: list[str], pictures: bool) -> dict[str, Any]:
    """Return the values of each column, [photos,maps]; NaN where a value is undefined.

    Args:
        script, path, model: the script of the judges, the model file, and its name there.
        specs: the metrics.
        pictures: the inputs are those of the rounded uint8 pictures.
    """
    stored, opened = load("metric_maps"), ortcam.CamModel(path)
    seen = opened.contract.preprocessing
    assert seen is not None
    samples, maps = [], {str(name): dict[str, Any]() for name in stored["maps"]}
    for seed, name in enumerate(stored["photos"]):
        _, tensor, _ = opened.prepare(script.photo_path(str(name)))
        made = script.make_maps(stored[f"{model}_grids"][seed], tensor.shape[2:], seed)
        for kind, saliency in zip(maps, made, strict=True):
            maps[kind][str(name)] = saliency
        if pictures:
            planes = seen.invert(tensor).astype(np.float32) * np.float32(seen.scale)
            planes = (planes - np.float32(seen.mean)) / np.float32(seen.std)
            tensor = np.ascontiguousarray(planes.transpose(2, 0, 1)[None], np.float32)
        samples.append(Sample(tensor, str(name), int(stored[f"{model}_classes"][seed])))
    result = evaluation.evaluate(opened, samples, (), specs, maps=maps, controls=(), explain="true")
    return {column.name: table(result, column.name, list(maps)) for column in result.columns}


def table(result: Result, column: str, maps: list[str]) -> Any:
    values = {(row.photo, row.method): row.values[column] for row in result.rows}
    found = [[values[photo, one] for one in maps] for photo in result.record["photos"]]
    return np.array([[np.nan if value is None else value for value in row] for row in found])


@pytest.fixture(scope="module")
def files(resnet18: nn.Module, lite0_file: Path, models: Path) -> dict[str, Path]:
    small = export(resnet18, models / "judged.onnx", preprocess="imagenet", input_size=96)
    return {"resnet18": small.path, "lite0": lite0_file}


MODELS = ["resnet18", "lite0"]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model", MODELS)
def test_metrics_agree_with_torchcam_xplique_and_grad_cam(
    script: ModuleType, files: dict[str, Path], model: str
) -> None:
    ours = evaluated(script, files[model], model, SPECS, pictures=False)
    torchcam, xplique, grad_cam, rise = (load(f"metric_{name}") for name in ("torchcam", "xplique", "grad_cam", "rise"))
    cam, ties, random, flat = range(4)
    for metric in ("insertion", "deletion", "drop", "increase"):
        for kind, option in (("softmax", ""), ("logits", ",score=logit")):
            name = f"{metric}:torchcam{option}"
            theirs = torchcam[f"{model}_{kind}_{metric}"]
            assert np.abs(ours[name] - theirs)[:, :flat].max() < CLOSE, name
            assert np.isnan(ours[name][:, flat]).all(), "a flat map has no values"
    for metric, key in (("drop", "drop"), ("increase", "increase"), ("gain", "gain")):
        theirs = xplique[f"{model}_{key}"]
        assert np.abs(ours[f"{metric}:xplique"] - theirs)[:, :flat].max() < CLOSE, metric
    for metric in ("insertion", "deletion"):
        for preset, judge in (
            ("xplique", xplique[f"{model}_{metric}_10"]),
            ("smdl", xplique[f"{model}_{metric}_25"]),
            ("rise", rise[f"{model}_{metric}"]),
        ):
            difference = np.abs(ours[f"{metric}:{preset}"] - judge)
            # xplique's sort is not stable: where half of the pixels are equal, its order is arbitrary.
            compared = [cam, ties, random] if preset == "rise" else [cam, random]
            assert difference[:, compared].max() < CLOSE, (metric, preset)
    for metric in ("drop", "increase"):
        theirs = grad_cam[f"{model}_{metric}"]
        assert np.abs(ours[f"{metric}:pytorch-grad-cam"] - theirs)[:, :flat].max() < CLOSE, metric


@pytest.mark.parametrize("model", MODELS)
def test_metrics_on_pictures_agree_with_openvino_xai_and_smdl(
    script: ModuleType, files: dict[str, Path], model: str
) -> None:
    ours = evaluated(script, files[model], model, OF_THE_PICTURE, pictures=True)
    openvino, smdl = load("metric_openvino"), load("metric_smdl")
    cam, _, random, flat = range(4)
    for metric in ("insertion", "deletion"):
        difference = np.abs(ours[f"{metric}:openvino-xai"] - openvino[f"{model}_{metric}"])
        assert difference[:, [cam, random]].max() < CLOSE, metric  # its sort is not stable, so without ties
    for part in ("drop", "complexity"):
        difference = np.abs(ours[f"adcc:openvino-xai {part}"] - openvino[f"{model}_{part}"])
        assert difference[:, :flat].max() < CLOSE, part
    for place, share in enumerate((" 25%", " 50%", " 75%", "")):
        difference = np.abs(ours[f"highest-confidence{share}"] - smdl[f"{model}_24"][..., place])
        assert difference[:, :flat].max() < CLOSE, share


@pytest.mark.parametrize("model", MODELS)
def test_road_agrees_with_grad_cam(script: ModuleType, files: dict[str, Path], model: str) -> None:
    """Without noise, which each library draws in its own way."""
    ours = evaluated(script, files[model], model, ROADS, pictures=False)
    stored = load("metric_grad_cam_road")
    morf, lerf = (stored[f"{model}_{order}"].mean(axis=-1) for order in ("morf", "lerf"))
    photos, flat = morf.shape  # the original takes seconds a picture, so for lite0 there is one photo
    for name, theirs in zip(ROADS, (morf, lerf, (lerf - morf) / 2), strict=True):
        assert np.abs(ours[name][:photos, :flat] - theirs).max() < CLOSE, name


@pytest.mark.parametrize("model", MODELS)
def test_adcc_agrees_with_openvino_xai(script: ModuleType, files: dict[str, Path], model: str) -> None:
    """Its second map comes from the sum of the activations, as in the judge's run."""
    stored, theirs = load("metric_maps"), load("metric_openvino")
    (chosen,) = choose_metrics(["adcc:openvino-xai"])
    opened = ortcam.CamModel(files[model])
    seen = opened.contract.preprocessing
    assert seen is not None
    run = PhotoRun(opened, (), (), ("activations",), (chosen,), 0, resolve_provider("cpu"), None, None, None)
    for seed, name in enumerate(stored["photos"]):
        _, tensor, _ = opened.prepare(script.photo_path(str(name)))
        planes = seen.invert(tensor).astype(np.float32) * np.float32(seen.scale)
        planes = (planes - np.float32(seen.mean)) / np.float32(seen.std)
        job = prepare(opened, np.ascontiguousarray(planes.transpose(2, 0, 1)[None], np.float32))
        maps = script.make_maps(stored[f"{model}_grids"][seed], tensor.shape[2:], seed)
        case = Case(Sample(tensor, str(name)), *[Class(int(stored[f"{model}_classes"][seed]))] * 2)
        with run.open(job) as photo:
            for place, saliency in enumerate(maps[:3]):
                (row,) = photo._measure([(case, "activations", photo._view(case, "activations", saliency, None))])
                for part in ("adcc", "coherency", "complexity", "drop"):
                    value = row.values["adcc:openvino-xai" + ("" if part == "adcc" else f" {part}")]
                    assert value == pytest.approx(theirs[f"{model}_{part}"][seed, place], abs=CLOSE), (
                        part,
                        name,
                        place,
                    )
    run.close()
