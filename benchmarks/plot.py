"""Draw what `explain.py` measured: seconds of one map, by network and candidate.

python benchmarks/plot.py      from benchmarks/results/explain-cpu.json, into docs/figures.png
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results" / "explain-cpu.json"
PLOT = Path(__file__).parents[1] / "docs" / "figures.png"
OURS, PEERS = "#00796b", "#9e9e9e"
NAMES = {
    "ortcam": "ortcam, exact",
    **{f"budget {budget}": f"ortcam, budget {budget}" for budget in (64, 32, 16)},
    "torchcam": "torchcam",
    "pytorch-grad-cam": "pytorch-grad-cam",
    "tf-keras-vis": "tf-keras-vis",
}


def draw(networks: list[dict[str, Any]], path: Path) -> None:
    """Draw a panel a network, two in a row: bars of medians on a logarithmic scale with the range of all turns."""
    columns, rows = min(len(networks), 2), -(-len(networks) // 2)
    figure, panels = plt.subplots(rows, columns, figsize=(5.2 * columns, 3.2 * rows), squeeze=False)
    for panel in panels.flat[len(networks) :]:
        panel.remove()
    for panel, network in zip(panels.flat[: len(networks)], networks, strict=True):
        seconds = {label: network["seconds"][name] for name, label in NAMES.items() if name in network["seconds"]}
        middle = {label: statistics.median(values) for label, values in seconds.items()}
        labels = sorted(middle, key=lambda label: -middle[label])
        values = [middle[label] for label in labels]
        ranges = [
            [middle[label] - min(seconds[label]) for label in labels],
            [max(seconds[label]) - middle[label] for label in labels],
        ]
        colours = [OURS if label.startswith("ortcam") else PEERS for label in labels]
        panel.barh(labels, values, xerr=ranges, color=colours, error_kw={"ecolor": "#444444", "capsize": 2})
        for row, (label, value) in enumerate(zip(labels, values, strict=True)):
            behind = (max(seconds[label]), row)  # its range
            panel.annotate(f"{value:.3g} s", behind, (8, 0), textcoords="offset points", va="center", fontsize=9)
        panel.set_xscale("log")
        panel.set_xlim(min(values) / 2, max(values) * 6)
        panel.set_title(f"{network['network']}, {network['channels']} channels", fontsize=11)
        panel.set_xlabel("seconds for one map (logarithmic)")
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw(json.loads(RESULTS.read_text())["networks"], PLOT)
