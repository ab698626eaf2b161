"""What a package index shows of README.md. Everything else is in pyproject.toml.

README.md links to pages and pictures of docs/, which an index does not have. If DOCS_URL is set (the address that
mkdocs.yml takes, with a folder for each version), the links lead there. If it is not set, the links stay relative and
no address is stated.
"""

import os
import re
import tomllib
from pathlib import Path

from setuptools import setup

_ADDRESS = os.environ.get("DOCS_URL", "").rstrip("/")
_VERSION = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def _published(link: re.Match[str]) -> str:
    """Return a link to a file of docs/ as a link to its page or picture on the site."""
    page = re.sub(r"(index)?\.(md|ipynb)$", "/", link["file"]).lstrip("/")
    return f"]({_ADDRESS}/{_VERSION}/{page}{link['anchor'] or ''})"


_readme = Path("README.md").read_text(encoding="utf-8")
if _ADDRESS:
    _readme = re.sub(r"\]\(docs/(?P<file>[^)#]*)(?P<anchor>#[^)]*)?\)", _published, _readme)

setup(
    long_description=_readme,
    long_description_content_type="text/markdown",
    project_urls={"Documentation": f"{_ADDRESS}/"} if _ADDRESS else {},
)
