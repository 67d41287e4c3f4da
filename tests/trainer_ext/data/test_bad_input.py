"""Text that cannot be read, labels that cannot be used: one line, with the file and the way out."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frankenlm.trainer_ext.data.splits import (
    build_collator,
    label_names,
    prepare_dataset,
)
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer
from sample_texts import TEXTS, hub, in_memory, write_jsonl, write_texts

# --- labels

LABELLED = [{"text": text, "mood": ("sad", "glad", "mad")[i % 3], "grade": 5 + i % 2} for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_are_numbered_in_sorted_order(tmp_path, load, byte_level, streaming):
    path = write_jsonl(tmp_path / "a.jsonl", LABELLED)
    for column, names in (("mood", ["glad", "mad", "sad"]), ("grade", ["5", "6"])):
        split = load(path, label_column=column, streaming=streaming)["validation"]
        assert label_names(split) == names
        truth = {row["text"]: str(row[column]) for row in LABELLED}
        assert all(names[row["label"]] == truth[row["text"]] for row in split)
    rows = prepare_dataset(split, byte_level, max_length=16, objective="classification", cache_dir=tmp_path)
    assert label_names(rows) == names
    assert [row["labels"] for row in rows] == [row["label"] for row in split]
    assert set(next(iter(rows))) == {"input_ids", "length", "labels"}
    batch = build_collator("classification", byte_level)([row for row, _ in zip(rows, range(5), strict=False)])
    assert batch["labels"].shape == (5,)


def test_labels_of_the_hub_keep_their_order(load, monkeypatch):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    made = datasets.Dataset.from_dict({"text": TEXTS[:30], "label": [i % 2 for i in range(30)]}, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: {"train": made})
    train = load("owner/name", label_column="label")["train"]
    assert label_names(train) == ["pos", "neg"]
    assert all(row["label"] == TEXTS.index(row["text"]) % 2 for row in train)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", 1], r"mixes types: str \(.*line 1\), int \(.*line 2\)"),
        (["a", "a"], "fewer than two distinct labels"),
        (["a", None], "line 2: label column 'label' holds nothing"),
        ([0.5, 1.5], "line 1: label column 'label' holds float"),
    ],
)
def test_unusable_labels(tmp_path, load, labels, message):
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=False)]
    with pytest.raises(ValueError, match=message):
        load(write_jsonl(tmp_path / "a.jsonl", rows), label_column="label")


def test_validation_label_unknown_to_training(tmp_path, load):
    train = write_jsonl(tmp_path / "a.jsonl", LABELLED)
    held_out = write_jsonl(tmp_path / "b.jsonl", [{"text": "x", "mood": "bad"}])
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1: label 'bad' is not in the training data \(glad, mad"):
        load(train, validation=str(held_out), label_column="mood")


def test_text_without_labels(tmp_path, load):
    (tmp_path / "a.txt").write_text("x\ny")
    with pytest.raises(ValueError, match="a .txt file has no labels"):
        load(tmp_path / "a.txt", label_column="label")
    with pytest.raises(ValueError, match="'builtin' has no labels"):
        load("builtin", label_column="label")
    with pytest.raises(ValueError, match="classification needs a label column"):
        prepare_dataset(
            in_memory(TEXTS),
            train_tokenizer(TEXTS, vocab_size=300, mask=True),
            max_length=8,
            objective="classification",
            cache_dir=tmp_path,
        )


# --- bad input


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "y"\n', r"a\.jsonl, line 3: not JSON \(.*column \d+\)"),
        ("a.jsonl", b'{"text": "x"}\n["y"]\n', "line 2: a JSON object is expected, not list"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 7}\n', "line 2: column 'text' holds int, a string is expected"),
        (
            "a.jsonl",
            b'{"txet": "x", "id": 1}\n',
            r"line 1: no column 'text'\. Did you mean 'txet'\? Columns: txet, id",
        ),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud800"}\n', "line 2: the text holds half a surrogate pair"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}\n', r"line 2: not UTF-8 \(byte 0xe9\)"),
        ("a.txt", b"one\ntwo\ncaf\xe9\n", r"a\.txt, line 3: not UTF-8"),
        ("a.txt", b"", r"a\.txt is empty"),
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.txt", b" \n\n", "no text"),
        ("a.jsonl", b'{"text": " "}\n', "no text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "x"}\n', "only one distinct document"),
        ("a.parquet", b"PAR1 this is no parquet file", r"a\.parquet: not a readable Parquet file"),
        ("a.doc", b"text\nx\n", r"a\.doc: unknown file type '\.doc'.*Known: \.txt, \.jsonl, .*\.parquet"),
    ],
)
def test_bad_file(tmp_path, load, name, content, message, streaming):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / name, streaming=streaming)
    assert "\n" not in str(caught.value)


def test_bad_parquet_columns(tmp_path, load):
    pq.write_table(pa.table({"body": ["x", "y"], "text": [None, "y"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 1: column 'text' holds nothing"):
        load(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no column 'bodi'\. Did you mean 'body'\? Columns: body, text"):
        load(tmp_path / "a.parquet", text_column="bodi")


def test_missing_paths(tmp_path, load):
    write_texts(tmp_path / "train.jsonl")
    with pytest.raises(ValueError, match=r"trian\.jsonl' does not exist\. Did you mean 'train\.jsonl'\?"):
        load(tmp_path / "trian.jsonl")
    with pytest.raises(ValueError, match="matches no file"):
        load(tmp_path / "*.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' holds no \.txt, \.jsonl, .*\.parquet file"):
        load(tmp_path / "empty")
    with pytest.raises(ValueError, match="'no such thing' does not exist"):
        load("no such thing")


def test_mixed_file_types(tmp_path, load):
    write_texts(tmp_path / "d" / "a.jsonl")
    (tmp_path / "d" / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"mixes \.jsonl and \.txt files; name one kind with a glob"):
        load(tmp_path / "d")
    with pytest.raises(ValueError, match=r"mixes \.jsonl and \.txt"):
        load(tmp_path / "d" / "a.*")


def test_everything_trained_on_is_held_out_too(tmp_path, load):
    path = write_texts(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="no document is left for train; every one stands in the validation data"):
        load(path, validation=str(path))


def test_hub_without_connection(load, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'bultin' on the Hub (OfflineModeIsEnabled)\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        ValueError, match=r"'bultin' is no local file.*Couldn't reach.*Did you mean 'builtin'\?"
    ) as caught:
        load("bultin")
    assert "\n" not in str(caught.value)


def test_hub_without_training_split_or_text(load, monkeypatch):
    hub(monkeypatch, {"test": [{"text": "x"}]})
    with pytest.raises(ValueError, match="has no train split. Splits: test"):
        load("owner/name")
    hub(monkeypatch, {"train": [{"txt": "x"}]})
    with pytest.raises(ValueError, match=r"no column 'text'\. Did you mean 'txt'"):
        load("owner/name")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 0}, "validation_fraction=0 must lie between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0 must lie"),
        ({"max_documents": 1}, "max_documents=1 must be at least 2"),
    ],
)
def test_bad_options(load, options, message):
    with pytest.raises(ValueError, match=message):
        load("builtin", **options)
