"""The rooms of ortcam, and what each of them imports, read from the source without running it.

import-linter and grimp see one package in one folder; exporters/ and cli/ lie beside ortcam/ and are mapped into it by
pyproject.toml, so the imports are read here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeGuard

# The house from the roof down: a line is a floor, and a room that stands in several lines is as high as they are.
# A room imports only rooms that lie wholly below it. Rooms that do not exist yet have their place already.
FLOORS = tuple(
    tuple(line.split())
    for line in (
        "cli",
        "serving cluster report exporters",
        "comparison exporters",
        "deploy evaluation exporters",
        "explain",
        "runtime methods output",
        "graph methods output",
        "model methods output",
        "core",
        "errors",
    )
)
FOLDERS = {"ortcam": "ortcam", "exporters": "ortcam.exporters", "cli": "ortcam.cli"}
# ortcam/__init__.py: it names what is public, from all rooms, and loads a name when it is first used.
FACE = "ortcam"
When = Literal["start", "late", "types"]
Importing = ast.Import | ast.ImportFrom | ast.Call


@dataclass(frozen=True)
class Import:
    """A statement that imports.

    Attributes:
        file, line: where it stands; the file with slashes, from the root of the checkout.
        module: what it imports: a module of ortcam, or another one by its full name.
        name: what it takes from the module; "" for the module itself.
        when: "start": with the file; "late": inside a function; "types": under `if TYPE_CHECKING:`.
    """

    file: str
    line: int
    module: str
    name: str
    when: When

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


@dataclass(frozen=True)
class Source:
    """A Python file of the house.

    Attributes:
        lines: how many.
        purpose: the first line of its docstring.
        importing: the nodes that import, with when they are run.
        of_the_face: what it takes from `ortcam` after `import ortcam`.
    """

    file: str
    module: str
    lines: int
    purpose: str
    importing: list[tuple[Importing, When]]
    of_the_face: list[str]

    @property
    def room(self) -> str:
        return room_of(self.module)


class House:
    """The files under `root`, their rooms and imports."""

    def __init__(self, root: Path):
        self.sources = {source.module: source for source in _read(root)}
        if not self.sources:
            raise FileNotFoundError(f"no Python files in {', '.join(FOLDERS)} under {root}")

    @cached_property
    def rooms(self) -> dict[str, list[Source]]:
        """The files of each room, the rooms from the roof down; a room that has no floor comes last."""
        found: dict[str, list[Source]] = {room: [] for floor in FLOORS for room in floor}
        for source in self.sources.values():
            if source.module != FACE:
                found.setdefault(source.room, []).append(source)
        return {room: sources for room, sources in found.items() if sources}

    @cached_property
    def imports(self) -> list[Import]:
        """All imports; a public name taken from the face counts as an import of the module that it comes from."""
        public = {
            alias.asname or alias.name: f"{node.module}"
            for node, _ in self.sources[FACE].importing
            if isinstance(node, ast.ImportFrom) and room_of(f"{node.module}") in self.rooms
            for alias in node.names
        }
        return [
            Import(source.file, line, public.get(name, FACE) if module == FACE else module, name, when)
            for source in self.sources.values()
            for node, when in source.importing
            for line, module, name in self._targets(source, node)
        ]

    def _targets(self, source: Source, node: Importing) -> Iterator[tuple[int, str, str]]:
        """Yield the line, the module and the name of each thing that a node imports."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                for name in source.of_the_face if alias.name == FACE else [""]:
                    yield node.lineno, alias.name, name
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(source, node)
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield node.lineno, inner if inner in self.sources else module, alias.name
        else:
            for given in node.args[:1]:
                if isinstance(given, ast.Constant):
                    yield node.lineno, str(given.value), ""

    @cached_property
    def between(self) -> dict[tuple[str, str], list[Import]]:
        """The imports from one room into another; of a file that imports the same file twice, the first."""
        found: dict[tuple[str, str], dict[tuple[str, str], Import]] = {}
        files = {source.file: source.room for source in self.sources.values()}
        for one in self.imports:
            above, below = files[one.file], room_of(one.module)
            if above != below and below and FACE not in (above, below):
                found.setdefault((above, below), {}).setdefault((one.file, one.module), one)
        return {pair: list(imports.values()) for pair, imports in sorted(found.items())}


def room_of(module: str) -> str:
    """Return the room of a module of ortcam; the face is a room of its own, and "" stands for other packages."""
    top, *inner = module.split(".")
    if top != FACE:
        return ""
    if inner == ["__main__"]:
        return "cli"  # python -m ortcam
    return inner[0] if inner else FACE


def may_import(above: str, below: str) -> bool:
    """Whether the room `below` lies wholly below the room `above`."""
    floors = {room: [place for place, floor in enumerate(FLOORS) if room in floor] for room in (above, below)}
    return bool(floors[above] and floors[below]) and max(floors[above]) < min(floors[below])


def _read(root: Path) -> Iterator[Source]:
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            inner = [part for part in path.relative_to(root / folder).with_suffix("").parts if part != "__init__"]
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text, str(path))
            nodes = list(_nodes(tree))
            yield Source(
                file=path.relative_to(root).as_posix(),
                module=".".join([package, *inner]),
                lines=text.count("\n"),
                purpose=(ast.get_docstring(tree) or "").partition("\n")[0],
                importing=[(node, when) for node, when in nodes if _imports(node)],
                of_the_face=sorted(
                    {node.attr for node, _ in nodes if isinstance(node, ast.Attribute) and _name(node.value) == FACE}
                ),
            )


def _nodes(node: ast.AST, when: When = "start") -> Iterator[tuple[ast.AST, When]]:
    """Yield every node below one, with when it is run."""
    for child in ast.iter_child_nodes(node):
        yield child, when
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _nodes(child, "late")
        elif isinstance(child, ast.If) and _name(child.test) == "TYPE_CHECKING":
            yield from _nodes(ast.Module(child.body, []), "types")
            yield from _nodes(ast.Module(child.orelse, []), when)
        else:
            yield from _nodes(child, when)


def _imports(node: ast.AST) -> TypeGuard[Importing]:
    if isinstance(node, ast.Call):
        return _name(node.func) == "import_module"
    return isinstance(node, ast.Import | ast.ImportFrom)


def _name(node: ast.AST) -> str:
    """Return the last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    """Return the full name of the module that a `from` names, which may begin with dots."""
    if not node.level:
        return node.module or ""
    package = source.module.split(".")
    is_package = source.file.endswith("__init__.py")
    kept = package[: len(package) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])
