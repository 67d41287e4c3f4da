"""What the tabs share: the choice of a model, and mistakes as words that the visitor reads."""

import functools
from collections.abc import Callable

import gradio as gr

from .shelf import Declined, Shelf, told

__all__ = [
    "WIDTH",
    "Declined",
    "check_prompt",
    "choose_model",
    "on_shelf",
    "slider",
    "stop_strings",
    "told",
]

WIDTH = 240  # pixels that a slider needs; on a telephone it has the row for itself


def choose_model(models: Shelf, kind: str = "any", *, label: str = "Model", **options) -> gr.Dropdown:
    """A chooser among the models of a kind (see `Shelf.names`).

    Other names may be typed, of models saved since the page began; `Shelf.open` says which there are.
    """
    names = models.names(kind)
    options = {"value": names[0] if names else None} | options
    return gr.Dropdown(names, label=label, allow_custom_value=True, **options)


def slider(label: str, least: float, most: float, value: float, info: str, *, step: float = 1) -> gr.Slider:
    """A number between two others, with a word on what it does."""
    return gr.Slider(least, most, value, step=step, label=label, info=info, min_width=WIDTH)


def check_prompt(text: str, models: Shelf, *, what: str = "The text") -> str:
    """Return a visitor's text.

    Raises:
        gr.Error: it is empty, too long, or no text.
    """
    if not isinstance(text, str):
        raise Declined(f"{what} must be text.")
    if not text.strip():
        raise Declined(f"{what} is empty: write a few words.")
    most = models.limits.prompt_characters
    if len(text) > most:
        raise Declined(f"{what} has {len(text):,} characters; write at most {most:,}.")
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise Declined(f"{what} holds half a character (a lone surrogate): write it anew.")
    if "\0" in text:
        raise Declined(f"{what} holds a NUL character, which no text has.")
    return text


def on_shelf(function: Callable, models: Shelf, *others: object) -> Callable:
    """A tab's function(models, *others, ...) as gradio calls it; what is left of its arguments names the inputs."""
    bound = functools.partial(function, models, *others)
    bound.__name__, bound.__doc__ = function.__name__, function.__doc__
    return bound


def stop_strings(text: str | None) -> list[str]:
    r"""The stop strings of a box with one a line; a written \n or \t is the character."""
    if not isinstance(text or "", str):
        raise Declined("The stop strings must be text, one a line.")
    return [line.replace("\\n", "\n").replace("\\t", "\t") for line in (text or "").split("\n") if line]
