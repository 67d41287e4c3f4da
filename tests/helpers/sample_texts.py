"""Texts to read, and the files they are read from, for the tests of the data pipeline."""

import json

import datasets

from frankenlm.trainer_ext.data.splits import (
    iter_texts,
)

TEXTS = [f"document number {i} says {'very ' * (i % 7)}little." for i in range(600)]


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_texts(path, texts=TEXTS):
    return write_jsonl(path, [{"text": text} for text in texts])


def in_memory(texts):
    return datasets.Dataset.from_dict({"text": list(texts)})


def texts_of(splits):
    return {name: list(iter_texts(split)) for name, split in splits.items()}


def hub(monkeypatch, splits):
    calls = []

    def fake(name, config, streaming):
        calls.append((name, config))
        made = {key: datasets.Dataset.from_list(rows) for key, rows in splits.items()}
        return {key: split.to_iterable_dataset() for key, split in made.items()} if streaming else made

    monkeypatch.setattr(datasets, "load_dataset", fake)
    return calls
