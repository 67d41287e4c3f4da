"""What one visitor may ask for, so that the others need not wait for an hour."""

import pytest

from frankenlm.sharing.space.limits import Limits
from frankenlm.trainer_ext.common.cli import UserError

BERT = 110_000_000


@pytest.mark.parametrize(
    ("parameters", "tokens", "rounds", "fits"),
    [
        (3_000_000, 512**2, 1, True),  # a tiny masked model, a row for each of 512 tokens
        (BERT, 64**2, 1, True),
        (BERT, 512**2, 1, False),  # most of an hour
        (BERT, 64**2, 16, False),  # the same text at each level of a curve
        (500_000_000, 1024, 1, True),
    ],
)
def test_work_of_one_visitor(parameters, tokens, rounds, fits):
    if fits:
        Limits().check_work("bert", parameters, tokens, rounds)
        return
    with pytest.raises(UserError, match="bert has 110,000,000 parameters, and would have to read .* shorter text"):
        Limits().check_work("bert", parameters, tokens, rounds)
