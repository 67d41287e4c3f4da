"""From a causal model and a prompt to texts: what scripts/generate.py and scripts/compare.py do, as functions.

Every text is generated on its own, with a seed made of (seed, prompt, text): what a prompt gives depends neither on
the prompts beside it nor on how many texts are asked for, and needs no padding. The model's own sampling defaults
(generation_config.json) are not used, only its token ids: a setting that is not given is off.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ..common.checkpoints import Checkpoint, check_vocabulary
from ..common.cli import Failed, UserError
from ..common.opening import reading
from ..metrics.text import Written
from .sampling import Sampling
from .streaming import StopAtText, TextStream, continuation_text, cut_at_stop, holds_special_stop

logger = logging.getLogger("frankenlm.generating")


def encode_prompt(checkpoint: Checkpoint, text: str, *, chat: bool = False) -> list[int]:
    """Return the ids a text is generated from; an empty prompt begins a document, see `prompt_ids`.

    Args:
        chat: put the prompt into the tokenizer's chat template, as a user's message to answer.

    Raises:
        UserError: a prompt without tokens or without room for an answer, or no chat template.
    """
    if chat:
        require_text(text)
        check_chat_template(checkpoint)
        ids = chat_ids(checkpoint, [{"role": "user", "content": text}])
    else:
        ids = prompt_ids(checkpoint.tokenizer, text)
    check_vocabulary(ids, checkpoint.config.get_text_config().vocab_size)
    if checkpoint.limit is not None and len(ids) >= checkpoint.limit:
        raise UserError(
            f"the prompt {text[:40]!r} is {len(ids)} tokens long, and {checkpoint.name} has positions for "
            f"{checkpoint.limit} (max_position_embeddings), answer included: shorten it."
        )
    return ids


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text; of an empty one without any, the token that begins a document, or else ends one.

    Raises:
        UserError: a text that is no valid Unicode or of which the tokenizer knows nothing, or an empty one where it has
            no such token either.
    """
    require_text(text)
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    if ids:
        return ids
    if text.strip():
        raise UserError(f"the prompt {text[:40]!r} has no token in the tokenizer's vocabulary: write other words.")
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise UserError("the prompt is empty, and this model has no token that begins a text: give a word.")
    return [first]


def check_chat_template(checkpoint: Checkpoint) -> None:
    """Raises UserError for a tokenizer without a chat template."""
    if checkpoint.tokenizer.chat_template is None:
        raise UserError(f"--chat_template: the tokenizer of {checkpoint.name} has none; leave the option out.")


def require_text(text: str) -> None:
    """Raises UserError for bytes that were no UTF-8, which Python hands on as lone surrogates."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError("the text is not valid UTF-8: convert it first.")


def chat_text(checkpoint: Checkpoint, messages: list[dict[str, str]]) -> str:
    """The text of a conversation, up to where the model's next message begins."""
    with reading(checkpoint.name, "chat template"):
        return checkpoint.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def chat_ids(checkpoint: Checkpoint, messages: list[dict[str, str]]) -> list[int]:
    """The ids of a conversation, up to where the model's next message begins."""
    with reading(checkpoint.name, "chat template"):
        return checkpoint.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def derive_seed(seed: int, *place: int) -> int:
    """Return the seed of one text: independent streams for each seed and place (prompt, text), the same everywhere."""
    return int(numpy.random.SeedSequence((seed, *place)).generate_state(1, numpy.uint64)[0] >> 1)


@dataclass(frozen=True)
class Text:
    """One generated text. finished: "end" (the model's end token), "stop", "length", "positions" or "interrupted"."""

    tokens: list[int]
    text: str
    finished: str
    seconds: float
    seed: int


@dataclass(frozen=True)
class Continuation:
    """What one generate() call gave: new ids of each text, and the cache behind them, where one was used."""

    rows: list[list[int]]
    cache: Any


def run_generate(
    model: PreTrainedModel,
    ids: Sequence[int],
    sampling: Sampling,
    *,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    stream: TextStream | None = None,
    criteria: Sequence[StoppingCriteria] = (),
    cache: Any = None,
    prompt_length: int | None = None,
    **inputs: Any,
) -> Continuation:
    """Call generate() on one sequence, with its own random numbers.

    Args:
        ids: all tokens so far, those in the cache included.
        stream: gets the new tokens; beam search decides at the end only and cannot stream.
        cache: cache of a call whose text these ids go on from.
        prompt_length: where the text that stop strings are looked for in begins; default: after ids.
        inputs: more arguments of the model's forward.

    Raises:
        Failed: the model's logits are no numbers any more, so that no token can be drawn.
    """
    arguments = sampling.generate_arguments()
    if sampling.explore is not None:
        arguments["logits_processor"] = LogitsProcessorList([exploration(sampling.explore, seed)])
    criteria = list(criteria)
    if sampling.stop:
        start = len(ids) if prompt_length is None else prompt_length
        criteria.append(StopAtText(tokenizer, start, sampling.stop))
    if sampling.use_memory is not None:
        inputs["use_memory"] = sampling.use_memory
    input_ids = torch.tensor([list(ids)], device=model.device)
    with torch.random.fork_rng(), drawing():
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            cache=cache,
            stopping_criteria=StoppingCriteriaList(criteria),
            streamer=stream if sampling.num_beams == 1 else None,
            return_dict_in_generate=True,
            **arguments,
            **inputs,
        )
    rows = [trim(row[len(ids) :], model.generation_config) for row in output.sequences.tolist()]
    return Continuation(rows, output.cache)


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Turn torch's error of a draw from NaN or infinite weights into `Failed`."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        raise Failed(
            "the model's logits are NaN or infinite, so no token can be drawn: its weights are damaged, its number "
            "format is too small for it (--dtype float32), or --temperature or --repetition_penalty is too extreme."
        ) from error


def exploration(probability: float, seed: int):
    """The logits processor of --explore."""
    from frankenlm.modeling.exploration import ExplorationSampling

    return ExplorationSampling(probability=probability, seed=seed)


def trim(row: list[int], ids: GenerationConfig) -> list[int]:
    """Cut the padding off a row of a batch: what follows its end token, or a stop string."""
    ends = end_ids(ids)
    last = next((index for index, token in enumerate(row) if token in ends), len(row) - 1)
    row = row[: last + 1]
    while row and row[-1] == ids.pad_token_id and row[-1] not in ends:
        row = row[:-1]
    return row


def end_ids(ids: GenerationConfig) -> set[int]:
    """The tokens that end a text."""
    if ids.eos_token_id is None:
        return set()
    return set(ids.eos_token_id) if isinstance(ids.eos_token_id, list) else {ids.eos_token_id}


def generate_texts(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    ids: Sequence[int],
    sampling: Sampling,
    *,
    index: int,
    write: Callable[[int], Callable[[str], object]] | None = None,
) -> list[Text]:
    """Generate `num_return_sequences` texts from one prompt, one after the other.

    Args:
        ids: the prompt's tokens. index: which prompt it is; part of its seeds.
        write: write(number) is called before text `number` begins, and returns what takes its pieces; None: in silence.
    """
    tokenizer = checkpoint.tokenizer
    room = sampling.max_new_tokens
    if checkpoint.limit is not None and room > checkpoint.limit - len(ids):
        room = checkpoint.limit - len(ids)
        logger.warning(
            "only %d of %d new tokens fit behind the prompt: %s has positions for %d tokens",
            room,
            sampling.max_new_tokens,
            checkpoint.name,
            checkpoint.limit,
        )
    limited = dataclasses.replace(sampling, max_new_tokens=room)
    texts: list[Text] = []
    while len(texts) < sampling.num_return_sequences:
        seed = derive_seed(sampling.seed, index, len(texts))
        streams = write is not None and sampling.num_beams == 1
        stream = TextStream(tokenizer, ids, write(len(texts)), sampling.stop) if streams else None
        start = time.perf_counter()
        rows = run_generate(model, ids, limited, tokenizer=tokenizer, seed=seed, stream=stream).rows
        seconds = (time.perf_counter() - start) / len(rows)
        if stream is not None:
            stream.finish()
        for row in rows:
            whole = continuation_text(tokenizer, ids, row)
            text = cut_at_stop(whole, sampling.stop)
            if write is not None and not streams:
                write(len(texts))(text)
            cut_short = "positions" if room < sampling.max_new_tokens else "length"
            stopped = text != whole or holds_special_stop(tokenizer, row, sampling.stop)
            finished = finish_reason(model, row, stopped=stopped) or cut_short
            texts.append(Text(row, text, finished, seconds, seed))
    return texts


def finish_reason(model: PreTrainedModel, row: Sequence[int], *, stopped: bool) -> str | None:
    """Why a text ended by itself: "stop", "end", or None where it did not."""
    if stopped:
        return "stop"
    return "end" if row and row[-1] in end_ids(model.generation_config) else None


def text_tokens(model: PreTrainedModel, row: Sequence[int]) -> list[int]:
    """The tokens of a text without its end token: what measures of text are taken of."""
    ends = end_ids(model.generation_config)
    return [token for token in row if token not in ends]


def written(
    texts: Sequence[Text],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    references: Sequence[Sequence[str]] | None = None,
) -> Written:
    """The texts as the measures of metrics/text.py take them, in the model's own tokens."""
    tokens = [text_tokens(model, text.tokens) for text in texts]
    return Written(tokens, [text.text for text in texts], len(tokenizer), references, tokenizer.unk_token_id)


def tokens_per_second(texts: Sequence[Text]) -> float:
    """The speed at which texts were written, end tokens included."""
    return round(sum(len(text.tokens) for text in texts) / sum(text.seconds for text in texts), 1)
