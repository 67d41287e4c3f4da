"""Blocks of a card that a program writes: what stands between `<!-- NAME: FILE -->` and `<!-- /NAME -->`."""

from pathlib import Path

from frankenlm.trainer_ext.common.cli import UserError


def with_block(card: Path, text: str, mark: str, content: str) -> str:
    """The card's text with a block written anew.

    Args:
        card: its path, for the error. mark: what its first line says, as in "fair_norms: table.md".
    Raises:
        UserError: the card has no such block.
    """
    first, last = f"<!-- {mark} -->", f"<!-- /{mark.partition(':')[0]} -->"
    before, found, rest = text.partition(first)
    _, ended, after = rest.partition(last)
    if not (found and ended):
        raise UserError(f"--card {card}: has no block from {first} to {last}.")
    return f"{before}{first}\n\n{content.strip()}\n\n{last}{after}"
