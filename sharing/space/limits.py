"""What a visitor may ask for at most: the page is for many, and runs on two cores."""

from dataclasses import dataclass

from frankenlm.trainer_ext.common.cli import UserError


@dataclass(frozen=True)
class Limits:
    """What the page takes of a visitor.

    prompt_characters: counted before anything is tokenised. prompt_tokens: of any model, whose own positions may be
    fewer. new_tokens: of one answer. waiting: visitors in the page's queue. kept_models: models in memory.
    parameters: of a model that is opened at all. products: parameters times tokens read, of one measurement; two cores
    do so many in about a minute.
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
    products: float = 1e12

    def check_work(self, name: str, parameters: int, tokens: int, rounds: int = 1) -> None:
        """Make sure that others need not wait for minutes.

        Args:
            tokens: that the model reads in a round; of a masked model's text every token is a row of all of them.

        Raises:
            UserError: it is more than the page does for one visitor.
        """
        if parameters * tokens * rounds > self.products:
            raise UserError(
                f"{name} has {parameters:,} parameters, and would have to read {tokens * rounds:,} tokens: too much "
                "for a page that others wait for. Write a shorter text, or take a smaller model."
            )
