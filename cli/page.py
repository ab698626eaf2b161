"""ortcam page: write a web page around a packed explainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ortcam.cli import console


def page(
    explainer: Annotated[Path, typer.Argument(help="The file that `ortcam pack` wrote.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Write the page to this folder.")] = Path("site"),
    example: Annotated[
        list[Path] | None,
        typer.Option("--example", "-e", help="Offer this photo on the page. May be repeated.", show_default=False),
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(
            help="The npm package onnxruntime-web: its folder or .tgz. Default: fetched with npm.", show_default=False
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.", show_default=False)] = None,
) -> None:
    """Write a static page that explains photos in the browser.

    Examples:

      ortcam page explainer.onnx -o site -e dog.jpg && python3 -m http.server -d site
    """
    from ortcam.deploy.page import write_page

    folder = write_page(explainer, output, example or [], runtime, title)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    console.say(f"{folder}: {size / 1e6:.1f} MB; any web server can serve it: python3 -m http.server -d {folder}")
    console.note(
        "for a browser, pack method cam or a budget of at most 32: a pass takes ten times as long there as on a server"
    )
