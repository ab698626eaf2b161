"""The direction of imports: what docs/house.py reads from the source keeps to the floors that stand there."""

from __future__ import annotations

import sys
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest
from house import FACE, FLOORS, House, Import, may_import, room_of
from write_house import Drawing, table, without_figures

ROOT = Path(__file__).parent.parent
# Imports that run up and are known: the file's name, what it imports, and why.
KNOWN: set[tuple[str, str]] = set()
# What may be imported in some places only, late or not: the beginnings of their paths.
PLACES = {
    "onnxruntime": ("ortcam/runtime/", "exporters/precision.py"),
    "cv2": (
        "ortcam/evaluation/localisation.py",
        "ortcam/evaluation/replacements.py",
        "ortcam/model/image.py",
        "ortcam/output/render.py",
        "ortcam/output/text.py",
        "ortcam/output/video.py",
    ),
    "onnx_ir": (
        "ortcam/graph/",
        "ortcam/runtime/edited.py",
        "ortcam/runtime/shapes.py",
        "exporters/",
        "cli/inspect.py",
    ),
    "torch": ("exporters/", "cli/demo.py"),
    "torchvision": ("exporters/",),
    "timm": ("exporters/",),
    "tensorflow": ("exporters/",),
    "keras": ("exporters/",),
    "tf2onnx": ("exporters/",),
    "jax": ("exporters/",),
    "flax": ("exporters/",),
    "jax2onnx": ("exporters/",),
    "starlette": ("ortcam/serving/",),
    "uvicorn": ("ortcam/serving/",),
    "h11": ("ortcam/serving/",),
    "grpc": ("ortcam/serving/rpc.py",),
    "prometheus_client": ("ortcam/serving/metrics.py",),
}
# What the rooms may take from the face: names that it holds itself.
OF_THE_FACE = {"__version__", "NO_RUNTIME"}


def upward(house: House) -> list[str]:
    """Return what is wrong with the directions of a house's imports, a line each."""
    return [
        f"{one}: {above} may not import {below}"
        for (above, below), imports in house.between.items()
        for one in imports
        if not may_import(above, below) and (Path(one.file).name, one.module) not in KNOWN
    ]


def circle(imports: list[Import], house: House, by_room: bool) -> str:
    """Return the imports of a circle between rooms or files, or "" where there is none."""
    files = {source.file: source for source in house.sources.values()}
    graph: dict[str, dict[str, Import]] = {}
    for one in imports:
        here, there = files[one.file].module, one.module
        if by_room:
            here, there = room_of(here), room_of(there)
        if here != there and (by_room or there in house.sources):
            graph.setdefault(here, {}).setdefault(there, one)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        way = error.args[1]
        return "; ".join(str(graph[here][there]) for there, here in pairwise(way))
    return ""


def room_circle(house: House) -> str:
    known = [one for one in house.imports if (Path(one.file).name, one.module) not in KNOWN]
    own = [one for one in known if room_of(one.module) not in ("", FACE) and one.file != "ortcam/__init__.py"]
    return circle(own, house, by_room=True)


def file_circle(house: House) -> str:
    return circle([one for one in house.imports if one.when == "start"], house, by_room=False)


def out_of_place(house: House) -> list[str]:
    """Return the imports of libraries where they may not be imported."""
    return [
        f"{one}; expected only in {', '.join(places)}"
        for one in house.imports
        if (places := PLACES.get(one.module.partition(".")[0])) and not one.file.startswith(places)
    ]


def in_core(house: House) -> list[str]:
    """Return what core imports beside NumPy, the standard library and ortcam.errors."""
    allowed = {"numpy", *sys.stdlib_module_names}
    return [
        f"{one}; core imports only NumPy, the standard library and ortcam.errors"
        for one in house.imports
        if one.file.startswith("ortcam/core/")
        and one.module.partition(".")[0] not in allowed
        and room_of(one.module) not in ("core", "errors")
    ]


@pytest.fixture(scope="module")
def house() -> House:
    return House(ROOT)


def test_every_room_has_a_floor(house: House) -> None:
    known = {room for floor in FLOORS for room in floor}
    lost = {room: sources[0].file for room, sources in house.rooms.items() if room not in known}
    assert not lost, f"{lost} have no place in FLOORS (docs/house.py)"


def test_no_import_runs_up(house: House) -> None:
    assert upward(house) == []


def test_no_rooms_and_no_files_import_in_a_circle(house: House) -> None:
    assert room_circle(house) == ""
    assert file_circle(house) == ""


def test_libraries_are_imported_in_their_places_only(house: House) -> None:
    assert out_of_place(house) == []
    assert in_core(house) == []


def test_the_exceptions_are_still_needed(house: House) -> None:
    found = {(Path(one.file).name, one.module) for one in house.imports}
    assert found >= KNOWN, "delete what is no longer imported"
    for library, places in PLACES.items():
        files = [one.file for one in house.imports if one.module.partition(".")[0] == library]
        unused = [place for place in places if not any(file.startswith(place) for file in files)]
        assert not unused, f"{library} is no longer imported in {unused}"


def test_the_face_loads_no_room(house: House) -> None:
    """And the rooms take from it what it holds itself; anything else counts as an import of the name's own room."""
    loaded = [one for one in house.imports if one.file == "ortcam/__init__.py" and room_of(one.module)]
    assert [str(one) for one in loaded if one.when != "types"] == []
    taken = [one for one in house.imports if one.module == FACE and one.name not in OF_THE_FACE]
    assert [str(one) for one in taken] == []


# A small house with one fault of each kind: the path and the line of each stand in the message.
GOOD = {
    "ortcam/__init__.py": "import typing\nif typing.TYPE_CHECKING:\n    from ortcam.explain.scorecam import ScoreCAM\n",
    "ortcam/errors.py": "",
    "ortcam/core/budget.py": "import numpy.linalg\nfrom ortcam.errors import E\n",
    "ortcam/graph/layers.py": "from ortcam.core import budget\n",
    "ortcam/graph/maps.py": "from ortcam.graph.layers import f\n",
    "ortcam/runtime/engine.py": "import onnxruntime\nfrom ortcam.graph import maps\n",
    "ortcam/explain/scorecam.py": "from ortcam.runtime.engine import Engine\n",
    "ortcam/deploy/pack.py": "from ortcam import ScoreCAM\n",
    "exporters/export.py": "def export():\n    import torch\n    from ortcam.explain.scorecam import ScoreCAM\n",
    "cli/app.py": "from ortcam.exporters.export import export\n",
}


def build(folder: Path, **changes: str) -> House:
    for file, text in {**GOOD, **changes}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return House(folder)


def test_a_good_house_passes(tmp_path: Path) -> None:
    house = build(tmp_path)
    assert upward(house) == out_of_place(house) == in_core(house) == []
    assert room_circle(house) == file_circle(house) == ""
    assert {pair: len(imports) for pair, imports in house.between.items()} == {
        ("cli", "exporters"): 1,
        ("core", "errors"): 1,
        ("deploy", "explain"): 1,  # by the face
        ("explain", "runtime"): 1,
        ("exporters", "explain"): 1,
        ("graph", "core"): 1,
        ("runtime", "graph"): 1,
    }


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        (
            "ortcam/graph/layers.py",
            "def f():\n    from ortcam.runtime import engine\n",
            "ortcam/graph/layers.py:2 imports ortcam.runtime.engine: graph may not import runtime",
        ),
        (
            "ortcam/core/budget.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ortcam import ScoreCAM\n",
            "ortcam/core/budget.py:3 imports ortcam.explain.scorecam: core may not import explain",
        ),
        (
            "ortcam/runtime/engine.py",
            "from ..deploy import pack\n",
            "ortcam/runtime/engine.py:1 imports ortcam.deploy.pack: runtime may not import deploy",
        ),
        (
            "exporters/export.py",
            "import importlib\nimportlib.import_module('ortcam.deploy.pack')\n",
            "exporters/export.py:2 imports ortcam.deploy.pack: exporters may not import deploy",
        ),
        (
            "ortcam/graph/maps.py",
            "import ortcam\nprint(ortcam.__version__, ortcam.ScoreCAM)\n",
            "ortcam/graph/maps.py:1 imports ortcam.explain.scorecam: graph may not import explain",
        ),
        (
            "ortcam/output/x.py",
            "import ortcam.graph.maps",
            "ortcam/output/x.py:1 imports ortcam.graph.maps: output may not",
        ),
        ("ortcam/cellar/x.py", "import ortcam.errors", "ortcam/cellar/x.py:1 imports ortcam.errors: cellar may not"),
    ],
)
def test_an_import_that_runs_up_is_found(tmp_path: Path, file: str, text: str, told: str) -> None:
    [message] = upward(build(tmp_path, **{file: text}))
    assert message.startswith(told)


def test_circles_are_found(tmp_path: Path) -> None:
    house = build(tmp_path, **{"ortcam/graph/layers.py": "import ortcam.core.budget\nimport ortcam.graph.maps\n"})
    assert room_circle(house) == ""
    assert sorted(file_circle(house).split("; ")) == [
        "ortcam/graph/layers.py:2 imports ortcam.graph.maps",
        "ortcam/graph/maps.py:1 imports ortcam.graph.layers",
    ]
    late = build(tmp_path, **{"ortcam/graph/layers.py": "def f():\n    import ortcam.runtime.engine\n"})
    assert file_circle(late) == ""
    assert sorted(room_circle(late).split("; ")) == [
        "ortcam/graph/layers.py:2 imports ortcam.runtime.engine",
        "ortcam/runtime/engine.py:2 imports ortcam.graph.maps",
    ]


def test_libraries_out_of_place_are_found(tmp_path: Path) -> None:
    house = build(
        tmp_path,
        **{
            "ortcam/core/budget.py": "import cv2\nfrom ortcam import __version__\n",
            "ortcam/explain/scorecam.py": "def f():\n    from torch.nn import Module\n",
        },
    )
    assert [message.partition(";")[0] for message in out_of_place(house)] == [
        "ortcam/core/budget.py:1 imports cv2",
        "ortcam/explain/scorecam.py:2 imports torch.nn",
    ]
    assert [message.partition(";")[0] for message in in_core(house)] == [
        "ortcam/core/budget.py:1 imports cv2",
        "ortcam/core/budget.py:2 imports ortcam",
    ]


def test_the_check_of_the_drawing_sees_imports_and_not_figures(tmp_path: Path) -> None:
    def shown(**changes: str) -> str:
        house = build(tmp_path, **changes)
        return without_figures(Drawing(house).draw() + table(house))

    once, again, longer = shown(), shown(), shown(**{"ortcam/core/budget.py": "import ortcam.errors\n" * 12})
    assert once == again == longer
    assert shown(**{"ortcam/runtime/engine.py": "import ortcam.core.budget\nimport ortcam.graph.maps\n"}) != once
    assert shown(**{"ortcam/output/render.py": ""}) != once
