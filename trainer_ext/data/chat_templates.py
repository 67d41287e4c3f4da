"""Which chat template a tokenizer writes conversations with: its own, one that is given, or a plain one of ours.

The plain one needs no token but the end token, so no embedding is new in a model that did not know it:

    user
    What is the capital of Peru?<end>assistant
    Lima.<end>
"""

import logging
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from ..common.cli import UserError
from ..common.text_files import read_text
from .packing import template_ids

logger = logging.getLogger(__name__)

PLAIN = "plain"
# END stands for the tokenizer's end token. What is said is trimmed: white space at the border of a turn would make
# other tokens of it than the turn alone has.
_PLAIN_TEMPLATE = r"""
{%- if tools %}
    {{- 'tools\n' + (tools | tojson) + END }}
{%- endif %}
{%- for message in messages %}
    {%- set said = (message.content or '') | trim %}
    {%- if message.tool_calls %}
        {%- set said = (said + '\n' + (message.tool_calls | tojson)) | trim %}
    {%- endif %}
    {{- message.role + '\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
            {{- said + END }}
        {%- endgeneration %}
    {%- else %}
        {{- said + END }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'assistant\n' }}
{%- endif %}
"""


def check_template(choice: str | None) -> None:
    """Raises UserError for a --chat_template that is neither 'plain' nor a file that can be read."""
    if choice is None or choice == PLAIN:
        return
    path = Path(choice).expanduser()
    if not path.is_file():
        raise UserError(f"--chat_template {choice}: no such file; give a file with a Jinja template, or {PLAIN!r}.")
    try:
        text = read_text(path)
    except ValueError as error:
        raise UserError(f"--chat_template {error}") from error
    if "messages" not in text:
        raise UserError(f"--chat_template {choice}: it never names 'messages', so it is no chat template.")


def set_chat_template(tokenizer: PreTrainedTokenizerFast, choice: str | None = None) -> None:
    """Give a tokenizer its chat template, which `save_pretrained` then saves with it.

    Args:
        choice: None for its own, and the plain one where it has none; 'plain'; or a file.
    """
    if choice not in (None, PLAIN):
        tokenizer.chat_template = read_text(Path(choice).expanduser())
    elif choice == PLAIN or not tokenizer.chat_template:
        tokenizer.chat_template = plain_template(tokenizer)
        _read_markup(tokenizer)
        if choice is None:
            logger.info("the tokenizer has no chat template: it gets a plain one (role, line end, text, end token)")


def plain_template(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the plain template in the tokenizer's own tokens; it begins as the tokenizer begins a text."""
    end = "sep_token" if tokenizer.eos_token is None else "eos_token"
    begins = tokenizer.bos_token is not None and template_ids(tokenizer)[0] == [tokenizer.bos_token_id]
    return ("{{- bos_token }}" if begins else "") + _PLAIN_TEMPLATE.strip().replace("END", end)


def _read_markup(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let a tokenizer that takes its special tokens for text read them: a template is nothing without."""
    end = tokenizer.eos_token or tokenizer.sep_token
    if tokenizer(end, add_special_tokens=False)["input_ids"] != [tokenizer.convert_tokens_to_ids(end)]:
        tokenizer.split_special_tokens = False
        logger.info("the tokenizer now reads %s as its end token, as the chat template writes it", end)
