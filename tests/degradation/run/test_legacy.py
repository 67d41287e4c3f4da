"""Files of the original program, taken into an experiment by the key that program knows its rows by."""

import json

import pytest

from frankenlm.degradation.records.store import Store
from frankenlm.degradation.run.legacy import LegacyCount, adopt_legacy, completion_of, read_legacy
from record_rows import CONFIG, NAMES, make_row

LEVELS = (0.0, 0.1, 0.125, 0.13)
PLANNED_FIELDS = (
    "experiment_id",
    "config_name",
    "model_name",
    "prompt_group",
    "prompt_id",
    "prompt_text",
    "level_value",
    "level_index",
    "repeat_index",
    "param_group_name",
    "degradation_method",
    "seed",
)


def planned(*rows):
    return {row["row_key"]: {name: row[name] for name in PLANNED_FIELDS} for row in rows}


def old_row(row, **changes):
    """What the original would have written for a row of ours."""
    return {
        "timestamp": "2025-10-06T12:34:56.789", "model_name": CONFIG["model"], "config_name": "dreams_it",
        "prompt_group": "dreams", "prompt_id": row["prompt_id"], "prompt_text": row["prompt_text"],
        "output": f"user\n{row['prompt_text'].strip()}\nmodel\nAn old answer.\nOf two lines.",
        "std_dev": row["level_value"], "level_value": row["level_value"], "level_index": row["level_index"],
        "repeat_index": row["repeat_index"], "param_group_name": row["param_group_name"],
        "degradation_method": row["degradation_method"], "seed": 42, "duration": 1.5, "tokens": 30, "tokens_out": 30,
        "tokens_in": 9, "model_variant": "it", "device": "cuda:0", "dtype": "float32", "load_4bit": False,
        "gen_params": {"temperature": 1.0, "do_sample": True, "max_new_tokens": 350},
        "restore_strategy": "subset_in_memory", "batch_size_effective": 38, "vram_usage_percent": 61.0,
        "image_used": False,
    } | changes  # fmt: skip


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path, *NAMES, config_fields=CONFIG, manifest={}) as opened:
        yield opened


def adopt(tmp_path, store, old, plan):
    file = tmp_path / "old.json"
    file.write_text(json.dumps(old), encoding="utf-8")
    return adopt_legacy(read_legacy(file), file, store, plan)


def test_rows_are_adopted_by_the_original_key(tmp_path, store):
    rows = [make_row(prompt, repeat, 1, levels=LEVELS) for repeat in (0, 1) for prompt in (1, 2)]
    old = [
        old_row(rows[0], std_dev=0.1000001),  # equal to two decimals
        old_row(rows[1], prompt_text=f"  {rows[1]['prompt_text']}\n"),  # spaces around do not count
        old_row(rows[2], prompt_id=77),  # nor does the place in the list
        old_row(rows[3], prompt_text="Another question."),
        old_row(rows[0], param_group_name="mlp_only"),
        old_row(rows[0]),  # there already
    ]
    assert adopt(tmp_path, store, old, planned(*rows)) == LegacyCount(adopted=3, known=1, unmatched=2)
    assert set(store.finished) == {row["row_key"] for row in rows[:3]}
    assert adopt(tmp_path, store, old, planned(*rows)) == LegacyCount(adopted=0, known=4, unmatched=2)
    store.export()
    first = json.loads(store.files.json_path.read_text(encoding="utf-8"))[0]
    assert first["completion"] == "An old answer.\nOf two lines." and first["output"] == old[0]["output"]
    wanted = {
        "sampler": "legacy",
        "status": "ok",
        "attempt": 1,
        "temperature": 1.0,
        "do_sample": True,
        "usar_4bit": False,
        "timestamp": "2025-10-06T12:34:56.789",
        "tokens": 30,
        "tokens_generated": None,
        "finish_reason": None,
        "std_dev": 0.1,
        "degrad_level": 0.1,
        "is_baseline": False,
        "device": "cuda:0",
        "prompt_id": 1,
    }
    assert {name: first[name] for name in wanted} == wanted
    assert [row["prompt_id"] for row in store.rows()] == [1, 2, 1]


def test_levels_closer_than_two_decimals_go_to_the_nearest(tmp_path, store):
    rows = [make_row(1, 0, index, levels=LEVELS) for index in (2, 3)]  # 0.125 and 0.13 are both 0.13 or 0.12 there
    assert round(0.126, 2) == round(0.13, 2)
    plan = planned(make_row(1, 0, 2, levels=(0, 0, 0.126)), rows[1])
    assert adopt(tmp_path, store, [old_row(rows[1], std_dev=0.127)], plan).adopted == 1
    assert [row["level_value"] for row in store.rows()] == [0.126]


def test_the_baseline_and_rows_of_other_levels(tmp_path, store):
    row = make_row(1, 0, 0, levels=LEVELS)
    assert adopt(tmp_path, store, [old_row(row), old_row(row, std_dev=64)], planned(row)) == LegacyCount(1, 0, 1)
    assert next(store.rows())["is_baseline"] is True


def test_rows_of_another_model_are_refused_and_nothing_is_written(tmp_path, store):
    rows = [make_row(1), make_row(2)]
    with pytest.raises(ValueError, match=r"row 1 is of the model 'org/other', the experiment of 'org/tiny'"):
        adopt(tmp_path, store, [old_row(rows[0]), old_row(rows[1], model_name="org/other")], planned(*rows))
    with pytest.raises(ValueError, match="row 0 has no text in 'output'"):
        adopt(tmp_path, store, [old_row(rows[0], output=None)], planned(*rows))
    assert store.finished == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is no JSON"),
        ('{"a": 1}', "list of rows"),
        ("[1]", "list of rows"),
        ("[null, {}]", "list of rows"),
        ("[" * 100_000, "is no JSON"),
        ("[" + "1" * 5000 + "]", "is no JSON"),
        ("", "no JSON"),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    (tmp_path / "old.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_legacy(tmp_path / "old.json")


DEEP = json.loads("[" * 400 + "]" * 400)
ODD = [
    *(("std_dev", value) for value in ("0.1", [0.1], float("nan"), float("inf"), 10**400, True)),
    *(("level_value", value) for value in ("0.1", {}, float("nan"))),
    *(("repeat_index", value) for value in ([0], -1, 0.5, "0", 10**400)),
    *(("param_group_name", value) for value in (["attn_only"], 3, "half \ud800")),
    ("degradation_method", {}),
    ("prompt_text", 5),
    ("prompt_text", ["a"]),
    ("model_name", ["org/tiny"]),
    ("gen_params", [1]),
    ("gen_params", "x"),
    ("gen_params", {"temperature": DEEP}),
    ("batch_shape", DEEP),
    ("perplexity", -1),
    ("mean_logprob", "x"),
]
# told as soon as a row is one of those planned
ODD_IN_A_MATCH = [
    ("tokens", "30"),
    ("tokens", -1),
    ("device", 5),
    ("timestamp", DEEP),
    ("image_used", "no"),
    ("gen_params", {"temperature": "hot"}),
    ("duration", "1"),
    ("output", 5),
    ("dtype", {}),
    ("usar_4bit", 3),
]


@pytest.mark.parametrize(("field", "value"), ODD, ids=lambda value: ascii(value)[:40])
@pytest.mark.parametrize("place", [0, 1])
def test_an_odd_field_of_any_row_is_named_and_nothing_is_written(field, value, place, tmp_path, store):
    row, strange = make_row(1), old_row(make_row(2), param_group_name="of no plan")
    rows = [old_row(row), strange]
    rows[place] = {**rows[place], field: value}
    with pytest.raises(ValueError, match=rf"row {place} has {field}=.*must be") as refused:
        adopt(tmp_path, store, rows, planned(row))
    assert len(str(refused.value)) < 500 and not store.finished


@pytest.mark.parametrize(("field", "value"), ODD_IN_A_MATCH, ids=lambda value: ascii(value)[:40])
def test_an_odd_field_of_a_row_to_adopt_is_named_and_nothing_is_written(field, value, tmp_path, store):
    rows = [make_row(1), make_row(2)]
    old = [old_row(rows[0]), {**old_row(rows[1]), field: value}]
    with pytest.raises(ValueError, match=rf"row 1\b.*({field}|temperature|load_4bit)") as refused:
        adopt(tmp_path, store, old, planned(*rows))
    assert len(str(refused.value)) < 500 and not store.finished


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_other_encodings_of_json_are_read(encoding, tmp_path, store):
    row = make_row(1)
    file = tmp_path / "old.json"
    file.write_bytes(json.dumps([old_row(row)]).encode(encoding))
    assert adopt_legacy(read_legacy(file), file, store, planned(row)).adopted == 1


@pytest.mark.parametrize(
    ("output", "completion"),
    [
        ("user\nWhy?\nmodel\nBecause.", "Because."),
        ("Why? Because.", "Because."),
        ("user\nWhy?\n\nmodel\n", ""),
        ("Why?\nmodels are\nfine", "models are\nfine"),
        ("The prompt is gone.", "The prompt is gone."),
    ],
)
def test_the_answer_is_what_follows_the_prompt(output, completion):
    assert completion_of(output, " Why? ") == completion
