"""Answers -> rows: the contract's fields, filled in at one place."""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from ..answers.rendering import Rendering
from ..answers.requests import Answer
from ..answers.sampling import SamplingSettings
from ..cells import Cell
from .plan import Experiment

STATUS_OF = {"nan": "nan_logits"}


@dataclass(frozen=True)
class RowMaker:
    """Everything about rows that does not change within an experiment."""

    experiment: Experiment
    rendering: Rendering
    tokenizer: Any
    sampling: SamplingSettings
    decoder: str
    device: str
    sampler: str

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    def row(self, cell: Cell, answer: Answer, *, usage: float | None, perplexity: float | None, rel_l2: float) -> dict:
        """Return the row of an answer. usage: percent of GPU memory, None on CPU; rel_l2: of the damaged weights."""
        ids = [*self.rendering.prompts[answer.index].ids, *answer.tokens]
        spoken = len(ids) - sum(token in self.special_ids for token in ids)
        return {
            **self._cell_fields(cell),
            **self._prompt_fields(answer.index),
            "output": self.tokenizer.decode(ids, skip_special_tokens=True),
            "completion": self.tokenizer.decode(list(answer.tokens), skip_special_tokens=True),
            "duration": answer.duration,
            "batch_duration": answer.batch_duration,
            "tokens": spoken,
            "tokens_out": spoken,
            "tokens_generated": len(answer.tokens),
            "finish_reason": answer.finish_reason,
            "mean_logprob": answer.logprob,
            "mean_entropy": answer.entropy,
            "batch_size_effective": answer.batch_size,
            "batch_shape": list(answer.batch_shape),
            "vram_usage_percent": usage,
            "perplexity": perplexity,
            "row_key": self.experiment.key(cell, answer.index),
            "status": STATUS_OF.get(answer.finish_reason, "ok"),
            "damage_rel_l2": rel_l2,
        }

    def row_without_memory(self, cell: Cell, place: int, *, usage: float | None, rel_l2: float) -> dict:
        """Return the row of a prompt that found no memory even alone; it is tried again in the next run."""
        empty = Answer(place, (), "length", None, None, 0, (0, 0), 0.0, 0.0)
        row = self.row(cell, empty, usage=usage, perplexity=None, rel_l2=rel_l2)
        return {**row, "status": "oom", "finish_reason": None, "batch_shape": None}

    def _cell_fields(self, cell: Cell) -> dict[str, Any]:
        config = self.experiment.config
        return {
            **self.experiment.cell_fields(cell),
            "timestamp": datetime.now().astimezone().isoformat(),
            "temperature": self.sampling.temperature,
            "do_sample": self.sampling.do_sample,
            "gen_params": self.sampling.as_row(config.max_new_tokens),
            "usar_4bit": config.load_4bit,
            "load_4bit": config.load_4bit,
            "device": self.device,
            "dtype": config.dtype,
            "restore_strategy": config.restore_strategy,
            "sampler": f"{self.sampler}/{config.invariance}",
            "decoder": self.decoder,
        }

    def _prompt_fields(self, place: int) -> dict[str, Any]:
        rendered = self.rendering.prompts[place]
        return {
            **self.experiment.prompt_fields(place),
            "tokens_in": rendered.text_tokens,
            "tokens_prompt_rendered": len(rendered.ids),
        }
