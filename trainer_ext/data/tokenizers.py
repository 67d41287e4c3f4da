"""Tokenizers: trained on the data, from a local folder, or by hub name, with the special tokens the objective needs."""

import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from frankenlm.modeling import FAMILIES, byte_tokenizer
from frankenlm.modeling.checks import check_choice, suggest

from ..common.cli import UserError
from ..common.objectives import OBJECTIVES
from ..common.opening import reading, reason

logger = logging.getLogger(__name__)

DEFAULT_VOCAB_SIZE = 8192

PAD_TOKEN = "<pad>"
MASK_TOKEN = "<mask>"
END_TOKEN = "<|endoftext|>"
_BYTES = 256


def load_tokenizer(
    spec: str, *, documents: Iterable[str], vocab_size: int | None = None, objective: str, pad_is_new: bool = True
) -> PreTrainedTokenizerFast:
    """Return the tokenizer `spec` names, completed with the special tokens that `objective` needs.

    spec: "train" (byte-level BPE learnt from `documents`, at most `vocab_size` entries, 8192 unless given), "bytes"
        (a token per byte, nothing to learn), a local folder with tokenizer files, or a hub name. `documents` is read
        only for "train", once, as it comes.
    objective: "mlm" and "joint" need a mask, "joint" also what begins a text (`begin_every_text`); all, "causal" and
        "classification" too, need a pad and a document separator.

    pad_is_new: add a pad token where there is none; else the end token pads, for a model whose embedding must not grow.

    Special tokens that are missing are added at the end; `len(tokenizer)` is the vocabulary a model needs.
    Raises ValueError where the tokenizer is missing, unreachable, not a fast one, or larger than `vocab_size`.
    """
    check_choice("objective", objective, OBJECTIVES)
    if vocab_size is not None and vocab_size < 1:
        raise ValueError(f"vocab_size={vocab_size} must be at least 1; leave it out for the tokenizer's own size.")
    if spec == "train":
        tokenizer = train_tokenizer(
            documents, vocab_size=vocab_size or DEFAULT_VOCAB_SIZE, mask=OBJECTIVES[objective].masks
        )
    elif spec == "bytes":
        tokenizer = byte_tokenizer()
    else:
        tokenizer = _from_pretrained(spec)
    if tokenizer.pad_token is None and not pad_is_new:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token
    add_special_tokens(tokenizer, objective)
    if OBJECTIVES[objective].goes_both_ways:
        begin_every_text(tokenizer)
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise ValueError(
            f"tokenizer {spec!r} has {len(tokenizer)} entries with its special tokens, more than vocab_size="
            f"{vocab_size}. Leave vocab_size out (it then follows the tokenizer), raise it to at least "
            f"{len(tokenizer)}, or train a smaller tokenizer with --tokenizer train."
        )
    return tokenizer


def train_tokenizer(documents: Iterable[str], *, vocab_size: int, mask: bool) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE of at most `vocab_size` entries, special tokens included, from an iterator of texts.

    Bytes are the base alphabet, so any text round-trips and no unknown token is needed. A small corpus may not hold
    enough pairs to fill the vocabulary; the tokenizer is then smaller, which is logged.
    """
    specials = [END_TOKEN, PAD_TOKEN] + ([MASK_TOKEN] if mask else [])
    smallest = _BYTES + len(specials)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size={vocab_size} is too small for a byte-level tokenizer: {_BYTES} bytes and {len(specials)} "
            f"special tokens need at least {smallest}."
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[_added_token(token) for token in specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator(_non_empty(documents), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_TOKEN,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        **({"mask_token": _added_token(MASK_TOKEN)} if mask else {}),
        clean_up_tokenization_spaces=False,
    )
    if len(tokenizer) < vocab_size:
        logger.info("the text fills %d of the %d entries asked for", len(tokenizer), vocab_size)
    return tokenizer


def add_special_tokens(tokenizer: PreTrainedTokenizerFast, objective: str) -> int:
    """Add pad token, mask (mlm, joint) and document separator where they are missing; return how many were added.

    The separator is an existing eos or sep; only a tokenizer with neither gets a new eos. A tokenizer that takes markup
    for text (bytes) reads it from then on where it gets a mask, which nobody could write otherwise.
    """
    wanted = {}
    by_byte = tokenizer.split_special_tokens
    if tokenizer.pad_token is None:
        wanted["pad_token"] = _added_token(PAD_TOKEN)
    if OBJECTIVES[objective].masks and tokenizer.mask_token is None:
        wanted["mask_token"] = AddedToken(MASK_TOKEN, lstrip=not by_byte, special=True, normalized=False)
        tokenizer.split_special_tokens = False
    if tokenizer.eos_token is None and tokenizer.sep_token is None:
        wanted["eos_token"] = _added_token(END_TOKEN)
    return tokenizer.add_special_tokens(wanted) if wanted else 0


def tell_lengths(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Let a tokenizer and a generation config, which are saved beside a model of ours, know how many tokens it takes.

    Pipelines then cut and stop by themselves; without, a tokenizer takes any length, and a pipeline asks for 256 tokens
    more than the prompt has. Models of others come with what they say of it.
    """
    if not isinstance(model.config, tuple(family.config_class for family in FAMILIES)):
        return
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    if hasattr(model, "max_positions") and model.can_generate() and model.max_positions() is not None:
        model.generation_config.max_length = model.max_positions()


def begin_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that stands before a text whose first token is to be predicted: bos, else eos, else None."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def begin_every_text(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the tokenizer put its begin token before every text, where it puts nothing there.

    A model of two directions predicts each token at the one before it, a hidden one too: without anything before it,
    the first token of a text could not be predicted from the others.

    Raises:
        ValueError: it has neither a begin nor an end token.
    """
    begin = begin_id(tokenizer)
    if begin is None:
        raise ValueError(
            "the tokenizer has neither a begin nor an end token, and a model of two directions needs one before every "
            "text: set its bos_token or eos_token, or choose --tokenizer train or bytes."
        )
    if tokenizer("a")["input_ids"][:1] != tokenizer("a", add_special_tokens=False)["input_ids"][:1]:
        return
    token = tokenizer.convert_ids_to_tokens(begin)
    template = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, begin)]
    )
    backend = tokenizer.backend_tokenizer
    earlier = [] if backend.post_processor is None else [backend.post_processor]
    backend.post_processor = processors.Sequence([*earlier, template])


def separator_id(tokenizer: PreTrainedTokenizerFast, objective: str) -> int:
    """Return the id that stands between packed documents: eos for causal models, sep for the others, else the other."""
    end, sep = tokenizer.eos_token_id, tokenizer.sep_token_id
    first, second = (end, sep) if OBJECTIVES[objective].continues else (sep, end)
    chosen = second if first is None else first
    if chosen is None:
        raise ValueError("the tokenizer has neither an eos nor a sep token to separate documents; use load_tokenizer.")
    return chosen


def special_token_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return every id that is markup rather than text, sorted: named special tokens and added ones marked special."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(added | set(tokenizer.all_special_ids))


def _added_token(token: str) -> AddedToken:
    # Byte-level words carry their leading space, so a mask stands for " word": it must swallow the space before it,
    # or "the <mask> sat" would ask the model for a word without space after a lone one it never saw in training.
    return AddedToken(token, lstrip=token == MASK_TOKEN, special=True, normalized=False)


def _non_empty(documents: Iterable[str]) -> Iterator[str]:
    count = 0
    for document in documents:
        count += 1
        yield document
    if not count:
        raise ValueError("no documents to train a tokenizer on.")


def _from_pretrained(spec: str) -> PreTrainedTokenizerFast:
    if not spec.strip():
        raise ValueError(f"tokenizer {spec!r} is empty: give a folder, a hub name, 'train' or 'bytes'.")
    path = _expanded(spec)
    local = path.is_dir()
    if path.is_file():
        raise ValueError(
            f"tokenizer {spec!r} is a file; give the folder that holds it, a hub name, 'train' or 'bytes'."
        )
    if not local and (spec.startswith((".", "/", "~")) or spec.count("/") > 1):
        raise ValueError(f"tokenizer folder {spec!r} does not exist.")
    try:
        with reading(f"tokenizer {spec!r}", "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(str(path) if local else spec)
            _try_out(tokenizer)
    except UserError as error:
        if local:
            raise ValueError(
                f"folder {spec!r} holds no usable tokenizer: tokenizer.json, or vocab.json and merges.txt, is missing "
                f"or damaged ({reason(error.__cause__ or error)})"
            ) from error
        raise ValueError(
            f"tokenizer {spec!r} is no local folder and cannot be fetched from the hub (unknown there, or no "
            f"connection).{suggest(spec, ['train', 'bytes'])} Give a folder, 'bytes' for single bytes, or 'train' to "
            "learn one from the data."
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer {spec!r} has no fast version ({type(tokenizer).__name__}); a fast one is needed.")
    return tokenizer


def _expanded(spec: str) -> Path:
    try:
        return Path(spec).expanduser()
    except RuntimeError as error:
        raise ValueError(f"tokenizer {spec!r}: {error}") from error  # ~ of nobody


def _try_out(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError for a tokenizer without words: where files are missing, some classes come quietly without."""
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise ValueError("its vocabulary is empty")
    tokenizer("a word")
