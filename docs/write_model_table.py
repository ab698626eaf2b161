"""Write docs/models.md from the results of the tests (build/tests.xml, by `make test-all`).

With --check, fail where the page names other models or sources than the results do; figures, and names that a framework
counts up while it runs, may differ.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "models.md"
RESULTS = ROOT / "build" / "tests.xml"
HEAD = """# Models and sources

A test exports, verifies and explains every model in this table. Trained models are explained with a real photo, and
the class and the map are checked. Untrained models (seeded) must have the top class of their source. The errors compare
the exported file with its source, run by the source's own framework, on random inputs: the largest difference divided
by the largest value. "-" means that the source does not show its inner tensors.

| model | source | target layer | channels x h x w | output | error of the scores | of the layer |
|---|---|---|---|---|---:|---:|
"""
REFUSED = """
## What does not work

Each of these sources is refused with one line that says why, and no file is written.

| what | source | message |
|---|---|---|
"""


def read_results() -> list[dict[str, str]]:
    """Return the properties of every test that passed and has a row in the table."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for case in ET.parse(RESULTS).iter("testcase"):
        if any(case.find(kind) is not None for kind in ("failure", "error", "skipped")):
            continue
        properties = {entry.get("name", ""): entry.get("value", "") for entry in case.iter("property")}
        if "model" in properties:
            rows[properties["model"], properties["source"]] = properties
    return sorted(rows.values(), key=lambda row: (kind_of(row["source"]), row["source"], row["model"]))


def kind_of(source: str) -> int:
    kinds = ("PyTorch", ".pt2", "Keras", "SavedModel", "TFLite", "JAX", "ONNX")
    return next((place for place, kind in enumerate(kinds) if kind in source), len(kinds))


def shown(error: str) -> str:
    if not error:
        return "-"
    return "0" if not float(error) else f"{float(error):.0e}".replace("e-0", "e-")


def told(message: str) -> str:
    """Return an error message for a table cell; a long one is cut."""
    message = message.replace("|", "\\|").replace("<", "&lt;")
    return message if len(message) <= 200 else message[:197] + "..."


def write_page(rows: list[dict[str, str]]) -> str:
    works = [
        f"| {row['model']} | {row['source']} | `{row['layer']}` | {row['shape']} | {row['output']} "
        f"| {shown(row['scores'])} | {shown(row['activations'])} |"
        for row in rows
        if not row["refused"]
    ]
    fails = [f"| {row['model']} | {row['source']} | {told(row['refused'])} |" for row in rows if row["refused"]]
    return HEAD + "\n".join(works) + "\n" + REFUSED + "\n".join(fails) + "\n"


def names(page: str) -> list[list[str]]:
    """Return the models and sources that the tables of a page name."""
    return [line.split("|")[:3] for line in page.splitlines() if line.startswith("|")]


def main() -> None:
    if not RESULTS.is_file():
        sys.exit("build/tests.xml is missing: run make test-all")
    page = write_page(read_results())
    if "--check" not in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.is_file() or names(PAGE.read_text(encoding="utf-8")) != names(page):
        sys.exit("docs/models.md is out of date: run make test-all, then python docs/write_model_table.py")


if __name__ == "__main__":
    main()
