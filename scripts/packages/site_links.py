"""Links that leave docs/, as the site of mkdocs.yml shows them, which holds docs/ alone: a hook that mkdocs calls.

Where mkdocs.yml names a `repo_url` they lead there; else they become the name of the file in the repository.
"""

import re
from collections.abc import Mapping
from typing import Any

LEAVING = re.compile(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown: str, config: Mapping[str, Any], **page: Any) -> str:
    """Return a page whose links out of docs/ lead somewhere or are none."""
    return LEAVING.sub(lambda link: _elsewhere(link[1], link[2], config["repo_url"]), markdown)


def _elsewhere(text: str, path: str, repository: str | None) -> str:
    if repository:
        return f"[{text}]({repository.rstrip('/')}/blob/HEAD/{path})"
    return f"`{path}`" if text == path else f"{text} (`{path}`)"
