"""Keep pages readable on narrow screens: a hook of MkDocs (`hooks` in mkdocs.yml; extra.css has the rules).

Short pieces of code, such as `--input-size`, are never broken. Cells of tables with much text keep a width for several
words; the table is then scrolled.
"""

from __future__ import annotations

import re
from typing import Any

_SHORT_CODE = re.compile(r"<code>(?=[^<]{1,24}</code>)")
_CELL = re.compile(r"<td>(?=(?P<text>.*?)</td>)", re.DOTALL)
_MUCH = 60  # characters


def on_page_content(html: str, **_: Any) -> str:
    """Give short code and long cells their classes."""

    def cell(match: re.Match[str]) -> str:
        text = re.sub(r"<[^>]*>", "", match["text"])
        return '<td class="wide">' if len(text) > _MUCH else match[0]

    return _CELL.sub(cell, _SHORT_CODE.sub('<code class="whole">', html))
