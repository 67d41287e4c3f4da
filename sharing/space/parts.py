"""What the tabs share: the choice of a model, and mistakes as words that the visitor reads."""

import contextlib
from collections.abc import Iterator

import gradio as gr

from frankenlm.trainer_ext.common.cli import Failed, UserError, one_line

from .shelf import Shelf


def choose_model(models: Shelf, kind: str = "any", *, label: str = "Model", **options) -> gr.Dropdown:
    """A chooser among the models of a kind (see `Shelf.names`).

    Other names may be typed, of models saved since the page began; `Shelf.open` says which there are.
    """
    names = models.names(kind)
    options = {"value": names[0] if names else None} | options
    return gr.Dropdown(names, label=label, allow_custom_value=True, **options)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn the errors of our functions into words that the visitor reads."""
    try:
        yield
    except (UserError, Failed) as error:
        raise gr.Error(one_line(error)) from error


def check_prompt(text: str, models: Shelf, *, what: str = "The text") -> str:
    """Return a visitor's text.

    Raises:
        gr.Error: it is empty, too long, or no text.
    """
    if not isinstance(text, str) or not text.strip():
        raise gr.Error(f"{what} is empty: write a few words.")
    most = models.limits.prompt_characters
    if len(text) > most:
        raise gr.Error(f"{what} has {len(text):,} characters; write at most {most:,}.")
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise gr.Error(f"{what} holds half a character (a lone surrogate): write it anew.")
    if "\0" in text:
        raise gr.Error(f"{what} holds a NUL character, which no text has.")
    return text
