"""An experiment's files: what is appended is finished, another configuration is refused, extensions fit in."""

import json
import os

import pytest

from frankenlm.degradation.errors import ConfigConflict, ExperimentLocked
from frankenlm.degradation.records.export_again import export_command
from frankenlm.degradation.records.journal import read_rows
from frankenlm.degradation.records.row_keys import ROW_FIELDS
from frankenlm.degradation.records.store import Store
from record_rows import CONFIG, NAMES, lesion, make_row
from store_files import ROWS, exported, open_and_count, open_store, paths, shape

# --- the plain way


def test_what_is_appended_is_finished_and_exported(tmp_path):
    with open_store(tmp_path) as opened:
        assert opened.finished == {}
        opened.append(ROWS[:3])
        assert opened.finished == {row["row_key"]: 1 for row in ROWS[:3]}
    with open_store(tmp_path) as opened:
        opened.append(list(reversed(ROWS[3:])))
        assert opened.export() == paths(tmp_path)[0]
        rows = exported(opened)
    assert shape(rows) == shape(ROWS) and list(rows[0]) == list(ROW_FIELDS)
    assert set(tmp_path.iterdir()) == set(paths(tmp_path))


def test_names_become_file_names(tmp_path):
    names = ("mult_gauss", "org/mo|del", 'a:b\\c"?')
    with Store.open(tmp_path, *names, config_fields=CONFIG, manifest={}) as opened:
        opened.export()
        assert opened.files.json_path.name == "outputs_mult_gauss_org-mo-del_a-b-c--.json"
    with pytest.raises(ConfigConflict, match=r'name_suffix: .* -> "a-b-c--"'):
        Store.open(tmp_path, "mult_gauss", "org/mo|del", "a-b-c--", config_fields=CONFIG, manifest={})


def test_rows_that_break_the_contract_are_refused_whole(tmp_path):
    with open_store(tmp_path) as opened:
        with pytest.raises(ValueError, match="completion"):
            opened.append([ROWS[0], ROWS[1] | {"completion": None}])
        with pytest.raises(ValueError, match="same row_key"):
            opened.append([ROWS[0], ROWS[0]])
        with pytest.raises(ValueError, match="lesions lacks level_index"):
            opened.append_lesion({name: value for name, value in lesion().items() if name != "level_index"})
        assert opened.finished == {}


def test_failed_rows_are_tried_again_and_the_highest_attempt_is_shown(tmp_path):
    with open_store(tmp_path) as opened:
        opened.append([make_row(1, status="oom", completion=""), make_row(2, status="nan_logits")])
        opened.append([make_row(3, status="error", completion="")])
        assert list(opened.finished) == [make_row(2)["row_key"]]
    with open_store(tmp_path) as opened:
        opened.append([make_row(1), make_row(3, status="oom")])
        opened.append([make_row(3), make_row(2, completion="forced")])  # as force_run does
        assert opened.finished == {make_row(n)["row_key"]: attempt for n, attempt in ((1, 2), (2, 2), (3, 3))}
        opened.export()
        rows = exported(opened)
    assert [(row["attempt"], row["status"]) for row in rows] == [(2, "ok"), (2, "ok"), (3, "ok")]
    assert rows[1]["completion"] == "forced"
    assert len(read_rows(paths(tmp_path)[1] / "rank-00000.jsonl")) == 7  # the journal keeps all


def test_the_manifest_keeps_every_kind_of_run_once(tmp_path):
    for versions in ("2", "2", "3"):
        Store.open(tmp_path, *NAMES, config_fields=CONFIG, manifest={"torch": versions}).close()
    manifest = json.loads((paths(tmp_path)[1] / "manifest.json").read_text())
    assert [run["manifest"] for run in manifest["runs"]] == [{"torch": "2"}, {"torch": "3"}]
    assert manifest["config_fields"] == CONFIG


# --- another configuration


def test_a_changed_configuration_stops_with_the_differences(filled):
    changed = CONFIG | {"temperature": 0.7, "top_p": 0.9}
    with pytest.raises(ConfigConflict) as caught:
        open_store(filled, changed)
    assert 'temperature: 1.0 -> 0.7, top_p: "(not there)" -> 0.9' in str(caught.value)
    assert "top_k" not in str(caught.value) and "\n" not in str(caught.value)
    assert len(open_and_count(filled)) == 18  # and it is free again


@pytest.mark.parametrize("field", sorted(CONFIG))
def test_every_field_counts(filled, field):
    with pytest.raises(ConfigConflict, match=field):
        open_store(filled, CONFIG | {field: 99})


def test_new_suffix_finds_its_place_again(filled):
    changed, third = CONFIG | {"temperature": 0.7}, CONFIG | {"temperature": 0.5}
    with open_store(filled, changed, on_conflict="new-suffix") as opened:
        assert opened.files.suffix == "test-2" and opened.finished == {}
        opened.append([make_row(config=changed)])
        with open_store(filled, changed, on_conflict="new-suffix", rank=1, world_size=2) as other:
            assert other.files.suffix == "test-2"
    with open_store(filled, third, on_conflict="new-suffix") as opened:
        assert opened.files.suffix == "test-3"
    with open_store(filled, changed, on_conflict="new-suffix") as opened:
        assert opened.files.suffix == "test-2" and len(opened.finished) == 1
    assert len(open_and_count(filled)) == 18


def test_archive_moves_everything_out_of_the_way(filled, caplog):
    json_path, folder = paths(filled)
    before = json_path.read_bytes()
    with open_store(filled, CONFIG | {"temperature": 0.7}, on_conflict="archive") as opened:
        assert opened.finished == {} and opened.files.suffix == "test"
        with pytest.raises(ExperimentLocked):
            open_store(filled, CONFIG | {"temperature": 0.7})
        opened.export()
    (old,) = set(filled.glob("*.journal")) - {folder}
    assert old.name in caplog.text and old.name.startswith("outputs_mult_gauss_tiny_test.archived-")
    assert old.with_suffix(".json").read_bytes() == before
    assert export_command(old) == old.with_suffix(".json")
    assert old.with_suffix(".json").read_bytes() == before


def test_an_archive_that_was_killed_half_way_goes_on(filled, monkeypatch):
    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", kill)
    with pytest.raises(KeyboardInterrupt):
        open_store(filled, CONFIG | {"top_k": 1}, on_conflict="archive")
    monkeypatch.undo()
    open_store(filled, CONFIG | {"top_k": 1}, on_conflict="archive").close()
    assert len(list(filled.glob("*archived*.json"))) == len(list(filled.glob("*archived*.journal"))) == 1


def test_an_unknown_on_conflict(tmp_path):
    with pytest.raises(ValueError, match="on_conflict='ask' is not known"):
        open_store(tmp_path, on_conflict="ask")


# --- extensions


def test_more_repeats_add_exactly_their_rows(filled):
    plan = [make_row(prompt, repeat, level) for level in range(3) for repeat in range(4) for prompt in (1, 2, 3)]
    with open_store(filled) as opened:
        missing = [row for row in plan if row["row_key"] not in opened.finished]
        assert len(missing) == 18 and {row["repeat_index"] for row in missing} == {2, 3}
        opened.append(missing)
        opened.export()
        assert shape(exported(opened)) == shape(plan)


def test_an_inserted_prompt_and_an_inserted_level_shift_the_others(filled):
    """Rows that exist keep their keys and get the numbers that they would have had from the start."""
    levels = (0.0, 0.05, 0.1, 0.2)
    texts = {1: "A new one.", 2: ROWS[0]["prompt_text"], 3: ROWS[1]["prompt_text"], 4: ROWS[2]["prompt_text"]}
    plan = [
        make_row(prompt, repeat, level, text=text, levels=levels)
        for level in range(4)
        for repeat in range(2)
        for prompt, text in texts.items()
    ]
    numbers = {row["row_key"]: (row["level_index"], row["prompt_id"]) for row in plan}
    with open_store(filled) as opened:
        missing = [row for row in plan if row["row_key"] not in opened.finished]
        assert len(missing) == 32 - 18
        assert opened.renumber(numbers) == 18
        assert opened.renumber(numbers) == 0
        opened.append(missing)
        opened.export()
        assert shape(exported(opened)) == shape(plan)


def test_equal_prompts_and_near_levels_are_kept_apart(tmp_path):
    rows = [
        make_row(n, text="Same.", occurrence=n - 1, levels=(0.025, 0.03), level_index=k) for k in (0, 1) for n in (1, 2)
    ]
    with open_store(tmp_path) as opened:
        opened.append(rows)
        opened.export()
        assert [(row["level_value"], row["prompt_id"]) for row in exported(opened)] == [
            (0.025, 1),
            (0.025, 2),
            (0.03, 1),
            (0.03, 2),
        ]
