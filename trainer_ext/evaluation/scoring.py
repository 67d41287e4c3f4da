"""From a saved model and a text to a likelihood report: what scripts/evaluate.py does, as functions.

causal   perplexity: every token from those before it, in overlapping windows
pseudo   pseudo-perplexity (Salazar et al. 2020, arXiv:1910.14659): every token masked in turn; one row a token
mlm      the masked loss at the positions training would mask; the quick measure of a masked model
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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

from ..common.checkpoints import check_vocabulary, usable_positions
from ..common.cli import UserError, user_mistakes
from ..common.objectives import OBJECTIVES
from ..common.opening import check_runs, read_config, read_tokenizer, read_weights
from ..data.blocks import keeps_documents_apart
from ..data.collators import build_collator
from ..data.packing import template_ids
from ..data.splits import count_tokens, iter_texts, prepare_dataset
from ..data.tokenizers import begin_id, special_token_ids
from ..metrics.bootstrap import Summed
from ..metrics.language import TOKENS, Scores, causal_scores, masked_lm_scores, pseudo_scores
from ..metrics.text import vocabulary_use
from .dynamic import dynamic_scores
from .flags import CAUSAL_ONLY, METHODS, METRICS, TEXT_METRICS
from .lengths import scored_lengths

logger = logging.getLogger("frankenlm.scoring")

# what a training run says of itself, and of each of its checkpoints; the folder in it of the averaged weights
RUN_FACTS, CHECKPOINT_FACTS, AVERAGE = "metrics.json", "resume.json", "ema"


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
    return [name for name in names if name not in TEXT_METRICS and name not in CAUSAL_ONLY]


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
    method = choose_method(name, config.architectures or [], method, both_ways=learned_both_ways(name, config))
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


def goes_both_ways(config: PreTrainedConfig) -> bool:
    """Whether a model can be read left to right and with masks, in one parameter set."""
    return bool(config.to_dict().get("two_directions"))


def learned_both_ways(name: str, config: PreTrainedConfig) -> bool:
    """Whether a model is scored in both of the ways in which it can be read: unless its run says it learned one."""
    objective = objective_of_run(Path(name))
    return goes_both_ways(config) and (objective is None or OBJECTIVES[objective].goes_both_ways)


def objective_of_run(folder: Path) -> str | None:
    """What a saved model was trained for, as its run says, or that of the checkpoint; None where neither is known."""
    checkpoint = read_facts(folder / CHECKPOINT_FACTS) or {}
    said = (run_facts_of(folder) or checkpoint.get("settings", {})).get("objective")
    return said if said in OBJECTIVES else None


def run_facts_of(folder: Path) -> Mapping[str, Any] | None:
    """The metrics.json of a run's folder, in which its averaged weights have one; None where there is none."""
    return read_facts((folder.parent if folder.name == AVERAGE else folder) / RUN_FACTS)


def read_facts(path: Path) -> Mapping[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def choose_method(name: str, architectures: list[str], method: str | None, both_ways: bool = False) -> str:
    """The method asked for, if the saved class allows it; by default the one that fits the class.

    both_ways: the model has both heads, whichever was saved.
    """
    scored = sorted(set(METHODS.values()))
    kinds = {kind for kind in scored for architecture in architectures if OBJECTIVES[kind].is_head(architecture)}
    if not kinds:
        raise UserError(
            f"{name!r} holds {architectures or 'no class'}: only masked and causal language models are scored."
        )
    kind = kinds.pop()
    if method is not None and METHODS[method] != kind and not both_ways:
        fitting = [known for known in METHODS if METHODS[known] == kind]
        raise UserError(
            f"--method {method} does not fit {name!r}, a {OBJECTIVES[kind].head}. Methods for it: {', '.join(fitting)}."
        )
    return method or kind


@dataclass(frozen=True)
class ScoredText:
    """What scoring gave: facts as reports have them, and the measures, made of sums over units of the text.

    unit: "document", or "row" where only rows of packed documents can be told apart.
    """

    facts: dict[str, Any]
    summed: tuple[Summed, ...]
    unit: str = "document"

    def measures(self) -> dict[str, float | None]:
        return {name: value for each in self.summed for name, value in each.values().items()}


def score(
    scorer: Scorer,
    documents: Dataset,
    *,
    mlm_probability: float,
    seed: int,
    reference: PreTrainedTokenizerBase | None = None,
) -> ScoredText:
    """Score the documents: loss, perplexity, bits_per_byte and accuracies; how much was scored, how, and how fast.

    Of a causal model also word_perplexity and words, the runs of text between blanks: figures that compare models of
    different tokenizers; `reference`, such a tokenizer, adds reference_perplexity. Bytes, words and its tokens are
    those of the scored part (lengths.py). Under `mlm` only a sample of the tokens is scored; `bytes` is its share.

    Raises:
        UserError: no token of the text can be scored, or one that the model has no embedding for.
    """
    start = time.perf_counter()
    lengths = scored_lengths(scorer.tokenizer, iter_texts(documents), scorer.method, reference)
    utf8_bytes, words, others = lengths.utf8_bytes, lengths.words, lengths.other_tokens
    if scorer.method == "mlm":
        scores, utf8_bytes = _score_masked(scorer, documents, utf8_bytes, mlm_probability, seed)
    else:
        ids = token_ids(scorer.tokenizer, documents, vocabulary_of(scorer.model))
        with tqdm(ids, total=len(documents), unit="document") as sequences:
            scores = score_sequences(scorer, sequences)
    seconds = time.perf_counter() - start
    if not scores.tokens:
        raise UserError(f"--method {scorer.method}: the text has no token to score; give more text.")
    facts = {
        "tokens": scores.tokens,
        **({} if words is None else {"words": sum(words)}),
        **({} if others is None else {"reference_tokens": sum(others)}),
        **({} if utf8_bytes is None else {"bytes": max(1, round(sum(utf8_bytes)))}),
        "context_length": scorer.context_length,
        "stride": scores.stride or scorer.context_length,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(scores.tokens / seconds, 1),
    }
    words = words if words is None or sum(words) else None
    summed = (scores.likelihood(utf8_bytes, words, others), scores.accuracy())
    return ScoredText(facts, summed, "row" if scorer.method == "mlm" else "document")


def learning_measures(scorer: Scorer, documents: Dataset, rate: float, reference=None) -> dict[str, float | None]:
    """Return the measures of `Scores.likelihood` in dynamic evaluation; see dynamic.py.

    Raises:
        UserError: weights that cannot learn, or a rate at which the loss is no longer finite.
    """
    ids = token_ids(scorer.tokenizer, documents, vocabulary_of(scorer.model))
    windows = {"context_length": scorer.context_length, "stride": scorer.stride}
    with user_mistakes(), tqdm(ids, desc="learning", total=len(documents), unit="document") as sequences:
        start = begin_id(scorer.tokenizer)
        scores = dynamic_scores(scorer.model, sequences, rate=rate, start_token_id=start, **windows)
    lengths = scored_lengths(scorer.tokenizer, iter_texts(documents), scorer.method, reference)
    words = lengths.words if lengths.words and sum(lengths.words) else None
    return dict(scores.likelihood(lengths.utf8_bytes, words, lengths.other_tokens).values())


def was_trained_apart(model: PreTrainedModel) -> bool:
    """Whether a model was trained on packed documents that see nothing of each other, as the run in its folder says;
    of what no run of ours says anything, whether it keeps them apart."""
    facts = run_facts_of(Path(model.config.name_or_path))
    if facts is None:
        return keeps_documents_apart(model.config)
    return facts.get("packed_documents", "joined") != "joined"


def tokenized_measures(scorer: Scorer, documents: Dataset) -> dict[str, float | None]:
    """What the documents are in the model's tokens: how varied, how much of them is unknown, how much they use."""
    ids = token_ids(scorer.tokenizer, documents, vocabulary_of(scorer.model))
    ids = tqdm(
        ids, desc="tokens of the text", total=len(documents), unit="document", delay=1, leave=False, disable=None
    )
    use = vocabulary_use(ids, len(scorer.tokenizer), scorer.tokenizer.unk_token_id)
    return {f"text_{name}": use[name] for name in ("unique_per_100", "unknown_share", "vocabulary_coverage")}


def score_sequences(scorer: Scorer, sequences: Iterable[Sequence[int]]) -> Scores:
    """Score texts that are token ids already, by `causal` or `pseudo`."""
    return _score_causal(scorer, sequences) if scorer.method == "causal" else _score_pseudo(scorer, sequences)


def _score_causal(scorer: Scorer, sequences: Iterable[Sequence[int]]) -> Scores:
    tokenizer = scorer.tokenizer
    start = begin_id(tokenizer)  # what training puts before a document
    if start is None:
        logger.warning("the tokenizer has neither a begin nor an end token: the first token of a text is not scored")
    return causal_scores(
        scorer.model,
        sequences,
        context_length=scorer.context_length,
        stride=scorer.stride,
        batch_size=scorer.batch_size,
        start_token_id=start,
    )


def _score_pseudo(scorer: Scorer, sequences: Iterable[Sequence[int]]) -> Scores:
    prefix, suffix = template_ids(scorer.tokenizer)
    return pseudo_scores(
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
    scorer: Scorer, documents: Dataset, utf8_bytes: Sequence[int] | None, mlm_probability: float, seed: int
) -> tuple[Scores, list[float] | None]:
    """The masked loss over packed blocks, and the bytes that the scored tokens of each stand for.

    utf8_bytes: of what can be masked of each document.
    """
    both_ways = goes_both_ways(scorer.model.config)
    objective = "joint" if both_ways else "mlm"  # whose rows are those of causal training
    with user_mistakes():
        rows = prepare_dataset(
            documents,
            scorer.tokenizer,
            max_length=scorer.context_length,
            objective=objective,
            document_borders=was_trained_apart(scorer.model),
        )
        counts = count_tokens(rows, len(scorer.tokenizer))
    check_vocabulary(counts.nonzero().flatten().tolist(), vocabulary_of(scorer.model))
    collator = build_collator(objective, scorer.tokenizer, mlm_probability=mlm_probability, seed=seed)
    masking = (collator.masking if both_ways else collator).for_evaluation()
    batches = DataLoader(rows, batch_size=scorer.batch_size, collate_fn=masking)
    with tqdm(batches, unit="batch") as shown:
        scores = masked_lm_scores(scorer.model, shown)
    if utf8_bytes is None:
        return scores, None
    counts[special_token_ids(scorer.tokenizer)] = 0
    bytes_a_token = sum(utf8_bytes) / max(1, int(counts.sum()))
    return scores, [bytes_a_token * float(tokens) for tokens in scores.sums[:, TOKENS]]


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
