"""Rows that keep the contract, for the tests of the files."""

import hashlib

from frankenlm.degradation.records.row_keys import ROW_FIELDS, config_hash, row_key

CONFIG = {"model": "org/tiny", "temperature": 1.0, "top_k": 64, "max_new_tokens": 8}
NAMES = ("mult_gauss", "tiny", "test")  # method, model, suffix
LEVELS = (0.0, 0.1, 0.2)
SAMPLES = {"string": "text", "integer": 1, "number": 0.5, "boolean": False, "object": {"top_k": 64}, "array": [1, 2]}


def make_row(
    prompt=1,
    repeat=0,
    level_index=1,
    *,
    group="attn_only",
    text=None,
    occurrence=0,
    config=CONFIG,
    levels=LEVELS,
    **changes,
):
    """Return the row of a cell and prompt. Its completion follows from its key, as that of a seeded model would."""
    level, text = levels[level_index], text or f"Prompt {prompt}: say «something»."
    key = row_key(config_hash(config), group, NAMES[0], f"{level:.12g}", repeat, text, occurrence, None)
    completion = " ".join(hashlib.sha256(key.encode()).hexdigest())
    row = {name: field.choices[0] if field.choices else SAMPLES[field.kind] for name, field in ROW_FIELDS.items()}
    return row | {
        "row_key": key, "prompt_id": prompt, "prompt_text": text, "repeat_index": repeat, "seed": 42 + repeat,
        "level_index": level_index, "std_dev": level, "level_value": level, "degrad_level": level,
        "param_group_name": group, "degradation_method": NAMES[0], "model_name": config["model"], "image_sha256": None,
        "image_filename": None, "completion": completion, "output": f"{text}\n{completion}", "attempt": 1, "rank": 0,
        "schema_version": 1, "experiment_id": f"{NAMES[0]}|{config['model']}|{NAMES[2]}",
    } | changes  # fmt: skip


def lesion(level_index=1, repeat=0, group="attn_only", **values):
    """Return a lesion record."""
    place = {"level_value": LEVELS[level_index], "level_index": level_index, "repeat_index": repeat}
    return {"group": group, "method": NAMES[0], **place, "rel_l2": 0.1, **values}
