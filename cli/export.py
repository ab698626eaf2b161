"""ortcam export: a model in, a model file with its target layer exposed out."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from ortcam.cli import console


def export(
    source: Annotated[
        str,
        typer.Argument(
            help="A file (.onnx, .keras, .h5, .hdf5, .tflite, .pt2), the folder of a SavedModel, torchvision:NAME, "
            "timm:NAME, FILE.py:CALLABLE or package.module:CALLABLE.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The .onnx file to write. Default: SOURCE.cam.onnx.", show_default=False),
    ] = None,
    layer: Annotated[
        str, typer.Option(help="auto, a module (a.b), a Keras layer (outer/inner), or a value in the graph.")
    ] = "auto",
    weights: Annotated[
        str | None,
        typer.Option(help="A state dict or Keras weights file, or `random`. Default: a zoo's own trained weights."),
    ] = None,
    input_size: Annotated[str | None, typer.Option(help="SIDE or HEIGHTxWIDTH in pixels.")] = None,
    opset: Annotated[int, typer.Option(help="18, 19 or 20; an ONNX file keeps its own from 18.")] = 20,
    preprocess: Annotated[
        str | None,
        typer.Option(
            help="imagenet, tf, caffe, lite, raw, or a JSON file, also Hugging Face's preprocessor_config.json."
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="A file of class names: text, CSV or JSON, also a Hugging Face config.json; or `imagenet`."),
    ] = None,
    output_name: Annotated[
        str | None, typer.Option(help="Which output holds the class scores. Default: the first that can.")
    ] = None,
    input_layout: Annotated[str | None, typer.Option(help="NCHW or NHWC, where the source leaves it open.")] = None,
    grid: Annotated[
        str | None, typer.Option(help="ROWSxCOLUMNS of a transformer's patches, where they are not found.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, or fp16: half the size, faster on GPUs, verified to 2e-2.")
    ] = "fp32",
    allow_unsafe: Annotated[
        bool,
        typer.Option(
            help="Run code that a .keras, .h5, SavedModel or .pt2 file brings along: only for files that you trust."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Export a model to ONNX with its target layer exposed, and verify it against its source.

    Examples:

      ortcam export torchvision:resnet50 -o resnet50.onnx

      ortcam export my_model.py:build -o model.onnx --weights best.pt --preprocess imagenet --labels names.txt

      ortcam export model.onnx -o model.cam.onnx --preprocess tf

      ortcam export model.keras -o model.onnx --layer block5_conv3 --preprocess caffe
    """
    size, patches = parse_size(input_size), parse_size(grid)
    from ortcam.exporters import export as run_export

    console.note(f"exporting {source} ...")
    with contextlib.redirect_stdout(sys.stderr):  # what the user's own code prints
        report = run_export(
            source,
            output or default_output(source),
            layer,
            weights=weights,
            input_size=size,
            opset=opset,
            preprocess=preprocess,
            labels=labels,
            output_name=output_name,
            input_layout=input_layout.upper() if input_layout else None,  # type: ignore[arg-type]
            grid=patches,
            allow_unsafe=allow_unsafe,
            precision=precision,  # type: ignore[arg-type]
        )
    for notice in report.notices:
        console.note(f"note: {notice}")
    if as_json:
        console.print_json(
            {
                "path": str(report.path),
                "layer": report.layer,
                "shape": list(report.shape),
                "output": report.contract.output,
                "preprocessing": None
                if report.contract.preprocessing is None
                else report.contract.preprocessing.to_dict(),
                "labels": 0 if report.contract.labels is None else len(report.contract.labels),
                "verified": report.contract.verified,
                "notices": list(report.notices),
            }
        )
        return
    shape = " x ".join("?" if dim is None else str(dim) for dim in report.shape)
    agreement = report.agreement
    inner = "" if agreement.activations is None else f", target layer within {agreement.activations:.1g}"
    print(f"{report.path}: target layer {report.layer} ({shape}), {report.contract.output}")
    print(f"verified against its source: scores within {agreement.logits:.1g}{inner} (relative), same top class")


def default_output(source: str) -> Path:
    """Return the file that a source is exported to by default: beside a file or folder, else in the current folder.

    >>> str(default_output("timm:hf/resnet18.a1")), str(default_output("nets/cat.h5"))
    ('resnet18.a1.cam.onnx', 'nets/cat.cam.onnx')
    """
    origin, _, name = source.rpartition(":")
    path = Path(source)
    if origin and not path.exists():
        return Path(f"{name.rpartition('/')[2]}.cam.onnx")
    return path.with_name(f"{path.name if path.is_dir() else path.stem}.cam.onnx")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read ``224`` or ``224x320`` (height x width)."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise typer.BadParameter(f"{text!r} is no size; expected SIDE or HEIGHTxWIDTH, such as 224 or 224x320")
    return int(sides[0]), int(sides[-1])
