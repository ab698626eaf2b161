"""ortcam debug: why a classifier is wrong."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ortcam.cli import console, options
from ortcam.errors import OrtcamError

if TYPE_CHECKING:
    from ortcam.evaluation.mistakes import Debugging

_SHOWN = 10  # pairs, and suspicious photos, in the terminal


def debug(
    model: Annotated[Path, typer.Argument(help="The model file that `ortcam export` wrote.", show_default=False)],
    photos: options.PhotosOrNone = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="A data set instead of a folder, as LAYOUT:PATH: classes, csv, cub, voc, coco or masks (see the "
            "documentation). With boxes or masks, the report says how much evidence lies outside the object.",
            show_default=False,
        ),
    ] = None,
    labels: options.LabelsFile = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Write the report to this .html file, with debug.json and debug.csv beside it.",
        ),
    ] = Path("report.html"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace other files with the names of the report's files.")
    ] = False,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="The method of explanation: NAME or NAME:KEY=VALUE,..., such as score-cam:budget=64,preset=paper, or "
            "fused.",
        ),
    ] = "score-cam",
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Run at most this many masked inputs a photo. Default: 32 for score-cam; all for other methods.",
            show_default=False,
        ),
    ] = None,
    most: Annotated[
        int,
        typer.Option(
            min=1,
            help="Explain at most this many misclassified photos: those whose predicted class is furthest ahead of the "
            "true class.",
        ),
    ] = 100,
    most_correct: Annotated[
        int,
        typer.Option(min=0, help="Explain at most this many correctly classified photos, for their mean map."),
    ] = 100,
    layer: options.LayerName = None,
    provider: options.ProviderName = "auto",
    provider_option: options.ProviderOptions = None,
    device_id: options.DeviceId = 0,
    batch_size: options.BatchSize = None,
    threads: options.Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Explain the mistakes of a classifier: what spoke for the predicted class, and what for the true one.

    Examples:

      ortcam debug model.onnx photos/ --labels labels.csv -o report.html

      ortcam debug model.onnx --dataset classes:photos -o report.html --most 20

      ortcam debug model.onnx --dataset cub:CUB_200_2011 -o report.html --budget 64
    """
    if (photos is None) == (dataset is None):
        raise typer.BadParameter("give either a folder of photos or --dataset LAYOUT:PATH")
    from ortcam.evaluation.debugging import debug as run
    from ortcam.report.debugging import DebugReport

    failed = False

    def report(photo: str, error: OrtcamError) -> None:
        nonlocal failed
        failed = True
        console.fail(console.about(photo, error))
        if console.debug:
            traceback.print_exception(error)

    with DebugReport(output, overwrite=overwrite) as page, console.progress_bar(1) as advance:
        found = run(
            model,
            dataset if photos is None else photos,
            labels,
            method=method,
            budget=budget,
            layer=layer,
            most=most,
            most_correct=most_correct,
            provider=options.make_provider(provider, provider_option, device_id),
            batch_size=options.read_batch_size(batch_size),
            threads=threads,
            on_explained=page.add,
            on_progress=lambda done, total: advance(f"{done} of {total}", done / total),
            on_error=report,
        )
        page.write(found)
    if as_json:
        console.print_json({**found.to_dict(), "report": str(output)})
    else:
        _print(found)
        console.note(f"written to {output}, with debug.json and debug.csv beside it")
    if failed:
        raise typer.Exit(1)


def _print(found: Debugging) -> None:
    for note in found.record["dataset"]["notes"]:
        console.note(f"note: {note}")
    if found.accuracy is None:
        console.say("no photo could be predicted")
        return
    right = len(found.photos) - found.misclassified
    console.say(f"accuracy {found.accuracy:.1%} ({right} of {len(found.photos)} photos)")
    if not found.misclassified:
        console.say("no photo is misclassified")
        return
    console.say(f"{found.misclassified} misclassified, {len(found.mistakes)} of them explained")
    console.say()
    pairs = console.make_table("true class", "predicted class", "photos", right=("photos",))
    for pair in found.pairs[:_SHOWN]:
        pairs.add_row(*pair.names, str(pair.count))
    console.print_table(pairs)
    if len(found.pairs) > _SHOWN:
        console.say(f"and {len(found.pairs) - _SHOWN} more pairs")
    console.say()
    numbers = ("lead", "in common", "true class wins")
    table = console.make_table("most suspicious", "true class", "predicted class", *numbers, "flags", right=numbers[:2])
    for mistake in found.mistakes[:_SHOWN]:
        one, without = mistake.prediction, mistake.without
        table.add_row(
            one.photo,
            *one.names,
            f"{one.lead:.1%}",
            "" if mistake.in_common is None else f"{mistake.in_common:.0%}",
            "" if without is None else "yes" if without.true_wins else "no",
            ", ".join(mistake.flags),
        )
    console.print_table(table)
    console.say()
    console.say(f"Order: {found.record['order']}.")
    console.say("True class wins: it is the most probable class without the top region of the predicted class's map.")
