"""How likely a causal model finds each of a few given answers to a question: a grade where free answers have none.

No text is written, so a cell costs one reading of the questions: what they all begin with is read once, questions of
equal length together, and an answer's tokens behind the first only where it has any. Models whose cache does not allow
that read every answer's whole sequence by itself.
"""

import copy
import inspect
import logging
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from ..offloaded import input_device
from .rendering import render_prompts
from .requests import PROBE_TOLERANCE, is_out_of_memory, relative_error

logger = logging.getLogger(__name__)

LEAD = "The answer is"  # stands at the beginning of the model's turn, so that a bare word is what comes next
LONGEST = 4096  # tokens of a rendered question
BATCH = 32  # questions read together


class OptionProbe:
    """Scores given answers to questions.

    Args:
        questions: n texts, as a user asks them.
        options: for each question its k answers.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer, questions: Sequence[str], options: Sequence[Sequence[str]]
    ) -> None:
        self.model, self.device = model, input_device(model)
        self.keeps_last = "logits_to_keep" in inspect.signature(model.forward).parameters
        rendering = render_prompts(questions, tokenizer, max_length=LONGEST)
        lead = tuple(tokenizer(LEAD, add_special_tokens=False)["input_ids"])
        self.prefix = rendering.prefix
        self.rows = [(*rendering.suffix(place), *lead) for place in range(len(questions))]
        self.options = [
            [tokenizer(f" {option}", add_special_tokens=False)["input_ids"] for option in each] for each in options
        ]

        self.cached = self._cache_agrees()

    @torch.inference_mode()
    def measure(self) -> torch.Tensor:
        """Return log p(answer | question), summed over the answer's tokens, in nats: float64 [n, k]."""
        scores = torch.zeros(len(self.rows), len(self.options[0]), dtype=torch.float64)
        begun = self._read_prefix() if self.cached else None
        for places in self._by_length().values():
            for start in range(0, len(places), BATCH):
                chosen = places[start : start + BATCH]
                scores[chosen] = self._scores(chosen, begun) if self.cached else self._whole(chosen)
        return scores

    def _by_length(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for place, row in enumerate(self.rows):
            found[len(row)].append(place)
        return found

    @torch.inference_mode()
    def _cache_agrees(self) -> bool:
        """Whether questions that are read together behind a cache get the scores that they get alone, read whole."""
        few = max(self._by_length().values(), key=len)[:2]
        try:
            found = self._scores(few, self._read_prefix())
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as problem:
            if is_out_of_memory(problem):
                raise
            logger.info("questions are read one by one: %s: %s", type(problem).__name__, problem)
            return False
        return relative_error(found, self._whole(few)) <= PROBE_TOLERANCE[self.model.dtype]

    def _whole(self, places: Sequence[int]) -> torch.Tensor:
        """Score the questions at `places`, each answer's whole sequence by itself: float64 [b, k]."""
        scores = [[self._alone(place, option) for option in self.options[place]] for place in places]
        return torch.tensor(scores, dtype=torch.float64)

    def _alone(self, place: int, option: Sequence[int]) -> float:
        ids = torch.tensor([[*self.prefix, *self.rows[place], *option]], device=self.device)
        logits = self.model(input_ids=ids, use_cache=False).logits[0, -len(option) - 1 : -1]
        logs = F.log_softmax(logits.float(), dim=-1)
        return float(logs[range(len(option)), option].double().sum())

    def _read_prefix(self) -> Cache:
        cache = DynamicCache(config=self.model.config)
        if self.prefix:
            self._forward([self.prefix], cache, 1)
        return cache

    def _forward(self, rows: Sequence[Sequence[int]], cache: Cache, kept: int) -> torch.Tensor:
        """Read rows of equal length behind `cache`; return log p of what follows their last `kept` tokens."""
        ids = torch.tensor(rows, device=self.device)
        words = {"logits_to_keep": kept} if self.keeps_last else {}
        logits = self.model(input_ids=ids, cache=cache, use_cache=True, **words).logits[:, -kept:]
        return F.log_softmax(logits.float(), dim=-1)

    def _scores(self, places: Sequence[int], begun: Cache) -> torch.Tensor:
        """Score the questions at `places`, which are equally long: float64 [b, k]."""
        cache = copy.deepcopy(begun)
        if self.prefix:
            cache.batch_repeat_interleave(len(places))
        first = self._forward([self.rows[place] for place in places], cache, 1)[:, 0]  # [b, vocabulary]
        options = [self.options[place] for place in places]
        heads = torch.tensor([[option[0] for option in each] for each in options], device=self.device)
        scores = first.gather(1, heads).double().cpu()
        longest = max(len(option) for each in options for option in each)
        if longest == 1:
            return scores
        # pads stand behind: what is read before does not see them, and what follows them is not asked
        cache.batch_repeat_interleave(len(options[0]))
        flat = [option for each in options for option in each]
        read = [(*option[:-1], *[0] * (longest - len(option))) for option in flat]
        rest = self._forward(read, cache, longest - 1)  # [b * k, longest - 1, vocabulary]
        more = [
            sum(float(rest[row, column, token]) for column, token in enumerate(option[1:]))
            for row, option in enumerate(flat)
        ]
        return scores + torch.tensor(more, dtype=torch.float64).view(scores.shape)
