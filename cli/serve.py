"""ortcam serve: answer predictions and explanations over the Open Inference Protocol."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from ortcam.cli import console, options
from ortcam.errors import OptionError, OrtcamWarning

if TYPE_CHECKING:
    from ortcam.core.method import Method
    from ortcam.explain.protocol import Explainer

_PACKAGES = ("starlette", "uvicorn", "prometheus_client")


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=MODEL]...",
            help="Model files that `ortcam export` wrote, or packed explainers, with the names that clients use. "
            "Default name: that of the file.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the REST door; 0 for any free port.")] = 8080,
    grpc_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of the gRPC door. Default: no gRPC.", show_default=False),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(
            help="Serve all model files of this folder, and load those that appear or change.", show_default=False
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Run at most this many masked inputs for a request that names no budget. Default: all, for the exact "
            "map.",
            show_default=False,
        ),
    ] = None,
    method: options.MethodName = "score-cam",
    method_option: options.MethodOptions = None,
    preset: options.PresetName = None,
    layer: options.LayerNames = None,
    provider: options.ProviderName = "auto",
    provider_option: options.ProviderOptions = None,
    device_id: options.DeviceId = 0,
    batch_size: options.BatchSize = None,
    threads: options.Threads = None,
    queue: Annotated[
        int, typer.Option(min=1, help="Photos that may wait for one model; more are refused with 503.")
    ] = 64,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds in which a request is answered, or refused with 504.")
    ] = 30.0,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds to go on taking requests after SIGTERM, while readiness says no.")
    ] = 0.0,
    max_body: Annotated[float, typer.Option(min=0.001, help="Largest request, in MB.")] = 20.0,
    max_pixels: Annotated[float, typer.Option(min=0.001, help="Largest photo, in millions of pixels.")] = 25.0,
    max_images: Annotated[int, typer.Option(min=1, help="Most photos in a request.")] = 16,
    max_targets: Annotated[int, typer.Option(min=1, help="Most targets of a photo.")] = 10,
    max_output: Annotated[float, typer.Option(min=0.001, help="Largest maps of an answer, in MB.")] = 64.0,
    max_connections: Annotated[int, typer.Option(min=1, help="Most open connections of a door.")] = 256,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Answer only clients that send one of the keys in this file, a key a line, as "
            "'Authorization: Bearer KEY'.",
            show_default=False,
        ),
    ] = None,
    page: Annotated[bool, typer.Option(help="Show a page for people at /, to drop a photo on.")] = True,
    log: Annotated[
        str, typer.Option(help="Form of the log lines: text or json.", autocompletion=options.one_of("text", "json"))
    ] = "text",
) -> None:
    """Serve models: predictions and explanations over REST and gRPC.

    The protocol is the Open Inference Protocol, which Triton, KServe, MLServer and OpenVINO Model Server speak, so that
    their clients work. SIGTERM ends the server when all requests that were taken are answered; SIGHUP loads changed
    files.

    Examples:

      ortcam serve cats=model.onnx dogs=packed.onnx --port 8080 --grpc-port 8081

      ortcam serve --watch models/ --budget 32 --log json

      curl -H 'Accept: image/png' --data-binary @photo.jpg 'localhost:8080/models/cats/explain?budget=32' -o overlay.png
    """
    needed = (*_PACKAGES, *(("grpc",) if grpc_port is not None else ()))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"{', '.join(missing)} missing, which the server needs: pip install 'ortcam[serve]'")
    if log not in ("text", "json"):
        raise typer.BadParameter(f"--log is {log!r}; expected text or json")
    # OpenCV reads this when it is loaded. It holds for all formats, also for those whose headers ortcam does not read.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(round(max_pixels * 1e6))
    keys = frozenset[bytes]() if api_key_file is None else _read_keys(api_key_file)
    from ortcam import load_explainer
    from ortcam.methods import make_method
    from ortcam.serving.limits import ServingLimits
    from ortcam.serving.logs import write_logs
    from ortcam.serving.server import Doors, run
    from ortcam.serving.service import Service
    from ortcam.serving.watching import model_files

    chosen: str | Method = method
    if method_option:
        chosen = make_method(method, options.read_pairs("--method-option", method_option))
    device, size = options.make_provider(provider, provider_option, device_id), options.read_batch_size(batch_size)

    def load(path: Path) -> Explainer:
        return load_explainer(
            path, chosen, preset=preset, provider=device, batch_size=size, threads=threads, layer=layer
        )

    limits = ServingLimits(
        budget=budget, queue=queue, timeout=timeout, body=round(max_body * 1e6), pixels=round(max_pixels * 1e6),
        images=max_images, targets=max_targets, output=round(max_output * 1e6), connections=max_connections,
    )  # fmt: skip
    named = _read_models(models or [])
    if watch is not None and not watch.is_dir():
        raise OptionError(f"--watch is {watch}; expected a folder of model files")
    found = [] if watch is None else model_files(watch)
    if not named and watch is None:
        raise OptionError("no model is given; expected NAME=MODEL, or --watch with a folder of model files")
    warnings.simplefilter("ignore", OrtcamWarning)  # the answers say which maps are flat
    write_logs(cast('Literal["text", "json"]', log))
    service = Service(load, limits)
    try:
        for name, path in named.items():
            service.load(name, path)
    except BaseException:
        service.close()
        raise
    service.try_to_load({path.stem: path for path in found if path.stem not in named})
    if not service.models:
        console.warn(f"{watch} has no model that can be served; the server waits for one")
    run(service, Doors(host, port, grpc_port, page, keys, drain), watch)


def _read_models(given: list[str]) -> dict[str, Path]:
    """Return the named files.

    Raises:
        OptionError: two have one name.
    """
    named: dict[str, Path] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not equals:
            name, path = Path(one).stem, one
        if name in named:
            raise OptionError(f"two models have the name {name!r}; give them names: {name}-1={named[name]} ...")
        named[name] = Path(path)
    return named


def _read_keys(path: Path) -> frozenset[bytes]:
    """Return the keys of a file.

    Raises:
        OptionError: it cannot be read, or has no key.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise OptionError(f"--api-key-file {path} cannot be read: {error.strerror}") from error
    keys = frozenset(line.strip() for line in lines if line.strip())
    if not keys:
        raise OptionError(f"--api-key-file {path} has no key; expected one a line")
    return keys
