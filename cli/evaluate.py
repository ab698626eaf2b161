"""ortcam evaluate: measure how well maps show what a model uses."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ortcam.cli import console, options, target_options
from ortcam.errors import OptionError, OrtcamError

if TYPE_CHECKING:
    from ortcam.evaluation.cases import Only


def evaluate(
    model: Annotated[Path, typer.Argument(help="The model file that `ortcam export` wrote.", show_default=False)],
    photos: options.PhotosOrNone = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="A data set instead of a folder, as LAYOUT:PATH: classes, csv, cub, voc, coco or masks (see the "
            "documentation).",
            show_default=False,
        ),
    ] = None,
    labels: options.LabelsFile = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="What to measure: NAME, NAME:PRESET or NAME:PRESET,KEY=VALUE. Names: insertion, deletion, drop, "
            "increase, gain, adcc, road, highest-confidence, energy, pointing, rank, box-iou. May be repeated. "
            "Default: insertion and deletion.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="What to evaluate: NAME or NAME:KEY=VALUE,..., such as score-cam:budget=32,preset=paper or "
            "rise:masks=1000. May be repeated. Default: score-cam.",
            show_default=False,
        ),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--maps",
            help="Maps that were made elsewhere, as NAME=FOLDER with a .npy file for each photo. May be repeated.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Run at most this many masked inputs for methods that state no budget. Default: run all.",
            show_default=False,
        ),
    ] = None,
    explained: Annotated[
        str | None,
        typer.Option(
            "--explain",
            help="The class that maps explain: predicted, true, an index or a label. Default: true for metrics that "
            "need a box or a mask, else predicted. For a detector or segmenter, predicted (the default) is its surest "
            "box or largest region, and true is the object of the data set.",
            show_default=False,
        ),
    ] = None,
    score: Annotated[
        str, typer.Option(help="The class whose score is measured: explained, predicted, true, an index or a label.")
    ] = "explained",
    like: target_options.LikeOne = None,
    sign: target_options.Sign = 1,
    least_score: target_options.LeastScore = 0.25,
    only: Annotated[
        str,
        typer.Option(
            help="Evaluate all photos, or only correct or misclassified ones.",
            autocompletion=options.one_of("all", "correct", "misclassified"),
        ),
    ] = "all",
    most_per_class: Annotated[
        int | None,
        typer.Option(min=1, help="Evaluate at most this many photos of each true class.", show_default=False),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            help="Compare with this control: random, centre, activations or none. May be repeated. Default: all three.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random control.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write results.json, per-photo.csv and curves.png to this folder. A run that was interrupted goes on "
            "where it ended.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results of a run with other options.")
    ] = False,
    layer: options.LayerName = None,
    provider: options.ProviderName = "auto",
    provider_option: options.ProviderOptions = None,
    device_id: options.DeviceId = 0,
    batch_size: options.BatchSize = None,
    threads: options.Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Measure how well maps show what a model uses, beside controls that know nothing of it.

    Examples:

      ortcam evaluate model.onnx photos/ --budget 32 -o results

      ortcam evaluate model.onnx photos/ --method score-cam --method recipro-cam --metric insertion:rise --metric drop

      ortcam evaluate model.onnx --dataset cub:CUB_200_2011 --metric energy --metric pointing --budget 32

      ortcam evaluate detector.onnx photos/ --metric insertion --metric deletion --metric pointing --budget 32
    """
    if (photos is None) == (dataset is None):
        raise typer.BadParameter("give either a folder of photos or --dataset LAYOUT:PATH")
    if control is not None and "none" in control and len(control) > 1:
        raise OptionError("--control is none and another control; give --control none alone")
    from ortcam.core.references import Detecting
    from ortcam.evaluation.maps import CONTROLS
    from ortcam.evaluation.run import evaluate as run

    errors: list[dict[str, str]] = []

    def report(photo: str, error: OrtcamError) -> None:
        errors.append({"photo": photo, "error": str(error)})
        console.fail(console.about(photo, error))
        if console.debug:
            traceback.print_exception(error)

    with console.progress_bar(1) as advance:
        result = run(
            model,
            dataset if photos is None else photos,
            method or (() if maps else ("score-cam",)),
            metric or ("insertion", "deletion"),
            labels=labels,
            maps=_read_maps(maps),
            explain=target_options.read_one(explained, like, sign),
            score=score,
            only=cast("Only", only),  # checked there
            most_per_class=most_per_class,
            budget=budget,
            layer=layer,
            controls=tuple(CONTROLS) if not control else () if control == ["none"] else tuple(control),
            seed=seed,
            folder=output,
            overwrite=overwrite,
            provider=options.make_provider(provider, provider_option, device_id),
            batch_size=options.read_batch_size(batch_size),
            threads=threads,
            on_progress=lambda done, total: advance(f"{done} of {total}", done / total),
            on_error=report,
            detecting=Detecting(least_score),
        )
    if as_json:
        console.print_json(result.to_dict())
    else:
        for line in result.table(console.table_width()).split("\n"):
            console.say(line)
        if output is not None:
            console.note(f"written to {output}/")
    if errors:
        raise typer.Exit(1)


def _read_maps(pairs: list[str] | None) -> dict[str, Any]:
    """Return NAME=FOLDER pairs as a mapping.

    Raises:
        OptionError: a name is given twice.
    """
    found = options.read_pairs("--maps", pairs)
    if len(found) != len(pairs or []):
        raise OptionError("--maps has a name twice; give each folder its own name")
    return dict(found)
