"""Keep measured batch sizes, optimised graphs and TensorRT engines between runs. Losing them costs only time.

The files lie in the platform's cache directory (`ORTCAM_CACHE` names another; an empty value turns the cache off).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from ortcam.core.files import replace_files
from ortcam.errors import OrtcamError, OrtcamWarning

_VARIABLE = "ORTCAM_CACHE"
_MOST_BYTES = 2 << 30
_unusable: set[str] = set()  # places that this process has warned about


def cache_directory() -> Path | None:
    """Return the cache directory; None if the cache is turned off, or has no directory."""
    chosen = os.environ.get(_VARIABLE)
    if chosen is None:
        return _users_directory()
    try:
        return Path(chosen).expanduser() if chosen else None
    except RuntimeError:  # the home of an unknown user
        _warn_once(chosen, f"{_VARIABLE} is {chosen!r}, and no such directory can be found; nothing is kept")
        return None


def _users_directory() -> Path | None:
    """Return the platform's cache directory of this user; warn and return None if the user has none.

    In a container, a user may have neither the variable HOME nor an entry in the list of users.
    """
    try:
        directory = Path(platformdirs.user_cache_dir("ortcam", appauthor=False))
    except (RuntimeError, KeyError, OSError):  # no home; a RuntimeError since platformdirs 4.11
        directory = Path()
    if directory.is_absolute():
        return directory
    _warn_once("", f"this user has no home directory, so nothing is kept; set {_VARIABLE} to a directory to keep it in")
    return None


def cannot_write(path: Path, error: Exception) -> None:
    """Warn that `path` cannot be written, once in a process for each directory."""
    directory = str(path.parent)
    reason = str(error).replace(f"cannot write {path}: ", "")
    _warn_once(
        directory,
        f"{directory} cannot be written ({reason}), so nothing is kept; "
        f"set {_VARIABLE} to another directory, or to nothing to turn the cache off",
    )


def make_key(*parts: Any) -> str:
    """Return a file name that depends on `parts`, this machine's processor and this version of the cache."""
    facts = json.dumps([1, platform.machine(), _processor(), *map(str, parts)])
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def read_entry(key: str) -> dict[str, Any] | None:
    """Return the entry under `key`; None if it is missing, with a warning if it is invalid."""
    directory = cache_directory()
    if directory is None:
        return None
    path = directory / f"{key}.json"
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except OSError:  # missing or unreadable: it is made again, and writing it reports the fault
        return None
    except (ValueError, RecursionError) as error:
        complain(path, type(error).__name__)
        return None
    if not isinstance(entry, dict):
        complain(path, "not a JSON object")
        return None
    return entry


def complain(path: Path, reason: str) -> None:
    """Warn of an entry that cannot be used."""
    _warn(f"{path} cannot be read ({reason}); it is measured again")


def write_entry(key: str, entry: Mapping[str, Any]) -> None:
    """Write plain JSON under `key`; warn if it cannot be written."""
    directory = cache_directory()
    if directory is None:
        return
    path = directory / f"{key}.json"
    try:
        with replace_files(path) as folder:
            (folder / path.name).write_text(json.dumps(entry), encoding="utf-8")
    except (OSError, OrtcamError) as error:
        cannot_write(path, error)


def _warn(message: str) -> None:
    warnings.warn(f"cache: {message}", OrtcamWarning, stacklevel=4)


def _warn_once(place: str, message: str) -> None:
    if place not in _unusable:
        _unusable.add(place)
        _warn(message)


def _processor() -> str:
    """Return the processor's model, because an optimised graph fits one model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features")
    found = {line.split(":")[0].strip(): line for line in lines if line.startswith(wanted)}
    return "".join(found.values()) or platform.processor()


def find_graph(kept: Path) -> Path | None:
    """Return the graph that was kept as `kept`; None if it is missing, with a warning if it is damaged.

    A runtime cannot recognise a damaged graph, so the file's name contains a checksum: `seal_graph`.
    """
    try:
        for path in sorted(kept.parent.glob(f"{kept.stem}-*{kept.suffix}")):
            if path == _sealed(kept, path):
                with contextlib.suppress(PermissionError):  # another user's file, which may be readable
                    os.utime(path)  # mark it as used: `make_room` deletes the oldest first
                return path
            _warn(f"{path} is damaged; it is made again")
            path.unlink()
    except OSError:  # writing it again reports the fault
        pass
    return None


def seal_graph(written: Path) -> None:
    """Write the checksum of a graph into its file's name."""
    written.rename(_sealed(written, written))


def _sealed(kept: Path, path: Path) -> Path:
    """Return `kept` with the checksum of the file `path` in its name."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return kept.with_stem(f"{kept.stem}-{checksum:08x}")


def make_room(limit: int = _MOST_BYTES) -> None:
    """Delete the least recently used graphs until the rest have at most `limit` bytes."""
    directory = cache_directory()
    if directory is None:
        return
    with contextlib.suppress(OSError):  # another process may have deleted it
        kept = sorted(directory.glob("*.onnx"), key=lambda path: path.stat().st_mtime, reverse=True)
        used = 0
        for path in kept:
            used += path.stat().st_size
            if used > limit:
                path.unlink()
