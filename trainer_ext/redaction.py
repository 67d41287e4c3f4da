"""What must not leave this machine in a log, a report, a card or a message: tokens, passwords, local paths.

redact("https://me:hf_abcdefgh@huggingface.co/x")  ->  "https://***@huggingface.co/x"
public_name("/home/me/runs/mini")                  ->  "mini"
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

HIDDEN = "***"
SHORTEST_SECRET = 6  # characters; a shorter value of a variable would take ordinary words with it

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)S?$", re.IGNORECASE)
_PATTERNS = (
    (re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{6,}"), HIDDEN),  # of the Hugging Face hub
    (re.compile(r"(?<=://)[^/\s@]+@"), HIDDEN + "@"),  # a name and a password in an address
    (re.compile(r"(?i)([?&](?:[\w-]*token|key|secret|password|signature|sig)=)[^&\s#'\"]+"), r"\1" + HIDDEN),
)


def secrets_in_environment(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the values of environment variables that are named as secrets, such as HF_TOKEN, longest first."""
    variables = os.environ if environment is None else environment
    found = {
        value
        for name, value in variables.items()
        if _SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET and not value.isdecimal()
    }
    return sorted(found - {"false", "true"}, key=len, reverse=True)


def redact(text: str) -> str:
    """Return `text` with *** in place of every secret: of the environment, of the hub, in an address."""
    for secret in secrets_in_environment():
        text = text.replace(secret, HIDDEN)
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text


def public_name(name: str) -> str:
    """Name a model or a data set as others may read it: a hub name as it is, a path by its last part.

    A path is what lies here, or what can only be a path.
    """
    # os.path: a name that is too long, or in nobody's home, is no path that lies here
    path = Path(os.path.expanduser(name))
    local = os.path.lexists(path) or name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name
    if not local or "://" in name:
        return redact(name)
    last = path.name if path.name not in ("", "..") else path.resolve().name
    return redact(last) or name
