"""Prompts as the model reads them: its own chat template, the picture, and the tokens all prompts begin with."""

import contextlib
import copy
import functools
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image, ImageOps

from frankenlm.trainer_ext.common.cli import one_line

logger = logging.getLogger(__name__)

# What day it is, for templates that say so (Llama 3's): an experiment that is carried on tomorrow must read the same
# prompts. The day is the one that Llama 3's template takes where it can't ask.
DAY = datetime(2024, 7, 26)
ASKS_THE_DAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
# two texts without a common beginning: what their rendered forms share belongs to the template
PROBES = ("A", "zebra 7")


@functools.cache
def warn_once(message: str) -> None:
    """Say it once a process: prompts are rendered for the checks, for the estimate and for the run."""
    logger.warning(message)


@dataclass(frozen=True)
class Rendered:
    """One prompt as token ids, template and picture included."""

    ids: tuple[int, ...]
    text_tokens: int  # tokens of the user's text alone


@dataclass(frozen=True)
class Rendering:
    """All prompts of an experiment, and the beginning they share, which needs to be read once per cell.

    `inputs` holds what the model takes with that beginning besides token ids: pixel values, token types, [1, ...].
    """

    prompts: tuple[Rendered, ...]
    prefix: tuple[int, ...]
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)

    def suffix(self, index: int) -> tuple[int, ...]:
        """The tokens of a prompt behind the shared beginning; never empty."""
        return self.prompts[index].ids[len(self.prefix) :]


def load_picture(path: Path) -> Image.Image:
    """Return a picture as RGB, turned as its EXIF data say.

    Raises:
        ValueError: the file is no picture.
    """
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except OSError as error:
        raise ValueError(f"image={str(path)!r} cannot be read as a picture: {error}.") from error


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def render_prompts(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    system_prompt: str | None = None,
    max_length: int,
    processor: Any = None,
    picture: Image.Image | None = None,
) -> Rendering:
    """Render user texts with the tokenizer's chat template, the picture before each text.

    Without a template, plain `User:` / `Assistant:` turns and a warning. Special tokens come from the template alone.

    Raises:
        ValueError: a rendered prompt is longer than `max_length` tokens, or begins with a BOS token the template
            did not write.
    """
    if picture is not None:
        encode = _PictureChat(processor, picture, system_prompt)
    elif tokenizer.chat_template:
        encode = _Chat(tokenizer, system_prompt)
    else:
        warn_once("the tokenizer has no chat template: prompts are rendered as plain User: and Assistant: turns")
        encode = _Plain(tokenizer, system_prompt)
    rendered = tuple(Rendered(tuple(encode(text)), count_tokens(tokenizer, text)) for text in texts)
    for text, row in zip(texts, rendered, strict=True):
        if len(row.ids) > max_length:
            raise ValueError(
                f"a prompt has {len(row.ids)} tokens as rendered, more than max_seq_length={max_length}: "
                f"{text[:60]!r}. Raise max_seq_length or shorten the prompt; prompts are never cut."
            )
    prefix = _common(tuple(encode(PROBES[0])), tuple(encode(PROBES[1])))
    for row in rendered:
        # a user's text may melt into the template's last token; and one token has to be left for each prompt
        prefix = _common(prefix, row.ids)[: len(row.ids) - 1]
    inputs = encode.inputs() if picture is not None else {}
    if inputs:
        _check_picture_in_prefix(inputs, prefix)
        inputs = {
            name: value[:, : len(prefix)] if value.shape[:2] == (1, encode.length) else value
            for name, value in inputs.items()
        }
    return Rendering(rendered, prefix, inputs)


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:length]


def count_tokens(tokenizer: Any, text: str) -> int:
    """Return how many tokens a text alone has."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _check_picture_in_prefix(inputs, prefix) -> None:
    """The picture is read with the shared beginning: no picture token may stand behind it."""
    types = inputs["token_type_ids"][0] if "token_type_ids" in inputs else None
    if types is not None and types[len(prefix) :].any():
        raise ValueError("the model's chat template puts the picture behind the text: pictures must come first.")


def apply_template(owner: Any, messages: list[dict[str, Any]]) -> str:
    """Render messages with the template of a tokenizer or processor, always on the same day.

    Raises:
        ValueError: the template is no template, or refuses the messages.
    """
    words = {"add_generation_prompt": True, "tokenize": False}
    if isinstance(owner.chat_template, str) and "strftime_now" in owner.chat_template:
        words["chat_template"] = ASKS_THE_DAY.sub(lambda asked: repr(DAY.strftime(asked[2])), owner.chat_template)
    try:
        return owner.apply_chat_template(messages, **words)
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"the model's chat template cannot be used: {one_line(error)}") from error


def check_bos(tokenizer, rendered: str, ids: Sequence[int]) -> None:
    """Raise ValueError where the tokenizer put more BOS tokens before a prompt than its template wrote."""
    if tokenizer.bos_token_id is None:
        return
    written, found = rendered.count(tokenizer.bos_token), list(ids).count(tokenizer.bos_token_id)
    if found > written:
        raise ValueError(
            f"the tokenizer adds BOS tokens of its own ({found} where its chat template wrote {written}): "
            "set add_bos_token=False in its tokenizer_config.json."
        )


class _Chat:
    """Renders one user turn with the tokenizer's own template."""

    def __init__(self, tokenizer, system_prompt: str | None):
        self.tokenizer, self.system_prompt = tokenizer, system_prompt

    def __call__(self, text: str) -> list[int]:
        messages = [{"role": "user", "content": text}]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        rendered = apply_template(self.tokenizer, messages)
        # the template writes every special token itself: the tokenizer adding its own would double them
        ids = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        check_bos(self.tokenizer, rendered, ids)
        return ids


class _Plain(_Chat):
    """Renders without a template."""

    def __call__(self, text: str) -> list[int]:
        system = "" if self.system_prompt is None else f"{self.system_prompt}\n"
        return self.tokenizer(f"{system}User: {text}\nAssistant:", add_special_tokens=False)["input_ids"]


class _PictureChat:
    """Renders one user turn that shows the picture and then the text, with the processor's template."""

    def __init__(self, processor, picture: Image.Image, system_prompt: str | None):
        self.processor, self.picture, self.system_prompt = processor, picture, system_prompt
        self.reader = _ReadOnce(processor.image_processor)

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)["input_ids"][0].tolist()

    def inputs(self) -> dict[str, torch.Tensor]:
        """What the model takes besides ids and mask, for the first probe; `length` is then its number of tokens."""
        encoded = dict(self._encode(PROBES[0]))
        self.length = encoded.pop("input_ids").shape[1]
        encoded.pop("attention_mask", None)
        return encoded

    def _encode(self, text: str) -> dict[str, torch.Tensor]:
        content = [{"type": "image", "image": self.picture}, {"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system_prompt}]})
        rendered = apply_template(self.processor, messages)
        # the template has written the special tokens already
        with self._reading_once():
            encoded = self.processor(
                images=[self.picture], text=rendered, add_special_tokens=False, return_tensors="pt"
            )
        check_bos(self.processor.tokenizer, rendered, encoded["input_ids"][0].tolist())
        return encoded

    @contextlib.contextmanager
    def _reading_once(self) -> Iterator[None]:
        """Let the processor find what the first prompt's picture was turned into: the others show the same."""
        self.processor.image_processor, own = self.reader, self.processor.image_processor
        try:
            yield
        finally:
            self.processor.image_processor = own


class _ReadOnce:
    """An image processor that turns the one picture it is given into numbers once, for each set of options."""

    def __init__(self, image_processor: Any):
        self.image_processor, self.read = image_processor, {}

    def __call__(self, *pictures: Any, **options: Any) -> Any:
        shown = {name: value for name, value in options.items() if name != "images"}
        key = repr(sorted(shown.items()))
        if key not in self.read:
            self.read[key] = self.image_processor(*pictures, **options)
        return copy.copy(self.read[key])  # processors take entries out of it

    def __getattr__(self, name: str) -> Any:
        return getattr(self.image_processor, name)
