"""ortcam pack: write one file that explains photos in any runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ortcam.cli import console, options


def pack(
    model: Annotated[Path, typer.Argument(help="The model file that `ortcam export` wrote.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write. Default: MODEL.explainer.onnx.", show_default=False),
    ] = None,
    method: options.PackedMethodName = "score-cam",
    method_option: options.MethodOptions = None,
    preset: options.PresetName = None,
    layer: options.LayerName = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1, help="Run at most this many masked inputs. Default: run all, for the exact map.", show_default=False
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw/--no-raw", help="Take photos of any size, or preprocessed tensors.")
    ] = True,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of masked inputs, or rows of the model's tail, per run. Default: 8 masked inputs, 64 MB of "
            "features, or the model's own batch.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Class index, label, or -1 (the top class, the surest box or the largest region) to use if the file's "
            "input `target` is not given; the inputs `box` and `sign` then have defaults too. Default: none; `target` "
            "is required.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the packed file with the engine on a synthetic photo.")
    ] = True,
    triton: Annotated[
        Path | None,
        typer.Option(help="Also write a model repository for Triton Inference Server.", show_default=False),
    ] = None,
    triton_tensorrt: Annotated[
        bool, typer.Option("--triton-tensorrt", help="Let Triton run the file with TensorRT in float16.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Pack a model and a method of explanation into one ONNX file that needs no Python.

    Examples:

      ortcam pack model.onnx -o explainer.onnx --budget 32

      ortcam pack model.onnx -o explainer.onnx --method cam

      ortcam explain explainer.onnx photo.jpg

      ortcam pack detector.onnx -o explainer.onnx --budget 32 --target -1

      ortcam pack model.onnx --budget 32 --triton models/
    """
    if triton_tensorrt and triton is None:
        raise typer.BadParameter("--triton-tensorrt needs --triton DIR")
    from ortcam.deploy.facts import describe_run
    from ortcam.deploy.pack import name_packed
    from ortcam.deploy.pack import pack as write
    from ortcam.deploy.triton import write_triton

    path = output or model.with_name(f"{model.stem}.explainer.onnx")
    report = write(
        model,
        path,
        method=name_packed(method, options.read_pairs("--method-option", method_option)) if method_option else method,
        preset=preset,
        budget=budget,
        raw=raw,
        batch_size=batch_size,
        target=target,
        verify=verify,
        layer=layer,
    )
    for notice in report.notices:
        console.note(f"note: {notice}")
    folder = None if triton is None else write_triton(path, triton, tensorrt=triton_tensorrt)
    if as_json:
        console.print_json(
            {
                "path": str(path),
                "bytes": path.stat().st_size,
                "triton": None if folder is None else str(folder),
                "r": report.r,
                "largest_difference": report.largest_difference,
                "notices": list(report.notices),
                **report.facts,
            }
        )
        return
    size, facts = path.stat().st_size / 1e6, report.facts
    console.say(f"{path}: {size:.1f} MB; {describe_run(facts)}, batches of {facts['batch_size']}")
    if report.r is not None:
        console.say(
            f"checked against the engine: r = {report.r:.6f}, largest difference {report.largest_difference:.1g}"
        )
    if folder is not None:
        console.say(f"{folder}: a model for Triton; start the server with --model-repository {triton}")
    task = facts.get("task", "classify")
    more = {"classify": f"; in a browser: ortcam page {path} -o site", "embed": " --like reference.jpg"}.get(task, "")
    console.note(f"to try it: ortcam explain {path} photo.jpg{more}")
