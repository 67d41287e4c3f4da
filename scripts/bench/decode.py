"""Benchmark generation: cached decoding next to GPT-2, its cost far into a text, and the cost of a long prompt.

    python scripts/bench/decode.py                            # 10 minutes; writes runs/bench/decode.json
    python scripts/bench/decode.py --threads 1 --rounds 5
    python scripts/bench/decode.py --record model_cards/benchmarks.md

Every model has random weights and meets a GPT2LMHeadModel of equal depth, vocabulary and parameter count (+-2 %) under
the same generate() call in the same run. Each table is made once per number of threads.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from frankenlm.modeling import FrankensteinConfig, FrankensteinForCausalLM, InfinitoConfig, InfinitoForCausalLM
from frankenlm.trainer_ext.common.timing import interleaved_seconds, median_ratio, write_report

VOCABULARY, HIDDEN, DEPTH, HEADS = 8192, 384, 6, 6
PROMPT, NEW_TOKENS = 32, 64
EARLY, LATE, STEPS = 256, 4096, 16
SHORT_PROMPT, LONG_PROMPT = 512, 4096
WINDOW = 256
POSITIONS = 2 * LATE  # room for all rounds of decoding
TOLERANCE = 0.02


def stack(mixer: str, **fields) -> PreTrainedModel:
    """A causal stack of one mixer, of mini's width and half its logical depth."""
    return FrankensteinForCausalLM(
        FrankensteinConfig(
            is_decoder=True,
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            layer_pattern=[mixer],
            norm_type="rms_norm",
            embedding_norm=None,
            **fields,
        )
    )


def mini() -> PreTrainedModel:
    return FrankensteinForCausalLM(FrankensteinConfig.from_preset("mini", is_decoder=True, vocab_size=VOCABULARY))


def infinito_small(**fields) -> PreTrainedModel:
    return InfinitoForCausalLM(InfinitoConfig.from_preset("infinito-small", **fields))


def gpt2_twin(model: PreTrainedModel) -> GPT2LMHeadModel:
    """A GPT-2 of the same width, depth, heads and vocabulary, its feed-forward as wide as equal size demands."""
    config = model.config

    def build(inner: int) -> GPT2LMHeadModel:
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocab_size,
                n_embd=config.hidden_size,
                n_layer=config.num_hidden_layers,
                n_head=config.num_attention_heads,
                n_inner=inner,
                n_positions=1024,
                bos_token_id=0,
                eos_token_id=0,
            )
        )

    with torch.device("meta"):
        smallest, wider = build(1).num_parameters(), build(2).num_parameters()
    inner = 1 + round((model.num_parameters() - smallest) / (wider - smallest))
    if inner < 1:
        raise ValueError(f"{type(model).__name__} is smaller than any GPT-2 of its width and depth.")
    twin = build(inner)
    off = twin.num_parameters() / model.num_parameters() - 1
    if abs(off) > TOLERANCE:
        raise ValueError(f"the GPT-2 twin differs by {off:.1%} parameters.")
    return twin


def generation(model: PreTrainedModel, batch: int) -> Callable[[], None]:
    prompts = torch.randint(1, model.config.vocab_size, (batch, PROMPT))
    mask = torch.ones_like(prompts)

    def call():
        model.generate(
            prompts,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )

    return call


def against_gpt2(rounds: int) -> list[dict]:
    """Tokens per second of generate(), prompt included, ours over the GPT-2 of equal size."""
    rows = []
    models = {"retnet": stack("retnet"), "mamba": stack("mamba"), "infinito-small": infinito_small(), "mini": mini()}
    for name, model in tqdm(models.items(), desc="against GPT-2"):
        model, twin = model.eval(), gpt2_twin(model).eval()
        for batch in (1, 16):
            seconds = interleaved_seconds(
                {"ours": generation(model, batch), "gpt2": generation(twin, batch)}, rounds=rounds
            )
            tokens = batch * NEW_TOKENS
            rows.append(
                {
                    "model": name,
                    "parameters": model.num_parameters(),
                    "gpt2's": twin.num_parameters(),
                    "batch": batch,
                    "tokens/s": tokens / statistics.median(seconds["ours"]),
                    "gpt2's tokens/s": tokens / statistics.median(seconds["gpt2"]),
                    "ours / gpt2": median_ratio(seconds["gpt2"], seconds["ours"]),
                }
            )
    return rows


@torch.no_grad()
def decoder_at(model: PreTrainedModel, position: int) -> Callable[[], None]:
    """A call that decodes STEPS tokens, one by one, from about `position` on."""
    cache = model.new_cache()
    model(torch.randint(1, model.config.vocab_size, (1, position - 1)), cache=cache)
    token = torch.ones(1, 1, dtype=torch.int64)

    @torch.no_grad()
    def call():
        for _ in range(STEPS):
            model(token, cache=cache)

    return call


def recurrent_models() -> dict[str, PreTrainedModel]:
    """Models whose state does not grow: the promise that this script checks is that their cost does not either."""
    return {
        "retnet": stack("retnet"),
        "mamba": stack("mamba"),
        f"delta memory, window {WINDOW}": stack("titan_attn", use_titan_memory=True, attention_window=WINDOW),
        f"attention, window {WINDOW}": stack("standard_attn", position_type="rope", attention_window=WINDOW),
        f"infinito-small, window {WINDOW}": infinito_small(max_position_embeddings=POSITIONS, attention_window=WINDOW),
    }


def far_into_a_text(rounds: int) -> list[dict]:
    rows = []
    for name, model in tqdm(recurrent_models().items(), desc="far into a text"):
        calls = {position: decoder_at(model.eval(), position) for position in (EARLY, LATE)}
        seconds = interleaved_seconds(calls, rounds=rounds)
        rows.append(
            {
                "model": name,
                **{f"ms/token at {p}": statistics.median(seconds[p]) / STEPS * 1e3 for p in (EARLY, LATE)},
                "late / early": median_ratio(seconds[LATE], seconds[EARLY]),
            }
        )
    return rows


def prefill(model: PreTrainedModel, length: int) -> Callable[[], None]:
    ids = torch.randint(1, model.config.vocab_size, (1, length))

    @torch.no_grad()
    def call():
        model(ids, use_cache=True, logits_to_keep=1)

    return call


def long_prompts(rounds: int) -> list[dict]:
    rows = []
    for name, model in tqdm(recurrent_models().items(), desc="long prompts"):
        lengths = (SHORT_PROMPT, LONG_PROMPT)
        seconds = interleaved_seconds({length: prefill(model.eval(), length) for length in lengths}, rounds=rounds)
        per_token = {length: [s / length for s in seconds[length]] for length in lengths}
        rows.append(
            {
                "model": name,
                **{f"us/token of {n}": statistics.median(per_token[n]) * 1e6 for n in lengths},
                "long / short": median_ratio(per_token[LONG_PROMPT], per_token[SHORT_PROMPT]),
            }
        )
    return rows


def shares_of_mini(rounds: int) -> list[dict]:
    """How mini's decoding time at batch 1 is divided over its mixers and the rest."""
    model, spent, begun = mini().eval(), defaultdict(float), {}

    def begin(module, *_):
        begun[module] = time.perf_counter()

    def end(name):
        def hook(module, *_):
            spent[name] += time.perf_counter() - begun[module]

        return hook

    for layer in model.model.layers:
        for name, part in ((type(layer.mixer).__name__, layer.mixer), (type(layer.ffn).__name__, layer.ffn)):
            part.register_forward_pre_hook(begin)
            part.register_forward_hook(end(name))
    call = decoder_at(model, PROMPT)
    call()
    spent.clear()
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    total = time.perf_counter() - start
    spent["embedding, norms, head"] = total - sum(spent.values())
    return [
        {"part": name, "share": seconds / total} for name, seconds in sorted(spent.items(), key=lambda item: -item[1])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads (default: 1 2)")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds per figure (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/decode.json"), help="JSON file to write")
    parser.add_argument("--record", type=Path, help="Markdown file to append the tables to")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tables = {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        suffix = f"float32, {threads} thread{'s' if threads > 1 else ''}"
        tables |= {
            f"generate(), prompt {PROMPT}, {NEW_TOKENS} new tokens, greedy, {suffix}": against_gpt2(arguments.rounds),
            f"Decoding one token, batch 1, {suffix}": far_into_a_text(arguments.rounds),
            f"Prefill with a cache, batch 1, {suffix}": long_prompts(arguments.rounds),
            f"Where mini's decoding time goes, batch 1, {suffix}": shares_of_mini(arguments.rounds),
        }
    print(write_report("decode", tables, arguments.output, arguments.record))


if __name__ == "__main__":
    main()
