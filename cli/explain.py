"""ortcam explain: photos in, overlays and maps out."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ortcam.cli import console, options
from ortcam.errors import ImageError, OptionError, OrtcamError

if TYPE_CHECKING:
    from ortcam.deploy.packed import PackedExplainer
    from ortcam.explanation import Pictures
    from ortcam.scorecam import ScoreCAM

_MOST_BYTES_UNASKED = 500_000_000  # of one explanation
_WIDTH_OF_INTERVALS = 76  # characters of a terminal


def explain(
    model: Annotated[
        Path, typer.Argument(help="A model file that `ortcam export` wrote, or a packed explainer.", show_default=False)
    ],
    images: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to: one folder per photo inside.")] = Path(
        "explanations"
    ),
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="A class index or label, or all; may be repeated. Default: the top class."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Explain the K most probable classes.")] = 1,
    budget: Annotated[
        int | None,
        typer.Option(min=1, help="Run at most so many masked inputs. Default: all, the exact map.", show_default=False),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Run masked inputs until the estimated error, 1 - r, is at most this.", show_default=False),
    ] = None,
    selection: Annotated[
        str, typer.Option(help="What a budget does with other channels: predict, or top-std (leave them out).")
    ] = "predict",
    preset: Annotated[
        str | None,
        typer.Option(
            help="official, paper, pytorch-grad-cam, torchcam or tf-keras-vis. Default: official.", show_default=False
        ),
    ] = None,
    provider: options.ProviderName = "auto",
    provider_option: options.ProviderOptions = None,
    device_id: options.DeviceId = 0,
    batch_size: Annotated[
        str | None,
        typer.Option(
            help="Masked images a run, or auto: measured once, and kept. Default: 8 on CPUs, 16 elsewhere.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPU threads, at most one per processor. Default: one per physical core.", show_default=False
        ),
    ] = None,
    opacity: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the colours over the photo.")] = 0.6,
    colormap: Annotated[str, typer.Option(help="turbo, jet, inferno or viridis.")] = "turbo",
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Write explanations of more than 500 MB without asking.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Explain what a model sees in photos.

    Examples:

      ortcam explain model.onnx photo.jpg

      ortcam explain model.onnx photos/ -o out --top-k 3

      ortcam explain model.onnx photo.jpg --target "tiger cat" --target 243 --json

      ortcam explain model.onnx photos/ --budget 32
    """
    if target and top_k != 1:
        raise typer.BadParameter("give either --target or --top-k, not both")
    from ortcam import ScoreCAM
    from ortcam.errors import PackedModelError

    where = options.make_provider(provider, provider_option, device_id)
    size = _read_batch_size(batch_size)
    limits: dict[str, Any] = {"budget": budget, "tolerance": tolerance, "selection": selection}
    cam: ScoreCAM | PackedExplainer
    try:
        cam = ScoreCAM(model, provider=where, preset=preset or "official", batch_size=size, threads=threads)
    except PackedModelError:
        from ortcam.deploy.packed import PackedExplainer

        given = {"--budget": budget, "--tolerance": tolerance, "--preset": preset, "--batch-size": size}
        given |= {"--selection": None if selection == "predict" else selection}
        for name, value in given.items():
            if value is not None:
                raise typer.BadParameter(f"{model} is packed with its preset and budget; leave {name} out") from None
        cam = PackedExplainer(model, where, threads)
        limits = {}
    done: list[dict[str, Any]] = []
    errors: list[dict[str, str]] = []

    def report(source: Path, error: OrtcamError) -> None:
        errors.append({"source": str(source), "error": str(error)})
        console.fail(str(error))
        if console.debug:
            traceback.print_exception(error)

    photos = find_photos(images, output, report)
    folders = iter(photos)
    with console.progress_bar(len(photos)) as advance:
        for explanation in cam.explain_batch(
            [photo for photo, _ in photos], target or None, report, top_k, lambda share: advance("", share), **limits
        ):
            photo, folder = next(pair for pair in folders if pair[0] == explanation.source)
            advance(photo.name, None)
            yes = yes or _may_write(explanation)
            try:
                explanation.save(folder, opacity=opacity, colormap=colormap)
            except OrtcamError as error:
                report(photo, error)
                continue
            done.append({"source": str(photo), "directory": str(folder), **explanation.to_dict()})
    if as_json:
        console.print_json({"model": str(model), "explanations": done, "errors": errors})
    elif done:
        _print_results(done, cam, output)
    if errors:
        raise typer.Exit(1)


def _may_write(explanation: Pictures) -> bool:
    """Ask the user before an explanation of more than 500 MB is written; whether the user was asked.

    Raises:
        OptionError: the user says no, or cannot be asked.
    """
    size = explanation.bytes_to_write
    if size <= _MOST_BYTES_UNASKED:
        return False
    height, width = explanation.photo_size
    said = f"{len(explanation.targets)} classes of a photo of {width}x{height} pixels take about {size / 1e6:.0f} MB"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise OptionError(f"{said}; give --yes to write them, or explain fewer classes")
    if not typer.confirm(f"{said}. Write them?", err=True):
        raise OptionError("nothing more was written; explain fewer classes, or give --yes")
    return True


def _read_batch_size(text: str | None) -> int | Literal["auto"] | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"--batch-size is {text!r}; expected a whole number from 1, or auto")
    return int(text)


def find_photos(
    images: list[Path], output: Path, report: Callable[[Path, OrtcamError], None]
) -> list[tuple[Path, Path]]:
    """Return every photo with the folder that its explanation goes to.

    A folder stands for the images in it and below it, and its layout is kept; explanations in it are no photos. Two
    photos never share a folder, nor does one lie in the other's.

    Args:
        images: photos and folders.
        output: where explanations go to.
        report: called with a folder that holds no images, and the error.
    """
    from ortcam.explanation import MANIFEST
    from ortcam.image import SUFFIXES

    named: list[tuple[Path, Path]] = []
    for image in images:
        if not image.is_dir():
            named.append((image, Path(image.stem.strip(".") or "photo")))
            continue
        inside = sorted(
            path
            for path in image.rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file() and not (path.parent / MANIFEST).exists()
        )
        if not inside:
            report(image, ImageError(f"{image} holds no images; expected files such as .jpg or .png"))
        named.extend((path, path.relative_to(image).with_name(path.stem.strip(".") or "photo")) for path in inside)
    taken = {folder for _, name in named for folder in name.parents}
    photos = []
    for path, name in named:
        unique, number = name, 1
        while unique in taken:
            number += 1
            unique = name.with_name(f"{name.name}-{number}")
        taken.add(unique)
        photos.append((path, output / unique))
    return photos


def _print_results(done: list[dict[str, Any]], cam: ScoreCAM | PackedExplainer, output: Path) -> None:
    packed = done[0]["channels"]["total"] is None  # such a file does not tell what it might have run
    estimated = not packed and any(
        target["error"] is None or target["error"]["high"] for entry in done for target in entry["targets"]
    )
    wide = console.table_width() >= _WIDTH_OF_INTERVALS
    columns = [
        "photo",
        "class",
        "sure",
        "scored",
        *(["error (90 %)" if wide else "error"] if estimated else []),
        "seconds",
    ]
    table = console.make_table(*columns, right=tuple(columns[2:]))
    for entry in done:
        channels = entry["channels"]
        for row, target in enumerate(entry["targets"]):
            first = row == 0
            table.add_row(
                Path(entry["source"]).name if first else "",
                f"{target['index']} {target['label'] or ''}".strip() + (" (flat map)" if target["map_is_flat"] else ""),
                f"{target['probability']:.1%}",
                (str(channels["scored"]) if packed else f"{channels['scored']} of {channels['total']}")
                if first
                else "",
                *([_show_error(target["error"], wide)] if estimated else []),
                f"{entry['seconds']:.2f}" if first else "",
            )
    console.print_table(table)
    if estimated:
        console.note(
            "column error: estimated 1 - r of the map with the exact map, and the 90 % interval of the estimate"
        )
    console.note(f"layer {done[0]['layer']}, preset {done[0]['preset']}, provider {cam.provider}; written to {output}/")


def _show_error(error: dict[str, float] | None, with_interval: bool) -> str:
    if error is None:
        return "unknown"
    if error["high"] == 0:
        return "0"
    return f"{error['expected']:.1g}" + (f" ({error['low']:.1g}-{error['high']:.1g})" if with_interval else "")
