"""What one result row holds, and the key by which a row is known again.

One row is one generation. `ROW_FIELDS` is the contract: names, types, where a name comes from and what it means.
`row.schema.json` is made from it (`python -m frankenlm.degradation.records.row_keys` writes it anew).

Origins: `original` are the names of the thesis' files, `seed` those of the published code after it, `ours` the rest.
"""

import hashlib
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA_VERSION = 1
STATUSES = ("ok", "nan_logits", "oom", "error")
FINISHED = frozenset({"ok", "nan_logits"})  # the other rows are tried again
FINISH_REASONS = ("eos", "length", "stop", "filled", "nan")
LEGACY_SAMPLER = "legacy"  # rows taken over from files of the original program
# What a configuration holds of how texts are read and written (identity.py); the first journals were begun without.
READING_FIELDS = (
    "tokenizer",
    "special_tokens",
    "chat_template",
    "picture_processor",
    "sampling",
    "stop_ids",
    "attention",
    "adapter",
    "code",
)
SCHEMA_FILE = Path(__file__).with_name("row.schema.json")


class Field(NamedTuple):
    """One field of a row; `kind` is a type of JSON Schema."""

    kind: str
    origin: str
    meaning: str
    nullable: bool = False
    choices: tuple[str, ...] | None = None
    minimum: int | None = None


# fmt: off
ROW_FIELDS: dict[str, Field] = {
    "timestamp": Field("string", "original", "when the row was finished, ISO 8601 with UTC offset"),
    "model_name": Field("string", "original", "the model as requested"),
    "model_variant": Field("string", "seed", "it: instruction-tuned"),
    "experiment_id": Field("string", "seed", "degradation_method|model_name|name_suffix"),
    "config_name": Field("string", "seed", "configuration the experiment started from"),
    "prompt_group": Field("string", "original", "the task"),
    "prompt_id": Field("integer", "original", "place in the list of prompts, from 1", minimum=1),
    "prompt_skill": Field("string", "ours", "the skill a prompt asks for, where it names one", nullable=True),
    "prompt_text": Field("string", "original", "what the user says, before any template"),
    "output": Field("string", "original", "decoded whole sequence, prompt and answer, without special tokens"),
    "completion": Field("string", "ours", "the generated part alone; every measure uses this"),
    "std_dev": Field("number", "original", "the level; null for the baseline of uni_quant", nullable=True),
    "level_value": Field("number", "seed", "the level once more", nullable=True),
    "degrad_level": Field("number", "original", "the level once more", nullable=True),
    "level_index": Field("integer", "seed", "place of the level in the list of levels, from 0", minimum=0),
    "repeat_index": Field("integer", "original", "repeat, from 0", minimum=0),
    "param_group_name": Field("string", "original", "which weights are damaged"),
    "degradation_method": Field("string", "original", "how they are damaged"),
    "seed": Field("integer", "original", "seed_base + repeat_index"),
    "temperature": Field("number", "original", "also in gen_params"),
    "do_sample": Field("boolean", "original", "also in gen_params"),
    "gen_params": Field("object", "seed", "the resolved values of temperature, do_sample, max_new_tokens, top_k, "
                                          "top_p, repetition_penalty, min_p"),
    "duration": Field("number", "original", "seconds: wall time divided by the mean number of rows in flight"),
    "batch_duration": Field("number", "ours", "seconds of the generate call, or from the row's start to its end"),
    "tokens": Field("integer", "original", "tokens of output", minimum=0),
    "tokens_out": Field("integer", "seed", "tokens of output once more", minimum=0),
    "tokens_in": Field("integer", "seed", "tokens of prompt_text alone", minimum=0),
    "tokens_prompt_rendered": Field("integer", "ours", "tokens of the prompt with template and picture", minimum=0),
    "tokens_generated": Field("integer", "ours", "new tokens up to the end-of-sequence token", minimum=0),
    "finish_reason": Field("string", "ours", "why the answer ended; null where the generation failed", nullable=True,
                           choices=FINISH_REASONS),
    "mean_logprob": Field("number", "ours", "mean log-probability (nats) of the generated tokens", nullable=True),
    "mean_entropy": Field("number", "ours", "mean entropy (nats) of the distributions they were drawn from",
                          nullable=True),
    "usar_4bit": Field("boolean", "original", "whether the linear layers were loaded in 4 bits"),
    "load_4bit": Field("boolean", "seed", "the same once more"),
    "device": Field("string", "seed", "device of the first block; several are joined by commas"),
    "dtype": Field("string", "seed", "compute type"),
    "restore_strategy": Field("string", "seed", "where the undamaged weights are kept"),
    "batch_size_effective": Field("integer", "seed", "rows in flight at the row's first token", minimum=0),
    "batch_shape": Field("array", "ours", "rows and padded length of the batch", nullable=True),
    "image_used": Field("boolean", "seed", "whether a picture was shown"),
    "image_filename": Field("string", "seed", "the picture's file", nullable=True),
    "image_sha256": Field("string", "ours", "SHA-256 of the picture's file", nullable=True),
    "vram_usage_percent": Field("number", "seed", "peak over the devices, 0 to 100; null on CPU", nullable=True),
    "perplexity": Field("number", "seed", "of the damaged model on the shipped text, where computed", nullable=True),
    "schema_version": Field("integer", "ours", "version of these fields", minimum=1),
    "row_key": Field("string", "ours", "what the row is known by; see row_key()"),
    "attempt": Field("integer", "ours", "how often this row was written, from 1", minimum=1),
    "status": Field("string", "ours", "ok; nan_logits: no finite logits; oom, error: to be tried again",
                    choices=STATUSES),
    "sampler": Field("string", "ours", "how tokens were drawn"),
    "decoder": Field("string", "ours", "rows: own loop over rows; batches: the library's generate; masks: a masked "
                                       "model fills in every token of the prompt",
                     choices=("rows", "batches", "masks")),
    "noise_coupling": Field("string", "ours", "whether the levels of a repeat share one field of noise"),
    "quant_target_mode": Field("string", "ours", "how 4-bit weights are damaged"),
    "tied_policy": Field("string", "ours", "which side of tied embeddings is damaged"),
    "is_baseline": Field("boolean", "ours", "whether nothing was damaged; recover trains such a model like the others"),
    "damage_rel_l2": Field("number", "ours", "relative L2 distance of the damaged weights; of recover, before its "
                                             "training", nullable=True),
    "rank": Field("integer", "ours", "process that wrote the row", minimum=0),
}
# fmt: on
FIELD_NAMES = frozenset(ROW_FIELDS)
# What an imported row must have all the same; the rest may be null there and nowhere else.
KNOWN_IN_LEGACY = frozenset(
    {
        "timestamp", "model_name", "experiment_id", "config_name", "prompt_id", "prompt_text", "output", "completion",
        "level_index", "repeat_index", "param_group_name", "degradation_method", "schema_version", "row_key",
        "attempt", "status", "sampler", "is_baseline", "rank",
    }
)  # fmt: skip
_PYTHON_TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": Mapping,
    "array": (list, tuple),
}


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted names, no spaces, no non-finite numbers (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def load_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none, or nested deeper than anything that is written here.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def config_hash(config_fields: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the fields that decide what a row holds, model included."""
    return hashlib.sha256(canonical_json(config_fields).encode()).hexdigest()


def row_key(
    config_hash: str,
    param_group_name: str,
    degradation_method: str,
    level_key: str,
    repeat_index: int,
    prompt_text: str,
    occurrence: int,
    image_sha256: str | None,
) -> str:
    """Return the SHA-1 (hex) by which a row is known again after any interruption.

    Args:
        level_key: the level as text, from `configs.level_key`.
        occurrence: which of several equal prompts this is, from 0. The prompt's place is left out on purpose:
            a prompt inserted before it leaves the key as it is.
        image_sha256: of the picture's file, None without one.
    """
    # a lone surrogate has no UTF-8 form
    prompt = hashlib.sha1(prompt_text.encode("utf-8", "surrogatepass")).hexdigest()
    parts = [
        config_hash,
        param_group_name,
        degradation_method,
        level_key,
        repeat_index,
        prompt,
        occurrence,
        image_sha256,
    ]
    return hashlib.sha1(canonical_json(parts).encode()).hexdigest()


def check_row(row: Mapping[str, Any]) -> None:
    """Make sure that a row keeps the contract.

    Raises:
        ValueError: a field is missing, unknown, of the wrong type or outside its choices; the message names it.
    """
    if row.keys() != FIELD_NAMES:
        missing, unknown = sorted(FIELD_NAMES - row.keys()), sorted(row.keys() - FIELD_NAMES)
        raise ValueError(f"a row lacks the fields {missing} and holds the unknown fields {unknown}.")
    legacy = row["sampler"] == LEGACY_SAMPLER
    for name, field in ROW_FIELDS.items():
        value = row[name]
        if value is None:
            if not (field.nullable or (legacy and name not in KNOWN_IN_LEGACY)):
                raise ValueError(f"{name} must not be null in a row.")
        elif not _fits(value, field):
            raise ValueError(f"{name}={reprlib.repr(value)} does not fit its field in a row: {_wanted(field)}.")


def _fits(value: Any, field: Field) -> bool:
    if not isinstance(value, _PYTHON_TYPES[field.kind]) or (isinstance(value, bool) and field.kind != "boolean"):
        return False
    if field.minimum is not None and value < field.minimum:
        return False
    return field.choices is None or value in field.choices


def _wanted(field: Field) -> str:
    text = field.kind
    if field.minimum is not None:
        text += f" of at least {field.minimum}"
    return text + (f", one of {', '.join(field.choices)}" if field.choices else "")


def row_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of one row, as `row.schema.json` holds it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Row of a degradation experiment, schema version {SCHEMA_VERSION}",
        "type": "object",
        "required": list(ROW_FIELDS),
        "additionalProperties": False,
        "properties": {name: _property(name, field) for name, field in ROW_FIELDS.items()},
    }


def _property(name: str, field: Field) -> dict[str, Any]:
    nullable = field.nullable or name not in KNOWN_IN_LEGACY
    found: dict[str, Any] = {"type": [field.kind, "null"] if nullable else field.kind}
    if field.choices:
        found["enum"] = [*field.choices, None] if nullable else list(field.choices)
    if field.minimum is not None:
        found["minimum"] = field.minimum
    note = f" Null only where sampler is {LEGACY_SAMPLER}." if nullable and not field.nullable else ""
    return {**found, "description": f"{field.meaning}.{note} ({field.origin})"}


def write_schema(path: Path = SCHEMA_FILE) -> None:
    """Write the schema file."""
    path.write_text(json.dumps(row_schema(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_schema()
