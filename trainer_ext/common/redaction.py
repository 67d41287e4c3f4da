"""What must not leave this machine in a log, a report, a card or a message: tokens, passwords, local paths.

redact("https://me:hf_abcdefgh@huggingface.co/x")  ->  "https://***@huggingface.co/x"
public_name("/home/me/runs/mini")                  ->  "mini"
"""

import copy
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HIDDEN = "***"
SHORTEST_SECRET = 6  # characters; a shorter value of a variable would take ordinary words with it

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)S?$", re.IGNORECASE)
# "hub_token": "x" in JSON, token=x in a list of options
_SECRET_PAIR = re.compile(
    r"""((?:token|secret|password|passwd|api_?key|access_?key)s?["']?\s*[:=]\s*["']?)[^"',\s}&#]+""", re.IGNORECASE
)
_PATTERNS = (
    (re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{6,}"), HIDDEN),  # of the Hugging Face hub
    # a name and a password in an address; one that was taken for a path has a single slash
    (re.compile(r"(\b[A-Za-z][\w+.-]+://?)[^/\s@]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(?i)([?&][\w-]*(?:token|key|secret|password|signature|sig)=)[^&\s#'\"]+"), r"\1" + HIDDEN),
)


# Values that options named as secrets were given.
_given: set[str] = set()


def is_secret_name(name: str) -> bool:
    """Whether an option, a key or a variable of this name holds a secret: hub_token, WANDB_API_KEY."""
    return _SECRET_NAME.search(name.replace("-", "_")) is not None


def learn_secrets(values: object, name: str = "") -> None:
    """Let `redact` know the secrets in settings: values (of nested mappings, too) whose names are those of secrets."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            learn_secrets(value, str(key))
    elif isinstance(values, str) and is_secret_name(name) and len(values) >= SHORTEST_SECRET:
        _given.add(values)


def redact_words(words: Sequence[str]) -> list[str]:
    """Return command-line words with *** for the values of options named as secrets, whatever they look like."""
    shown, hide = [], False
    for word in words:
        name, equals, value = word.partition("=")
        is_option = word.startswith("--")
        if hide and not is_option:
            shown.append(HIDDEN)
        elif is_option and equals and is_secret_name(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(redact(_SECRET_PAIR.sub(rf"\1{HIDDEN}", word)))
        hide = is_option and not equals and is_secret_name(name)
    return shown


def without_secrets(settings: Any) -> Any:
    """Return a copy of a settings object (a dataclass) without the values of fields named as secrets."""
    shown = copy.copy(settings)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, str) and is_secret_name(field.name):
            setattr(shown, field.name, None)
        elif type(value) is str or isinstance(value, (Mapping, list)):  # not those enumerations that are texts too
            setattr(shown, field.name, redact_facts(value))
    return shown


def redact_facts(value: Any, name: str = "") -> Any:
    """Return nested mappings, lists and texts without secrets, for a file that is published."""
    if isinstance(value, Mapping):
        return {key: redact_facts(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_facts(item, name) for item in value]
    if type(value) is not str:
        return value
    return HIDDEN if is_secret_name(name) and value else redact(_SECRET_PAIR.sub(rf"\1{HIDDEN}", value))


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
    for secret in sorted({*secrets_in_environment(), *_given}, key=len, reverse=True):
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
