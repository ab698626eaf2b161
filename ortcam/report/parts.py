"""What the pages share: they are filled from a template, and hold their data as JSON."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ortcam.output.render import colour_table

_HERE = Path(__file__).parent
_STOPS = 17  # colours of the colour bar


def as_script(value: Mapping[str, Any]) -> bytes:
    """Return JSON that can stand in a script element: ASCII without ``<``, which could end the element."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").encode("ascii")


def fill_template(
    page: str, styles: Sequence[str], scripts: Sequence[str], title: str, colormap: str, fades: bool = False
) -> list[str]:
    """Return a page with its styles, its scripts, its title and the colours of the colour bar, in three parts.

    Args:
        page, styles, scripts: names of files beside this one.
        title: plain text.
        colormap: turbo, jet, inferno or viridis.
        fades: the colours fade towards 0, as those of an overlay fade to the photo.

    Returns:
        the page before its data, between data and pictures, and after the pictures.
    """
    whole, style, code = (
        "".join((_HERE / name).read_text(encoding="utf-8") for name in names) for names in ((page,), styles, scripts)
    )
    table = colour_table(colormap)
    shares = [place / (_STOPS - 1) for place in range(_STOPS)]
    stops = ((*table[round(share * 255)], share**0.5 if fades else 1) for share in shares)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    values = {
        "{{hash}}": f"sha256-{digest}",
        "{{ramp}}": ", ".join(f"rgb({red} {green} {blue} / {cover:.2f})" for red, green, blue, cover in stops),
        "{{style}}": style,
        "{{script}}": code,
        "{{title}}": html.escape(title),
    }
    parts = re.split(r"\{\{data\}\}|\{\{pictures\}\}", whole)
    for mark, value in values.items():  # the title comes last: it may hold anything
        parts = [part.replace(mark, value) for part in parts]
    return parts
