"""Draw docs/tasks.jpg: boxes, a region and two similarities, each explained by Score-CAM with 64 masked inputs.

    python docs/write_task_pictures.py

The models are those of benchmarks/tasks.py, which exports them to build/tasks; the photos come with foolbox and
scikit-image.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from ortcam import Box, Region, ScoreCAM, Similarity

ROOT = Path(__file__).parents[1]
PICTURE = Path(__file__).parent / "tasks.jpg"
BUDGET = 64


def main() -> None:
    """Explain eight targets and draw their overlays."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import tasks

    folder = ROOT / "build" / "tasks"
    folder.mkdir(parents=True, exist_ok=True)
    files = tasks.export_all(folder)
    photos = {path.name: path for path in tasks.find_photos()}
    cat, car = (tasks.read(photos[name]) for name in ("chelsea.png", "imagenet_06_609.jpg"))
    both, _ = tasks.paste(cat, car)
    page = tasks.folder_of("skimage") / "data" / "page.png"
    wanted = [
        ("objects", photos["chelsea.png"], Box(0), "{label}"),
        ("objects", photos["coffee.png"], Box(0), "{label}"),
        ("objects", photos["imagenet_06_609.jpg"], Box(0), "{label}, the surest"),
        ("objects", photos["imagenet_06_609.jpg"], Box(1), "{label}, a false one"),
        ("faces", photos["astronaut.png"], Box(0), "{label}"),
        ("text", page, Region("text"), "region: {label}"),
        ("features", both, Similarity(cat), "similar to the cat"),
        ("features", both, Similarity(car), "similar to the car"),
    ]
    figure, axes = plt.subplots(2, 4, figsize=(11, 5.2), layout="constrained")
    for axis, (name, photo, target, title) in zip(axes.flat, wanted, strict=True):
        explanation = ScoreCAM(files[name]).explain(photo, targets=target, budget=BUDGET)
        axis.imshow(explanation.overlay_at(0))
        axis.set_title(title.format(label=explanation.targets[0].label), fontsize=9)
        axis.set_axis_off()
    figure.savefig(PICTURE, dpi=110, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
