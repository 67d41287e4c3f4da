"""How a causal model goes on with held-out documents: BLEU against what really follows, repetition, diversity.

The first tokens of a document are the prompt, the tokens behind them the reference; both have the same length in every
document, so that BLEU's brevity penalty and distinct-n mean the same for all.
"""

from dataclasses import dataclass

from datasets import Dataset
from tqdm import tqdm

from ..common.checkpoints import Checkpoint, keep_token_ids_only, position_limit
from ..common.cli import UserError
from ..generation.generate import generate_texts, written
from ..generation.sampling import Sampling
from ..generation.streaming import continuation_text
from ..metrics.text import Written
from .flags import NEW_TOKENS, PROMPT_TOKENS
from .scoring import Scorer, token_ids, vocabulary_of


@dataclass(frozen=True)
class Beginning:
    """The start of a document, and the text that follows it there."""

    prompt: list[int]
    reference: str


def choose_lengths(context_length: int, prompt_tokens: int | None, new_tokens: int | None) -> tuple[int, int]:
    """Return the tokens of a prompt and of a continuation: those given, or what fits.

    Raises:
        UserError: both together exceed what the model sees at once.
    """
    prompt = prompt_tokens or min(PROMPT_TOKENS, max(1, context_length // 3))
    new = new_tokens or max(1, min(NEW_TOKENS, context_length - prompt))
    if prompt + new > context_length:
        raise UserError(
            f"--prompt_tokens {prompt} and --max_new_tokens {new} exceed the {context_length} tokens the model sees at "
            "once; lower one of them."
        )
    return prompt, new


def find_beginnings(scorer: Scorer, documents: Dataset, *, count: int, prompt: int, new: int) -> list[Beginning]:
    """Return the starts of the first `count` documents that are long enough."""
    found: list[Beginning] = []
    for ids in token_ids(scorer.tokenizer, documents, vocabulary_of(scorer.model)):
        if len(ids) >= prompt + new:
            reference = continuation_text(scorer.tokenizer, ids[:prompt], ids[prompt : prompt + new])
            found.append(Beginning(ids[:prompt], reference))
        if len(found) == count:
            break
    return found


def continue_documents(scorer: Scorer, name: str, beginnings: list[Beginning], sampling: Sampling) -> Written:
    """Go on with each document; every text has its own seed: see generate.py."""
    model, tokenizer = scorer.model, scorer.tokenizer
    keep_token_ids_only(model, tokenizer)
    checkpoint = Checkpoint(name, model.config, tokenizer, position_limit(model.config), False)
    with tqdm(beginnings, unit="text") as shown:
        texts = [
            generate_texts(model, checkpoint, beginning.prompt, sampling, index=index)[0]
            for index, beginning in enumerate(shown)
        ]
    return written(texts, model, tokenizer, [[beginning.reference] for beginning in beginnings])
