"""Show the notebooks of docs/notebooks as pages of the documentation: a hook of MkDocs (`hooks` in mkdocs.yml).

A notebook becomes a page of Markdown: its text, its code, and the outputs that are kept in it. Nothing is run. The
notebook itself stays beside the page, to be downloaded. Links to notebooks (`x.ipynb`), which GitHub shows, become
links to their pages.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

_LINK = re.compile(r"(?<=\]\()((?!https?:)[\w./-]+)\.ipynb(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook."""
    from mkdocs.structure.files import File

    for file in list(files):
        if file.src_uri.endswith(".ipynb") and file.abs_src_path is not None:
            page = file.src_uri.removesuffix(".ipynb") + ".md"
            files.append(File.generated(config, page, content=to_markdown(Path(file.abs_src_path))))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to notebooks lead to their pages."""
    return _LINK.sub(r"\1.md", markdown)


def to_markdown(path: Path) -> str:
    """Return the page of a notebook in Markdown, with outputs in HTML."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
        else:
            parts += [f"```python\n{text}\n```", *(show(output) for output in cell["outputs"])]
    download = (
        f'<p><a href="../{path.name}" download>Download this notebook.</a> The outputs on this page are kept in the '
        "notebook; tests run it again.</p>"
    )
    title, *rest = parts
    heading, _, introduction = title.partition("\n")
    return "\n\n".join([heading, introduction.strip(), download, *rest])


def show(output: dict[str, Any]) -> str:
    """Return an output of a cell in HTML: text, a picture, or the HTML of an object."""
    if output["output_type"] == "stream":
        return _text("".join(output["text"]))
    data = {kind: "".join(value) for kind, value in output["data"].items()}
    if "text/html" in data:
        return f'<div class="notebook-output">{data["text/html"].strip()}</div>'
    for kind in ("image/jpeg", "image/png"):
        if kind in data:
            source = f"data:{kind};base64,{''.join(data[kind].split())}"
            return f'<div class="notebook-output"><img alt="The picture that this code draws" src="{source}"></div>'
    return _text(data["text/plain"])


def _text(text: str) -> str:
    return f'<pre class="notebook-output">{html.escape(text.rstrip())}</pre>'
