"""Several splits at once: whose documents they are, gaps, intervals, and the four files by their schema."""

import csv
import json
import math
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoTokenizer

from frankenlm.trainer_ext.evaluation import reporting
from frankenlm.trainer_ext.evaluation.flags import METRICS

SCHEMA = json.loads((Path(reporting.__file__).parent / "report.schema.json").read_text(encoding="utf-8"))
TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
NOTES = {"$schema", "$defs", "title", "description"}


def faults(value, schema, place="report"):
    """Yield what a JSON value has that its schema does not allow; of the schema's words those that ours uses."""
    words = dict(schema)
    if "$ref" in words:
        yield from faults(value, SCHEMA["$defs"][words.pop("$ref").removeprefix("#/$defs/")], place)
    if "anyOf" in words and all(list(faults(value, each, place)) for each in words.pop("anyOf")):
        yield f"{place}: none of anyOf"
    words.pop("anyOf", None)
    if "enum" in words and value not in words.pop("enum"):
        yield f"{place}: {value!r}"
    if "const" in words and value != words.pop("const"):
        yield f"{place}: {value!r}"
    kinds = words.pop("type", None)
    kinds = [kinds] if isinstance(kinds, str) else kinds or []
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{place}: {value!r} is no {kinds}"
        return
    least = words.pop("minimum", None)
    if least is not None and value is not None and value < least:
        yield f"{place}: {value}"
    if len(value if isinstance(value, dict) else ()) < words.pop("minProperties", 0):
        yield f"{place}: too few"
    for index, item in enumerate(value if isinstance(value, list) else ()):
        yield from faults(item, words["items"], f"{place}[{index}]")
    words.pop("items", None)
    known, others = words.pop("properties", {}), words.pop("additionalProperties", True)
    for name in words.pop("required", []):
        if name not in value:
            yield f"{place}: no {name}"
    for name, item in value.items() if isinstance(value, dict) else ():
        if name in known or isinstance(others, dict):
            yield from faults(item, known.get(name, others), f"{place}.{name}")
        elif not others:
            yield f"{place}: {name}"
    words = {name: word for name, word in words.items() if name not in {*NOTES, "enum", "const"}}
    assert not words, f"the schema uses {set(words)}, which this does not read"


def _is(value, kind):
    if kind == "null":
        return value is None
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


@pytest.fixture(scope="module")
def reported(evaluate, model, parts, tmp_path_factory) -> tuple[dict, Path]:
    """--metrics all on the three splits at once: the report, and the folder of the four files."""
    folder = tmp_path_factory.mktemp("out")
    words = ["--model", model, "--dataset", parts, "--split", "train,validation,test", "--max_length", 32]
    words += ["--continuations", 4, "--prompt_tokens", 4, "--max_new_tokens", 12, "--bootstrap_iters", 200]
    assert evaluate(*words, "--output_dir", folder / "o", "--report", folder / "again.json") == 0
    assert (folder / "again.json").read_bytes() == (folder / "o" / "evaluation.json").read_bytes()
    return json.loads((folder / "again.json").read_text(), parse_constant=pytest.fail), folder / "o"


def value(report, split, measure):
    return report["splits"][split]["measures"][measure]["value"]


def test_every_split_has_its_own_documents(reported, model, parts):
    report, _ = reported
    tokenizer = AutoTokenizer.from_pretrained(model)
    for name, split in report["splits"].items():
        texts = [json.loads(line)["text"] for line in (parts / f"{name}.jsonl").read_text().splitlines()]
        assert split["documents"] == len(texts)
        assert split["bytes"] == sum(len(text.encode()) for text in texts)
        assert split["tokens"] == sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
        assert split["continuations"]["documents"] == 4
    assert list(report["splits"]) == ["test", "train", "validation"]  # JSON is sorted; the gaps keep the order
    assert report["bootstrap"]["unit"] == "document" and report["schema_version"] == 1


def test_all_metrics_are_measured(reported):
    report, _ = reported
    asked = set(METRICS) - {"reference_perplexity"}  # which needs a tokenizer to be named
    names = {measure for metric in asked for measure in METRICS[metric]}
    assert set(report["metrics"]) == asked
    for split in report["splits"].values():
        assert set(split["measures"]) == names
    assert value(report, "train", "perplexity") == pytest.approx(math.exp(value(report, "train", "loss")))
    assert 0 < value(report, "test", "top_1_accuracy") <= value(report, "test", "top_5_accuracy") < 1


def test_gaps_are_differences_to_the_first_split(reported):
    report, _ = reported
    assert [(gap["split"], gap["against"]) for gap in report["gaps"]] == [("validation", "train"), ("test", "train")]
    for gap in report["gaps"]:
        for name, entry in gap["measures"].items():
            ours, theirs = value(report, gap["split"], name), value(report, "train", name)
            if None in (ours, theirs):
                assert entry == {"value": None, "low": None, "high": None}
            else:
                assert entry["value"] == pytest.approx(ours - theirs)
            if entry["low"] is not None:
                assert entry["low"] <= entry["value"] <= entry["high"], name
        assert gap["measures"]["loss"]["low"] is not None


def test_intervals_hold_what_they_are_of(reported):
    report, _ = reported
    for split in report["splits"].values():
        for name, entry in split["measures"].items():
            if entry["low"] is not None:
                assert entry["low"] <= entry["value"] <= entry["high"], name
        wide = {name for name, entry in split["measures"].items() if entry["low"] is not None}
        assert {"loss", "perplexity", "bits_per_byte", "word_perplexity", "top_3_accuracy", "bleu_4"} <= wide
        assert not {"self_bleu", "distinct_2", "distinct_tokens", "longest_repeat", "unique_per_100"} & wide
        ends = [split["measures"]["loss"][end] for end in ("low", "high")]
        assert [split["measures"]["bits_per_byte"][end] is not None for end in ("low", "high")] == [True, True]
        assert ends[0] < ends[1]


def test_the_report_is_of_its_schema(reported):
    report, _ = reported
    assert list(faults(report, SCHEMA)) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda report: report.pop("model"), "no model"),
        (lambda report: report.update(banana=1), "banana"),
        (lambda report: report.update(method="guess"), "'guess'"),
        (lambda report: report.update(schema_version=2), "2"),
        (lambda report: report.update(parameters=True), "True"),
        (lambda report: report.update(splits={}), "too few"),
        (lambda report: report.update(bootstrap={"draws": 3}), "none of anyOf"),
        (lambda report: report["splits"]["test"].update(tokens=-1), "-1"),
        (lambda report: report["splits"]["test"]["measures"].update(loss=3.0), "3.0"),
        (lambda report: report["gaps"][0].pop("against"), "no against"),
    ],
)
def test_the_schema_refuses(reported, change, fault):
    report = json.loads(json.dumps(reported[0]))
    change(report)
    found = list(faults(report, SCHEMA))
    assert any(fault in each for each in found), found


def test_the_files_tell_the_same(reported):
    report, folder = reported
    assert {path.name for path in folder.iterdir()} == {f"evaluation.{kind}" for kind in ("json", "csv", "png", "md")}
    with (folder / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    entries = sum(len(split["measures"]) for split in report["splits"].values())
    entries += sum(len(gap["measures"]) for gap in report["gaps"])
    assert len(rows) == entries
    of_loss = {(row["split"], row["against"]): row for row in rows if row["measure"] == "loss"}
    assert float(of_loss["test", ""]["value"]) == value(report, "test", "loss")
    assert float(of_loss["test", "train"]["high"]) == report["gaps"][1]["measures"]["loss"]["high"]
    page = (folder / "evaluation.md").read_text()
    assert "| measure | train | validation | test | validation - train | test - train |" in page
    assert "95% intervals over documents (200 drawings" in page and "(evaluation.png)" in page and "tok:13a" in page
    with Image.open(folder / "evaluation.png") as picture:
        assert picture.size[0] > 1000


def test_every_measure_has_a_place_in_the_figure():
    drawn = [measure for panel in reporting.FIGURE_PANELS.values() for measure in panel]
    assert sorted(drawn) == sorted(measure for measures in METRICS.values() for measure in measures)


def test_same_seed_same_intervals_and_none_without_drawings(evaluate, model, parts, reported, tmp_path):
    words = ["--model", model, "--dataset", parts, "--split", "train,validation", "--max_length", 32]
    words += ["--metrics", "loss,accuracy", "--report", tmp_path / "r.json"]
    assert evaluate(*words, "--bootstrap_iters", 200) == 0
    again = json.loads((tmp_path / "r.json").read_text())
    assert again["splits"]["train"]["measures"]["loss"] == reported[0]["splits"]["train"]["measures"]["loss"]
    assert evaluate(*words, "--bootstrap_iters", 0) == 0
    bare = json.loads((tmp_path / "r.json").read_text())
    assert bare["bootstrap"] is None and list(faults(bare, SCHEMA)) == []
    assert bare["splits"]["train"]["measures"]["loss"]["low"] is bare["gaps"][0]["measures"]["loss"]["low"] is None
    assert set(bare["splits"]["train"]["measures"]) == {"loss", "top_1_accuracy", "top_3_accuracy", "top_5_accuracy"}


def test_a_test_set_of_its_own(evaluate, model, parts, tmp_path, capsys):
    words = ["--model", model, "--dataset", parts / "train.jsonl", "--max_length", 32]
    words += ["--metrics", "bits_per_byte,text"]
    words += ["--test_dataset", parts / "test.jsonl", "--validation_dataset", parts / "validation.jsonl"]
    assert evaluate(*words, "--split", "test, validation", "--max_documents", 5, "--report", tmp_path / "r.json") == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert {name: split["documents"] for name, split in report["splits"].items()} == {"test": 5, "validation": 5}
    assert (report["test_dataset"], report["validation_dataset"]) == ("test.jsonl", "validation.jsonl")
    assert report["gaps"][0]["against"] == "test" and list(faults(report, SCHEMA)) == []
    out = capsys.readouterr().out
    assert "validation - test" in out and "text_unknown_share" in out and "documents" in out


def test_masked_models_have_rows_and_no_texts(evaluate, unbroken, parts, tmp_path):
    words = ["--model", unbroken, "--dataset", parts, "--max_length", 16, "--report", tmp_path / "r.json"]
    for method, unit in (("mlm", "row"), ("pseudo", "document")):
        assert evaluate(*words, "--split", "train,test", "--max_documents", 3, "--method", method) == 0
        report = json.loads((tmp_path / "r.json").read_text())
        assert report["bootstrap"]["unit"] == unit and list(faults(report, SCHEMA)) == []
        assert report["splits"]["test"]["measures"]["loss"]["low"] is not None
        assert report["metrics"] == ["loss", "perplexity", "bits_per_byte", "accuracy", "text"]
