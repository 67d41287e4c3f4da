"""What the tabs share: the choice of a model, and mistakes as words that the visitor reads."""

import gradio as gr

from .shelf import Shelf, told

__all__ = ["Refused", "check_prompt", "choose_model", "told"]


class Refused(gr.Error):
    """What a visitor asked for cannot be had; the message says what can. No traceback goes to the log."""

    def __init__(self, message: str):
        super().__init__(message, print_exception=False)


def choose_model(models: Shelf, kind: str = "any", *, label: str = "Model", **options) -> gr.Dropdown:
    """A chooser among the models of a kind (see `Shelf.names`).

    Other names may be typed, of models saved since the page began; `Shelf.open` says which there are.
    """
    names = models.names(kind)
    options = {"value": names[0] if names else None} | options
    return gr.Dropdown(names, label=label, allow_custom_value=True, **options)


def check_prompt(text: str, models: Shelf, *, what: str = "The text") -> str:
    """Return a visitor's text.

    Raises:
        gr.Error: it is empty, too long, or no text.
    """
    if not isinstance(text, str) or not text.strip():
        raise Refused(f"{what} is empty: write a few words.")
    most = models.limits.prompt_characters
    if len(text) > most:
        raise Refused(f"{what} has {len(text):,} characters; write at most {most:,}.")
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise Refused(f"{what} holds half a character (a lone surrogate): write it anew.")
    if "\0" in text:
        raise Refused(f"{what} holds a NUL character, which no text has.")
    return text
