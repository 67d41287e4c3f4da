"""The contract of a row, its schema file, and its key."""

import hashlib
import json
import re
import subprocess
import sys

import pytest

from frankenlm.degradation.records.row_keys import (
    KNOWN_IN_LEGACY,
    ROW_FIELDS,
    SCHEMA_FILE,
    check_row,
    config_hash,
    row_key,
    row_schema,
)
from record_rows import make_row

# names and JSON types that a reader of the thesis' files relies on
ORIGINAL = {
    "timestamp": "string", "model_name": "string", "prompt_group": "string", "prompt_id": "integer",
    "prompt_text": "string", "output": "string", "std_dev": "number", "degrad_level": "number",
    "repeat_index": "integer", "param_group_name": "string", "degradation_method": "string", "seed": "integer",
    "temperature": "number", "do_sample": "boolean", "duration": "number", "tokens": "integer", "usar_4bit": "boolean",
}  # fmt: skip
SEED = {
    "model_variant", "experiment_id", "config_name", "level_value", "level_index", "gen_params", "tokens_out",
    "tokens_in", "load_4bit", "device", "dtype", "restore_strategy", "batch_size_effective", "image_used",
    "image_filename", "vram_usage_percent", "perplexity",
}  # fmt: skip


def test_the_schema_file_is_made_from_the_table():
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == row_schema()


def test_the_fields_of_the_original_and_of_the_seed_are_there():
    assert {name: f.kind for name, f in ROW_FIELDS.items() if f.origin == "original"} == ORIGINAL
    assert {name for name, f in ROW_FIELDS.items() if f.origin == "seed"} == SEED


JSON_TYPES = {
    "string": lambda v: type(v) is str,
    "integer": lambda v: type(v) is int,
    "null": lambda v: v is None,
    "number": lambda v: type(v) in (int, float),
    "boolean": lambda v: type(v) is bool,
    "object": lambda v: type(v) is dict,
    "array": lambda v: type(v) is list,
}


def fits_schema(row):
    """A validator of the few words of JSON Schema that the file uses."""
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    if set(row) != set(schema["required"]) or set(row) - set(schema["properties"]):
        return False
    for name, rule in schema["properties"].items():
        kinds, value = rule["type"], row[name]
        if not any(JSON_TYPES[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
            return False
        if "enum" in rule and value not in rule["enum"]:
            return False
        if value is not None and "minimum" in rule and value < rule["minimum"]:
            return False
    return True


def test_a_whole_row_passes():
    row = make_row()
    check_row(row)
    assert fits_schema(json.loads(json.dumps(row)))
    for name, field in ROW_FIELDS.items():
        if field.nullable:
            check_row(row | {name: None})
            assert fits_schema(row | {name: None})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_id", 0),
        ("prompt_id", True),
        ("prompt_id", "1"),
        ("prompt_id", 1.0),
        ("completion", None),
        ("do_sample", 1),
        ("std_dev", "0.1"),
        ("std_dev", False),
        ("finish_reason", "tired"),
        ("status", "fine"),
        ("gen_params", []),
        ("batch_shape", "2x3"),
        ("attempt", 0),
        ("level_index", -1),
        ("decoder", "own"),
    ],
)
def test_a_field_that_does_not_fit_is_named(name, value):
    row = make_row() | {name: value}
    with pytest.raises(ValueError, match=name):
        check_row(row)
    assert not fits_schema(row) or value is None


def test_missing_and_unknown_fields_are_named():
    row = make_row()
    del row["output"]
    with pytest.raises(ValueError, match=r"lacks the fields \['output'\].*unknown fields \['ouput'\]"):
        check_row(row | {"ouput": ""})


def test_an_imported_row_may_lack_what_the_original_did_not_write():
    row = make_row(sampler="legacy")
    for name in ROW_FIELDS:
        if name in KNOWN_IN_LEGACY:
            with pytest.raises(ValueError, match=name):
                check_row(row | {name: None})
        else:
            check_row(row | {name: None})
            assert fits_schema(row | {name: None})
            if not ROW_FIELDS[name].nullable:
                with pytest.raises(ValueError, match=name):
                    check_row(make_row() | {name: None})


KEY = {
    "config_hash": "c0",
    "param_group_name": "attn_only",
    "degradation_method": "ablation",
    "level_key": "0.025",
    "repeat_index": 3,
    "prompt_text": "Why?\n",
    "occurrence": 0,
    "image_sha256": None,
}


def test_the_key_is_the_sha1_of_canonical_json():
    prompt = hashlib.sha1(b"Why?\n").hexdigest()
    text = f'["c0","attn_only","ablation","0.025",3,"{prompt}",0,null]'
    assert row_key(**KEY) == hashlib.sha1(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config_hash", "c1"),
        ("param_group_name", "mlp_only"),
        ("degradation_method", "mult_gauss"),
        ("level_key", "0.03"),
        ("repeat_index", 4),
        ("prompt_text", "Why?"),
        ("occurrence", 1),
        ("image_sha256", "00"),
        ("prompt_text", "\ud800"),
    ],
)
def test_everything_in_the_key_counts(name, value):
    assert row_key(**KEY | {name: value}) != row_key(**KEY)


def test_the_hash_of_a_configuration_is_that_of_its_values():
    assert config_hash({"a": 1, "b": [1, 2]}) == config_hash({"b": (1, 2), "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert config_hash({"é": 1}) == hashlib.sha256('{"é":1}'.encode()).hexdigest()
    with pytest.raises(ValueError):
        config_hash({"a": float("nan")})


def test_reading_results_needs_no_torch():
    code = (
        "import sys; import frankenlm.degradation.records.store, frankenlm.degradation.run.legacy; "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_thesis_is_its_authors():
    folder = SCHEMA_FILE.parents[1]
    texts = "\n".join(path.read_text("utf-8") for path in (*folder.rglob("*.md"), *folder.rglob("*.py")))
    assert "Alejandro Wainstock's thesis" in texts and "supervised by Enzo Tagliazucchi" in texts
    assert not re.search(r"\bLewain\b", texts)
