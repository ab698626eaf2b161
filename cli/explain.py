"""ortcam explain: photos in, overlays and maps out; or a video in, a video out."""

from __future__ import annotations

import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ortcam.cli import console, options, target_options, video
from ortcam.cli.folders import STDIN, Folders, check_picture, find_photos, picture_of, write_picture
from ortcam.errors import OptionError, OrtcamError

if TYPE_CHECKING:
    from ortcam.core.method import Method
    from ortcam.output.explanation import Pictures

_MOST_BYTES_UNASKED = 500_000_000  # of one explanation
_WIDTH_OF_INTERVALS = 76  # characters of a terminal


def explain(
    model: Annotated[
        Path,
        typer.Argument(help="The model file that `ortcam export` wrote, or a packed explainer.", show_default=False),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Photos, folders of photos, - for a picture on standard input, or one video.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write to this folder, with a folder for each photo inside. For one photo and one class it may be a "
            "picture, .png or .jpg: the overlay. For a video: .mp4, or .webm for browsers. Default: explanations.",
            show_default=False,
        ),
    ] = None,
    report_file: options.ReportFile = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace explanations of another photo, model, class or option, and other pictures."
        ),
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="Explain this class: an index, a label, or all. May be repeated. Default: the top class. For a "
            "detector: the surest box of this class; for a segmenter: its region; for plain values: the number of one.",
        ),
    ] = None,
    box: target_options.Boxes = None,
    at: target_options.At = None,
    like: target_options.Like = None,
    sign: target_options.Sign = 1,
    listing: target_options.Listing = False,
    least_score: target_options.LeastScore = 0.25,
    top_k: options.TopK = 1,
    budget: options.Budget = None,
    tolerance: options.Tolerance = None,
    selection: options.Selection = "predict",
    every: video.Every = None,
    steady: video.Steady = None,
    preset: options.PresetName = None,
    method: options.BestMethod = None,
    method_option: options.MethodOptions = None,
    layer: options.LayerNames = None,
    provider: options.ProviderName = "auto",
    provider_option: options.ProviderOptions = None,
    device_id: options.DeviceId = 0,
    batch_size: options.BatchSize = None,
    threads: options.Threads = None,
    opacity: Annotated[float, typer.Option(min=0.0, max=1.0, help="Opacity of the heat map, 0 to 1.")] = 0.6,
    colormap: Annotated[
        str,
        typer.Option(
            help="Colours of the heat map: turbo, jet, inferno or viridis.",
            autocompletion=options.one_of("turbo", "jet", "inferno", "viridis"),
        ),
    ] = "turbo",
    caption: Annotated[
        bool,
        typer.Option(
            help="Write class, probability, method, error and a colour bar under each overlay, of a video under "
            "each frame, without the error. --no-caption writes the overlay alone."
        ),
    ] = True,
    boxes: Annotated[
        bool,
        typer.Option(
            "--boxes",
            help="Draw a dashed box in each overlay: around the map's maximum, where the map has at least half of it.",
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Write explanations of more than 500 MB without asking.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Explain what a model sees in photos, or in a video.

    Examples:

      ortcam explain model.onnx photo.jpg

      ortcam explain model.onnx photos/ -o out --top-k 3

      ortcam explain model.onnx photo.jpg --target "tiger cat" --target 243 --json

      ortcam explain model.onnx photos/ --budget 32

      ortcam explain model.onnx photos/ --report report.html

      ortcam explain model.onnx - -o overlay.png < photo.jpg

      ortcam explain model.onnx clip.mp4 --every 5 --budget 16 -o out.mp4
    """
    wanted = target_options.read(target, box, at, like, sign)
    if wanted and top_k != 1:
        raise typer.BadParameter("give either --top-k or targets, not both")
    only_photos = {
        "--list": listing, "--top-k": top_k != 1, "--boxes": boxes, "--report": report_file is not None,
    }  # fmt: skip
    clip = video.read(images, output or Path("explanations"), every, steady, only_photos)
    from ortcam import Detecting, load_explainer
    from ortcam.methods import make_method
    from ortcam.output.render import Style

    style = Style(opacity, colormap, caption, boxes)

    chosen: str | Method = "auto"
    if method is not None or method_option:
        chosen = make_method(method or "fused", options.read_pairs("--method-option", method_option))
    elif budget is not None or tolerance is not None or selection != "predict":
        chosen = "score-cam"  # they limit the masked inputs of Score-CAM
    explainer = load_explainer(
        model,
        chosen,
        preset=preset,
        provider=options.make_provider(provider, provider_option, device_id),
        batch_size=options.read_batch_size(batch_size),
        threads=threads,
        layer=layer,
        detecting=None if least_score == Detecting().score else Detecting(least_score),
    )
    if listing and (wanted or report_file is not None):
        raise typer.BadParameter(f"--list takes no {'targets' if wanted else '--report'}")
    if listing:
        target_options.show(explainer, find_photos(images, lambda _, error: console.fail(str(error))), as_json)
        return
    limits: dict[str, Any] = {"budget": budget, "tolerance": tolerance, "selection": selection}
    if clip is not None:
        drawn = {"opacity": opacity, "colormap": colormap, "caption": caption, "overwrite": overwrite}
        video.explain(explainer, clip, wanted, as_json, **limits, **drawn)
        return
    done: list[dict[str, Any]] = []
    errors: list[dict[str, str]] = []

    def report(source: Path, error: OrtcamError) -> None:
        message = console.about("standard input" if source == STDIN else source.name, error)
        errors.append({"source": str(source), "error": message})
        console.fail(message)
        if console.debug:
            traceback.print_exception(error)

    only_report = report_file is not None and output is None
    if output == STDIN:
        raise OptionError("--output is '-'; expected a folder or a picture, which explain writes to the disk")
    output = output or Path("explanations")
    page = None if report_file is None else options.make_report(report_file, opacity, colormap, overwrite)
    photos = find_photos(images, report)
    picture = picture_of(output)
    if picture is not None:
        check_picture(picture, photos, model, 2 if target == ["all"] else max(top_k, len(wanted or [])))
    folders = Folders(output, photos, overwrite)
    waiting = iter(photos)  # photos come back in order, explained or with an error
    with page or nullcontext(), console.progress_bar(len(photos)) as advance:
        for explanation in explainer.explain_batch(
            [photo.image for photo in photos],
            wanted,
            top_k=top_k,
            on_error=lambda _, error: report(next(waiting).source, error),
            on_progress=lambda share: advance("", share),
            **limits,  # checked there
        ):
            photo = next(waiting)
            advance(photo.source.name, None)
            explanation = explanation.with_source(photo.source)
            yes = yes or only_report or (picture is None and _may_write(explanation))
            try:
                written: dict[str, Any] = {"directory": None}
                if only_report:
                    pass
                elif picture is None:
                    written = {"directory": str(folders.save(explanation, photo.name, style))}
                else:
                    write_picture(explanation, picture, style, overwrite)
                    written = {"directory": None, "picture": str(picture)}
            except OrtcamError as error:
                report(photo.source, error)
                continue
            if page is not None:
                page.add(explanation)
            done.append({**explanation.to_dict(), **written})
        if page is not None:
            for failure in errors:
                page.fail(failure["source"], failure["error"])
    if as_json:
        told = {} if page is None else {"report": str(page.path)}
        console.print_json({"model": str(model), "explanations": done, "errors": errors, **told})
    elif done:
        places = [] if only_report else [str(picture or f"{output}/")]
        _print_results(done, explainer.provider, " and ".join([*places, *([str(page.path)] if page else [])]))
    elif page is not None:
        console.note(f"nothing was explained; {page.path} says why")
    if folders.moved:
        (occupied, path), more = folders.moved[0], len(folders.moved) - 1
        others = f", and {more} more" if more else ""
        console.note(
            f"{occupied} holds another explanation, which was kept; the new one is in {path}{others} "
            "(--overwrite replaces the old one)"
        )
    if errors:
        raise typer.Exit(1)


def _may_write(explanation: Pictures) -> bool:
    """Ask the user before writing an explanation of more than 500 MB. Return whether the user agreed.

    Raises:
        OptionError: the user declines, or cannot be asked.
    """
    size = explanation.bytes_to_write
    if size <= _MOST_BYTES_UNASKED:
        return False
    height, width = explanation.photo_size
    said = f"{len(explanation.targets)} classes of a photo of {width}x{height} pixels take about {size / 1e6:.0f} MB"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise OptionError(f"{said}; give --yes to write them, or explain fewer classes")
    if not typer.confirm(f"{said}. Write them?", err=True):
        raise OptionError("no further explanation was written; explain fewer classes, or give --yes")
    return True


def _print_results(done: list[dict[str, Any]], provider: str, output: str) -> None:
    score_cam = (method := done[0]["method"]["name"]) == "score-cam"  # other methods run no channels and know no error
    packed = done[0]["model"]["packed"]  # such a file does not tell what it might have run
    errors = [target["error"] for entry in done for target in entry["targets"]]
    estimated = score_cam and any(error is None or error["high"] for error in errors)
    wide = console.table_width() >= _WIDTH_OF_INTERVALS
    columns = [
        "photo",
        "class" if done[0]["targets"][0].get("place") is None else "target",
        "sure" if done[0]["targets"][0].get("place") is None else "score",
        "scored",
        *(["error (90 %)" if wide else "error"] if estimated else []),
        "seconds",
    ]
    table = console.make_table(*columns, right=tuple(columns[2:]))
    for entry in done:
        channels = entry["run"]["channels"]
        for row, target in enumerate(entry["targets"]):
            first = row == 0
            table.add_row(
                Path(entry["source"]).name if first else "",
                target_options.name_of(target) + (" (flat map)" if target["map_is_flat"] else ""),
                target_options.score_of(target),
                (
                    f"{channels['scored']} of {channels['total']}"
                    if score_cam and not packed
                    else str(channels["scored"])
                )
                if first
                else "",
                *([_show_error(target["error"], wide)] if estimated else []),
                f"{entry['run']['seconds']:.2f}" if first else "",
            )
    console.print_table(table)
    if estimated:
        console.note(
            "column error: estimated 1 - r of the map with the exact map, and the 90 % interval of the estimate"
        )
    how = f"preset {done[0]['preset']['name']}" if score_cam else f"method {method}"
    layer = "" if method == "rise" else f"layer {done[0]['model']['layer']}, "  # which it does not look at
    console.note(f"{layer}{how}, provider {provider}; written to {output}")


def _show_error(error: dict[str, float] | None, with_interval: bool) -> str:
    if error is None:
        return "unknown"
    if error["high"] == 0:
        return "0"
    return f"{error['expected']:.1g}" + (f" ({error['low']:.1g}-{error['high']:.1g})" if with_interval else "")
