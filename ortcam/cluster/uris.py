"""URIs of photos: opened with one file system for each store, joined with names, and matched with patterns."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pyarrow import fs

# A URI of these is a root, which names the store, and a path below it. Others are opened photo by photo.
_STORES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
_ESCAPES = re.compile("(?:%[0-9A-Fa-f]{2})+")


def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URI, and the path there. URIs of the same store share a file system.

    Raises:
        OSError, ValueError: the URI is invalid, or its file system is unknown or cannot be reached.
    """
    if _is_plain(uri):
        return fs.FileSystem.from_uri(uri)  # type: ignore[no-any-return]
    parts = urlsplit(uri)
    # pyarrow would read another file: what follows # or ? is no part of the name.
    if "#" in uri:
        raise ValueError("got # in a URI; expected %23 in a name")
    if "?" in uri and "=" not in parts.query:
        raise ValueError("got ? in a URI without an option such as ?region=us-east-1; expected %3F in a name")
    if parts.scheme not in _STORES:
        return fs.FileSystem.from_uri(uri)  # type: ignore[no-any-return]
    system, root = _open_root(urlunsplit((parts.scheme, parts.netloc, "/", parts.query, "")))
    return system, (root.rstrip("/") + unquote(parts.path, errors="strict")).rstrip("/") or root


@lru_cache(maxsize=16)
def _open_root(uri: str) -> tuple[fs.FileSystem, str]:
    return fs.FileSystem.from_uri(uri)  # type: ignore[no-any-return]


def _is_plain(uri: str) -> bool:
    """Return whether a URI is one of fsspec: names in it are not quoted, and it has no options."""
    return uri.startswith(("fsspec+", "hf://"))


def join(folder: str, name: str) -> str:
    """Return the URI of a file in a folder, or in folders below it.

    Args:
        folder: the folder's URI; its options, such as ``?region=us-east-1``, are kept.
        name: the path from the folder to the file, not quoted.

    >>> join("s3://bucket/photos/?region=us-east-1", "a b.jpg")
    's3://bucket/photos/a%20b.jpg?region=us-east-1'
    """
    if _is_plain(folder):
        return f"{folder.rstrip('/')}/{name}"
    parts = urlsplit(folder)
    path = f"{parts.path.rstrip('/')}/{quote(os.fsencode(name))}"
    # urlunsplit would drop the empty authority of some schemes.
    return f"{parts.scheme}://{parts.netloc}{path}" + (f"?{parts.query}" if parts.query else "")


def beside(uri: str, name: str) -> str:
    """Return the URI of a file in the folder of another file."""
    path = path_of(uri)
    at = uri.index("://") + 3 + (0 if _is_plain(uri) else len(urlsplit(uri).netloc))
    return join(uri[:at] + path[: path.rfind("/") + 1] + uri[at + len(path) :], name)


def path_of(uri: str) -> str:
    """Return the path of a URI as it is written, without its options."""
    return uri.partition("://")[2] if _is_plain(uri) else urlsplit(uri).path


def split_pattern(uri: str) -> tuple[str, list[str]]:
    """Return the URI of the folder in front of a pattern, and the names and patterns that follow; [] for none.

    Raises:
        ValueError: the pattern begins in the name of the store.
    """
    path = path_of(uri)
    parts = path.split("/")
    first = next((at for at, part in enumerate(parts) if glob.has_magic(part)), None)
    if not _is_plain(uri) and glob.has_magic(urlsplit(uri).netloc):
        raise ValueError("got a pattern in the name of the store; expected it after the first /")
    if first is None:
        return uri, []
    at = uri.index(path, uri.index("://") + 3)
    folder = uri[:at] + "/".join(parts[:first]) + ("/" if first else "") + uri[at + len(path) :]
    if not _is_plain(uri):
        parts = [_ESCAPES.sub(lambda found: glob.escape(unquote(found[0])), part) for part in parts]
    return folder, [part for part in parts[first:] if part]


def matches(pattern: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether a pattern matches a path, part by part, as Python's glob does with paths of this machine.

    ``*`` and ``[ ]`` stay within a name, and ``**`` stands for any number of folders. Names that begin with a dot match
    only where the pattern has the dot.

    >>> matches(["**", "*.jpg"], ["a", "b", "c.jpg"]), matches(["*.jpg"], ["a", "c.jpg"])
    (True, False)
    """
    if not pattern:
        return not names
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        deeper = bool(names) and not names[0].startswith(".")
        return matches(rest, names) or (deeper and matches(pattern, names[1:]))
    if not names or (names[0].startswith(".") and not first.startswith(".")):
        return False
    return fnmatch.fnmatchcase(names[0], first) and matches(rest, names[1:])
