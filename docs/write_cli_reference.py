"""Write docs/cli.md from the command line's own definition; with --check, fail where the file is out of date."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import typer

from ortcam.cli.app import app

PAGE = Path(__file__).parent / "cli.md"
HEAD = """# Command line

Written by `docs/write_cli_reference.py` from what `ortcam COMMAND --help` shows.

Results go to standard output, everything else to standard error. With `--json` standard output holds one JSON
document and nothing else. Progress bars appear only on a terminal. An error is one line; wrong usage is shown in a box.
`--debug`, anywhere on the line, shows the traceback. `ortcam --version` prints the version.

| exit code | |
|---:|---|
| 0 | done |
| 1 | failed; of several photos, at least one |
| 2 | wrong usage |
| 130 | interrupted |
"""


def main() -> None:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    text = HEAD + "".join(section(name, command) for name, command in commands.items())
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/cli.md is out of date: run python docs/write_cli_reference.py")


def section(name: str, command: Any) -> str:
    described, _, examples = inspect.cleandoc(command.help).partition("Examples:")
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    usage = " ".join(["ortcam", name, *(shown(argument) for argument in arguments), "[OPTIONS]"])
    rows = [f"| `{row_name(parameter)}` | {parameter.help} | {default(parameter)} |" for parameter in parameters]
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    return "\n".join(
        [
            f"\n## {name}\n",
            " ".join(described.split()) + "\n",
            f"```text\n{usage}\n```\n",
            "| | | default |",
            "|---|---|---|",
            *rows,
            "\n```text",
            *lines,
            "```\n",
        ]
    )


def shown(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def row_name(parameter: Any) -> str:
    return shown(parameter) if parameter.param_type_name == "argument" else ", ".join(parameter.opts)


def default(parameter: Any) -> str:
    value = parameter.default
    return "" if parameter.required or value is None or value is False or callable(value) else f"`{value}`"


if __name__ == "__main__":
    main()
