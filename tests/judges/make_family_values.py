"""Make the reference values of the gradient-free methods beside Score-CAM from other implementations ("judges").

All judges read and write one folder, so that they see the same models and the same preprocessed photo:

    python make_family_values.py inputs FOLDER      # first: exports the models, preprocesses the photo
    python make_family_values.py torchcam FOLDER    # CAM, IS-CAM, SS-CAM
    python make_family_values.py grad-cam FOLDER    # Ablation-CAM, Eigen-CAM
    python make_family_values.py poly-cam FOLDER    # the formula in PyTorch
    python make_family_values.py vit FOLDER         # Recipro-CAM of a vision transformer, the formula in PyTorch
    python make_family_values.py openvino FOLDER    # Recipro-CAM of a vision transformer, openvino_xai; then `check`
    python make_family_values.py check FOLDER       # last: prints how closely the judges agree

Environments, with the versions that made the stored values (Python 3.11, CPU):

    openvino:       pip install openvino_xai==1.1.0       (brings openvino 2024.4.0, numpy 1.26.4)
    all others:     ortcam with its extra `test`: torch 2.14.1, torchvision 0.29.1, timm, torchcam 0.5.0, grad-cam 1.5.7

Models: `resnet18` is the seeded untrained ResNet-18 of tests/conftest.py at 96 x 96; `lite0` is the trained
EfficientNet-Lite0; `stages` (`make_stages`) and `vit` (`make_vit`) are small seeded untrained networks, whose weights
are large enough for classes that differ. Photo: `chelsea` of scikit-image.

Maps are float32 [T,h,w] for the T classes of `MODEL_classes`, at the size of the layer, before the normalisation of
the judge. Each .npz file has `origin`, an array of JSON texts, as in make_reference_values.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from make_reference_values import describe, load_facts, load_input, onnx_probabilities, run_in_float32, save

RANKS = (0, 1, 5)  # The classes with the best, the second best and the sixth best score.
LAYERS = {"resnet18": ("layer4", "layer3", "layer2"), "stages": ("layer3", "layer2", "layer1")}  # the last one first
SS_SAMPLES, SS_SIGMA = 4000, 0.5  # torchcam's own 2.0 takes 16 times as many samples for the same agreement
VARIANTS = ("plus", "minus", "both")  # Poly-CAM's +, - and +-


# -- Networks ----------------------------------------------------------------------------------------------------------


def make_stages() -> Any:
    """Return a network of three stages, [12,16,16], [16,8,8] and [24,4,4] at 32 x 32, whose head is linear."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential()
    for name, before, after in (("layer1", 3, 12), ("layer2", 12, 16), ("layer3", 16, 24)):
        model.add_module(name, nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.ReLU()))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(24, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
        model.fc.weight.mul_(2.0)
    return model.eval()


def make_vit(biased: bool) -> Any:
    """Return a vision transformer of 8 x 8 patches and a class token, at 64 x 64.

    Args:
        biased: whether the normalisations have a bias as large as trained ones have. A token of zeros becomes the bias.
            Otherwise the bias is 1e-6, because openvino_xai looks for the node that adds it.
    """
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=64, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=10
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "head.weight")):
                parameter.mul_(6.0)
            if "norm" in name and name.endswith("bias"):
                parameter.normal_(0, 0.3 if biased else 1e-6)
    return model


def make_modules() -> dict[str, Any]:
    """Return the networks in PyTorch, by name."""
    import torch
    import torchvision

    from ortcam.cli.demo import load_efficientnet_lite0

    torch.manual_seed(0)
    resnet18 = torchvision.models.resnet18(weights=None).eval()
    with torch.no_grad():
        resnet18.fc.weight.mul_(4.0)
        for module in resnet18.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False  # the judges keep tensors, which must not change afterwards
    return {
        "resnet18": resnet18,
        "lite0": load_efficientnet_lite0().eval(),
        "stages": make_stages(),
        "vit": make_vit(biased=False),
        "vit_biased": make_vit(biased=True),
    }


SIZES = {"resnet18": 96, "lite0": None, "stages": 32, "vit": 64, "vit_biased": 64}


def make_inputs(folder: Path) -> None:
    """Export the models to ONNX, preprocess the photo for each, and choose the classes."""
    import ortcam
    from ortcam.exporters import export

    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.origin is not None
    photo = Path(spec.origin).parent / "data" / "chelsea.png"
    facts = {}
    for name, module in make_modules().items():
        path, size = folder / f"{name}.onnx", SIZES[name]
        if size is None:
            export(module, path, preprocess="lite")
        else:
            export(module, path, preprocess="imagenet", input_size=size, output_kind="logits")
        model = ortcam.CamModel(path)
        tensor = model.prepare(photo)[1]
        np.save(folder / f"{name}_input.npy", tensor)
        probabilities = onnx_probabilities(folder, name)(tensor)[0]
        order = probabilities.argsort()[::-1]
        facts[name] = {"layer": model.contract.layer, "classes": [int(order[rank]) for rank in RANKS]}
        print(name, facts[name], [round(float(probabilities[order[rank]]), 3) for rank in RANKS])
    (folder / "inputs.json").write_text(json.dumps(facts, indent=1))


# -- torchcam ----------------------------------------------------------------------------------------------------------


def make_torchcam(folder: Path) -> None:
    """Run CAM, ISCAM and SSCAM of torchcam.

    Keys: `cam_MODEL` for resnet18 and lite0; `is_cam_stages` and `is_cam_resnet18`; `ss_cam_stages` from SS_SAMPLES
    samples of SS_SIGMA, and its `ss_cam_weights` [T,K], the softmax over the channels; `MODEL_classes`. Printed:
    Pearson's r of the logs of these weights with those of another draw of as many samples.
    """
    import torch
    from torchcam.methods import CAM, ISCAM, SSCAM

    origin, arrays, modules = [], dict[str, Any](), make_modules()

    def run(kind: Any, name: str, layer: str, **options: Any) -> tuple[np.ndarray, list[np.ndarray]]:
        tensor, maps, weights = torch.from_numpy(load_input(folder, name)), [], []
        size = tuple(tensor.shape[1:])
        for target in load_facts(folder, name)["classes"]:
            with kind(modules[name], layer, input_shape=size, **options) as judge:
                with torch.no_grad():
                    scores = modules[name](tensor)
                judge_weights = judge._get_weights

                def keep(*given: Any, original: Any = judge_weights, **named: Any) -> Any:
                    found = original(*given, **named)
                    weights.append(found[0][0].numpy())
                    return found

                judge._get_weights = keep
                maps.append(judge(target, scores, normalized=False)[0][0].numpy())
        arrays[f"{name}_classes"] = np.array(load_facts(folder, name)["classes"])
        facts = {"model": name, "layer": layer, "classes": load_facts(folder, name)["classes"], **options}
        origin.append(describe(f"*_{name}", "torchcam", method=kind.__name__, **facts))
        return np.stack(maps), weights

    arrays["cam_resnet18"], _ = run(CAM, "resnet18", "layer4", fc_layer="fc")
    arrays["cam_lite0"], _ = run(CAM, "lite0", "_swish", fc_layer="_fc")
    arrays["is_cam_stages"], _ = run(ISCAM, "stages", "layer3", batch_size=64)
    arrays["is_cam_resnet18"], _ = run(ISCAM, "resnet18", "layer4", batch_size=64)
    draws = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        draws.append(run(SSCAM, "stages", "layer3", batch_size=96, num_samples=SS_SAMPLES, std=SS_SIGMA))
    (arrays["ss_cam_stages"], weights), (_, others) = draws
    arrays["ss_cam_weights"] = np.stack(weights)
    print("SS-CAM:", [np.corrcoef(np.log(one), np.log(two))[0, 1] for one, two in zip(weights, others, strict=True)])
    save(folder, "family_torchcam", origin, arrays)


# -- pytorch-grad-cam --------------------------------------------------------------------------------------------------


def make_grad_cam(folder: Path) -> None:
    """Run AblationCAM and EigenCAM of pytorch-grad-cam on layers after a ReLU.

    AblationCAM sets a channel to zero only where the minimum of the layer is 0; elsewhere its value drifts within a
    batch. Its raw map has no ReLU. The sign of EigenCAM is arbitrary: the stored map has the sign that correlates with
    the sum of the activations. Keys: `ablation_MODEL_LAYER` [T,h,w] and `eigen_MODEL_LAYER` [1,h,w] for resnet18 with
    layer4 and layer3 and stages with layer3 and layer2; `MODEL_classes`.
    """
    import torch
    from pytorch_grad_cam import AblationCAM, EigenCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    origin, arrays, modules = [], dict[str, Any](), make_modules()
    for name, layers in LAYERS.items():
        classes = load_facts(folder, name)["classes"]
        arrays[f"{name}_classes"] = np.array(classes)
        for layer in layers[:2]:
            module, tensor = modules[name], torch.from_numpy(load_input(folder, name))
            target = module.get_submodule(layer)
            for kind, key in ((AblationCAM, "ablation"), (EigenCAM, "eigen")):
                maps = []
                for index in classes:
                    with kind(module, [target]) as judge:
                        judge.activations_and_grads(tensor)
                        activations = judge.activations_and_grads.activations[-1].numpy()
                        goal = [ClassifierOutputTarget(index)]
                        maps.append(judge.get_cam_image(tensor, target, goal, activations, None, False)[0])
                if kind is EigenCAM:
                    maps = [np.sign(np.corrcoef(maps[0].ravel(), activations.sum(1).ravel())[0, 1]) * maps[0]]
                arrays[f"{key}_{name}_{layer}"] = np.stack(maps)
                origin.append(
                    describe(f"{key}_{name}_{layer}", "grad-cam", method=kind.__name__, model=name, layer=layer,
                             classes=classes)
                )  # fmt: skip
    save(folder, "family_grad_cam", origin, arrays)


# -- Poly-CAM ----------------------------------------------------------------------------------------------------------


def clip_percentiles(maps: Any) -> Any:
    """Return maps [...,h,w] less their .1st percentile, over their 99.9th percentile, clipped to [0,1].

    The authors divide by the percentile, not by the range.
    """
    import torch

    values = maps.numpy().astype(np.float64)
    low, high = np.percentile(values, (0.1, 99.9), axis=(-2, -1), keepdims=True)
    return torch.from_numpy(np.clip((values - low) / np.maximum(high, 1e-12), 0, 1).astype(np.float32))


def run_poly_cam(module: Any, layers: tuple[str, ...], tensor: Any, target: int) -> dict[str, list[np.ndarray]]:
    """Return Poly-CAM's maps [h,w] of each variant: of the last layer, then down to each earlier one.

    With x the input, p the softmax score of the class, U bilinear resizing without antialiasing and N
    `clip_percentiles`, for each layer A [K,h,w]:

        M_k = U(N(A_k))            kept_k = p(x * M_k)            lost_k = p(x) - p(x * (1 - M_k))
        w_k = kept_k (+)           w_k = relu(lost_k) (-)         w_k = relu(kept_k + lost_k) (+-)
        S = relu(sum over k of w_k A_k)

    From the last layer to the first, P of the last layer being its S:

        P = S / max(U(U(S, size of the later layer), size of S), 1e-12) * U(P of the later layer, size of S)

    Source: Englebert et al. 2022, arXiv 2204.13359, and the authors' code, aenglebert/polycam at a3c8c87.
    """
    import torch
    from torch.nn import functional

    def resize(maps: Any, size: Any) -> Any:
        return functional.interpolate(maps, size, mode="bilinear", align_corners=False)

    def score(batch: Any) -> Any:
        return torch.cat([module(part).softmax(1)[:, target] for part in batch.split(64)])

    captured: dict[str, Any] = {}
    handles = [
        module.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: captured.update({layer: output})
        )
        for layer in layers
    ]
    with torch.no_grad():
        module(tensor)
        for handle in handles:
            handle.remove()
        clean, found = score(tensor), {variant: list[Any]() for variant in VARIANTS}
        for layer in layers:
            activations = captured[layer]
            masks = resize(clip_percentiles(activations), tensor.shape[2:]).transpose(0, 1)
            kept, lost = score(tensor * masks), clean - score(tensor * (1 - masks))
            for variant, weights in zip(VARIANTS, (kept, lost.relu(), (kept + lost).relu()), strict=True):
                own = (weights[None, :, None, None] * activations).sum(1, keepdim=True).relu()
                maps = found[variant]
                if maps:
                    around = resize(resize(own, maps[-1].shape[2:]), own.shape[2:])
                    own = own / around.clamp(min=1e-12) * resize(maps[-1], own.shape[2:])
                maps.append(own)
    return {variant: [one[0, 0].numpy() for one in maps] for variant, maps in found.items()}


def make_poly_cam(folder: Path) -> None:
    """Compute Poly-CAM by its formula, because no installable package has it.

    On `stages`, the authors' code gave the same maps, for the first two classes, all variants and 1 to 3 layers: their
    final maps and ours (N and enlarged) are apart by at most 8e-7.

    Keys: `MODEL_VARIANT_N` [T,h,w] for resnet18 and stages, each of VARIANTS, and N = 1, 2 and 3 layers, the last ones
    of the network; the map has the size of the earliest. `MODEL_classes`.
    """
    import torch

    origin, arrays, modules = [], dict[str, Any](), make_modules()
    for name, layers in LAYERS.items():
        facts, tensor = load_facts(folder, name), torch.from_numpy(load_input(folder, name))
        runs = [run_poly_cam(modules[name], layers, tensor, target) for target in facts["classes"]]
        arrays[f"{name}_classes"] = np.array(facts["classes"])
        for variant in VARIANTS:
            for count in range(1, len(layers) + 1):
                arrays[f"{name}_{variant}_{count}"] = np.stack([run[variant][count - 1] for run in runs])
        origin.append(
            describe(f"{name}_*", "torch", method="formula", model=name, layers=layers, classes=facts["classes"])
        )
    save(folder, "family_poly_cam", origin, arrays)


# -- Recipro-CAM of a vision transformer -------------------------------------------------------------------------------


def make_vit_values(folder: Path) -> None:
    """Compute Recipro-CAM of a vision transformer by the formula, in PyTorch.

    The tokens x [1 + h*w,D] in front of the last block are changed, and the rest of the network is run: the class token
    stays, and of the patches there is only one (`single`), or copies of it at 3 x 3 places times [1 2 1; 2 4 2; 1 2 1]
    / 16 (`gaussian`). Keys, by model: `MODEL_KERNEL_logits` and `MODEL_KERNEL_softmax` [T,8,8]; `MODEL_classes`.
    """
    import torch
    from make_reference_values import make_mosaics

    origin, arrays, modules = [], dict[str, Any](), make_modules()
    for name in ("vit", "vit_biased"):
        facts, module = load_facts(folder, name), modules[name]
        classes, tokens = facts["classes"], list[Any]()
        handle = module.blocks[1].register_forward_hook(lambda *given, tokens=tokens: tokens.append(given[2]))
        with torch.no_grad():
            module(torch.from_numpy(load_input(folder, name)))
        handle.remove()
        patches = tokens[0][0, 1:].T.reshape(48, 8, 8).numpy()
        mosaics = make_mosaics(patches)
        for kernel, variant in (("single", "plain"), ("gaussian", "gaussian_copy")):
            changed = torch.from_numpy(mosaics[variant].astype(np.float32)).flatten(2).transpose(1, 2)
            batch = torch.cat([tokens[0][:, :1].expand(64, -1, -1), changed], 1)
            with torch.no_grad():
                logits = module.forward_head(module.norm(module.blocks[2](batch)))
            for score, values in (("logits", logits), ("softmax", logits.softmax(1))):
                arrays[f"{name}_{kernel}_{score}"] = values[:, classes].T.reshape(-1, 8, 8).numpy()
        arrays[f"{name}_classes"] = np.array(classes)
        origin.append(describe(f"{name}_*", "torch", method="formula", model=name, layer="blocks.1", classes=classes))
    save(folder, "family_vit", origin, arrays)


def make_openvino(folder: Path) -> None:
    """Run ViTReciproCAM of openvino_xai: a single token, logits, no rescaling. Keys as in `make_vit_values`.

    openvino_xai changes the normalised tokens of the last block: a token of zeros stays a vector of zeros, where the
    normalisation would give its bias. Both agree for `vit`, whose bias is 0.
    """
    import openvino
    from openvino_xai.methods.white_box.recipro_cam import ViTReciproCAM

    origin, arrays = [], dict[str, Any]()
    for name in ("vit", "vit_biased"):
        facts = load_facts(folder, name)
        model = openvino.convert_model(folder / f"{name}.onnx")
        model = openvino.Model([model.output("logits")], model.get_parameters(), name)
        judge = ViTReciproCAM(model, embed_scaling=False, use_gaussian=False, prepare_model=False)
        run_in_float32(judge)
        maps = judge.generate_saliency_map(load_input(folder, name))[0]
        arrays[f"{name}_classes"] = np.array(facts["classes"])
        arrays[f"{name}_single_logits"] = maps[facts["classes"]]
        origin.append(describe(f"{name}_*", "openvino_xai", method="ViTReciproCAM, float32", model=name, **facts))
    save(folder, "family_openvino", origin, arrays)


def check(folder: Path) -> None:
    """Print how closely the formula and openvino_xai agree."""
    ours, theirs = np.load(folder / "family_vit.npz"), np.load(folder / "family_openvino.npz")
    for name in ("vit", "vit_biased"):
        pair = [file[f"{name}_single_logits"] for file in (ours, theirs)]
        r = [float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in zip(*pair, strict=True)]
        print(f"{name}: r {r}, apart {np.abs(pair[0] - pair[1]).max():.1e} of {np.ptp(pair[1]):.2g}")


JUDGES: dict[str, Callable[[Path], None]] = {
    "inputs": make_inputs,
    "torchcam": make_torchcam,
    "grad-cam": make_grad_cam,
    "poly-cam": make_poly_cam,
    "vit": make_vit_values,
    "openvino": make_openvino,
    "check": check,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the reference values of the methods beside Score-CAM.")
    parser.add_argument("judge", choices=JUDGES, help="which values to make")
    parser.add_argument("folder", type=Path, help="where models, inputs and values are written")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    JUDGES[arguments.judge](arguments.folder)


if __name__ == "__main__":
    main()
