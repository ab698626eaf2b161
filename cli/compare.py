"""ortcam compare: models, layers, methods, presets or targets side by side on the same photos."""

from __future__ import annotations

import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ortcam.cli import console, options, target_options
from ortcam.cli.folders import STDIN, find_photos
from ortcam.errors import OptionError, OrtcamError

if TYPE_CHECKING:
    from ortcam.comparison.result import Comparison

_WIDTH_OF_ALL = 120  # characters of a terminal


def compare(
    model: Annotated[
        Path,
        typer.Argument(
            help="The model file that `ortcam export` wrote. It is the reference: the others are compared with it.",
            show_default=False,
        ),
    ],
    others: Annotated[
        list[Path],
        typer.Argument(
            metavar="[MODELS] PHOTOS",
            help="More models, as files .onnx; then photos, or folders of photos.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write grid.png, comparison.json and comparison.csv to this folder. The same comparison is replaced.",
            show_default=False,
        ),
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option(
            "--report",
            help="Write a page with all photos to this .html file, to search, sort and filter. Without -o, nothing "
            "else is written.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace a comparison of other photos, models or options, and another report."
        ),
    ] = False,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            help="Target layer, as for explain. Repeat it to compare layers.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Method of explanation: NAME or NAME:KEY=VALUE,..., such as recipro-cam or score-cam:budget=32. "
            "Repeat it to compare methods. Default: score-cam.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            "--preset",
            help="Definition of Score-CAM, as for explain. Repeat it to compare definitions.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="Target of all maps: an index or a label of the first model. Repeat it to compare targets. Default: "
            "the first model's top class; of a detector or segmenter, its surest box or largest region.",
            show_default=False,
        ),
    ] = None,
    like: target_options.LikeOne = None,
    sign: target_options.Sign = 1,
    least_score: target_options.LeastScore = 0.25,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Run at most this many masked inputs per map, for methods that state no budget. Default: run all, for "
            "exact maps.",
            show_default=False,
        ),
    ] = None,
    provider: options.ProviderName = "auto",
    provider_option: options.ProviderOptions = None,
    device_id: options.DeviceId = 0,
    batch_size: options.BatchSize = None,
    threads: options.Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Compare the maps of models, layers, methods, presets or targets on the same photos.

    The columns are all combinations of what is given, at most 12. All of them explain the same target: the top class
    of the first model. Each column is compared with the first.

    Examples:

      ortcam compare float.onnx int8.onnx photos/ -o out --report report.html

      ortcam compare model.onnx photos/ --layer layer3 --layer layer4

      ortcam compare model.onnx photos/ --method score-cam --method score-cam:budget=32 --method recipro-cam

      ortcam compare model.onnx photo.jpg --target cat --target dog -o out --budget 64
    """
    from ortcam.comparison import compare as run
    from ortcam.comparison import cross
    from ortcam.core.references import Detecting
    from ortcam.report.comparing import CompareReport

    errors: list[dict[str, str]] = []

    def report(source: Path, error: OrtcamError) -> None:
        message = console.about(Path(source).name, error)
        errors.append({"source": str(source), "error": message})
        console.fail(message)
        if console.debug:
            traceback.print_exception(error)

    models = [model, *(path for path in others if _is_model(path))]
    named = [path for path in others if not _is_model(path)]
    if STDIN in named:
        raise typer.BadParameter("photos is '-'; expected files or folders")
    if not named:
        raise OptionError(f"got {len(models)} models and no photos; expected photos or folders behind the models")
    wanted = [target_options.read_one(one, like, sign, "--target") for one in target or (None,)]
    targets = [one for one in wanted if one is not None]
    columns = cross(models, layer or (), method or (), preset or (), targets)
    found = find_photos(named, report)
    photos = [photo for photo in found if not _is_inside(photo.source, output)]  # pictures of an earlier run
    if found and not photos:
        raise OptionError(f"all photos lie in the output folder {output}; expected another folder for the results")
    if errors and not photos:
        raise typer.Exit(1)
    page = None if report_file is None else CompareReport(report_file, overwrite)
    with page or nullcontext(), console.progress_bar(1.0) as advance:
        result = run(
            columns,
            [photo.source for photo in photos],
            budget=budget,
            provider=options.make_provider(provider, provider_option, device_id),
            batch_size=options.read_batch_size(batch_size),
            threads=threads,
            detecting=Detecting(least_score),
            folder=output,
            overwrite=overwrite,
            on_compared=None if page is None else page.add,
            on_error=report,
            on_progress=advance,
        )
        if page is not None:
            page.write(result)
    if as_json:
        places = {"directory": output, "report": report_file}
        written = {name: None if path is None else str(path) for name, path in places.items()}
        console.print_json({**result.to_dict(), **written, "errors": errors})
    else:
        _print_result(result)
        written_to = [*([] if output is None else [f"{output}/"]), *([] if report_file is None else [str(report_file)])]
        if written_to:
            console.note(f"written to {' and '.join(written_to)}")
    if errors:
        raise typer.Exit(1)


def _is_model(path: Path) -> bool:
    return path.suffix.lower() == ".onnx" and not path.is_dir()


def _is_inside(photo: Path, output: Path | None) -> bool:
    """Return whether a picture lies in the output of an earlier comparison."""
    return output is not None and photo.resolve().is_relative_to(output.resolve())


def _print_result(result: Comparison) -> None:
    count = len(result.photos)
    console.say(f"{count} photo{'' if count == 1 else 's'}; each column against {result.columns[0]}")
    console.say()
    heads, rows = result.cells(wide=console.table_width() >= _WIDTH_OF_ALL)
    table = console.make_table(*heads, right=("mean r", "least r"))
    for row in rows:
        table.add_row(*row)
    console.print_table(table)
    console.say()
    for line in result.lines():
        console.say(line)
