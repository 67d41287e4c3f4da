"""Answers in the shapes of the OpenAI API, whole and in chunks."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from frankenlm import __version__
from frankenlm.sharing.live.answers import AnswerPiece, TokenReport
from frankenlm.trainer_ext.generation.streaming import UNFINISHED

LOWEST_LOGPROB = -9999.0  # what the API says of a token that cannot come: JSON has no infinity
FINGERPRINT = f"frankenlm-{__version__}"


@dataclass
class ReplyChoice:
    """One answer as it comes in."""

    text: str = ""
    tokens: int = 0
    reports: list[TokenReport] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, piece: AnswerPiece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.reports += piece.logprobs
        self.finish_reason = piece.finish_reason


def usage(prompt_tokens: int, choices: Sequence[ReplyChoice]) -> dict[str, int]:
    """Count tokens; those of the answers with their end tokens, and with those of a stop string."""
    answered = sum(choice.tokens for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answered,
        "total_tokens": prompt_tokens + answered,
    }


class CompletionReply:
    """The shapes of /v1/completions. `asked`: whether log-probabilities are told."""

    whole, chunk, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, model: str, asked: bool):
        self.asked = asked
        self.head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }

    def answer(self, choices: Sequence[ReplyChoice], counted: dict[str, int]) -> dict[str, Any]:
        """The whole reply."""
        shown = [self._choice(index, each) for index, each in enumerate(choices)]
        return self.head | {"object": self.whole, "choices": shown, "usage": counted}

    def first_chunks(self, count: int) -> list[dict[str, Any]]:
        """What comes before any text."""
        return []

    def piece(self, index: int, piece: AnswerPiece) -> list[dict[str, Any]]:
        """The chunks of a piece."""
        return [self._chunk(self._shown(index, piece.text, piece.finish_reason, piece.logprobs))]

    def usage_chunk(self, counted: dict[str, int]) -> dict[str, Any]:
        """The last chunk, where usage was asked for."""
        return self.head | {"object": self.chunk, "choices": [], "usage": counted}

    def _choice(self, index: int, choice: ReplyChoice) -> dict[str, Any]:
        return self._shown(index, choice.text, choice.finish_reason, choice.reports)

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self.head | {"object": self.chunk, "choices": [choice]}

    def _shown(self, index, text, finish_reason, reports) -> dict[str, Any]:
        logprobs = _flat_logprobs(reports) if self.asked else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


class ChatReply(CompletionReply):
    """The shapes of /v1/chat/completions."""

    whole, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def first_chunks(self, count: int) -> list[dict[str, Any]]:
        return [self._chunk(self._delta(index, {"role": "assistant", "content": ""})) for index in range(count)]

    def piece(self, index: int, piece: AnswerPiece) -> list[dict[str, Any]]:
        chunks = []
        if piece.text or piece.logprobs:
            chunks.append(self._chunk(self._delta(index, {"content": piece.text}, piece.logprobs)))
        if piece.finish_reason is not None:
            chunks.append(self._chunk(self._delta(index, {}, finish_reason=piece.finish_reason)))
        return chunks

    def _choice(self, index: int, choice: ReplyChoice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        logprobs = self._logprobs(choice.reports)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def _delta(self, index, delta, reports=(), finish_reason=None) -> dict[str, Any]:
        logprobs = self._logprobs(reports) if reports else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, reports: Sequence[TokenReport]) -> dict[str, Any] | None:
        if not self.asked:
            return None
        return {"content": [_chat_logprob(report) for report in reports], "refusal": None}


def _flat_logprobs(reports: Sequence[TokenReport]) -> dict[str, Any]:
    """Lists, one entry a token, as /v1/completions has them."""
    return {
        "tokens": [_name(report.token, report.text) for report in reports],
        "token_logprobs": [None if report.logprob is None else _finite(report.logprob) for report in reports],
        "top_logprobs": [_named_alternatives(report) for report in reports],
        "text_offset": [report.start for report in reports],
    }


def _named_alternatives(report: TokenReport) -> dict[str, float] | None:
    """The likeliest tokens by name, and the chosen one; None of a first token, which nothing was known before."""
    if report.logprob is None:
        return None
    named: dict[str, float] = {}
    for token, text, logprob in (*report.alternatives, (report.token, report.text, report.logprob)):
        named.setdefault(_name(token, text), _finite(logprob))  # of two tokens with one text the likelier
    return named


def _name(token: int, text: str) -> str:
    """A token by its text; a part of a character has none, and is named by its number."""
    return f"token_id:{token}" if UNFINISHED in text else text


def _chat_logprob(report: TokenReport) -> dict[str, Any]:
    top = [_chat_token(text, logprob) for _, text, logprob in report.alternatives]
    return _chat_token(report.text, report.logprob) | {"top_logprobs": top}


def _chat_token(text: str, logprob: float) -> dict[str, Any]:
    whole = UNFINISHED not in text
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode("utf-8")) if whole else None}


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)
