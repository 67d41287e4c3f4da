"""Data of every kind of file, rows that are bad, and what is skipped and counted."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frankenlm.trainer_ext.data import skipping
from frankenlm.trainer_ext.data.rows import Row, read_rows
from frankenlm.trainer_ext.data.sources import find_sources
from frankenlm.trainer_ext.data.splits import BadRowError, iter_texts, load_documents, load_splits, skipped_rows

DEEP = "[" * 100_000


@pytest.fixture(autouse=True)
def fresh_counters(monkeypatch):
    monkeypatch.setattr(skipping, "_counters", {})


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts_of(path, *columns):
    return [(row.text, row.label) if columns[1:] else row.text for row in read_rows(path, columns or ["text"])]


@pytest.fixture
def load(tmp_path):
    def texts(spec, **options):
        return list(iter_texts(load_documents(str(spec), cache_dir=tmp_path / "cache", **options)))

    return texts


RECORDS = [{"text": "one\n\ntwo", "label": "a"}, {"text": "thrée", "label": "b"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(RECORDS)),
        ("a.json", "\ufeff" + json.dumps(RECORDS, indent=1)),
        ("a.json", json.dumps({"version": 1, "tags": ["x"], "data": RECORDS})),
        ("a.json", json.dumps({"text": ["one\n\ntwo", "thrée"], "label": ["a", "b"]})),
        ("a.json", "".join(json.dumps(record) + "\n" for record in RECORDS)),
        ("a.jsonl", "\r".join(json.dumps(record) for record in RECORDS)),
        ("a.csv", 'id,text,label\r\n1,"one\n\ntwo",a\r\n2,thrée,b\r\n'),
        ("a.csv", '\ufefftext,label\n"one\n\ntwo",a\n\nthrée,"b"'),
        ("a.tsv", 'label\ttext\na\t"one\n\ntwo"\nb\tthrée\n'),
    ],
)
def test_kinds_of_files(tmp_path, name, content):
    plain = write(tmp_path / name, content)
    packed = write(tmp_path / f"{name}.gz", gzip.compress(content.encode(), mtime=0))
    for path in (plain, packed):
        assert texts_of(path, "text", "label") == [("one\n\ntwo", "a"), ("thrée", "b")]


def test_one_object_is_one_record(tmp_path):
    assert texts_of(write(tmp_path / "a.json", '{\n"text": "alone"\n}')) == ["alone"]


def test_a_document_may_be_longer_than_csv_expects(tmp_path):
    assert texts_of(write(tmp_path / "a.csv", f'text\n"{"long " * 100_000}"\n')) == ["long " * 100_000]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1]", "record 1: a JSON object is expected, not int"),
        (
            "a.json",
            '[{"text": "x"}, {"text": null}]',
            r"record 2: column 'text' holds nothing \(null\).*--skip_bad_rows",
        ),
        ("a.json", "{}", "has no list of objects"),
        ("a.json", '{"a": [{}], "b": [{}]}', "lists of objects under 'a', 'b'"),
        ("a.json", '{"text": ["a"], "x": 1', r"a\.json: not JSON"),
        ("a.json", DEEP, r"a\.json: JSON nested too deep"),
        ("a.jsonl", DEEP, r"a\.jsonl, line 1: JSON nested too deep"),
        ("a.jsonl", '{"text": 1' + "0" * 5000 + "}", r"a\.jsonl, line 1: not usable JSON"),
        ("a.json", "3", "a list of objects is expected, not int"),
        ("a.csv", "txt,label\nx,y\n", r"a\.csv: no column 'text'\. Did you mean 'txt'\? Columns: txt, label"),
        ("a.csv", "text;label\nx;y\n", "The columns seem to be separated by ';'"),
        ("a.csv", "text,label\nx,y\nx\n", "line 3: 1 fields, and the first line names 2"),
        ("a.csv", 'text\n"x', "line 2: not a record"),
        ("a.csv", b"text\nx\ncaf\xe9\n", r"a\.csv, line 3: not UTF-8 \(byte 0xe9\)"),
        ("a.csv", "text\nx\n".encode("utf-16"), "UTF-16, not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-9], r"a\.jsonl\.gz: damaged or cut off"),
        ("a.jsonl.zst", b"junk", r"a\.jsonl\.zst: damaged or cut off"),
        ("a.parquet", b"", r"a\.parquet is empty"),
        ("a.jsonl", gzip.compress(b'{"text": "x"}', mtime=0), r"a\.jsonl: holds no text but \.gz data"),
        ("a.txt", b"PK\x03\x04 and so on", r"a\.txt: holds no text but \.zip data"),
        ("a.csv", "text,text\nx,y\n", "2 columns have the name 'text'"),
        ("a.parquet.gz", gzip.compress(b"x", mtime=0), "unknown file type"),
        ("a.gz", gzip.compress(b"x", mtime=0), "unknown file type"),
    ],
)
def test_bad_files(tmp_path, load, name, content, message, streaming):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        load(path, streaming=streaming)
    assert "\n" not in str(caught.value) and path in str(caught.value)


def test_damaged_parquet(tmp_path, load):
    pq.write_table(pa.table({"text": [str(i) * 50 for i in range(5000)]}), tmp_path / "a.parquet", compression="zstd")
    whole = (tmp_path / "a.parquet").read_bytes()
    middle = bytearray(whole)
    middle[2000:2100] = bytes(100)
    for damaged in (whole[:-20], whole[: len(whole) // 2], bytes(middle)):
        write(tmp_path / "a.parquet", damaged)
        with pytest.raises(ValueError, match=r"a\.parquet: not a readable Parquet file") as caught:
            load(tmp_path / "a.parquet")
        assert "\n" not in str(caught.value)


def test_text_in_parquet_that_is_not_utf8(tmp_path, load):
    text = pa.array([b"one", b"caf\xe9", b"two"]).cast(pa.binary()).view(pa.binary())
    column = pa.StringArray.from_buffers(3, text.buffers()[1], text.buffers()[2])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(BadRowError, match=r"a\.parquet, row 2: not UTF-8"):
        load(tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet", skip_bad_rows=True) == ["one", "two"]


def test_parquet_with_two_columns_of_one_name(tmp_path, load):
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="2 columns have the name 'text'"):
        load(tmp_path / "a.parquet")


# --- skipped rows

BAD_LINES = ['{"text": null}', "{broken", '["x"]', '{"txt": "x"}', '{"text": 7}', '{"text": "\\ud800"}', "[" * 100_000]


def mixed(path, bad=BAD_LINES, good=40):
    lines = [json.dumps({"text": f"a good line with the number {i}"}) for i in range(good)]
    for place, line in enumerate(bad):
        lines.insert(3 * place + 1, line)
    return write(path, "\n".join(lines).encode() + b'\n{"text": "caf\xe9"}\n')


@pytest.mark.parametrize("streaming", [False, True])
def test_bad_rows_are_skipped_and_counted(tmp_path, load, streaming, caplog):
    path = mixed(tmp_path / "a.jsonl")
    assert load(path, skip_bad_rows=True, streaming=streaming) == [
        f"a good line with the number {i}" for i in range(40)
    ]
    assert skipped_rows() == len(BAD_LINES) + 1
    told = [record.message for record in caplog.records if "a bad row is left out" in record.message]
    assert len(told) == 3 and f"{path}, line 2: column 'text' holds nothing" in told[0]
    if not streaming:
        assert f"{len(BAD_LINES) + 1} bad row(s) are left out" in caplog.text


def test_the_count_is_known_when_the_data_comes_from_the_cache(tmp_path, load, monkeypatch, caplog):
    path = mixed(tmp_path / "a.jsonl")
    load(path, skip_bad_rows=True)
    monkeypatch.setattr(skipping, "_counters", {})
    caplog.clear()
    load(path, skip_bad_rows=True)
    assert skipped_rows() == len(BAD_LINES) + 1
    assert f"{len(BAD_LINES) + 1} bad row(s) are left out" in caplog.text
    with pytest.raises(BadRowError, match="line 2"):  # without the flag the cache of the other is not used
        load(path)


def test_rows_read_more_than_once_count_once(tmp_path, caplog):
    path = mixed(tmp_path / "a.jsonl")
    splits = load_splits(path, skip_bad_rows=True, streaming=True)
    for _ in range(2):
        assert sum(len(list(iter_texts(split))) for split in splits.values()) == 40
    assert len([record for record in caplog.records if "a bad row is left out" in record.message]) == 3
    assert skipped_rows() == len(BAD_LINES) + 1


def test_nothing_but_bad_rows_is_an_error(tmp_path, load):
    with pytest.raises(BadRowError, match=r"every row is bad; the first: .*line 1: column 'text' holds nothing"):
        load(write(tmp_path / "a.jsonl", '{"text": null}\n' * 5), skip_bad_rows=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b'text,label\none,1\ntwo\n"x"y,2\ncaf\xe9,3\nthree,4\n'),
        ("a.txt", b"one\ncaf\xe9\nthree\n"),
        ("a.json", b'[{"text": "one"}, {"text": null}, 5, {"text": "three"}]'),
    ],
)
def test_bad_rows_of_other_kinds(tmp_path, load, name, content):
    path = write(tmp_path / name, content)
    assert load(path, skip_bad_rows=True) == ["one", "three"]
    with pytest.raises(BadRowError, match="--skip_bad_rows"):
        load(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_null_rows_of_parquet_and_hub(tmp_path, load, streaming, monkeypatch):
    table = pa.table({"text": ["one", None, "three"]})
    pq.write_table(table, tmp_path / "a.parquet")
    hub = datasets.Dataset(table)
    split = hub.to_iterable_dataset() if streaming else hub
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: {"train": split})
    for spec in (str(tmp_path / "a.parquet"), "owner/name"):
        with pytest.raises(BadRowError, match=r"row 2: column 'text' holds nothing \(null\)"):
            load(spec, streaming=streaming)
        assert load(spec, streaming=streaming, skip_bad_rows=True) == ["one", "three"]
    assert skipped_rows() == 2


def test_a_late_bad_row_of_a_stream_names_file_and_line(tmp_path):
    lines = [json.dumps({"text": f"line {i} of a long stream of text"}) for i in range(2600)]
    lines.insert(2500, '{"text": null}')
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    train = load_splits(path, streaming=True)["train"]
    read = 0
    with pytest.raises(BadRowError, match=rf"{path}, line 2501: column 'text' holds nothing"):
        for _ in iter_texts(train):
            read += 1
    assert read > 1000


def test_labels_that_are_missing_are_bad_rows(tmp_path):
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(40)] + [{"text": "x", "label": None}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    splits = load_splits(path, label_column="label", skip_bad_rows=True, cache_dir=tmp_path / "cache")
    assert sum(map(len, splits.values())) == 40


# --- what --dataset may say


@pytest.mark.parametrize("spec", ["", " ", "\t"])
def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch, spec):
    write(tmp_path / "a.txt", "one\ntwo\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is empty: give 'builtin', a hub name, or a file, folder or glob"):
        load_splits(spec)
    with pytest.raises(ValueError, match="is empty"):
        load_splits("a.txt", validation=spec)
    assert sorted(texts for split in load_splits(".", cache_dir="cache").values() for texts in iter_texts(split)) == [
        "one",
        "two",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_column": ""}, "text_column='' is empty"),
        ({"label_column": ""}, "label_column='' is empty"),
        ({"cache_dir": ""}, "cache_dir='' is empty"),
        ({"max_documents": 0}, "max_documents=0 must be at least"),
        ({"max_documents": -1}, "max_documents=-1 must be at least"),
        ({"join_articles": "maybe"}, "join_articles='maybe' is not known"),
    ],
)
def test_values_that_are_mistakes(tmp_path, options, message):
    path = write(tmp_path / "a.txt", "one\ntwo\n")
    for read in (load_splits, load_documents):
        with pytest.raises(ValueError, match=message):
            read(path, **options)


def test_places_that_are_no_files(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"folder\.jsonl' holds no"):
        find_sources(str(tmp_path / "folder.jsonl"), "train")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="does not exist"):
        find_sources(str(tmp_path / "gone.jsonl"), "train")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        find_sources("/dev/null", "train")
    with pytest.raises(ValueError, match="dataset '~nobody-of-this-name/x'"):
        find_sources("~nobody-of-this-name/x", "train")


def test_notes_beside_data_are_no_data(tmp_path, load):
    write(tmp_path / "d" / "a.jsonl", '{"text": "one"}\n')
    write(tmp_path / "d" / "notes.json", '{"about": "it"}')
    assert load(tmp_path / "d") == ["one"]
    write(tmp_path / "e" / "a.json", '[{"text": "two"}]')
    write(tmp_path / "e" / "dataset_info.json", "{}")
    assert load(tmp_path / "e") == ["two"]


def test_a_packed_twin_is_not_read_twice(tmp_path, load):
    write(tmp_path / "d" / "a.jsonl", '{"text": "one"}\n')
    write(tmp_path / "d" / "a.jsonl.gz", gzip.compress(b'{"text": "one"}\n', mtime=0))
    with pytest.raises(ValueError, match=r"mixes \.jsonl and \.jsonl\.gz"):
        load(tmp_path / "d")


def test_the_way_out_fits_the_mistake(tmp_path, load):
    misspelt = write(tmp_path / "a.jsonl", '{"txt": "x"}\n' * 3)
    with pytest.raises(ValueError, match="no column 'text'") as caught:
        load(misspelt)
    assert "skip_bad_rows" not in str(caught.value)
    late = write(tmp_path / "b.jsonl", '{"text": "x"}\n{"txt": "x"}\n')
    with pytest.raises(BadRowError, match=r"line 2: no column 'text'.*\(--skip_bad_rows leaves such rows out"):
        load(late)


def test_a_limit_beyond_all_counting_is_none(tmp_path, load):
    assert load(write(tmp_path / "a.txt", "one\ntwo\n"), max_documents=10**30) == ["one", "two"]


def test_a_text_without_words_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "text,b\n")
    with pytest.raises(ValueError, match=rf"'{path}' has no text"):
        load_splits(path, cache_dir=tmp_path / "cache")


def test_rows_have_their_places(tmp_path):
    path = write(tmp_path / "a.csv", 'text\n"one\ntwo"\nthree\n')
    assert list(read_rows(path, ["text"])) == [
        Row("one\ntwo", None, f"{path}, line 2"),
        Row("three", None, f"{path}, line 4"),
    ]
