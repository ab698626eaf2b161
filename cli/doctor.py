"""ortcam doctor: what is installed, and what really loads."""

from __future__ import annotations

import importlib.util
import platform
from importlib import metadata
from typing import Annotated, Any

import typer

from ortcam import NO_RUNTIME, __version__
from ortcam.cli import console

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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")] = False,
) -> None:
    """Show versions, and the execution providers that load, with the reason why others don't.

    Examples:

      ortcam doctor

      ortcam doctor --json
    """
    facts = examine()
    if as_json:
        console.print_json(facts)
    else:
        print(f"ortcam {__version__}, Python {facts['python']}, {facts['platform']}")
        print(", ".join(f"{name} {version or '(not installed)'}" for name, version in facts["packages"].items()))
        print(
            "ONNX Runtime: "
            + (", ".join(f"{name} {version}" for name, version in facts["runtime_packages"].items()) or "none")
        )
        if facts["providers"]:
            table = console.make_table("provider", "loads", "why not")
            for provider in facts["providers"]:
                table.add_row(provider["name"], "yes" if provider["loads"] else "no", provider["reason"] or "")
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
        reason = providers.probe(name)
        facts["providers"].append({"name": name, "loads": reason is None, "reason": reason})
    return facts


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
