"""Simulated experiments whose critical levels are known, for the tests of the report."""

import csv
import json
import math

import numpy

from frankenlm.degradation.prompts import load_prompts
from frankenlm.degradation.records.journal import encode_line

PROMPTS = load_prompts("iq_it")[:60:5]
LEVELS = {
    "mult_gauss": (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    "ablation": (0.0, 0.2, 0.4, 0.6, 0.8),
    "uni_quant": (None, 1024, 256, 64, 16, 4),
}
NAN_CELL, MISSING_CELL = (1, 7), (2, 3)  # repeat, level index


def falling(position, half, width, top=0.95, bottom=0.0):
    """A logistic curve that is half way from top to bottom at `half`."""
    return bottom + (top - bottom) / (1 + math.exp((position - half) / width))


def position_of(method, level):
    return (-11.0 if level is None else -math.log2(level)) if method == "uni_quant" else level


def simulated_rows(method, group, half, *, task="iq_it", levels=None, repeats=5, prompts=PROMPTS, seed=0, suffix="sim"):
    """Rows of one series: the share of right answers falls from 0.95 to 0 round `half`, loops and length rise."""
    generator = numpy.random.default_rng(seed)
    width = 0.8 if method == "uni_quant" else 0.06
    for repeat in range(repeats):
        shift = generator.normal(0, width / 3)
        for index, level in enumerate(levels or LEVELS[method]):
            if (repeat, index) == MISSING_CELL:
                continue
            right = falling(position_of(method, level), half + shift, width)
            looped = falling(position_of(method, level), half + shift + 2 * width, width, 0.0, 0.9)
            for prompt in prompts:
                is_nan = (repeat, index) == NAN_CELL
                yield {
                    "model_name": "maker/tiny-model",
                    "model_variant": "it",
                    "prompt_group": task,
                    "experiment_id": f"{method}|maker/tiny-model|{suffix}",
                    "config_name": task,
                    "prompt_id": prompt.id,
                    "prompt_text": prompt.text,
                    "completion": f"{generator.random() < right:d} {generator.random() < looped:d} "
                    f"{generator.normal(60 + 200 * looped, 10):.1f}",
                    "level_value": level,
                    "std_dev": level,
                    "level_index": index,
                    "repeat_index": repeat,
                    "is_baseline": index == 0,
                    "param_group_name": group,
                    "degradation_method": method,
                    "finish_reason": "nan" if is_nan else "length" if generator.random() < looped else "eos",
                    "status": "nan_logits" if is_nan else "ok",
                    "attempt": 1,
                    "row_key": f"{group}{method}{index}{repeat}{prompt.id}",
                    "tokens_generated": 60,
                    "perplexity": None,
                    "damage_rel_l2": relative_change(method, level),
                }


def relative_change(method, level):
    if not level:
        return 0.0
    return {"mult_gauss": level, "ablation": math.sqrt(level), "uni_quant": 12.0 / level}[method]


def measure(row, prompt):
    """What the simulation wrote into a completion, in place of the measures of texts."""
    right, looped, length = row["completion"].split()
    return {
        "correct": right == "1" and row["status"] == "ok",
        "looped": looped == "1",
        "tokens": float(length),
        "grade": "a text",
        "nothing": None,
    }


def write_experiment(folder, rows, method, *, suffix="sim", cells=True, manifest=True):
    rows = list(rows)
    path = folder / f"outputs_{method}_tiny-model_{suffix}.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    journal = path.with_suffix(".journal")
    journal.mkdir()
    if manifest:
        content = {
            "schema_version": 1,
            "config_fields": {"prompts": "iq_it", "dtype": "float32"},
            "runs": [{"versions": {"torch": "9.9.9"}}],
        }
        (journal / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    if cells:
        (journal / "cells.jsonl").write_bytes(b"".join(encode_line(record) for record in cell_records(rows)))
    return path


def cell_records(rows):
    seen = {}
    for row in rows:
        seen[row["param_group_name"], row["level_index"], row["repeat_index"]] = row
    for row in seen.values():
        position = position_of(row["degradation_method"], row["level_value"])
        start = position_of(row["degradation_method"], None if row["degradation_method"] == "uni_quant" else 0)
        steepness = (2 if row["param_group_name"] == "attn_only" else 5) + 0.2 * row["repeat_index"]
        logarithm = 3 + steepness * (position - start) ** 1.5
        broken = row["status"] == "nan_logits"
        yield {
            **{
                name: row[name]
                for name in ("param_group_name", "degradation_method", "level_value", "level_index", "repeat_index")
            },
            "perplexity": None if broken else math.exp(logarithm),
            "log_perplexity": None if broken else logarithm,
            "kl_to_baseline": None if broken else position - start,
            "rows": len(PROMPTS),
        }


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
