"""From a saved model and a text to a likelihood report: what scripts/evaluate.py does, as functions.

causal   perplexity: every token from those before it, in overlapping windows
pseudo   pseudo-perplexity (Salazar et al. 2020, arXiv:1910.14659): every token masked in turn; one row a token
mlm      the masked loss at the positions training would mask; the quick measure of a masked model
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from frankenlm.modeling.checks import suggest

from ..common.checkpoints import check_vocabulary
from ..common.cli import UserError, user_mistakes
from ..common.objectives import OBJECTIVES
from ..common.opening import check_runs, read_config, read_tokenizer, read_weights
from ..data.blocks import keeps_documents_apart
from ..data.collators import build_collator
from ..data.packing import template_ids
from ..data.splits import count_bytes, count_tokens, iter_texts, load_documents, load_splits, prepare_dataset
from ..data.tokenizers import special_token_ids
from ..metrics.language import LossSum, causal_nats, masked_lm_nats, perplexity_report, pseudo_nats
from .flags import CAUSAL_ONLY, LIKELIHOOD, METHODS, METRICS, TEXT_METRICS

logger = logging.getLogger("frankenlm.scoring")

# families whose position of the first token is pad_token_id + 1
COUNTED_FROM_PAD = ("camembert", "data2vec-text", "ibert", "longformer", "roberta", "xlm-roberta", "xlm-roberta-xl")


@dataclass(frozen=True)
class Scorer:
    """A loaded model with what it takes to score text.

    context_length: tokens the model sees at once, special ones included. stride: tokens a causal window scores.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    method: str
    context_length: int
    stride: int
    batch_size: int


def parse_metrics(text: str) -> list[str]:
    """Read --metrics: 'all' or names with commas.

    Raises:
        UserError: an unknown name; the message lists the known ones.
    """
    if text == "all":
        return list(METRICS)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METRICS:
            raise UserError(
                f"--metrics: unknown metric {name!r}.{suggest(name, METRICS)} Known: all, {', '.join(METRICS)}."
            )
    if not names:
        raise UserError(f"--metrics is empty. Known: all, {', '.join(METRICS)}.")
    return names


def fitting_metrics(names: list[str], method: str, *, asked_for_all: bool) -> list[str]:
    """The metrics that a method can measure: only causal models write texts.

    Raises:
        UserError: one that cannot be measured was asked for by name.
    """
    if method == "causal":
        return names
    for name in names:
        if name in TEXT_METRICS and not asked_for_all:
            raise UserError(f"--metrics {name} is measured on texts that the model writes; {method} models write none.")
        if name in CAUSAL_ONLY and not asked_for_all:
            raise UserError(f"--metrics {name} is of causal models, which predict every token of a text.")
    return [name for name in names if name in LIKELIHOOD and name not in CAUSAL_ONLY]


def load_scorer(
    name: str,
    method: str | None,
    *,
    max_length: int | None,
    stride: int | None,
    batch_size: int,
    device: str,
    trust_remote_code: bool,
    one_text: bool = False,
) -> Scorer:
    """Load a model (folder or hub name) with its tokenizer, for one of the METHODS (None: the one for its class).

    stride: None is half of the context, or all of it where `one_text` is scored as lm-evaluation-harness does.

    Raises:
        UserError: no such model, files of it that cannot be used, a class that cannot be scored, or a method for
            another class.
    """
    config = read_config(name, trust_remote_code=trust_remote_code, adapters=True)
    method = choose_method(name, config.architectures or [], method)
    if one_text and method != "causal":
        raise UserError(f"--one_text: a text is scored as one by causal models; {name!r} is scored by {method}.")
    tokenizer = read_tokenizer(name, trust_remote_code=trust_remote_code)
    if METHODS[method] == "mlm" and tokenizer.mask_token_id is None:
        raise UserError(f"--method {method}: the tokenizer of {name!r} has no mask token.")
    context_length = choose_context(name, config, max_length)
    stride = stride or (context_length if one_text else max(1, context_length // 2))
    if method == "causal" and stride > context_length:
        raise UserError(f"--stride {stride}: must not exceed the {context_length} tokens the model sees at once.")
    if method == "pseudo":
        check_room(tokenizer, context_length)
    model = read_weights(OBJECTIVES[METHODS[method]].auto_model, name, config, trust_remote_code=trust_remote_code).to(
        device
    )
    check_runs(model, name)
    return Scorer(model, tokenizer, method, context_length, stride, batch_size)


def check_room(tokenizer: PreTrainedTokenizerBase, context_length: int) -> None:
    """Raises UserError where the special tokens around a text leave no place for it."""
    with user_mistakes():
        prefix, suffix = template_ids(tokenizer)
    if len(prefix) + len(suffix) >= context_length:
        raise UserError(
            f"--max_length {context_length}: leaves no room beside the {len(prefix) + len(suffix)} special tokens that "
            "this tokenizer puts around a text."
        )


def choose_context(name: str, config: PreTrainedConfig, max_length: int | None) -> int:
    """How many tokens the model sees at once: its own limit, or fewer."""
    if not hasattr(config, "max_position_embeddings"):
        if max_length is None:
            raise UserError(f"{name!r} does not say how long its inputs may be: give --max_length.")
        return max_length
    limit = usable_positions(config)
    if not isinstance(limit, int) or limit < 1:
        raise UserError(
            f"{name!r}: max_position_embeddings={config.max_position_embeddings} leaves no room for a text."
        )
    if max_length is not None and max_length > limit:
        raise UserError(f"--max_length {max_length} exceeds max_position_embeddings={limit} of {name!r}.")
    return max_length or limit


def usable_positions(config: PreTrainedConfig) -> int:
    """The positions of a table that text can stand at: RoBERTa and its kin count from behind the pad token."""
    limit = config.max_position_embeddings
    return limit - config.pad_token_id - 1 if config.model_type in COUNTED_FROM_PAD else limit


def choose_method(name: str, architectures: list[str], method: str | None) -> str:
    """The method asked for, if the saved class allows it; by default the one that fits the class."""
    scored = sorted(set(METHODS.values()))
    kinds = {kind for kind in scored for architecture in architectures if OBJECTIVES[kind].is_head(architecture)}
    if not kinds:
        raise UserError(
            f"{name!r} holds {architectures or 'no class'}: only masked and causal language models are scored."
        )
    kind = kinds.pop()
    if method is not None and METHODS[method] != kind:
        fitting = [known for known in METHODS if METHODS[known] == kind]
        raise UserError(
            f"--method {method} does not fit {name!r}, a {OBJECTIVES[kind].head}. Methods for it: {', '.join(fitting)}."
        )
    return method or kind


def load_text(
    spec: str,
    split: str,
    *,
    validation_fraction: float,
    split_seed: int,
    text_column: str,
    max_documents: int | None,
    join_articles: str = "auto",
    skip_bad_rows: bool = False,
    one_text: bool = False,
) -> Dataset:
    """The documents to score: `all` of a data set, or those that training holds out (`validation`).

    one_text: all of it as a single document, as the raw text has it.
    """
    reading = {"text_column": text_column, "join_articles": join_articles, "skip_bad_rows": skip_bad_rows}
    if split == "all":
        return load_documents(spec, max_documents=max_documents, one_text=one_text, **reading)
    splits = load_splits(spec, validation_fraction=validation_fraction, seed=split_seed, **reading)
    held_out = splits["validation"]
    return held_out if max_documents is None else held_out.select(range(min(max_documents, len(held_out))))


def score(scorer: Scorer, documents: Dataset, *, mlm_probability: float, seed: int) -> dict[str, Any]:
    """Score the documents; return loss, perplexity, bits_per_byte, tokens, bytes, documents, context, stride, speed.

    Of a causal model also word_perplexity and words, the runs of text between blanks: figures that compare models of
    different tokenizers. Under `mlm` only a sample of the tokens is scored; `bytes` is then that sample's share.

    Raises:
        UserError: no token of the text can be scored, or one that the model has no embedding for.
    """
    start = time.perf_counter()
    utf8_bytes = count_bytes(documents)
    if scorer.method == "mlm":
        losses, utf8_bytes = _score_masked(scorer, documents, utf8_bytes, mlm_probability, seed)
    else:
        ids = token_ids(scorer.tokenizer, documents, vocabulary_of(scorer.model))
        with tqdm(ids, total=len(documents), unit="document") as sequences:
            losses = _score_causal(scorer, sequences) if scorer.method == "causal" else _score_pseudo(scorer, sequences)
    seconds = time.perf_counter() - start
    if not losses.tokens:
        raise UserError(f"--method {scorer.method}: the text has no token to score; give more text.")
    words = sum(len(text.split()) for text in iter_texts(documents)) if scorer.method == "causal" else None
    report = perplexity_report(losses.nats, losses.tokens, utf8_bytes, words)
    report["loss"] = report.pop("loss_nats")
    return {
        **report,
        "context_length": scorer.context_length,
        "documents": len(documents),
        "seconds": round(seconds, 2),
        "stride": losses.stride or scorer.context_length,
        "tokens_per_second": round(losses.tokens / seconds, 1),
    }


def _score_causal(scorer: Scorer, sequences) -> LossSum:
    tokenizer = scorer.tokenizer
    # training joins documents with the end token, so the first token of one has been predicted from it
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        logger.warning("the tokenizer has neither a begin nor an end token: the first token of a text is not scored")
    return causal_nats(
        scorer.model,
        sequences,
        context_length=scorer.context_length,
        stride=scorer.stride,
        batch_size=scorer.batch_size,
        start_token_id=start,
    )


def _score_pseudo(scorer: Scorer, sequences) -> LossSum:
    prefix, suffix = template_ids(scorer.tokenizer)
    return pseudo_nats(
        scorer.model,
        sequences,
        mask_token_id=scorer.tokenizer.mask_token_id,
        special_ids=special_token_ids(scorer.tokenizer),
        context_length=scorer.context_length,
        batch_size=scorer.batch_size,
        prefix=prefix,
        suffix=suffix,
    )


def _score_masked(
    scorer: Scorer, documents: Dataset, utf8_bytes: int, mlm_probability: float, seed: int
) -> tuple[LossSum, int]:
    """The masked loss over packed blocks, and the bytes that the scored tokens stand for."""
    with user_mistakes():
        rows = prepare_dataset(
            documents,
            scorer.tokenizer,
            max_length=scorer.context_length,
            objective="mlm",
            document_borders=keeps_documents_apart(scorer.model.config),
        )
        counts = count_tokens(rows, len(scorer.tokenizer))
    check_vocabulary(counts.nonzero().flatten().tolist(), vocabulary_of(scorer.model))
    collator = build_collator("mlm", scorer.tokenizer, mlm_probability=mlm_probability, seed=seed).for_evaluation()
    batches = DataLoader(rows, batch_size=scorer.batch_size, collate_fn=collator)
    with tqdm(batches, unit="batch") as shown:
        losses = masked_lm_nats(scorer.model, shown)
    counts[special_token_ids(scorer.tokenizer)] = 0
    return losses, max(1, round(utf8_bytes * losses.tokens / max(1, int(counts.sum()))))


def token_ids(tokenizer: PreTrainedTokenizerBase, documents: Dataset, vocabulary: int) -> Iterator[list[int]]:
    """The ids of each document, without special tokens.

    Raises:
        UserError: an id that the model's `vocabulary` has no embedding for.
    """
    for text in iter_texts(documents):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        check_vocabulary(ids, vocabulary)
        yield ids


def vocabulary_of(model: PreTrainedModel) -> int:
    """How many token ids a model has embeddings for."""
    return model.config.get_text_config().vocab_size
