"""Write the tables of metrics in docs/metrics.md from their definitions; with --check, fail if they are out of date."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ortcam.evaluation.maps import CONTROLS
from ortcam.evaluation.metrics import METRICS
from ortcam.evaluation.replacements import REPLACEMENTS, Replacement

PAGE = Path(__file__).parent / "metrics.md"
BEGIN, END = "<!-- written by docs/write_metrics.py -->\n", "<!-- end -->\n"
MOST_COLUMNS = 5  # beside the preset and the source; a page is not wider
KINDS = {
    "zero": "0 in the preprocessed input, the mean colour of most preprocessings",
    "black": "0 in the photo, before preprocessing",
    "grey": "127.5 in the photo, before preprocessing",
    "white": "255 in the photo, before preprocessing",
}


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        sys.exit(f"docs/metrics.md lacks the lines {BEGIN.strip()} and {END.strip()}; put them round the tables")
    new = before + BEGIN + "\n".join(tables()) + END + after
    if "--check" not in sys.argv:
        PAGE.write_text(new, encoding="utf-8")
    elif page != new:
        sys.exit("docs/metrics.md is out of date: run python docs/write_metrics.py")


def tables() -> Iterator[str]:
    """Yield the lines of all tables. Metrics that have the same presets but for their direction share a table."""
    for names in groups():
        presets = {name: METRICS[name] for name in names}
        better = ", ".join(f"`{name}`: {direction(convention)}" for name, convention in firsts(presets))
        default = ". The first preset is the default." if len(presets[names[0]]) > 1 else "."
        yield from ("", f"### {', '.join(names)}", "", better + default, "")
        yield from table(presets)
    yield from ("", "### Baselines", "", "| baseline | hidden pixels become |", "|---|---|")
    yield from (f"| `{name}` | {describe(replacement)} |" for name, replacement in REPLACEMENTS.items())
    yield from ("", "### Controls", "", "| control | map |", "|---|---|")
    yield from (f"| `{name}` | {text} |" for name, text in CONTROLS.items())
    yield ""


def groups() -> list[list[str]]:
    """Return the names of metrics in their order; metrics with equal sources stand together."""
    found: dict[Any, list[str]] = {}
    for name, presets in METRICS.items():
        found.setdefault(tuple(definition(each).source for each in presets.values()), []).append(name)
    return list(found.values())


def firsts(presets: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, conventions in presets.items():
        yield name, next(iter(conventions.values()))


def direction(convention: Any) -> str:
    better = convention.columns("value", (224, 224))[-1].better
    return "higher is better" if better == "higher" else "lower is better"


def table(presets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a row for each preset and a column for each field; where metrics differ, the cell has both values.

    A field that is the same in all presets stands below the table, and so do the sources of a wide table.
    """
    rows = {name: [definition(each[name]) for each in presets.values()] for name in next(iter(presets.values()))}
    first = next(iter(rows.values()))[0]
    keys = [field.name for field in fields(first) if field.name not in ("metric", "name", "source")]
    cells = {key: [both(key, conventions) for conventions in rows.values()] for key in keys}
    same = [key for key in keys if len(rows) > 1 and len(set(cells[key])) == 1]
    columns = [key for key in keys if key not in same]
    wide = len(columns) > MOST_COLUMNS
    yield "| preset | " + " | ".join([*(f"`{key}`" for key in columns), *([] if wide else ["source"])]) + " |"
    yield "|---" * (len(columns) + 2 - wide) + "|"
    for number, (name, conventions) in enumerate(rows.items()):
        row = [*(cells[key][number] for key in columns), *([] if wide else [conventions[0].source])]
        yield f"| `{name}` | " + " | ".join(row) + " |"
    if same:
        yield from ("", "The same in all: " + ", ".join(f"`{key}` {cells[key][0]}" for key in same) + ".")
    if wide:
        yield ""
        yield from (f"- `{name}`: {conventions[0].source}" for name, conventions in rows.items())


def both(key: str, conventions: Sequence[Any]) -> str:
    return " / ".join(dict.fromkeys(shown(getattr(convention, key)) for convention in conventions))


def definition(convention: Any) -> Any:
    """Return the dataclass that defines a convention: for localisation, the one inside."""
    return getattr(convention, "convention", convention)


def shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return f"{value[0]:g} to {value[-1]:g}, {len(value)} values"
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe(replacement: Replacement) -> str:
    if replacement.kind != "blurred":
        return KINDS[replacement.kind]
    middle, corner = (replacement.kernel[place] for place in (len(replacement.kernel) // 2, 0))
    edges = "zeros" if replacement.edges == "zero" else "the input reflected at its edge"
    return (
        f"the preprocessed input, blurred with a kernel of {len(replacement.kernel)} pixels in each direction "
        f"(weights from {corner:.3f} at its ends to {middle:.3f} in the middle); beyond the edge: {edges}"
    )


if __name__ == "__main__":
    main()
