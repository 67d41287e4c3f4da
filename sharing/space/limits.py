"""What a visitor may ask for at most: the page is for many, and runs on two cores."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the page takes of a visitor.

    prompt_characters: counted before anything is tokenised. prompt_tokens: of any model, whose own positions may be
    fewer. new_tokens: of one answer. waiting: visitors in the queue of one event. kept_models: models in memory.
    parameters: of a model that is opened at all.
    """

    prompt_characters: int = 4_000
    prompt_tokens: int = 1_024
    new_tokens: int = 256
    beams: int = 8
    masks: int = 32
    stop_strings: int = 4
    waiting: int = 32
    kept_models: int = 4
    parameters: int = 500_000_000
