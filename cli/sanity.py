"""ortcam sanity: do maps change when the weights become random?"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ortcam.cli import console, options, target_options
from ortcam.cli.folders import STDIN, find_photos
from ortcam.errors import OrtcamError

if TYPE_CHECKING:
    from ortcam.evaluation.sanity_result import Mode, SanityResult
    from ortcam.graph.randomise import Draw

_WIDTH_OF_ALL = 110  # characters of a terminal


def sanity(
    model: Annotated[Path, typer.Argument(help="The model file that `ortcam export` wrote.", show_default=False)],
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write sanity.json, per-photo.csv, curve.png and strip.png to this folder. A result of the same "
            "model, photos and options is replaced.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a result of another model, other photos or options.")
    ] = False,
    mode: Annotated[
        str,
        typer.Option(
            help="cascading: each stage randomises more layers, from the scores down. independent: one layer alone.",
            autocompletion=options.one_of("cascading", "independent"),
        ),
    ] = "cascading",
    draw: Annotated[
        str,
        typer.Option(
            help="Random weights: gaussian (same mean and deviation as before) or permutation (the same values in "
            "another order). Integers are always permuted.",
            autocompletion=options.one_of("gaussian", "permutation"),
        ),
    ] = "gaussian",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
    steps: Annotated[str, typer.Option(help="Number of stages, or all: one for each layer.")] = "8",
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            help="Explain this class. Default: each photo's top class; of a detector or segmenter, its surest box or "
            "largest region.",
            show_default=False,
        ),
    ] = None,
    like: target_options.LikeOne = None,
    sign: target_options.Sign = 1,
    least_score: target_options.LeastScore = 0.25,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Run at most this many masked inputs per map, or exact: run all. Default: 32 for Score-CAM.",
            show_default=False,
        ),
    ] = None,
    preset: options.PresetName = None,
    method: options.MethodName = "score-cam",
    method_option: options.MethodOptions = None,
    layer: options.LayerName = None,
    provider: options.ProviderName = "auto",
    provider_option: options.ProviderOptions = None,
    device_id: options.DeviceId = 0,
    batch_size: options.BatchSize = None,
    threads: options.Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Check whether maps change when the weights of the model become random.

    A map that stays the same does not depend on what the model has learned.

    Examples:

      ortcam sanity model.onnx photos/

      ortcam sanity model.onnx photos/ -o out --mode independent --steps all

      ortcam sanity model.onnx photo.jpg --method recipro-cam --draw permutation --seed 1
    """
    from ortcam.core.references import Detecting
    from ortcam.evaluation.randomised import sanity as check

    errors: list[dict[str, str]] = []

    def report(source: Path, error: OrtcamError) -> None:
        errors.append({"source": str(source), "error": str(error)})
        console.fail(str(error))
        if console.debug:
            traceback.print_exception(error)

    if STDIN in photos:
        raise typer.BadParameter("photos is '-'; expected files or folders")
    found = find_photos(photos, report)
    if errors and not found:
        raise typer.Exit(1)
    with console.progress_bar(1.0) as advance:
        result = check(
            model,
            [photo.source for photo in found],
            method,
            method_options=options.read_pairs("--method-option", method_option),
            preset=preset,
            budget=cast("int | Literal['exact'] | None", _read_number("--budget", budget, "exact")),
            target=target_options.read_one(target, like, sign, "--target"),
            mode=cast("Mode", mode),  # checked there
            draw=cast("Draw", draw),
            seed=seed,
            steps=cast("int | Literal['all']", _read_number("--steps", steps, "all")),
            layer=layer,
            provider=options.make_provider(provider, provider_option, device_id),
            batch_size=options.read_batch_size(batch_size),
            threads=threads,
            on_error=report,
            on_progress=advance,
            detecting=Detecting(least_score),
            folder=output,
            overwrite=overwrite,
        )
    if as_json:
        console.print_json({**result.to_dict(), "directory": None if output is None else str(output), "errors": errors})
    else:
        _print_result(result)
        if output is not None:
            console.note(f"written to {output}/")
    if errors:
        raise typer.Exit(1)


def _read_number(name: str, text: str | None, word: str) -> int | str | None:
    if text is None or text == word:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{name} is {text!r}; expected a whole number from 1, or {word}")
    return int(text)


def _print_result(result: SanityResult) -> None:
    heads, rows = result.cells(wide=console.table_width() >= _WIDTH_OF_ALL)
    table = console.make_table(*heads, right=tuple(heads[3:]))
    for row in rows:
        table.add_row(*row)
    console.print_table(table)
    console.say()
    for line in result.lines():
        console.say(line)
    settings: Any = result.settings
    console.note(
        f"layer {settings['model']['layer']}, method {settings['method']['name']}, provider {settings['provider']}"
    )
