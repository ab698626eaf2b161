"""Run the notebooks of docs/notebooks, and keep their outputs in them.

    python docs/write_notebooks.py              all of them, some minutes on two cores
    python docs/write_notebooks.py first-map    one

Each notebook runs in a kernel of its own, in a folder that is removed afterwards. docs/notebook_pages.py shows them in
the documentation; tests/test_notebooks.py runs them again.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parent / "notebooks"
TIMEOUT = 900  # seconds for a cell
QUALITY = 88


def read(path: Path) -> NotebookNode:
    """Return a notebook of format 4."""
    return nbformat.read(path, as_version=4)  # type: ignore[no-any-return, no-untyped-call]


def run(notebook: NotebookNode) -> NotebookNode:
    """Run all cells in place, in a temporary folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", record_timing=False, resources=place).execute()
    return notebook


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Keep one picture of each output, photos as JPEG, and only the metadata that a reader needs."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if "outputs" in cell:
            cell.outputs = join_streams(cell.outputs)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "text/html" in data:
                data.pop("image/png", None)
            if "image/png" in data:
                data["image/jpeg"] = to_jpeg(data.pop("image/png"))
    return notebook


def join_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Return outputs in which printed lines that follow each other are one output."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == "stream" == joined[-1].output_type and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def to_jpeg(png: str) -> str:
    """Return a PNG picture in base64 as a JPEG picture in base64."""
    written = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        picture.convert("RGB").save(written, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def main() -> None:
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        notebook = tidy(run(read(path)))
        nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
