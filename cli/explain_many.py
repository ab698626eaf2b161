"""ortcam explain-many: explain millions of photos, on this machine or on a cluster."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ortcam.cli import console, options, target_options
from ortcam.errors import OptionError

if TYPE_CHECKING:
    from ortcam.cluster.ray import Progress, Summary
    from ortcam.core.budget import Selecting

_SECONDS_BETWEEN_LINES = 30  # where standard error is no terminal


def explain_many(
    model: Annotated[
        Path,
        typer.Argument(help="The model file that `ortcam export` wrote, or a packed explainer.", show_default=False),
    ],
    photos: Annotated[
        list[str],
        typer.Argument(
            help="Photos, folders, tables (.parquet, .csv) with a column of paths or bytes, and patterns such as "
            "'photos/*.jpg'; paths, or URIs such as s3://bucket/photos.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="Folder for the results. If it holds a part of the same job, the job goes on.", show_default=False
        ),
    ],
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of processes. Default: as many as the CPUs or GPUs allow.", show_default=False
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each worker.")] = 1,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0, help="GPUs of each worker, or its share of one, such as 0.25; 0 for CPUs.")
    ] = 0.0,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of a Ray cluster, such as auto or 10.0.0.1:6379. Default: Ray starts on this machine.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="Explain this class: an index, a label, or all. May be repeated. Default: the top class.",
            show_default=False,
        ),
    ] = None,
    top_k: options.TopK = 1,
    budget: options.Budget = None,
    tolerance: options.Tolerance = None,
    selection: options.Selection = "predict",
    preset: options.PresetName = None,
    method: options.BestMethod = None,
    method_option: options.MethodOptions = None,
    layer: options.LayerNames = None,
    least_score: target_options.LeastScore = 0.25,
    provider: options.ProviderName = "auto",
    provider_option: options.ProviderOptions = None,
    batch_size: options.BatchSize = None,
    maps: Annotated[
        str,
        typer.Option(
            help="Maps in the results: float16 (of the model's input size), png (overlays of the photos) or none.",
            autocompletion=options.one_of("float16", "png", "none"),
        ),
    ] = "float16",
    max_pixels: Annotated[
        float, typer.Option(min=0.001, help="Largest photo, in millions of pixels; a larger photo is an error.")
    ] = 50.0,
    photos_per_file: Annotated[
        int,
        typer.Option(min=1, help="Photos in a file of results. A worker that dies loses the work on at most one file."),
    ] = 64,
    path_column: Annotated[str, typer.Option(help="Column of tables that names the photos.")] = "path",
    bytes_column: Annotated[
        str, typer.Option(help="Column of Parquet tables with the photos' bytes. Without it, photos are read by path.")
    ] = "bytes",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Explain the photos that failed in an earlier run once more.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Explain many photos with several processes or machines, into Parquet files.

    Each photo becomes exactly one row in OUTPUT/explanations; a photo that cannot be explained is a row with its error.
    After an interruption, run the same command again: the job goes on.

    Examples:

      ortcam explain-many model.onnx photos/ out --budget 32 --workers 8

      ortcam explain-many model.onnx photos.parquet out --address auto --gpus-per-worker 0.25

      ortcam explain-many model.onnx 's3://bucket/photos/*.jpg' /shared/out --address 10.0.0.1:6379
    """
    missing = [name for name in ("ray", "pyarrow", "pandas") if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"{', '.join(missing)} missing, which explain-many needs: pip install 'ortcam[ray]'")
    if target and top_k != 1:
        raise typer.BadParameter("give either --top-k or targets, not both")
    from ortcam import Detecting
    from ortcam.cluster.batch import ExplainBatch
    from ortcam.cluster.crew import Crew
    from ortcam.cluster.job import Job
    from ortcam.cluster.photos import Columns
    from ortcam.cluster.ray import run

    batch = ExplainBatch(
        model,
        targets=None if not target else "all" if target == ["all"] else tuple(target),
        top_k=top_k,
        budget=budget,
        tolerance=tolerance,
        selection=cast("Selecting", selection),
        method=method,
        method_options=options.read_pairs("--method-option", method_option),
        preset=preset,
        layer=tuple(layer) if layer else None,
        provider=options.make_provider(provider, provider_option, 0),
        batch_size=options.read_batch_size(batch_size),
        threads=threads,
        detecting=None if least_score == Detecting().score else Detecting(least_score),
        maps=maps,
        max_pixels=round(max_pixels * 1e6),
    )
    job = Job(batch, photos, output, Columns(path_column, bytes_column), photos_per_file, retry_failed)
    with _Line() as line:
        summary = run(job, Crew(workers, threads, gpus_per_worker, address), line.show)
    _print(summary, output, as_json)
    if summary.progress.failed:
        raise typer.Exit(1)


class _Line:
    """The line of progress on standard error: rewritten on a terminal, otherwise a new line now and then."""

    def __init__(self) -> None:
        self._terminal, self._last, self._open = sys.stderr.isatty(), time.monotonic(), False

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            print(file=sys.stderr)

    def show(self, progress: Progress) -> None:
        """Show how far the job is."""
        now = time.monotonic()
        if now - self._last < (0.2 if self._terminal else _SECONDS_BETWEEN_LINES):
            return
        self._last = now
        left = progress.seconds_left
        text = (
            f"{progress.done} of {progress.photos} done, {progress.failed} failed, {progress.rate:.1f} photos/s, "
            f"{'?' if left is None else _duration(left)} left"
        )
        if self._terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            console.note(text)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _print(summary: Summary, output: Path, as_json: bool) -> None:
    progress = summary.progress
    if as_json:
        console.print_json(
            {
                "output": str(output), "photos": progress.photos, "done": progress.done, "failed": progress.failed,
                "explained": progress.explained, "workers": summary.workers, "seconds": progress.seconds,
                "seconds_to_start": summary.seconds_to_start, "photos_per_second": progress.rate,
            }
        )  # fmt: skip
        return
    failed = f", {progress.failed} of them with an error (--retry-failed tries them again)" if progress.failed else ""
    console.note(f"{progress.photos} photos are in {output}/explanations{failed}")
    if progress.explained:
        console.note(
            f"{progress.explained} explained in {_duration(progress.seconds)}, workers: {summary.workers} "
            f"({progress.rate:.1f} photos/s) after a start of {summary.seconds_to_start:.0f} s"
        )
