"""JAX: Flax NNX modules and functions, in memory and from a file, and a trained network rebuilt in JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import assert_same_map
from flax import linen, nnx
from torch import nn

import ortcam
from ortcam.errors import ExportError, LayerError
from ortcam.exporters import export
from ortcam.model.cam_model import CamModel

Function = Callable[[jax.Array], Any]


class Block(nnx.Module):
    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(channels, channels, (3, 3), rngs=rngs)
        self.bn1 = nnx.BatchNorm(channels, rngs=rngs)
        self.conv2 = nnx.Conv(channels, channels, (3, 3), rngs=rngs)
        self.bn2 = nnx.BatchNorm(channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(x + self.bn2(self.conv2(y)))


class Residual(nnx.Module):
    """A small residual network of 10 classes."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.bn = nnx.BatchNorm(8, rngs=rngs)
        self.blocks = nnx.List([Block(8, rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(x.mean((1, 2))))


@pytest.fixture
def residual() -> nnx.Module:
    """The network with batch statistics that differ from the initial ones."""
    module = Residual(nnx.Rngs(0))
    module(jnp.asarray(np.random.default_rng(0).normal(0.5, 2, (8, 32, 32, 3)), jnp.float32))
    module.eval()
    return module


WEIGHTS = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
HEAD = np.random.default_rng(1).standard_normal((8, 5)).astype(np.float32)


def channels_first(x: jax.Array) -> jax.Array:
    """Class scores of an image [B,3,H,W]."""
    y = jax.lax.conv_general_dilated(x, WEIGHTS, (2, 2), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
    return jax.nn.relu(y).mean((2, 3)) @ HEAD


def channels_last(x: jax.Array, channels: int = 3) -> jax.Array:
    """Class scores of an image [B,H,W,C]."""
    kernel = WEIGHTS.transpose(2, 3, 1, 0)[:, :, :channels]
    y = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(y).mean((1, 2)) @ HEAD


def nothing_is_left(folder: Path) -> bool:
    return not any(path.suffix == ".onnx" for path in folder.iterdir())


@pytest.mark.slow
def test_a_flax_module_agrees_and_keeps_its_names(residual: nnx.Module, tmp_path: Path, in_table: Any) -> None:
    report = export(residual, tmp_path / "net.onnx", input_size=32, preprocess="tf")
    in_table("a residual network, untrained", "JAX, Flax NNX module", report.path)
    assert (report.layer, report.shape) == ("blocks.1", (8, 16, 16))
    assert report.agreement.logits <= 1e-5
    assert report.agreement.activations is not None
    assert report.agreement.activations <= 1e-5
    assert report.agreement.batches == (1, 3)
    contract = CamModel(report.path).contract
    assert contract.image_layout == "NHWC"
    assert contract.source["kind"] == "jax"
    assert set(contract.source["versions"]) == {"jax", "flax", "jax2onnx"}
    x = np.random.default_rng(2).standard_normal((4, 32, 32, 3)).astype(np.float32)
    logits, _ = ort.InferenceSession(report.path).run(None, {"image": x})
    assert np.allclose(logits, residual(jnp.asarray(x)), atol=1e-5)
    photo = np.random.default_rng(1).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    assert ortcam.ScoreCAM(report.path).explain(photo).maps.shape == (1, 40, 40)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["blocks.0", "blocks.1.bn1", "stem"])
def test_a_layer_by_its_module(residual: nnx.Module, tmp_path: Path, layer: str) -> None:
    report = export(residual, tmp_path / "net.onnx", [layer, "blocks.1"], input_size=32)
    assert [(one.name, one.shape) for one in report.layers] == [(layer, (8, 16, 16)), ("blocks.1", (8, 16, 16))]
    assert all(one.error is not None and one.error <= 1e-5 for one in report.layers)


def test_a_layer_that_does_not_exist(residual: nnx.Module, tmp_path: Path) -> None:
    with pytest.raises(LayerError, match=r"nearest: blocks\.1"):
        export(residual, tmp_path / "net.onnx", "blocks.7", input_size=32)
    assert nothing_is_left(tmp_path)


def test_the_module_is_as_it_was(residual: nnx.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3)), jnp.float32)
    calls, structure, scores = (Block.__call__, nnx.Conv.__call__), nnx.graphdef(residual), residual(x)
    export(residual, tmp_path / "net.onnx", input_size=32)
    assert (Block.__call__, nnx.Conv.__call__) == calls
    assert nnx.graphdef(residual) == structure
    assert np.array_equal(residual(x), scores)
    assert capfd.readouterr() == ("", "")


def test_training_mode_is_refused(residual: nnx.Module, tmp_path: Path) -> None:
    residual.train()
    with pytest.raises(ExportError, match=r"training mode \(blocks\.0\.bn1\); call model\.eval\(\)"):
        export(residual, tmp_path / "net.onnx", input_size=32)
    with pytest.raises(ExportError, match=r"changes its own state.*model\.eval\(\)"):
        export(lambda x: residual(x), tmp_path / "net.onnx", input_size=32)
    assert nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("function", "layout", "channels"),
    [
        (channels_first, "NCHW", 3),
        (jax.jit(channels_last), "NHWC", 3),
        (functools.partial(channels_last, channels=1), "NHWC", 1),
    ],
    ids=["channels first", "jit", "grey"],
)
def test_layout_and_channels_are_found(function: Function, layout: str, channels: int, tmp_path: Path) -> None:
    report = export(function, tmp_path / "f.onnx", input_size=32)
    assert report.contract.image_layout == layout
    assert report.shape == (8, 16, 16)
    assert report.agreement.activations is not None  # found among the operators' results
    (entry,) = ort.InferenceSession(report.path).get_inputs()
    assert entry.shape == (["batch", channels, 32, 32] if layout == "NCHW" else ["batch", 32, 32, channels])


def test_the_layout_that_the_user_names(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"does not run on an input \[2, 32, 32, 3\] or \[2, 32, 32, 1\]"):
        export(channels_first, tmp_path / "f.onnx", input_size=32, input_layout="NHWC")


def test_opset_and_size(tmp_path: Path) -> None:
    report = export(channels_last, tmp_path / "f.onnx", input_size=(32, 48), opset=18)
    assert report.shape == (8, 16, 24)
    assert onnx.load(report.path).opset_import[0].version == 18


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.relu(linen.BatchNorm(use_running_average=True)(linen.Conv(8, (3, 3), 2)(x)))
        scores: jax.Array = linen.Dense(5)(x.mean((1, 2)))
        return scores


def test_flax_linen_with_its_parameters(tmp_path: Path) -> None:
    module = Linen()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    report = export(lambda x: module.apply(variables, x), tmp_path / "f.onnx", input_size=32)
    assert report.shape == (8, 16, 16)
    assert export(module.bind(variables), tmp_path / "g.onnx", input_size=32).shape == (8, 16, 16)
    with pytest.raises(ExportError, match=r"without its parameters.*module\.apply\(variables, x\)"):
        export(module, tmp_path / "h.onnx", input_size=32)


FILE = """
import jax.numpy as jnp
from flax import nnx

class Net(nnx.Module):
    def __init__(self, rngs):
        self.features = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.features(x)).mean((1, 2)))

def build():
    print("building")
    return Net(nnx.Rngs(0))

def build_function():
    weights = jnp.ones((8, 5))
    net = Net(nnx.Rngs(0))
    return lambda x: nnx.relu(net.features(x)).mean((1, 2)) @ weights
"""


@pytest.mark.parametrize("name", ["build", "build_function"])
def test_a_callable_of_a_file(name: str, tmp_path: Path) -> None:
    source = tmp_path / "jax_source.py"
    source.write_text(FILE)
    report = export(f"{source}:{name}", tmp_path / "net.onnx", input_size=32)
    assert report.shape == (8, 16, 16)
    assert report.agreement.activations is not None  # the ReLU behind the convolution is no module's result
    assert report.contract.source["name"].endswith(f"jax_source.py:{name}")


def flax_pooling(x: jax.Array) -> jax.Array:
    return linen.max_pool(x, (3, 3), (2, 2), "SAME")  # not by keyword, as jax2onnx would have it


def lax_pooling(x: jax.Array) -> jax.Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def channels_first_pooling(x: jax.Array) -> jax.Array:
    turned = x.transpose(0, 3, 1, 2)
    pooled = jax.lax.reduce_window(turned, -jnp.inf, jax.lax.max, (1, 1, 3, 2), (1, 1, 2, 1), "SAME")
    return pooled.transpose(0, 2, 3, 1)


def average_pooling(x: jax.Array) -> jax.Array:
    return linen.avg_pool(x, (2, 2), (2, 2))


@pytest.mark.parametrize("pool", [flax_pooling, lax_pooling, channels_first_pooling, average_pooling])
def test_pooling(pool: Function, tmp_path: Path) -> None:
    report = export(lambda x: channels_last(pool(x)), tmp_path / "f.onnx", input_size=32)
    assert report.shape[0] == 8
    assert report.agreement.logits <= 1e-5
    assert report.agreement.activations is not None
    assert report.agreement.activations <= 1e-5


@pytest.mark.parametrize("wrap", [lambda function: function, jax.jit], ids=["plain", "jit"])
def test_a_softmax_is_found(wrap: Callable[[Function], Function], tmp_path: Path) -> None:
    """Under jit it is written out as exponentials over their sum."""
    report = export(wrap(lambda x: jax.nn.softmax(channels_last(x))), tmp_path / "f.onnx", input_size=32)
    assert report.contract.output == "probabilities"
    assert report.contract.logits is not None


def data_dependent(x: jax.Array) -> jax.Array:
    return channels_last(x) if x.mean() > 0 else -channels_last(x)


def with_numpy(x: jax.Array) -> Any:
    return np.asarray(x).mean((1, 2))


def loops_over_the_batch(x: jax.Array) -> jax.Array:
    return jnp.concatenate([channels_last(x[row : row + 1]) for row in range(x.shape[0])])


def unsupported(x: jax.Array) -> jax.Array:
    return jnp.linalg.svd(x.mean(3), compute_uv=False)


def broken(x: jax.Array) -> jax.Array:
    raise KeyError("something of the user's own")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (data_dependent, "control flow depends on the values"),
        (with_numpy, "use jax.numpy instead of numpy"),
        (loops_over_the_batch, "needs the batch size as a number"),
        (unsupported, "svd"),
        (broken, 'does not run on an input .*KeyError: "something of the user\'s own"'),
        (lambda x: x, r"returns \[2, 32, 32, 3\].*expected class scores"),
        (lambda x: (x, x), r"returns tuple: 0 \[\?,32,32,3\]; 1 \[\?,32,32,3\] for an input .*; expected class scores"),
        (lambda x, y: x, "takes 2 inputs: 'x', 'y'; expected one, the image"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_converted_is_one_clear_line(
    function: Function, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], in_table: Any
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        export(function, tmp_path / "f.onnx", input_size=32)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert nothing_is_left(tmp_path)
    assert capfd.readouterr() == ("", "")
    shown = {
        data_dependent: "control flow on values",
        loops_over_the_batch: "a loop over the batch",
        unsupported: "svd",
    }
    if function in shown:
        in_table(shown[function], "JAX function", refused=str(caught.value))


def lite0_in_jax(module: Any) -> Function:
    """EfficientNet-Lite0 as a JAX function of images [B,224,224,3], with the PyTorch module's trained weights."""

    def layer(conv: Any, norm: Any) -> Function:
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
        shift = norm.bias.detach().numpy() - norm.running_mean.numpy() * scale
        kernel, (stride, _) = conv.weight.detach().numpy().transpose(2, 3, 1, 0), conv.stride

        def run(x: jax.Array) -> jax.Array:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=conv.groups,
            )
            return y * scale + shift

        return run

    def block(part: Any) -> Function:
        expand = layer(part._expand_conv, part._bn0) if hasattr(part, "_expand_conv") else None
        depthwise, project = layer(part._depthwise_conv, part._bn1), layer(part._project_conv, part._bn2)

        def run(x: jax.Array) -> jax.Array:
            y = x if expand is None else jnp.clip(expand(x), 0, 6)
            y = project(jnp.clip(depthwise(y), 0, 6))
            return x + y if part._depthwise_conv.stride[0] == 1 and x.shape == y.shape else y

        return run

    stem, head = layer(module._conv_stem, module._bn0), layer(module._conv_head, module._bn1)
    blocks = [block(part) for part in module._blocks]
    weight, bias = module._fc.weight.detach().numpy().T, module._fc.bias.detach().numpy()

    def lite0(x: jax.Array) -> jax.Array:
        x = jnp.clip(stem(x), 0, 6)
        for run in blocks:
            x = run(x)
        return jnp.clip(head(x), 0, 6).mean((1, 2)) @ weight + bias

    return lite0


@pytest.fixture(scope="module")
def jax_lite0_file(lite0: nn.Module, models: Path) -> Path:
    report = export(lite0_in_jax(lite0), models / "lite0-jax.onnx", preprocess="lite", labels="imagenet")
    assert report.shape == (1280, 7, 7)
    assert report.contract.image_layout == "NHWC"
    assert report.agreement.logits <= 1e-4
    assert report.agreement.activations is not None
    assert report.agreement.activations <= 1e-4
    return report.path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet_00", "imagenet_03"])
def test_a_trained_network_explains_as_its_pytorch_twin(
    jax_lite0_file: Path, lite0_file: Path, photos: dict[str, Path], name: str, in_table: Any
) -> None:
    ours = ortcam.ScoreCAM(jax_lite0_file).explain(photos[name])
    theirs = ortcam.ScoreCAM(lite0_file).explain(photos[name])
    assert ours.targets[0].index == theirs.targets[0].index == int(photos[name].stem.split("_")[2])
    assert_same_map(ours.maps[0], theirs.maps[0])
    if name == "imagenet_00":
        in_table("EfficientNet-Lite0, rebuilt from its weights", "JAX function", jax_lite0_file)
