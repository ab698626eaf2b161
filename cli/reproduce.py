"""ortcam reproduce: run a stored explanation again and compare it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ortcam.cli import console, options
from ortcam.cli.target_options import name_of

if TYPE_CHECKING:
    from ortcam.deploy.reproduction import Reproduction


def reproduce(
    directory: Annotated[
        Path, typer.Argument(help="The folder that `ortcam explain` wrote for a photo.", show_default=False)
    ],
    model: Annotated[
        Path | None, typer.Option(help="The model file. Default: the recorded path.", show_default=False)
    ] = None,
    photo: Annotated[
        Path | None,
        typer.Option(
            help="The photo, or a .npy file with its pixels or the input tensor. Default: the recorded path.",
            show_default=False,
        ),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(help="Execution provider: cpu, cuda, ... Default: the recorded provider.", show_default=False),
    ] = None,
    provider_option: options.ProviderOptions = None,
    device_id: options.DeviceId = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Run a stored explanation again from its record and compare model, photo and maps.

    The exit code is 0 only if the hashes of model and photo equal the recorded hashes, and every map agrees: r is at
    least 0.9999 and no pixel differs by more than 0.001.

    Examples:

      ortcam reproduce explanations/cat

      ortcam reproduce explanations/cat --model model.onnx --photo cat.jpg
    """
    from ortcam.deploy.reproduction import reproduce as run

    if provider is None and (provider_option or device_id):
        raise typer.BadParameter("--provider-option and --device-id need --provider")
    where = None if provider is None else options.make_provider(provider, provider_option, device_id)
    found = run(directory, model, photo, where)
    if as_json:
        console.print_json({"directory": str(directory), **found.to_dict()})
    else:
        _print(found)
    if not found.agrees:
        raise typer.Exit(1)


def _print(found: Reproduction) -> None:
    same = {True: "the same", False: "another", None: "unknown: its hash was not recorded"}
    console.say(f"model: {same[found.same_model]}")
    console.say(f"photo: {same[found.same_photo]}")
    table = console.make_table("target", "r", "largest difference", "", right=("r", "largest difference"))
    for one, target in zip(found.maps, found.explanation.targets, strict=True):
        table.add_row(
            name_of({"index": one.index, "label": one.label, "place": target.place}),
            "flat map" if one.r is None else f"{one.r:.6f}",
            f"{one.largest_difference:.1e}",
            "agrees" if one.agrees else "differs",
        )
    console.print_table(table)
    console.note("the explanation is reproduced" if found.agrees else "the explanation is not reproduced")
