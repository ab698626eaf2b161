"""ortcam doctor: show what is installed, and which execution providers load."""

from __future__ import annotations

import importlib.util
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ortcam import NO_RUNTIME, __version__
from ortcam.cli import console, options

if TYPE_CHECKING:
    from ortcam.runtime.providers import Provider

_PACKAGES = (
    "numpy",
    "onnx",
    "onnx-ir",
    "opencv-python-headless",
    "typer",
    "torch",
    "torchvision",
    "timm",
    "onnxscript",
)


def doctor(
    model: Annotated[
        Path | None,
        typer.Argument(help="Show which nodes of this model file run on which provider.", show_default=False),
    ] = None,
    provider: options.ProviderName = "auto",
    provider_option: options.ProviderOptions = None,
    device_id: options.DeviceId = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Show versions and which execution providers load, with the reason why others don't.

    The command fails if the provider that you name does not load.

    Examples:

      ortcam doctor

      ortcam doctor --provider cuda

      ortcam doctor model.onnx --provider cuda
    """
    if model is not None:
        _show_placement(model, options.make_provider(provider, provider_option, device_id), as_json)
        return
    if provider_option or device_id:
        raise typer.BadParameter("--provider-option and --device-id need a model, so use: ortcam doctor MODEL ...")
    facts = examine()
    wanted = options.make_provider(provider, None, 0).name if facts["providers"] else None
    facts["problems"] += [
        f"provider {wanted!r} does not load: {row['reason']}"
        for row in facts["providers"]
        if row["name"] == wanted and not row["loads"]
    ]
    if as_json:
        console.print_json(facts)
    else:
        console.say(f"ortcam {__version__}, Python {facts['python']}, {facts['platform']}")
        console.say(", ".join(f"{name} {version or '(not installed)'}" for name, version in facts["packages"].items()))
        console.say(
            "ONNX Runtime: "
            + (", ".join(f"{name} {version}" for name, version in facts["runtime_packages"].items()) or "none")
        )
        if facts["providers"]:
            table = console.make_table("provider", "loads", "why not")
            for row in facts["providers"]:
                table.add_row(row["name"], "yes" if row["loads"] else "no", row["reason"] or "")
            console.print_table(table)
    for problem in facts["problems"]:
        console.fail(problem)
    if facts["problems"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Return the state of the installation as plain JSON."""
    facts: dict[str, Any] = {
        "ortcam": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "runtime_packages": {},
        "providers": [],
        "problems": [],
    }
    if importlib.util.find_spec("onnxruntime") is None:
        facts["problems"].append(NO_RUNTIME)
        return facts
    try:
        from ortcam.runtime import providers
    except (ImportError, OSError) as error:
        facts["problems"].append(f"ONNX Runtime is installed but does not load: {error}; install it again")
        return facts
    installed = facts["runtime_packages"] = providers.installed_packages()
    if len(installed) > 1:
        facts["problems"].append(
            f"{' and '.join(installed)} are both installed and overwrite each other's files; keep one: "
            f"pip uninstall -y {' '.join(installed)}, then install the extra that you want"
        )
    for name in providers.PROVIDERS:
        reason = providers.check_provider(name)
        facts["providers"].append({"name": name, "loads": reason is None, "reason": reason})
    return facts


def _show_placement(path: Path, provider: Provider, as_json: bool) -> None:
    """Print how many nodes of a model's scoring graph each provider runs."""
    from ortcam import CamModel
    from ortcam.runtime.engine import Engine
    from ortcam.runtime.providers import PROVIDERS, count_nodes

    engine = Engine(CamModel(path), "logits", provider, None, None, record_assignment=True)
    names = {ort_name: name for name, (ort_name, _) in PROVIDERS.items()}
    nodes = {names.get(ort_name, ort_name): counts for ort_name, counts in count_nodes(engine.session).items()}
    elsewhere = sum(sum(counts.values()) for name, counts in nodes.items() if name != engine.provider.name)
    if as_json:
        facts = {"model": str(path), "provider": engine.provider.name, "nodes": nodes, "cuda_graphs": engine.captures}
        console.print_json(facts)
        return
    table = console.make_table("provider", "nodes", "operators", right=("nodes",))
    for name, counts in nodes.items():
        ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        table.add_row(name, str(sum(counts.values())), ", ".join(f"{count} {kind}" for kind, count in ranked))
    console.print_table(table)
    console.note(
        f"{path.name} on {engine.provider.name}: "
        + (f"{elsewhere} nodes fall back to another provider" if elsewhere else "no node falls back")
        + (", runs as CUDA graphs" if engine.captures else "")
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
