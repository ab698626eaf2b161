"""The Typer application, and the handling of errors for all commands."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import warnings
from typing import Annotated

import typer

from ortcam import NO_RUNTIME, __version__
from ortcam.cli import (
    compare,
    console,
    debug,
    demo,
    doctor,
    evaluate,
    explain,
    export,
    inspect,
    interrupt,
    pack,
    page,
    preprocessing,
    reproduce,
    sanity,
    serve,
)
from ortcam.core.native import own_standard_error
from ortcam.errors import OrtcamError, one_line

app = typer.Typer(
    help="Explanations of vision models without gradients, run entirely in ONNX Runtime.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (
    export.export, inspect.inspect, preprocessing.preprocessing, explain.explain, evaluate.evaluate,
    debug.debug, sanity.sanity, compare.compare, reproduce.reproduce, pack.pack, page.page, serve.serve, doctor.doctor,
    demo.demo,
):  # fmt: skip
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ortcam {__version__}")
        if importlib.util.find_spec("onnxruntime") is None:
            console.warn(NO_RUNTIME)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and stop."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (may stand anywhere).")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Exit code 0: done, 1: failed, 2: wrong usage, 130: interrupted, 143: terminated."""
    debug = console.debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # ortcam reports unreadable photos itself
    if not debug:
        own_standard_error()
    for stream in (sys.stdout, sys.stderr):  # a file name need not be text in any encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    interrupt.watch()
    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = lambda message, *_: console.warn(str(message))
        try:
            app(args=arguments, prog_name="ortcam")
        except BaseException as ended:  # noqa: BLE001 - the last stop
            interrupted = interrupt.was_requested() or isinstance(ended, KeyboardInterrupt)
            # Typer makes SystemExit(130) of an interrupt, without a word.
            if interrupted or (isinstance(ended, SystemExit) and ended.code == 130):
                interrupt.tell()
                sys.exit(interrupt.exit_code())
            _report(ended, debug)


def _report(error: BaseException, debug: bool) -> None:
    """Print an error as one line, and exit; with --debug, raise it.

    The last branch prints an unexpected error, a fault in ortcam, as one line as well.
    """
    if debug or not isinstance(error, Exception):
        raise error
    if isinstance(error, OrtcamError):
        console.fail(str(error))
    elif isinstance(error, ImportError | OSError):  # ONNX Runtime is missing; the output is full or closed
        console.fail(one_line(error))
    else:
        console.fail(
            f"{type(error).__name__}: {one_line(error)} "
            "(a fault in ortcam: please report it with the output of --debug)"
        )
    sys.exit(1)
