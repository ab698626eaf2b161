"""Define the options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ortcam.report import Report
    from ortcam.runtime.providers import Provider


_METHODS = (
    "score-cam", "fused", "cam", "recipro-cam", "ablation-cam", "eigen-cam", "poly-cam", "ss-cam", "is-cam", "rise",
)  # fmt: skip
_EXAMPLES = {"--provider-option": "use_tf32=1", "--method-option": "masks=1000", "--maps": "mine=folder"}


def one_of(*words: str) -> Callable[[], list[str]]:
    """Return a function that gives a shell the completions of an option."""
    return lambda: list(words)


def _presets() -> list[str]:
    from ortcam import PRESETS

    return list(PRESETS)


def _providers() -> list[str]:
    from ortcam.runtime.providers import PROVIDERS

    return ["auto", *PROVIDERS]


ProviderName = Annotated[
    str,
    typer.Option(
        "--provider",
        help="Execution provider: auto, cpu, cuda, tensorrt, ... (see: ortcam doctor).",
        autocompletion=_providers,
    ),
]
ReportFile = Annotated[
    Path | None,
    typer.Option(
        "--report",
        help="Write a report of all photos to this .html file, with results.csv and overview.png beside it. Without "
        "-o, nothing else is written.",
        show_default=False,
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Definition of Score-CAM: official, paper, pytorch-grad-cam, torchcam or tf-keras-vis. Default: official.",
        autocompletion=_presets,
        show_default=False,
    ),
]
ProviderOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--provider-option",
        help="Set an option of the provider by ONNX Runtime's name, such as use_tf32=1. May be repeated.",
        show_default=False,
    ),
]
LayerNames = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        help="Another target layer: one that the file exposes, or a module or a value of its graph (see: ortcam "
        "inspect). Default: the layer that the file exposes first. Repeat it to name the earlier layers of a method "
        "that uses several.",
        show_default=False,
    ),
]
PhotosOrNone = Annotated[str | None, typer.Argument(help="A photo, or a folder of photos.", show_default=False)]
LabelsFile = Annotated[
    Path | None, typer.Option("--labels", help="A CSV file with the columns photo and label.", show_default=False)
]
LayerName = Annotated[
    str | None,
    typer.Option(
        "--layer",
        help="Another target layer: one that the file exposes, or a module or a value of its graph (see: ortcam "
        "inspect). Default: the layer that the file exposes first.",
        show_default=False,
    ),
]
_SHOWN_METHODS = f"Method of explanation: {', '.join(_METHODS[:-1])} or {_METHODS[-1]}."
MethodName = Annotated[str, typer.Option("--method", help=_SHOWN_METHODS, autocompletion=one_of(*_METHODS))]
BestMethod = Annotated[
    str | None,
    typer.Option(
        "--method",
        help=f"{_SHOWN_METHODS} Default: fused; score-cam if a "
        "budget, tolerance, selection or preset is given, or the model does not suit fused.",
        autocompletion=one_of(*_METHODS),
        show_default=False,
    ),
]
PackedMethodName = Annotated[
    str,
    typer.Option(
        "--method",
        help="Method of explanation: score-cam, fused, cam, recipro-cam, ablation-cam or eigen-cam.",
        autocompletion=one_of("score-cam", "fused", "cam", "recipro-cam", "ablation-cam", "eigen-cam"),
    ),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--method-option",
        help="Set an option of the method, such as masks=1000 or seed=1 of rise. May be repeated.",
        show_default=False,
    ),
]
TopK = Annotated[int, typer.Option("--top-k", "-k", min=1, help="Explain the K most probable classes.")]
Budget = Annotated[
    int | None,
    typer.Option(
        min=1, help="Run at most this many masked inputs. Default: run all, for the exact map.", show_default=False
    ),
]
Tolerance = Annotated[
    float | None,
    typer.Option(help="Run masked inputs until the estimated error, 1 - r, is at most this.", show_default=False),
]
Selection = Annotated[
    str,
    typer.Option(
        help="How a budget treats channels that are not run: predict their scores, or leave them out (top-std).",
        autocompletion=one_of("predict", "top-std"),
    ),
]
BatchSize = Annotated[
    str | None,
    typer.Option(
        "--batch-size",
        help="Number of masked inputs per run, or auto: measured once and kept. Default: 8 on CPUs, 16 elsewhere.",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Number of CPU threads, at most one per processor. Default: one per physical core.",
        show_default=False,
    ),
]
DeviceId = Annotated[int, typer.Option(min=0, help="Number of the device, from 0.")]


def make_provider(name: str, options: list[str] | None, device_id: int) -> Provider:
    """Return the provider that the command line names.

    Raises:
        typer.BadParameter: an option is not KEY=VALUE.
        OrtcamError: the provider or its option is unknown.
    """
    from ortcam import Provider

    return Provider(name, read_pairs("--provider-option", options), device_id)


def make_report(path: Path, opacity: float, colormap: str, overwrite: bool) -> Report:
    """Return the report that the command line names; errors are those of `Report`."""
    from ortcam.report import Report  # late: few commands write one

    return Report(path, opacity, colormap, overwrite=overwrite)


def read_batch_size(text: str | None) -> int | Literal["auto"] | None:
    """Return the batch size of the command line.

    Raises:
        typer.BadParameter: it is neither a whole number from 1 nor auto.
    """
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"--batch-size is {text!r}; expected a whole number from 1, or auto")
    return int(text)


def read_pairs(name: str, options: list[str] | None) -> dict[str, str]:
    """Return KEY=VALUE options as a mapping.

    Raises:
        typer.BadParameter: an option is not KEY=VALUE.
    """
    pairs = {}
    for option in options or []:
        key, equals, value = option.partition("=")
        if not equals or not key.strip():
            raise typer.BadParameter(f"{name} is {option!r}; expected KEY=VALUE, such as {_EXAMPLES[name]}")
        pairs[key.strip()] = value.strip()
    return pairs
