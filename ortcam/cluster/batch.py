"""ExplainBatch: from a batch of photos to an Arrow table of their explanations, a row for each photo."""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from ortcam import __version__
from ortcam.cluster.names import name_to_text, text_to_name
from ortcam.core.files import Fingerprint
from ortcam.errors import ImageError, ModelError, OptionError, OrtcamError, OrtcamWarning, one_line, whole

if TYPE_CHECKING:
    from ortcam.core.budget import Selecting
    from ortcam.core.references import Detecting
    from ortcam.explain.protocol import Explainer
    from ortcam.output.explanation import Pictures
    from ortcam.runtime.providers import ProviderLike

OK, ERROR = "ok", "error"
MAPS = ("float16", "png", "none")
MAX_PIXELS = 50_000_000
_MOST_TEXT = 2000  # characters of an error
_MOST_CHUNK = 1 << 28  # bytes of maps in a chunk of a table
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("status", pa.string()),
        ("error_text", pa.string()),
        ("targets", pa.list_(pa.int64())),
        ("labels", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float64())),
        ("places", pa.list_(pa.string())),
        ("map", pa.list_(pa.binary())),
        ("map_shape", pa.list_(pa.int32())),
        ("estimated_error", pa.list_(pa.float64())),
        ("scored", pa.int64()),
        ("model_sha256", pa.string()),
        ("ortcam_version", pa.string()),
    ]
)
# The same for Spark.
SPARK_SCHEMA = (
    "path string, status string, error_text string, targets array<bigint>, labels array<string>, "
    "probabilities array<double>, places array<string>, map array<binary>, map_shape array<int>, "
    "estimated_error array<double>, scored bigint, model_sha256 string, ortcam_version string"
)
Batch = Any  # pyarrow.Table, pyarrow.RecordBatch, or a mapping of names to arrays


@dataclass(frozen=True)
class ExplainBatch:
    """Explains batches of photos. It can be pickled; the model is loaded at the first batch in each process.

    It takes a pyarrow.Table, a pyarrow.RecordBatch, or a mapping of names to arrays. The column ``path`` names each
    photo, as `ortcam.cluster.names.name_to_text` writes names. If there is a column ``bytes``, it holds the photos'
    files; otherwise ``path`` is read: a path, or a URI of a file system that pyarrow knows. A column ``bytes_error``
    may say why bytes are null.

    It returns a pyarrow.Table with the schema `SCHEMA`: a row for each row of the batch, in order. ``status`` is
    ``ok`` or ``error``; ``error_text`` is ortcam's message of one line. For the T targets of a photo, ``targets``,
    ``labels``, ``probabilities``, ``estimated_error``, ``places`` (plain JSON for a target other than a class) and
    ``map`` have T entries. ``map_shape`` is [h,w] of float16 maps in C order, and [H,W,3] of PNG overlays.

    Attributes:
        model: the path of a model file, or of a packed explainer; the same file for every process.
        targets: class indices or labels, or ``"all"``; None for the most probable classes.
        top_k: the number of classes, if `targets` is None.
        budget, tolerance, selection: as for `ScoreCAM.explain`.
        method: the name of a method. None for ``auto``; for ``score-cam`` if there is a budget, a tolerance, another
            selection, or a preset.
        method_options: the method's options, by name.
        preset, layer, provider, batch_size, threads, detecting: as for `load_explainer`.
        maps: ``float16`` (the bytes of each map at the model's input size), ``png`` (overlays of the photo's size), or
            ``none``.
        max_pixels: the largest number of pixels of a photo; a larger photo is an error.
        hashes: the SHA-256 of the model file and of its external weights, which every process checks; None to accept
            any file.
    """

    model: str | os.PathLike[str]
    targets: str | int | Sequence[str | int] | None = None
    top_k: int = 1
    budget: int | None = None
    tolerance: float | None = None
    selection: Selecting = "predict"
    method: str | None = None
    method_options: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    layer: str | Sequence[str] | None = None
    provider: ProviderLike = "auto"
    batch_size: int | Literal["auto"] | None = None
    threads: int | None = None
    detecting: Detecting | None = None
    maps: str = "float16"
    max_pixels: int = MAX_PIXELS
    hashes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check the options that need no model.

        Raises:
            OptionError: an option is invalid.
        """
        if self.maps not in MAPS:
            raise OptionError(f"maps is {self.maps!r}; expected {', '.join(MAPS)}")
        whole("max_pixels", self.max_pixels)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("explainer", "hashes_found")}

    def __call__(self, batch: Batch) -> pa.Table:
        """Explain the photos of a batch.

        Raises:
            OptionError: the batch lacks the column ``path``, or an option does not suit the model.
            ModelError: the model cannot be used, or is another file than `hashes` says.
        """
        rows: list[dict[str, Any]] = []

        def fail(photo: _Photo, error: OrtcamError) -> None:
            rows.append(
                self._row(photo, status=ERROR, error_text=name_to_text(one_line(photo.error or error, _MOST_TEXT)))
            )

        explainer, photos = self.explainer, _photos_of(batch, self.max_pixels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OrtcamWarning)  # a flat map is a map of zeros
            explained = explainer.explain_batch(
                iter(photos), self._targets, top_k=self.top_k, on_error=fail, budget=self.budget,
                tolerance=self.tolerance, selection=self.selection,
            )  # fmt: skip
            for explanation in explained:
                photo = photos[len(rows)]
                try:
                    rows.append(self._explained(photo, explanation))
                except OrtcamError as error:
                    fail(photo, error)
        assert len(rows) == len(photos)
        return _to_table(rows)

    def record_batches(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Explain record batches one by one: the function that Spark's ``mapInArrow`` takes."""
        for batch in batches:
            yield from self(batch).to_batches()

    @cached_property
    def explainer(self) -> Explainer:
        """The explainer; it is loaded at the first use.

        Raises:
            ModelError, OptionError, ProviderError: as `load_explainer`; the file is another than `hashes` says.
        """
        from ortcam.deploy.load import load_explainer
        from ortcam.deploy.packed import PackedExplainer
        from ortcam.methods import make_method

        if self.hashes is not None and self.hashes_found != self.hashes:
            raise ModelError(f"{self.model} is another file here (SHA-256); expected the same file on every machine")
        limited = self.budget is not None or self.tolerance is not None or self.selection != "predict" or self.preset
        name = self.method or ("score-cam" if limited or self.method_options else "auto")
        loaded = load_explainer(
            self.model,
            make_method(name, self.method_options) if self.method_options else name,
            preset=self.preset,
            provider=self.provider,
            batch_size=self.batch_size,
            threads=self.threads,
            layer=self.layer,
            detecting=self.detecting,
        )
        if self.maps == "float16" and isinstance(loaded, PackedExplainer) and loaded.facts["raw"]:
            loaded.close()
            raise OptionError(f"{self.model} is packed with maps of the photo's size; expected maps png or none")
        return loaded

    @cached_property
    def hashes_found(self) -> tuple[str, ...]:
        """The SHA-256 of the model file, then of its external weights.

        Raises:
            ModelError: the file cannot be read.
        """
        return hash_model(Path(self.model))

    @property
    def _targets(self) -> Any:
        return list(self.targets) if isinstance(self.targets, tuple) else self.targets

    def _row(self, photo: _Photo, **values: Any) -> dict[str, Any]:
        sha256 = self.hashes_found[0]
        return {"path": photo.path, "model_sha256": sha256, "ortcam_version": __version__, **values}

    def _explained(self, photo: _Photo, explanation: Pictures) -> dict[str, Any]:
        targets = explanation.targets
        maps, shape = self._maps_of(explanation)
        return self._row(
            photo,
            status=OK,
            targets=[one.index for one in targets],
            labels=[one.label for one in targets],
            probabilities=[one.probability for one in targets],
            places=[None if one.place is None else json.dumps(dict(one.place)) for one in targets],
            map=maps,
            map_shape=shape,
            estimated_error=[None if error is None else error.expected for error in explanation.errors],
            scored=explanation.scored,  # type: ignore[attr-defined]  # both kinds of explanation have it
        )

    def _maps_of(self, explanation: Any) -> tuple[list[bytes] | None, list[int] | None]:
        if self.maps == "none":
            return None, None
        if self.maps == "png":
            from ortcam.output.render import encode_png

            overlays = [explanation.overlay_at(place) for place in range(len(explanation.targets))]
            return [encode_png(one) for one in overlays], list(overlays[0].shape)
        maps = explanation.input_maps.astype(np.float16)
        return [one.tobytes() for one in maps], list(maps.shape[1:])


def _to_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows as a table; its chunks hold at most about `_MOST_CHUNK` bytes of maps, for Arrow's limit of 2 GB."""
    tables, start, size = [], 0, 0
    for end, row in enumerate(rows, 1):
        size += sum(map(len, row.get("map") or ()))
        if size > _MOST_CHUNK or end == len(rows):
            tables.append(pa.Table.from_pylist(rows[start:end], SCHEMA))
            start, size = end, 0
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def hash_model(path: Path) -> tuple[str, ...]:
    """Return the SHA-256 of a model file, then of the files of its external weights.

    Raises:
        ModelError: a file cannot be read.
    """
    from ortcam.model.source import external_files, read_proto

    files = [path, *(path.resolve().parent / name for name in external_files(read_proto(path)))]
    found = [Fingerprint(file).sha256 for file in files]
    for file, sha256 in zip(files, found, strict=True):
        if sha256 is None:
            raise ModelError(f"cannot read {file}: it is missing, or changes while it is read")
    return tuple(sha256 for sha256 in found if sha256 is not None)


class _Photo:
    """A photo that is read and decoded when its pixels are asked for: ahead, in a thread of the explainer.

    Attributes:
        path: its name, as text.
        error: why it could not be read; None if it was read, or not yet.
    """

    def __init__(
        self, path: str | None, max_pixels: int, data: Any = None, in_table: bool = False, reason: str | None = None
    ) -> None:
        self.path = path
        self.error: OrtcamError | None = None
        self._reason = reason
        self._max_pixels, self._data, self._in_table = max_pixels, data, in_table

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        from ortcam.model.image import decode_photo

        try:
            return decode_photo(self._read(), self.path or "image", self._max_pixels)
        except OrtcamError as error:
            self.error = error
            raise

    def _read(self) -> bytes:
        if self._in_table:
            data = self._data.as_py() if hasattr(self._data, "as_py") else self._data
            if data is None and self._reason:
                raise ImageError(f"{self.path} has no bytes: {self._reason}")
            if data is None:
                raise ImageError(f"{self.path} has no bytes; expected the bytes of a picture file")
            return bytes(data)
        if not self.path:
            raise ImageError("path is empty; expected the path of a photo")
        return read_anywhere(self.path)


def read_anywhere(text: str) -> bytes:
    """Return the bytes of a path as `name_to_text` writes it, or of a URI.

    Raises:
        ImageError: the file is missing or cannot be read.
    """
    from ortcam.model.image import read_file

    if "://" in text:
        from ortcam.cluster.uris import open_uri

        try:
            system, path = open_uri(text)
            with system.open_input_stream(path) as stream:
                return bytes(stream.read())
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ImageError(f"cannot read {text}: {one_line(error)}") from error
    name = text_to_name(text)
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116 - a name with a null byte is refused by read_file
    except (OSError, ValueError):
        return read_file(name)
    if not stat.S_ISREG(mode):  # reading a pipe would wait for ever
        raise ImageError(f"cannot read {name}: it is not a file")
    return read_file(name)


def _photos_of(batch: Batch, max_pixels: int) -> list[_Photo]:
    """Return the photos of a batch.

    Raises:
        OptionError: it has no column ``path``.
    """
    names = batch.column_names if hasattr(batch, "column_names") else list(batch)
    if "path" not in names:
        raise OptionError(f"the batch has the columns {', '.join(names) or 'none'}; expected path, and maybe bytes")
    paths = [_text(one) for one in batch["path"]]
    if "bytes" not in names:
        return [_Photo(path, max_pixels) for path in paths]
    files = list(batch["bytes"])
    if len(files) != len(paths):
        raise OptionError(f"the batch has {len(paths)} paths and {len(files)} bytes; expected as many")
    reasons = [_text(one) for one in batch["bytes_error"]] if "bytes_error" in names else [None] * len(paths)
    return [
        _Photo(path, max_pixels, data, True, reason) for path, data, reason in zip(paths, files, reasons, strict=True)
    ]


def _text(value: Any) -> str | None:
    value = value.as_py() if hasattr(value, "as_py") else value
    if value is None:
        return None
    text = os.fspath(value)
    text = os.fsdecode(text) if isinstance(text, bytes) else str(text)
    return text if text.isascii() or not any("\ud800" <= one <= "\udfff" for one in text) else name_to_text(text)
