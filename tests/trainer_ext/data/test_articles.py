"""WikiText as articles: from files, rows and shards, streamed or not; one text; what held-out text may take away."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frankenlm.modeling import byte_tokenizer
from frankenlm.trainer_ext.data.articles import as_lines, is_heading, is_title, looks_like_articles
from frankenlm.trainer_ext.data.splits import iter_texts, load_documents, load_splits, prepare_dataset

# As in WikiText's raw files: every line begins with a space and ends with one, blank lines are a space.
NORTH = (
    " = North = \n \n North is a direction . \n It is up on maps . \n \n = = Use = = \n \n Sailors steer by it . \n \n"
)
SOUTH = " = South = \n \n South is the other one . \n \n = = Use = = \n \n Birds fly there in winter . \n \n"
EAST = " = East = West = \n \n The sun rises there . \n \n = = = Deep = = = \n \n x = y = z \n \n"
ARTICLES = [NORTH, SOUTH, EAST]
RAW = " \n" + "".join(ARTICLES)
# As in the hub's Parquet: a row a line, blank ones emptied.
ROWS = ["" if line == " \n" else line for line in RAW.splitlines(keepends=True)]


def as_txt(folder, name):
    (folder / f"{name}.txt").write_text(RAW, encoding="utf-8")


def as_gz(folder, name):
    (folder / f"{name}.txt.gz").write_bytes(gzip.compress(RAW.encode()))


def as_jsonl(folder, name):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS), encoding="utf-8")


def as_parquet(folder, name):
    pq.write_table(pa.table({"text": ROWS}), folder / f"{name}.parquet")


def as_shards(folder, name):
    for number, (start, end) in enumerate(((0, 11), (11, 14), (14, None))):
        pq.write_table(pa.table({"text": ROWS[start:end]}), folder / f"{name}-{number:05}-of-00003.parquet")


WRITERS = [as_txt, as_gz, as_jsonl, as_parquet, as_shards]


@pytest.fixture
def load(tmp_path):
    def texts(spec, **options):
        return list(iter_texts(load_documents(str(spec), cache_dir=tmp_path / "cache", **options)))

    return texts


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "d").mkdir()
    return tmp_path / "d"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", WRITERS)
def test_lines_become_articles(folder, load, write, streaming, caplog):
    caplog.set_level("INFO", logger="frankenlm")
    write(folder, "a")
    assert load(folder, streaming=streaming) == ARTICLES
    told = [record.message for record in caplog.records if "joined into articles" in record.message]
    assert len(told) == 1 and "--join_articles no" in told[0]
    assert load(folder, streaming=streaming, join_articles="yes") == ARTICLES
    assert load(folder, streaming=streaming, one_text=True) == [RAW]


@pytest.mark.parametrize("suffix", ["raw", "tokens"])
def test_the_files_as_wikitext_names_them(folder, load, tmp_path, suffix):
    for name, text in (("train", NORTH + SOUTH), ("valid", EAST + SOUTH), ("test", EAST + NORTH)):
        (folder / f"wiki.{name}.{suffix}").write_text(text)
    assert load(folder / f"wiki.test.{suffix}") == [EAST, NORTH]
    splits = load_splits(str(folder), cache_dir=tmp_path / "cache")
    assert {name: list(iter_texts(split)) for name, split in splits.items()} == {
        "train": [NORTH],  # SOUTH is held out, and the test part is not read
        "validation": [EAST, SOUTH],
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_names_alike(load, monkeypatch, streaming):
    made = datasets.Dataset.from_dict({"text": ROWS})
    split = made.to_iterable_dataset() if streaming else made
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: {"train": split})
    assert load("wikitext:wikitext-2-raw-v1", streaming=streaming) == ARTICLES
    assert load("wikitext:wikitext-2-raw-v1", streaming=streaming, one_text=True) == [RAW]


@pytest.mark.parametrize("write", WRITERS)
def test_read_one_by_one_on_request(folder, load, write, caplog):
    caplog.set_level("INFO", logger="frankenlm")
    write(folder, "a")
    lines = load(folder, join_articles="no")
    assert "joined into articles" not in caplog.text
    assert " = North = " in lines[0] and "direction" not in lines[0]
    assert len(lines) > len(ARTICLES)
    assert load(folder) == ARTICLES, "the cache of the other reading must not be used"


def test_one_end_token_an_article(folder, load):
    as_parquet(folder, "a")
    documents = load_documents(str(folder), streaming=True)
    rows = prepare_dataset(documents, byte_tokenizer(), max_length=4096, objective="causal")
    ids = next(iter(rows))["input_ids"]
    begin, end = byte_tokenizer().bos_token_id, byte_tokenizer().eos_token_id
    assert ids.count(begin) == ids.count(end) == 3
    assert bytes(token for token in ids if token not in (begin, end)) == RAW[2:].encode()


def test_the_limit_counts_articles(folder, load):
    as_parquet(folder, "a")
    assert load(folder, max_documents=2) == ARTICLES[:2]


def test_a_text_before_the_first_title_is_its_own(folder, load):
    (folder / "a.txt").write_text(" The end of another one . \n \n" + NORTH + SOUTH)
    assert load(folder) == [" The end of another one . \n \n", NORTH, SOUTH]


def test_text_files_end_their_last_article(folder, load):
    (folder / "a.txt").write_text(NORTH + SOUTH)
    (folder / "b.txt").write_text("nothing of an article\n\nand nothing here\n")
    (folder / "c.txt").write_text(EAST + NORTH)
    assert load(folder) == [NORTH, SOUTH, "nothing of an article", "and nothing here", EAST, NORTH]


@pytest.mark.parametrize(
    ("line", "title", "heading"),
    [
        (" = Robert Boulter = \n", True, True),
        ("= 1 =", True, True),
        (" = E = mc2 = \n", True, True),
        (" = = Career = = \n", False, True),
        (" = = = 2000 = 2005 = = = \n", False, True),
        ("= = =", False, False),
        ("= =", False, False),
        ("=", False, False),
        ("", False, False),
        ("= x", False, False),
        ("x = y =", False, False),
        ("== MediaWiki ==", False, False),
        ("=====", False, False),
        ("= A = =", False, False),
    ],
)
def test_headings(line, title, heading):
    assert (is_title(line), is_heading(line)) == (title, heading)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["", " = A = \n", "text\n", " = B = \n"], True),
        (["= A =", "", "= = S = ="], True),
        (["text", "= = S = =", "= A ="], True),
        (["= A =", "text"], False),  # one title may be anything
        (["= = S = =", "= = T = ="], False),
        ([" = A = \n\n text\n", " = B = \n\n text\n"], False),  # articles already
        (["# A", "## B", "== C =="], False),
        ([], False),
    ],
)
def test_what_looks_like_articles(lines, found):
    assert looks_like_articles(lines) == found


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["", "a \n", "", "b"], " \na \n \nb\n"),  # the hub's way
        (["", "a", "", " ", "b"], "\na\n\n \nb\n"),  # rows without line ends
        (["", ""], "\n\n"),
        ([], ""),
    ],
)
def test_rows_as_lines(rows, text):
    assert "".join(as_lines(rows)) == text


def test_documents_of_several_lines_stay_documents(folder, load):
    rows = [" = A = \n\n one article\n", " = B = \n\n another\n"]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    assert load(folder) == rows


def test_labelled_rows_are_never_joined(folder, tmp_path):
    rows = [{"text": row or "x", "label": i % 2} for i, row in enumerate(ROWS * 3)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"label_column": "label", "cache_dir": tmp_path / "cache"}
    assert sum(map(len, load_splits(str(folder), **options).values())) == len(rows)
    with pytest.raises(ValueError, match="classification needs each by itself"):
        load_splits(str(folder), join_articles="yes", **options)


def test_nothing_to_join(folder, load):
    (folder / "a.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="join_articles='yes': .* has no line '= Title ='"):
        load(folder, join_articles="yes")
    with pytest.raises(ValueError, match="join_articles='yes'"):
        load("builtin", join_articles="yes")


def test_a_single_article_cannot_be_split(folder, tmp_path):
    (folder / "a.txt").write_text(NORTH)
    with pytest.raises(ValueError, match="only one distinct document.*--join_articles no"):
        load_splits(str(folder), cache_dir=tmp_path / "cache")
    sides = load_splits(str(folder), cache_dir=tmp_path / "cache", join_articles="no")
    assert len(sides["train"]) > 1


# --- one text


@pytest.mark.parametrize("content", ["one\r\ntwo\r\n\r\nthree", "one\u2028\n\n\n  two\n", " \n\x0cone"])
def test_one_text_is_the_file_as_it_is(tmp_path, load, content):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert load(tmp_path / "a.txt", one_text=True) == [content]


def test_a_shard_of_blank_rows_has_the_lines_of_the_others(folder, load):
    for name, rows in (("a", ["", ""]), ("b", ["one\n", ""]), ("c", [""])):
        datasets.Dataset.from_dict({"text": rows}).to_parquet(folder / f"{name}.parquet")
    assert load(folder, one_text=True) == [" \n \none\n \n \n"]
    for name, rows in (("a", [""]), ("b", ["one", ""])):
        datasets.Dataset.from_dict({"text": rows}).to_parquet(folder / f"{name}.parquet")
    (folder / "c.parquet").unlink()
    assert load(folder, one_text=True) == ["\none\n\n"]


def test_one_text_of_several_files_and_of_nothing(folder, load):
    (folder / "a.txt").write_text("one\n")
    (folder / "b.txt").write_text("two\n")
    assert load(folder, one_text=True) == ["one\ntwo\n"]
    (folder / "a.txt").write_text(" \n")
    (folder / "b.txt").write_text("\n")
    with pytest.raises(ValueError, match="has no text"):
        load(folder, one_text=True)
    for option in ({"max_documents": 3}, {"label_column": "x"}):
        with pytest.raises(ValueError, match="one_text takes the whole text"):
            load(folder, one_text=True, **option)


# --- held-out text that training meets again

LONG = "a line that is long enough to be told apart from all the others"
HEADINGS = [" = = Use = = ", " = = = A heading of far more than thirty characters = = = ", "See also", "The end."]


@pytest.mark.parametrize("streaming", [False, True])
def test_headings_and_short_lines_stay_in_training(tmp_path, streaming):
    for name, texts in (("train", [*HEADINGS, LONG, f"{LONG} here"]), ("held", [*HEADINGS, LONG])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    splits = load_splits(
        str(tmp_path / "train.jsonl"),
        validation=str(tmp_path / "held.jsonl"),
        streaming=streaming,
        join_articles="no",
        cache_dir=tmp_path / "cache",
    )
    assert list(iter_texts(splits["train"])) == [*HEADINGS, f"{LONG} here"]
    assert list(iter_texts(splits["validation"])) == [*HEADINGS, LONG]


def test_labelled_texts_are_told_apart_however_short(tmp_path):
    for name, texts in (("train", ["good", "bad", "so so"]), ("held", ["good"])):
        rows = "".join(json.dumps({"text": text, "label": len(text) % 2}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    train = load_splits(
        str(tmp_path / "train.jsonl"),
        validation=str(tmp_path / "held.jsonl"),
        label_column="label",
        cache_dir=tmp_path / "cache",
    )["train"]
    assert list(iter_texts(train)) == ["bad", "so so"]
