"""Write a report while photos are explained: memory stays flat, and the files appear whole when the report is closed.

The page holds, in this order: its style and controls, the entries as JSON, its script, and a block of pictures for each
photo. The first entries are shown before a browser has read the last pictures.
"""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import ortcam
from ortcam.core.files import replace_files
from ortcam.core.provenance import now
from ortcam.errors import OptionError, OutputError
from ortcam.output.caption import show_score
from ortcam.output.render import Style, encode_png
from ortcam.report.entries import COLUMNS, class_name, describe, describe_failure, table_row
from ortcam.report.files import SHEET, TABLE, check_free, check_sheet, marked
from ortcam.report.parts import as_script, fill_template
from ortcam.report.thumbnails import Sheet, Thumbnails, as_caption

if TYPE_CHECKING:
    from ortcam.output.explanation import Pictures

_MOST_BYTES = 180_000  # of a photo's pictures on the page
_FULL_BYTES, _LEAST_BYTES = 200_000_000, 16_000  # beyond this size of the page, a photo's pictures are small
_GENERATOR = '<meta name="generator" content="ortcam report">'


class Report:
    """A report of explained photos, a context manager.

    It writes the page, and beside it `results.csv` and `overview.png`. The files appear together when the block ends,
    and not at all if the block raises. Any number of photos may be added: entries wait on the disk.

    >>> with Report("report.html") as report:          # doctest: +SKIP
    ...     for explanation in cam.explain_batch(photos):
    ...         report.add(explanation)

    Attributes:
        path: the path of the page.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        opacity: float = 0.6,
        colormap: str = "turbo",
        least_probability: float = 0.5,
        overwrite: bool = False,
        title: str = "What the model sees",
    ) -> None:
        """Check the path; nothing is written before the block begins.

        Args:
            path: the page, a name that ends in .html. An earlier report is replaced.
            opacity, colormap: for the overlays, as in `Explanation.overlay`.
            least_probability: a target with a lower probability is flagged as of low confidence, 0 to 1.
            overwrite: replace other files of these names.
            title: the title of the page.

        Raises:
            OptionError: an argument is out of range, or the name does not end in .html.
            OccupiedError: a file of one of the three names is no earlier report.
            OutputError: the path is a directory.
        """
        if not isinstance(least_probability, int | float) or not 0 <= least_probability <= 1:
            raise OptionError(f"least_probability is {least_probability!r}; expected a number from 0 to 1")
        self.path = Path(path)
        if self.path.suffix.lower() not in (".html", ".htm"):
            raise OptionError(f"the report is {self.path}; expected a name that ends in .html, such as report.html")
        self._style, self._least, self._title = Style(opacity, colormap), least_probability, title
        check_sheet(self.path.with_name(SHEET))
        marks = {self.path: _GENERATOR, self.path.with_name(TABLE): ",".join(COLUMNS)}
        check_free(marks, "this report did not write it", overwrite)
        self._stack = ExitStack()
        self._is_open = False
        self._photos = self._count = 0
        self._sheet = Sheet()

    def __enter__(self) -> Self:
        """Begin to write.

        Raises:
            OutputError: the folder cannot be written.
        """
        with self._writing(), ExitStack() as stack:
            self._folder = stack.enter_context(replace_files(self.path))
            self._entries = stack.enter_context(_scratch(self._folder))
            self._pictures = stack.enter_context(_scratch(self._folder))
            table = (self._folder / TABLE).open("w", encoding="utf-8", errors="backslashreplace", newline="")
            self._table = csv.writer(stack.enter_context(table))
            self._table.writerow(COLUMNS)
            self._stack = stack.pop_all()
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the files, unless the block raised.

        Raises:
            OutputError: they cannot be written.
        """
        self._is_open = False
        if kind is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._writing(), self._stack:
            self._write_page()
            (self._folder / SHEET).write_bytes(marked(encode_png(self._sheet.draw())))

    def add(self, explanation: Pictures, name: str | None = None) -> None:
        """Add an explained photo, with an entry for each of its targets.

        Args:
            explanation: what `explain` returned, of a model file or of a packed explainer.
            name: the photo's name; None for the name of its file, or its number.

        Raises:
            OptionError: the report is not open.
            OutputError: the disk is full, or the like.
        """
        self._check_open()
        number = self._photos
        entries = describe(explanation, number, name or _name_of(explanation, number), self._least)
        thumbnails = Thumbnails(explanation, self._style)
        most = _MOST_BYTES if self._pictures.tell() < _FULL_BYTES else _LEAST_BYTES
        pictures = ",".join(f'"{data}"' for data in thumbnails.encode(most))
        with self._writing():
            self._pictures.write(f'<script type="application/json" id="p{number}">[{pictures}]</script>\n'.encode())
            for entry in entries:
                self._write_entry(entry)
        if self._sheet.wants():
            first = explanation.targets[0]
            caption = as_caption(class_name(first), first.index, show_score(first))
            self._sheet.add(thumbnails.photo, thumbnails.overlay(0), caption)
        self._photos += 1

    def fail(self, name: str | PathLike[str], error: BaseException | str) -> None:
        """Add a photo that could not be explained.

        Args:
            name: the photo's path, or a name.
            error: why.

        Raises:
            OptionError, OutputError: as for `add`.
        """
        self._check_open()
        path = os.fspath(name)
        shown = "standard input" if path == "-" else Path(path).name or path
        with self._writing():
            self._write_entry(describe_failure(self._photos, shown, path, str(error)))
        self._photos += 1

    def _check_open(self) -> None:
        if not self._is_open:
            raise OptionError(f"the report {self.path} is not open; use it as: with Report({self.path.name!r}) as r:")

    def _write_entry(self, entry: Mapping[str, Any]) -> None:
        self._entries.write((b",\n" if self._count else b"") + as_script(entry))
        self._table.writerow(table_row(entry))
        self._count += 1

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _write_page(self) -> None:
        about = {
            "photos": self._photos,
            "least_probability": self._least,
            "version": ortcam.__version__,
            "created": now(),
        }
        head, middle, end = fill_template(
            "page.html", ("page.css",), ("common.js", "page.js"), self._title, self._style.colormap, fades=True
        )
        with (self._folder / self.path.name).open("wb") as page:
            page.write(head.encode() + b'{"about":' + as_script(about) + b',"rows":[\n')
            _copy(self._entries, page)
            page.write(b"]}" + middle.encode())
            _copy(self._pictures, page)
            page.write(end.encode())


def _scratch(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    source.seek(0)
    shutil.copyfileobj(source, target, 1 << 20)


def _name_of(explanation: Pictures, number: int) -> str:
    path = explanation.source or explanation.provenance.photo.path
    if path is None:
        return f"photo {number + 1}"
    return "standard input" if str(path) == "-" else path.name
