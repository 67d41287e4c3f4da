"""Several processes write into one experiment's files."""

import pytest

from frankenlm.degradation.errors import ExperimentLocked
from frankenlm.degradation.records.journal import read_rows
from record_rows import lesion, make_row
from store_files import ROWS, exported, open_store, paths, shape


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_export_is_the_same_whatever_the_world_size(tmp_path, world_size):
    groups = ("mlp_only", "attn_only")
    rows = [make_row(p, r, k, group=g) for g in groups for k in range(3) for r in range(2) for p in (1, 2, 3)]
    cells = [rows[start : start + 3] for start in range(0, len(rows), 3)]
    stores = [open_store(tmp_path, rank=rank, world_size=world_size) for rank in range(world_size)]
    for index in reversed(range(len(cells))):
        opened, first = stores[index % world_size], cells[index][0]
        opened.append(cells[index])
        opened.append_lesion(lesion(first["level_index"], first["repeat_index"], first["param_group_name"]))
    # two ranks may both have done a cell
    stores[-1].append(cells[0])
    stores[0].export()
    expected = sorted(rows, key=lambda r: (r["param_group_name"], r["level_index"], r["repeat_index"], r["prompt_id"]))
    assert shape(exported(stores[0])) == shape(expected)
    lesions = read_rows(stores[0].files.journal_dir / "lesions.jsonl")
    assert [(r["group"], r["level_index"], r["repeat_index"]) for r in lesions] == [
        (g, k, r) for g in sorted(groups) for k in range(3) for r in range(2)
    ]
    with pytest.raises(RuntimeError, match="rank 0 does"):
        stores[-1].export() if world_size > 1 else open_store(tmp_path, rank=1).export()
    for opened in stores:
        opened.close()


def test_three_ranks_then_one(tmp_path):
    stores = [open_store(tmp_path, rank=rank, world_size=3) for rank in range(3)]
    for index, row in enumerate(ROWS[:9]):
        stores[index % 3].append([row])
    for opened in stores:
        opened.close()
    # rank 2 was killed inside a write; rank 0 of the next run repairs its file
    torn = paths(tmp_path)[1] / "rank-00002.jsonl"
    torn.write_bytes(torn.read_bytes()[:-10])
    with open_store(tmp_path) as opened:
        assert set(opened.finished) == {row["row_key"] for row in ROWS[:8]}
        opened.append(ROWS[8:])
        opened.export()
        assert shape(exported(opened)) == shape(ROWS)
    assert torn.with_name("rank-00002.jsonl.torn").exists()


def test_a_forced_attempt_of_one_rank_beats_the_first_of_another(tmp_path):
    with open_store(tmp_path) as first, open_store(tmp_path, rank=1, world_size=2) as second:
        second.append([make_row(1), make_row(2)])
        first.refresh()
        first.append([make_row(1, completion="forced")])
    with open_store(tmp_path) as opened:  # rank 0's file is read first, the older rows after it
        assert opened.finished == {make_row(1)["row_key"]: 2, make_row(2)["row_key"]: 1}
        assert [(row["completion"] == "forced", row["rank"]) for row in opened.rows()] == [(True, 0), (False, 1)]


def test_a_rank_sees_what_the_others_have_done(tmp_path):
    with open_store(tmp_path) as first, open_store(tmp_path, rank=1, world_size=2) as second:
        second.append(ROWS[:2])
        assert first.finished == {}
        first.refresh()
        assert first.finished == second.finished != {}


def test_ranks_beyond_the_first_need_it(tmp_path):
    with pytest.raises(RuntimeError, match="before rank 0 was done"):
        open_store(tmp_path, rank=1, world_size=2)


def test_a_rank_of_an_earlier_run_that_still_writes_is_noticed(tmp_path):
    first, second = open_store(tmp_path), open_store(tmp_path, rank=1, world_size=2)
    second.append(ROWS[:1])
    first.close()
    with pytest.raises(ExperimentLocked, match="rank-00001.jsonl is being written"):
        open_store(tmp_path)
    second.close()
    open_store(tmp_path).close()


def test_a_cell_is_claimed_once_a_run(tmp_path):
    with open_store(tmp_path) as first, open_store(tmp_path, rank=1, world_size=2) as second:
        assert first.claims.take("attn_only|0.1|0") and not second.claims.take("attn_only|0.1|0")
        assert second.claims.take("attn_only|0.1|1") and not second.claims.take("attn_only|0.1|1")
    with open_store(tmp_path) as again:
        assert again.claims.take("attn_only|0.1|0")


def test_cells_are_the_last_of_each(tmp_path):
    cell = {
        "param_group_name": "g",
        "degradation_method": "m",
        "level_value": None,
        "level_index": 0,
        "repeat_index": 0,
    }
    with open_store(tmp_path) as first, open_store(tmp_path, rank=1, world_size=2) as second:
        first.append_cell(cell | {"perplexity": 1.0})
        second.append_cell(cell | {"level_value": 4, "level_index": 1, "perplexity": 2.0})
        first.append_cell(cell | {"perplexity": float("inf")})
        assert [record["perplexity"] for record in first.cells()] == [None, 2.0]


def test_the_record_of_the_last_run_counts_whichever_rank_wrote_it(tmp_path):
    cell = {"param_group_name": "g", "degradation_method": "m", "level_value": 0.1, "level_index": 0, "repeat_index": 0}
    with open_store(tmp_path) as first, open_store(tmp_path, rank=1, world_size=2) as second:
        second.append_cell(cell | {"rows": 0})
        second.append_cell(cell | {"rows": 3})
        first.refresh()
        first.append_cell(cell | {"level_index": 4, "rows": 3})  # renumbered
    with open_store(tmp_path) as opened:
        assert [(record["level_index"], record["rows"]) for record in opened.cells()] == [(4, 3)]
        opened.append_cell(cell | {"level_index": 5, "rows": 7})
        assert [(record["level_index"], record["rows"]) for record in opened.cells()] == [(5, 7)]
