"""ortcam export: a model in, a model file with its target layers exposed out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ortcam.cli import console, options

TASKS = ("classify", "detect", "segment", "embed", "value")
KINDS = ("logits", "probabilities", "sigmoid")


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="A file (.onnx, .keras, .h5, .hdf5, .tflite, .pt2, .pb), the folder of a SavedModel, "
            "torchvision:NAME, timm:NAME, FILE.py:CALLABLE or package.module:CALLABLE.",
            show_default=False,
        ),
    ],
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The .onnx file to write. May be given again as logits, probabilities or sigmoid: see --output-kind. "
            "Default: SOURCE.cam.onnx.",
            show_default=False,
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Target layer: auto, a module (a.b), a Keras layer (outer/inner), or a value in the graph. May be "
            "repeated: the file exposes all of them, and the first is the default. Default: auto.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Load weights: a checkpoint (.pth, .ckpt, .safetensors, ...), Keras weights, or `random`. "
            "Default: the model's own."
        ),
    ] = None,
    input_size: Annotated[str | None, typer.Option(help="Size of the input in pixels: SIDE or HEIGHTxWIDTH.")] = None,
    opset: Annotated[
        int, typer.Option(help="Opset to write: 18, 19 or 20. An ONNX file of opset 18 or newer keeps its own.")
    ] = 20,
    preprocess: Annotated[
        str | None,
        typer.Option(
            help="How a photo becomes an input: imagenet, tf, caffe, lite, raw, or a JSON file, such as Hugging Face's "
            "preprocessor_config.json.",
            autocompletion=options.one_of("imagenet", "tf", "caffe", "lite", "raw"),
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Read class names from a text, CSV or JSON file, such as Hugging Face's config.json; or `imagenet`."
        ),
    ] = None,
    output_name: Annotated[
        str | None,
        typer.Option(
            help="Take the scores, mask, embedding or values from this output: its name, key or index. Default: "
            "found by rules."
        ),
    ] = None,
    output_kind: Annotated[
        str | None,
        typer.Option(
            help="What the scores are: logits (one class a photo), probabilities, or sigmoid (independent logits). "
            "Default: what the graph shows, else logits.",
            autocompletion=options.one_of(*KINDS),
            show_default=False,
        ),
    ] = None,
    input_layout: Annotated[
        str | None, typer.Option(help="Order of the input's dimensions, where the source leaves it open: NCHW or NHWC.")
    ] = None,
    grid: Annotated[
        str | None, typer.Option(help="Grid of a transformer's patches, where it is not found: ROWSxCOLUMNS.")
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="What the model does: classify, detect, segment, embed or value. auto: as the file's metadata or a "
            "known form says, else classify.",
            autocompletion=options.one_of("auto", *TASKS),
        ),
    ] = "auto",
    boxes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:FORMAT",
            help="Boxes of a detector: a tensor, and xyxy, cxcywh or yxyx (pixels; with -unit: 0 to 1), ssd, ssd-xy or "
            "linear (offsets to anchors), yolox, yolov5, centerface or bins (cells of a grid).",
        ),
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:KIND",
            help="Scores of a detector or segmenter: a tensor, and probabilities, logits, softmax, objectness, ... "
            "(see docs/tasks.md).",
        ),
    ] = None,
    anchors: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Anchors of a detector: .npy, .json or .csv, rows of cx, cy, w, h as parts of the input; for a "
            "YOLOv5, widths and heights in pixels.",
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(help="Precision of the weights: fp32, or fp16 (half the size, faster on GPUs, verified to 2e-2)."),
    ] = "fp32",
    allow_unsafe: Annotated[
        bool,
        typer.Option(
            help="Run the code in a .keras, .h5, SavedModel or .pt2 file. Use it only for files that you trust."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Export a model to ONNX with its target layers exposed, and verify it against its source.

    Examples:

      ortcam export torchvision:resnet50 -o resnet50.onnx

      ortcam export my_model.py:build -o model.onnx --weights best.pt --preprocess imagenet --labels names.txt

      ortcam export model.onnx -o model.cam.onnx --preprocess tf

      ortcam export yolov8n.onnx -o detector.onnx

      ortcam export net.onnx -o detector.onnx --task detect --boxes out:cxcywh --scores out:logits

      ortcam export tagger.onnx -o tagger.cam.onnx --output sigmoid

      ortcam export model.keras -o model.onnx --layer block5_conv3 --preprocess caffe

      ortcam export torchvision:resnet50 -o resnet50.onnx --layer layer4 --layer layer3
    """
    path, output_kind = split_output(output or [], output_kind)
    size, patches = parse_size(input_size), parse_size(grid)
    from ortcam.exporters import export as run_export

    console.note(f"exporting {source} ...")
    with contextlib.redirect_stdout(sys.stderr):  # for output of the user's own code
        report = run_export(
            source,
            path or default_output(source),
            layer or "auto",
            weights=weights,
            input_size=size,
            opset=opset,
            preprocess=preprocess,
            labels=labels,
            output_name=output_name,
            output_kind=output_kind,  # type: ignore[arg-type]
            input_layout=input_layout.upper() if input_layout else None,  # type: ignore[arg-type]
            grid=patches,
            allow_unsafe=allow_unsafe,
            precision=precision,  # type: ignore[arg-type]
            task=task,
            boxes=boxes,
            scores=scores,
            anchors=anchors,
        )
    for notice in report.notices:
        if notice not in report.warned:  # these were printed
            console.note(f"note: {notice}")
    if as_json:
        console.print_json(
            {
                "path": str(report.path),
                "layer": report.layer,
                "shape": list(report.shape),
                "layers": [
                    {"name": stated.name, "shape": list(layer.shape), "output": stated.output} | stated.verified
                    for stated, layer in zip(report.contract.layers, report.layers, strict=True)
                ],
                "task": report.contract.task,
                "outputs": report.contract.outputs,
                "output": report.contract.output,
                "activation": report.contract.activation,
                "preprocessing": None
                if report.contract.preprocessing is None
                else report.contract.preprocessing.to_dict(),
                "labels": 0 if report.contract.labels is None else len(report.contract.labels),
                "verified": report.contract.verified | report.contract.layers[0].verified,
                "notices": list(report.notices),
            }
        )
        return
    agreement, contract = report.agreement, report.contract
    described = (
        describe_output(contract.output, contract.activation, contract.output_scale)
        if contract.classifies
        else f"{contract.task}: {' and '.join(contract.outputs)}"
    )
    shapes = [" x ".join("?" if dim is None else str(dim) for dim in layer.shape) for layer in report.layers]
    console.say(f"{report.path}: target layer {report.layer} ({shapes[0]}), {described}")
    inner = "" if agreement.activations is None else f", target layer within {agreement.activations:.1g}"
    for other, shape in zip(report.layers[1:], shapes[1:], strict=True):
        console.say(f"{report.path}: layer {other.name} ({shape})")
        inner += "" if other.error is None else f", layer {other.name} within {other.error:.1g}"
    if contract.classifies:
        console.say(
            f"verified against its source: scores within {agreement.logits:.1g}{inner} (relative), same top class"
        )
    else:
        errors = contract.verified["relative_errors"].items()
        within = ", ".join(f"{role} within {error:.1g}" for role, error in errors)
        console.say(f"verified against its source: {within}{inner} (relative)")


def default_output(source: str) -> Path:
    """Return the default file of an export: beside a file or folder, else in the current folder.

    >>> str(default_output("timm:hf/resnet18.a1")), str(default_output("nets/cat.h5"))
    ('resnet18.a1.cam.onnx', 'nets/cat.cam.onnx')
    """
    origin, _, name = source.rpartition(":")
    path = Path(source)
    if origin and not path.exists():
        return Path(f"{name.rpartition('/')[2]}.cam.onnx")
    return path.with_name(f"{path.name if path.is_dir() else path.stem}.cam.onnx")


def split_output(given: list[str], kind: str | None) -> tuple[Path | None, str | None]:
    """Return the file and the kind of the scores. An --output with the name of a kind states the kind."""
    files = [one for one in given if one not in KINDS]
    kinds = {one for one in (*given, kind) if one is not None and one not in files}
    if len(files) > 1:
        raise typer.BadParameter(
            f"--output is given as {', '.join(files)}; expected one file, and beside it logits, probabilities or "
            "sigmoid"
        )
    if files and not Path(files[0]).suffix:
        raise typer.BadParameter(
            f"--output is {files[0]!r}; expected a file name that ends in .onnx, or logits, probabilities or sigmoid"
        )
    if len(kinds) > 1:
        raise typer.BadParameter(f"the kind of the scores is given as {' and '.join(sorted(kinds))}; expected one kind")
    return Path(files[0]) if files else None, next(iter(kinds), None)


def describe_output(output: str, activation: str | None, scale: Sequence[float] | None) -> str:
    """Return a text for the kind of the first output, and the function that makes its probabilities."""
    text = {
        "logits": f"logits ({activation or 'softmax assumed'})",
        "log_probabilities": f"logarithms of probabilities ({activation})",
        "probabilities": "probabilities",
        "sigmoid": "probabilities of independent sigmoids",
    }[output]
    return text if scale is None else f"{text}, times {scale[0]:g} plus {scale[1]:g}"


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read ``224`` or ``224x320`` (height x width)."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"size is {text!r}; expected SIDE or HEIGHTxWIDTH, such as 224 or 224x320")
    return int(sides[0]), int(sides[-1])
