"""Write a folder of static files that explains photos in the browser with a packed explainer.

    index.html, explainer.onnx, ort.wasm.min.js, ort-wasm-simd-threaded.mjs and .wasm, examples/

The runtime is the npm package onnxruntime-web. Its files are copied; the page loads nothing from elsewhere.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import onnx

from ortcam.core.files import only, replace_directory, replace_files
from ortcam.deploy.facts import describe_run, parse_facts
from ortcam.errors import OptionError, OutputError, one_line
from ortcam.model.image import read_photo
from ortcam.model.source import read_proto
from ortcam.output.render import colour_table, encode_jpeg, shrink_photo
from ortcam.runtime.cache import cache_directory

RUNTIME_VERSION = "1.30.0"  # of onnxruntime-web, if none is given and npm fetches it
RUNTIME_FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_TEMPLATE = Path(__file__).with_name("page.html")
_EXAMPLE_SIDE = 640  # pixels of an example's longer side
_GENERATOR = '<meta name="generator" content="ortcam">'
_OURS = {"explainer.onnx", *RUNTIME_FILES}


def write_page(
    explainer: str | PathLike[str],
    directory: str | PathLike[str],
    examples: Sequence[str | PathLike[str]] = (),
    runtime: str | PathLike[str] | None = None,
    title: str | None = None,
) -> Path:
    """Write a page.

    Args:
        explainer: a packed explainer that takes photos.
        directory: the folder to write; an earlier page in it is replaced.
        examples: example photos on the page.
        runtime: the folder of the npm package onnxruntime-web, or its .tgz; None to fetch it with npm.
        title: the title of the page; None for a title with the name of the model's file.

    Raises:
        ModelError: the file is not a packed explainer.
        OptionError: the explainer takes tensors, or the runtime is missing.
        ImageError: an example cannot be read.
        OutputError: the folder cannot be written, or holds other files.
    """
    explainer, directory = Path(explainer), Path(directory)
    proto = read_proto(explainer)
    contract, facts = parse_facts({entry.key: entry.value for entry in proto.metadata_props}, explainer)
    if not contract.classifies:
        raise OptionError(
            f"{explainer} is made for the task {contract.task!r}, and the page shows classes; expected a packed "
            "classifier: explain others with `ortcam explain`"
        )
    if not facts["raw"]:
        raise OptionError(
            f"{explainer} takes preprocessed tensors; expected an explainer of photos: pack it without --no-raw"
        )
    model = _with_target_to_give(proto)
    photos = {
        f"example-{number}.jpg": encode_jpeg(shrink_photo(read_photo(path), _EXAMPLE_SIDE))
        for number, path in enumerate(examples, 1)
    }
    about: dict[str, Any] = {
        "labels": contract.labels,
        "scores": facts["scores"],
        "output": contract.output,
        "activation": contract.makes_probabilities,
        "scale": contract.output_scale,
        "onePass": facts["method"]["name"] != "score-cam",
        "examples": list(photos),
        "colours": base64.b64encode(colour_table("turbo").tobytes()).decode(),
        "bytes": len(model),
    }
    heading = title or f"What does {facts['source']['file']} see?"
    text = _TEMPLATE.read_text(encoding="utf-8")
    for mark, value in {
        "{{title}}": html.escape(heading),
        "{{how}}": html.escape(f"{_describe(facts)}, layer {contract.layer}"),
        "{{about}}": json.dumps(about, ensure_ascii=False).replace("<", "\\u003c"),
    }.items():
        text = text.replace(mark, value)
    files = _read_runtime(runtime)
    with replace_directory(directory, only(_is_ours)) as unfinished:
        try:
            for name, data in files.items():
                (unfinished / name).write_bytes(data)
            (unfinished / "explainer.onnx").write_bytes(model)
            (unfinished / "index.html").write_text(text, encoding="utf-8")
            (unfinished / "examples").mkdir()
            for name, data in photos.items():
                (unfinished / "examples" / name).write_bytes(data)
        except OSError as error:
            raise OutputError(f"cannot write {directory}: {error.strerror or error}") from error
    return directory


def _describe(facts: dict[str, Any]) -> str:
    """Return the method for the page's readers."""
    if facts["method"]["name"] != "score-cam":
        return f"Method {describe_run(facts)}"
    how = "every channel" if facts["budget"] is None else f"a budget of {facts['budget']} masked images"
    return f"Score-CAM ({facts['preset']}) with {how}"


def _is_ours(path: Path) -> bool:
    """Whether a file belongs to an earlier page."""
    if path.name == "index.html":
        return path.is_file() and _GENERATOR in path.read_text(encoding="utf-8", errors="replace")
    if path.name == "examples":
        return path.is_dir() and all(re.fullmatch(r"example-\d+\.jpg", one.name) for one in path.iterdir())
    return path.name in _OURS


def _with_target_to_give(proto: onnx.ModelProto) -> bytes:
    """Return the file without its default target, because JavaScript cannot override the default."""
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != "target"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return bytes(proto.SerializeToString())


def _read_runtime(runtime: str | PathLike[str] | None) -> dict[str, bytes]:
    """Return onnxruntime-web's files, by name."""
    with tempfile.TemporaryDirectory() as scratch:
        source = _fetch(Path(scratch)) if runtime is None else Path(runtime)
        try:
            if source.is_file():
                return _read_package(source)
            folder = source / "dist" if (source / "dist").is_dir() else source
            return {name: (folder / name).read_bytes() for name in RUNTIME_FILES}
        except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError) as error:
            if runtime is None:
                source.unlink(missing_ok=True)  # the kept file is damaged; the next call fetches it again
            raise OptionError(
                f"{source} cannot be read ({one_line(error)}); expected the npm package onnxruntime-web, "
                f"its folder or .tgz, with {', '.join(RUNTIME_FILES)}"
            ) from error


def _read_package(source: Path) -> dict[str, bytes]:
    files = {}
    with tarfile.open(source) as package:
        for name in RUNTIME_FILES:
            member = package.extractfile(f"package/dist/{name}")
            if member is None:
                raise KeyError(f"{name} is not a file")
            files[name] = member.read()
    return files


def _fetch(scratch: Path) -> Path:
    """Return the path of the npm package onnxruntime-web; the cache keeps it."""
    name = f"onnxruntime-web-{RUNTIME_VERSION}.tgz"
    kept = cache_directory()
    if kept is not None and (kept / name).is_file():
        return kept / name
    command = ["npm", "pack", "--silent", f"onnxruntime-web@{RUNTIME_VERSION}"]
    advice = f"give the npm package onnxruntime-web {RUNTIME_VERSION} with --runtime"
    try:
        done = subprocess.run(
            command, cwd=scratch, env=_npm_environment(scratch), capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise OptionError(f"npm, which fetches the runtime, cannot be run ({error.strerror}); {advice}") from error
    fetched = scratch / name
    if done.returncode or not fetched.is_file():
        reason = " ".join(done.stderr.split())[:200] or f"exit code {done.returncode}"
        raise OptionError(f"npm cannot fetch onnxruntime-web: {reason}; {advice}")
    if kept is None:
        return fetched
    with (
        contextlib.suppress(OutputError, OSError),
        replace_files(kept / name) as folder,
    ):  # on errors it is fetched again
        shutil.copyfile(fetched, folder / name)
    return fetched


def _npm_environment(scratch: Path) -> dict[str, str]:
    """Return the environment for npm, which needs a writable home directory."""
    home = Path("~")
    with contextlib.suppress(RuntimeError):  # neither HOME nor an entry in the list of users
        home = home.expanduser()
    own = {} if home.is_absolute() else {"HOME": str(scratch)}
    if not os.access(home, os.W_OK):
        own["npm_config_cache"] = str(scratch / "npm")
    return {**os.environ, **own}
