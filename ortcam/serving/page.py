"""The page for people: its text with the colours of the overlays, and the headers that let it talk to this server."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from ortcam.output.render import colour_table

_STOPS = 16  # colours of the bar


@cache
def read_page() -> tuple[str, dict[str, str]]:
    """Return the page and its headers. Only the scripts and styles in the page run, and they reach only this server."""
    colours = ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in colour_table("turbo")[:: 255 // _STOPS])
    text = (files("ortcam.serving") / "page.html").read_text(encoding="utf-8").replace("{{colours}}", colours)
    policy = (
        f"default-src 'none'; script-src {_hashes('script', text)}; style-src {_hashes('style', text)}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hashes(element: str, text: str) -> str:
    """Return the sources of a policy for the elements of a page."""
    inner = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in inner)
