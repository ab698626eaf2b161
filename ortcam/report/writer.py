"""Write a page when all its photos are known. The pictures wait on the disk until then."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ortcam.core.files import replace_files
from ortcam.errors import OptionError, OutputError
from ortcam.report.files import check_free
from ortcam.report.parts import as_script

MOST_BYTES = 180_000  # of a photo's pictures on a page


class PageWriter:
    """A page that is written at the end, a context manager. It needs no network.

    Attributes:
        path: the path of the page.
    """

    _command = ""  # of ortcam, which writes the page

    def __init__(self, path: str | PathLike[str], mark: str, beside: Mapping[str, str], overwrite: bool) -> None:
        """Check the path; nothing is written.

        Args:
            path: the page, a name that ends in .html.
            mark: a text at the beginning of every page of the kind.
            beside: a text at the beginning of each file beside the page, by its name.
            overwrite: replace other files of these names.
        """
        self.path = Path(path)
        if self.path.suffix.lower() not in (".html", ".htm"):
            raise OptionError(f"the report is {self.path}; expected a name that ends in .html, such as report.html")
        marks = {self.path: mark, **{self.path.with_name(name): text for name, text in beside.items()}}
        check_free(marks, f"no report of ortcam {self._command} wrote it", overwrite)
        self._blocks: dict[str, tuple[int, int]] = {}  # where the pictures of a photo begin and end
        self._pictures: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Begin to collect pictures.

        Raises:
            OutputError: the folder of the page cannot be written.
        """
        with self._writing():
            with replace_files(self.path):  # an error comes before the work, not after it
                pass
            # Beside the page: the system's own folder for such files can be small, and in memory.
            folder = next(one for one in self.path.absolute().parents if one.is_dir())
            self._pictures = tempfile.TemporaryFile(dir=folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Forget the pictures."""
        if self._pictures is not None:
            self._pictures.close()
        self._pictures = None

    def _file(self) -> IO[bytes]:
        """Return the file with the pictures.

        Raises:
            OptionError: the report is not open.
        """
        if self._pictures is None:
            raise OptionError(
                f"the report {self.path} is not open; use it as: with {type(self).__name__}({self.path.name!r}) as "
                "report:"
            )
        return self._pictures

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _keep(self, photo: str, pictures: Iterable[str]) -> None:
        """Keep the pictures of a photo, in base64.

        Raises:
            OptionError: the report is not open.
            OutputError: the disk is full, or the like.
        """
        file, quoted = self._file(), ",".join(f'"{data}"' for data in pictures)
        with self._writing():
            begin = file.seek(0, 2)
            file.write(f"[{quoted}]".encode())
            self._blocks[photo] = begin, file.tell()

    def _write_page(self, folder: Path, parts: Sequence[str], data: Mapping[str, Any], photos: Iterable[str]) -> None:
        """Write the page to an unfinished folder.

        Args:
            folder: the folder.
            parts: of the template, as `fill_template` returns them.
            data: what the page shows.
            photos: the names of the photos, in the order of their pictures on the page.
        """
        head, middle, end = parts
        file = self._file()
        with (folder / self.path.name).open("wb") as page:
            page.write(head.encode() + as_script(data) + middle.encode())
            for number, photo in enumerate(photos):
                begin, after = self._blocks.get(photo, (0, 0))
                file.seek(begin)
                page.write(f'<script type="application/json" id="p{number}">'.encode())
                page.write((file.read(after - begin) or b"[]") + b"</script>\n")
            page.write(end.encode())
