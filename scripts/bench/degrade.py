"""Time an experiment of the lab against the straightforward script that does the same with the library alone.

    python scripts/bench/degrade.py --model .cache/SmolLM2-135M-Instruct --record model_cards/benchmarks.md

The straightforward script loads once, keeps a CPU copy of the group, and for every level restores all of it, damages it
with torch.randn, and generates fixed batches of prompts with the library's sampling, at the same batch size, dtype,
prompts, levels and tokens. Both go through a cell in turn, so that a noisy minute falls on both.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from frankenlm.degradation.configs import get_config
from frankenlm.degradation.lab import Lab, RunOptions
from frankenlm.degradation.run.plan import CellPlan
from frankenlm.degradation.weights.groups import select_group
from frankenlm.trainer_ext.common.cli import OneLineParser, UserError, run_command
from frankenlm.trainer_ext.common.timing import write_report


class PlainScript:
    """What one would write in an afternoon: restore, damage, generate fixed batches."""

    def __init__(self, loaded, experiment):
        self.model, self.tokenizer, self.config = loaded.model, loaded.tokenizer, experiment.config
        self.tokenizer.padding_side = "left"
        group = select_group(self.model, self.config.group)
        self.parameters = [target.parameter for target in group.targets]
        self.copies = [parameter.detach().to("cpu", copy=True) for parameter in self.parameters]
        self.chats = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt.text}], add_generation_prompt=True, tokenize=False
            )
            for prompt in experiment.prompts
        ]

    @torch.inference_mode()
    def cell(self, sigma: float, seed: int) -> tuple[int, int]:
        """Return the tokens written, and how many rows ended before the limit."""
        torch.manual_seed(seed)
        for parameter, copy in zip(self.parameters, self.copies, strict=True):
            parameter.copy_(copy)
            if sigma:
                parameter.mul_(1 + sigma * torch.randn_like(parameter))
        tokens = early = 0
        for start in range(0, len(self.chats), self.config.max_batch_size):
            batch = self.tokenizer(
                self.chats[start : start + self.config.max_batch_size],
                padding=True,
                add_special_tokens=False,
                return_tensors="pt",
            )
            written = self.model.generate(
                **batch,
                do_sample=True,
                temperature=self.config.temperature,
                top_k=self.config.top_k,
                top_p=self.config.top_p,
                max_new_tokens=self.config.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
            )[:, batch["input_ids"].shape[1] :]
            stopped = (written == self.tokenizer.eos_token_id).any(-1)
            lengths = torch.where(stopped, (written == self.tokenizer.eos_token_id).int().argmax(-1), written.shape[1])
            tokens += int(lengths.sum())
            early += int(stopped.sum())
        return tokens, early

    @torch.inference_mode()
    def restore(self) -> None:
        for parameter, copy in zip(self.parameters, self.copies, strict=True):
            parameter.copy_(copy)


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a causal model with a chat template")
    add("--levels", default="0,0.3,0.6", help="sigmas with commas (default: 0,0.3,0.6)")
    add("--group", default="attn_only", help="(default: attn_only)")
    add("--repeats", type=int, default=3, help="cells of every level (default: 3)")
    add("--max_new_tokens", type=int, default=128, help="(default: 128)")
    add("--max_batch_size", type=int, default=16, help="(default: 16)")
    add("--max_prompts", type=int, help="only the first so many prompts of iq_it (default: all 65)")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="(default: float32)")
    add("--threads", type=int, default=2, help="(default: 2)")
    add("--output", default="runs/bench/degrade.json", help="(default: runs/bench/degrade.json)")
    add("--record", help="Markdown file to append the tables to")
    args = parser.parse_strictly(sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(args.threads)
    try:
        levels = tuple(float(level) for level in args.levels.split(","))
        config = get_config("iq_it") | {
            "levels": levels,
            "group": args.group,
            "n_rep": args.repeats,
            "max_new_tokens": args.max_new_tokens,
            "max_batch_size": args.max_batch_size,
            "max_prompts": args.max_prompts,
            "dtype": args.dtype,
            "perplexity": False,
        }
    except ValueError as error:
        raise UserError(str(error)) from error
    cells = compare(args.model, config)
    tables = {
        f"{config.prompts}, {config.group}, {config.max_new_tokens} new tokens, batch {config.max_batch_size}, "
        f"{config.dtype}, {args.threads} threads": summarise(cells),
    }
    record = Path(args.record) if args.record else None
    print(write_report("Lab against a plain script", tables, Path(args.output), record, {"cells": cells}))


def compare(model: str, config) -> list[dict]:
    """Run every cell with both programs in turn; return seconds, tokens and early stops of each."""
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(model, RunOptions(output_dir=folder, progress=False))
        experiment = lab.plan(config)
        with lab.session(experiment) as run:
            plain = PlainScript(run.loaded, experiment)
            with run.subject() as subject, tqdm(total=2 * len(experiment.cells), unit="cell") as bar:
                for cell in experiment.cells:
                    plan = CellPlan(cell, tuple(range(len(experiment.prompts))))
                    started = time.perf_counter()
                    tokens, early = plain.cell(cell.level, config.seed_base + cell.repeat_index)
                    plain_s = time.perf_counter() - started
                    plain.restore()
                    bar.update()
                    started = time.perf_counter()
                    facts = run.cell(plan, subject, tqdm(disable=True))
                    ours_s = time.perf_counter() - started
                    bar.update()
                    rows = [row for row in run.store.rows() if _is_of(row, cell)]
                    cells.append(
                        {
                            "level": cell.level,
                            "repeat": cell.repeat_index,
                            "plain_s": plain_s,
                            "lab_s": ours_s,
                            "plain_tokens": tokens,
                            "lab_tokens": sum(row["tokens_generated"] for row in rows),
                            "plain_early": early,
                            "lab_early": sum(row["finish_reason"] == "eos" for row in rows),
                            "rows": len(rows),
                            "damage_s": facts["damage_s"],
                        }
                    )
    return cells


def _is_of(row: dict, cell) -> bool:
    return row["level_index"] == cell.level_index and row["repeat_index"] == cell.repeat_index


def summarise(cells: Sequence[dict]) -> list[dict]:
    """One line a level, and one for all: median seconds of a cell, ratio of the sums, shares."""
    lines = []
    for level in [*dict.fromkeys(cell["level"] for cell in cells), None]:
        chosen = [cell for cell in cells if level is None or cell["level"] == level]
        total = {name: sum(cell[name] for cell in chosen) for name in chosen[0]}
        lines.append(
            {
                "sigma": "all" if level is None else level,
                "plain script s": statistics.median(cell["plain_s"] for cell in chosen),
                "lab s": statistics.median(cell["lab_s"] for cell in chosen),
                "lab / plain": total["lab_s"] / total["plain_s"],
                "per token": (total["lab_s"] / total["lab_tokens"]) / (total["plain_s"] / total["plain_tokens"]),
                "tokens, plain": total["plain_tokens"],
                "tokens, lab": total["lab_tokens"],
                "early stops, plain": total["plain_early"] / total["rows"],
                "early stops, lab": total["lab_early"] / total["rows"],
                "damage share": total["damage_s"] / total["lab_s"],
            }
        )
    return lines


if __name__ == "__main__":
    transformers_logging.set_verbosity_error()
    sys.exit(run_command(main))
