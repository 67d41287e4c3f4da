"""A tiny Llama with one planted fault, or none, for the check to find."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from frankenlm.trainer_ext.checking.judging import Judge
from frankenlm.trainer_ext.checking.promises.table import PROMISES
from frankenlm.trainer_ext.checking.rows import Rows
from frankenlm.trainer_ext.checking.subject import ModelUnderTest, in_dtype
from frankenlm.trainer_ext.checking.tiny import tiny_config
from frankenlm.trainer_ext.checking.trial import Trial
from frankenlm.trainer_ext.checking.weights import redraw


class FaultyLlama(LlamaForCausalLM):
    """The faults: see `forward`; `size` is how large what they do is, where they have a size."""

    fault: str | None = None
    size = 1e-2
    last: torch.Tensor | None = None  # what a call leaves to the next one

    def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None, use_cache=None, **kwargs):
        fault, length = self.fault, input_ids.shape[1]
        if fault == "pads" and attention_mask is not None:
            attention_mask = position_ids = None  # positions that stand still would tell pads too
        elif fault == "borders" and position_ids is not None and cache is None:
            position_ids = position_ids.new_tensor(range(length))[None] + 0 * position_ids
        elif fault == "future" and cache is None and attention_mask is None:
            # the off-by-one of a mask: each token sees the next one
            attention_mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril(1)
        embedded = self.model.embed_tokens(input_ids)
        if fault == "gradient":
            backwards = self.size * embedded.flip(1)
            embedded = embedded + (backwards - backwards.detach())
        if fault == "rows":
            embedded = embedded + self.size * embedded.sum(0)  # all rows of the batch
        elif fault == "rare":  # of few tokens, which the token before them sees
            seen = (input_ids >= 90)[:, 1:, None] * embedded[:, 1:]
            embedded = torch.cat([embedded[:, :-1] + seen, embedded[:, -1:]], 1)
        elif fault == "state":
            last, self.last = self.last, embedded[:1, -1:].detach()
            embedded = embedded if last is None else embedded + self.size * last.to(embedded)
        elif fault == "dropout":
            embedded = torch.nn.functional.dropout(embedded, 0.1, training=True)
        output = super().forward(
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            use_cache=use_cache,
            **kwargs,
        )
        if fault == "drift" and output.cache is not None:
            output.cache.layers[0].values = output.cache.layers[0].values * (1 + self.size)
        if fault == "batch":
            output.logits = output.logits - self.size * output.logits.mean(0)
        return output

    def save_pretrained(self, *args, **kwargs):
        factor = 1 + self.size if self.fault == "saving" else 1
        self.lm_head.weight.data *= factor
        super().save_pretrained(*args, **kwargs)
        self.lm_head.weight.data /= factor


def judge_of(model, dtype=torch.float32, *, is_decoder=True, seed=0) -> Judge:
    """A judge of a model with weights in which leaks are seen."""
    redraw(model, seed)
    size = model.config.vocab_size
    return Judge(Trial(ModelUnderTest(in_dtype(model.eval(), dtype), is_decoder, size), Rows(size, frozenset(), seed)))


def faulty(fault=None, size=1e-2, dtype=torch.float32) -> Judge:
    """A judge of a Llama with a fault."""
    torch.manual_seed(0)
    model = FaultyLlama(tiny_config(LlamaConfig, tie_word_embeddings=False))
    model.fault, model.size = fault, size
    FaultyLlama.fault, FaultyLlama.size = fault, size  # what is made anew from its files has the fault as well
    return judge_of(model, dtype)


def verdicts(judge: Judge) -> dict[str, str]:
    """The verdict of each promise."""
    return {name: judge.judge(name, promise).verdict for name, promise in PROMISES.items()}


class NumberedGru(LlamaForCausalLM):
    """A recurrent layer that knows documents by `seq_idx` alone, and has neither cache nor positions."""

    def __init__(self, config):
        super().__init__(config)
        self.gru = torch.nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)
        self.post_init()

    def forward(self, input_ids, seq_idx=None, return_dict=True):
        embedded = self.model.embed_tokens(input_ids)
        numbers = torch.zeros_like(input_ids[0]) if seq_idx is None else seq_idx[0]
        sizes = numbers.unique_consecutive(return_counts=True)[1].tolist()
        hidden = torch.cat([self.gru(part)[0] for part in embedded.split(sizes, 1)], 1)
        return CausalLMOutput(logits=self.lm_head(hidden))
