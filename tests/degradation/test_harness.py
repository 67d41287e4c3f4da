"""Tasks of lm-evaluation-harness as probes of cells: on the damaged model, once a cell, rows and model untouched."""

import gc
import json
import random
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

from frankenlm.degradation import Lab, RunOptions
from frankenlm.degradation.harness import Harness, digest, same_random_numbers
from frankenlm.degradation.report.harness_tasks import mixed_tasks, task_measures, task_values
from frankenlm.degradation.report.result_files import ResultFile
from frankenlm.degradation.report.sentences import warnings
from frankenlm.degradation.report.write import analyse
from frankenlm.degradation.weights.loading import wrap_model
from frankenlm.scripts.degrade import main
from frankenlm.trainer_ext.common.cli import UserError
from small_runs import SMALL, essence, rows_of

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
"""
QUESTIONS = ("The cat", "The birds", "A dog", "Rain", "My house", "One tree", "Five stones")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with two tasks of seven documents, cats and dogs."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("tasks")
    lines = [{"question": text, "choices": ["sat.", "flew."], "label": n % 2} for n, text in enumerate(QUESTIONS)]
    (folder / "cats.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    for name in ("cats", "dogs"):
        text = TASK.format(name=name, data=folder / "cats.jsonl")
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


# --- refusals


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r"pip install 'frankenlm\[eval\]'"):
        Harness(["cats"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lm_eval_path", "x"], "give that too"),
        (["--lm_eval_limit", "3"], "give that too"),
        (["--lm_eval", "cats", "--lm_eval_path", "/nowhere/at/all"], "there is no such folder"),
        (["--lm_eval", "cats", "--lm_eval_limit", "0"], "must be at least 1"),
        (["--lm_eval", "cats", "cats"], "cats is there twice"),
    ],
)
def test_mistakes_in_flags(words, message, tmp_path):
    with pytest.raises(UserError, match=message):
        main(["run", "--config", "smoke", "--model", "x", "--output_dir", str(tmp_path / "out"), *words])


IDENTITY = {"limit": 3, "harness": "1.0", "digest": "of cats"}


class Stub(Harness):
    """A task that needs no package: the first weight of the head; a view holds the model, as the harness's does."""

    def __init__(self, names=("cats",)):
        self.tasks = dict.fromkeys(names)
        self.identities = dict.fromkeys(names, IDENTITY)
        self._view = None
        self.views = []

    def measure(self, loaded, known):
        self.views.append(weakref.ref(self._wrapped(loaded)))
        figure = loaded.model.get_output_embeddings().weight[0, 0].item()
        missing = [name for name in self.tasks if self._stale(name, known or {})]
        return dict(known or {}) | {name: {**IDENTITY, "metrics": {"acc": figure}, "better": {}} for name in missing}


class View:
    def __init__(self, pretrained, tokenizer, batch_size):
        self.model = pretrained


@pytest.mark.parametrize(("field", "other"), [("limit", None), ("harness", "0.9"), ("digest", "of other cats")])
def test_what_a_cell_misses(field, other):
    harness = Stub(("cats", "dogs"))
    both = {"cats": {**IDENTITY, "metrics": {}}, "dogs": {**IDENTITY, "metrics": {}}}
    assert harness.misses(None) and harness.misses({}) and harness.misses({"cats": both["cats"]})
    assert not harness.misses(both) and harness.misses(both | {"dogs": {**IDENTITY, field: other}})
    assert harness.misses(both | {"dogs": {"limit": 3}}), "figures of before there was a digest"
    records = [{"lm_eval": both}, {"lm_eval": both | {"dogs": {**IDENTITY, field: other}}}, {"lm_eval": None}, {}]
    assert mixed_tasks(records) == ["dogs"] and mixed_tasks(records[:1] * 2) == []
    files = [ResultFile(Path("x.json"), [], cells=[record]) for record in records]
    assert [text.partition(":")[0] for text in warnings(files, [], [])] == ["dogs"] and not warnings(files[:1], [], [])


def test_what_tells_tasks_apart():
    def task(documents=({"question": "The cat"}, {"question": "A dog"}), version="Yaml", **config):
        config = {"task": "cats", "doc_to_text": "{{question}}", "process_docs": lambda: None, **config}
        return SimpleNamespace(dump_config=lambda: config, eval_docs=list(documents), VERSION=version)

    same = digest(task(), None)
    assert same == digest(task(), 2) == digest(task(metadata={"config_source": "elsewhere/cats.yaml"}), None)
    assert digest(task(path=object()), None) == digest(task(path=object()), None), "no address of memory"
    others = [
        digest(task(doc_to_text="Q: {{question}}"), None),
        digest(task(documents=({"question": "The cat"}, {"question": "The dog"})), None),
        digest(task(version=2), None),
        digest(task(metadata={"version": 2}), None),
        digest(task(process_docs=lambda: 1), None),
    ]
    assert len({same, *others}) == 6


def test_finished_cells_are_probed_and_stay_as_they_are(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    """What a cell's rows took stays in its record when a task comes later; a model is let go with its experiment."""
    monkeypatch.setattr("frankenlm.degradation.harness._quiet_view", lambda: View)
    model, harness = tiny_model("llama"), Stub()
    before = cell_records(run(SMALL, tiny_model, tiny_tokenizer, tmp_path, model=model))
    path = run(SMALL, tiny_model, tiny_tokenizer, tmp_path, harness, model)
    after = cell_records(path)
    assert len(harness.views) == len(before) == 4
    for key, record in after.items():
        added = {name: value for name, value in record.items() if before[key].get(name) != value}
        assert set(added) == {"lm_eval", "attempt"} and record["rows"] == 4 and record["generate_s"] > 0
    run(SMALL, tiny_model, tiny_tokenizer, tmp_path, harness, model)
    assert cell_records(path) == after, "nothing is missing"
    gc.collect()
    assert harness._view is None and not any(view() for view in harness.views)


def test_figures_become_measures():
    figures = {
        "metrics": {"acc": 0.5, "word_perplexity": 9.0, "bad": None},
        "better": {"acc": 1, "word_perplexity": -1},
    }
    record = {"lm_eval": {"cats": figures}}
    assert task_values(record) == {
        "lm_eval/cats/acc": 0.5,
        "lm_eval/cats/word_perplexity": 9.0,
        "lm_eval/cats/bad": None,
    }
    known = task_measures([record, {}])
    assert [(m.label, m.better, m.share) for m in known.values()] == [
        ("cats: acc", 1, True),
        ("cats: word_perplexity", -1, False),
        ("cats: bad", None, False),
    ]
    assert task_values({}) == {} == task_values({"lm_eval": None})


def test_global_random_numbers_are_left_alone():
    def drawn():
        return random.random(), numpy.random.rand(), float(torch.rand(1))

    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    expected = drawn()
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    with same_random_numbers():
        random.seed(7), numpy.random.seed(7), torch.manual_seed(7), drawn()
    assert drawn() == expected


# --- runs


def cell_records(path):
    """The record of each cell: (level, repeat) -> record."""
    lines = (path.with_suffix(".journal") / "cells.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line)["row"] for line in lines]
    return {(r["level_value"], r["repeat_index"]): r for r in records}


def probed(path):
    """The figures of each cell: (level, repeat) -> task -> figures."""
    return {key: record.get("lm_eval") for key, record in cell_records(path).items()}


def run(config, tiny_model, tiny_tokenizer, folder, harness=None, model=None):
    lab = Lab(
        model or tiny_model("llama"),
        RunOptions(output_dir=folder, progress=False, harness=harness),
        tokenizer=tiny_tokenizer(),
    )
    return lab.run(lab.plan(config))


@pytest.mark.slow
@pytest.mark.filterwarnings("default", "error:::frankenlm")  # those of other libraries are theirs
def test_every_cell_is_probed_once(tasks, tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    """Rows are those of a run without; tasks that come later are added to finished cells; what is known stays."""
    plain = run(SMALL, tiny_model, tiny_tokenizer, tmp_path / "plain")
    path = run(SMALL, tiny_model, tiny_tokenizer, tmp_path / "x", Harness(["cats"], tasks))
    assert essence(rows_of(path)) == essence(rows_of(plain))
    found = probed(path)
    assert len(found) == 4 and all(set(each) == {"cats"} for each in found.values())
    assert {each["cats"]["documents"] for each in found.values()} == {len(QUESTIONS)}
    assert found[0.0, 0]["cats"]["metrics"] == found[0.0, 1]["cats"]["metrics"], "undamaged twice"
    rows = rows_of(path)

    path = run(SMALL, tiny_model, tiny_tokenizer, tmp_path / "x", Harness(["cats", "dogs"], tasks))
    more = probed(path)
    assert rows_of(path) == rows and {key: each["cats"] for key, each in more.items()} == {
        key: each["cats"] for key, each in found.items()
    }
    assert all(each["dogs"]["metrics"] == each["cats"]["metrics"] for each in more.values())

    def never(*_):
        raise AssertionError("nothing is missing")

    monkeypatch.setattr(Harness, "measure", never)
    run(SMALL, tiny_model, tiny_tokenizer, tmp_path / "x", Harness(["dogs"], tasks))
    run(SMALL, tiny_model, tiny_tokenizer, tmp_path / "x")
    assert probed(path) == more and rows_of(path) == rows

    monkeypatch.undo()
    grown = SMALL | {"n_rep": 3}
    run(grown, tiny_model, tiny_tokenizer, tmp_path / "x")
    assert probed(path)[0.3, 0] == more[0.3, 0] and probed(path)[0.3, 2] is None, (
        "without --lm_eval what is there stays"
    )
    path = run(grown, tiny_model, tiny_tokenizer, tmp_path / "x", Harness(["cats"], tasks, limit=3))
    assert {each["cats"]["documents"] for each in probed(path).values()} == {3}
    curves = {c.measure.name: c for c in analyse([path], measure_texts=None, draws=20, progress=False).curves}
    assert curves["lm_eval/cats/acc"].values.shape == (3, 2) and curves["lm_eval/cats/acc"].measure.share


@pytest.mark.slow
@pytest.mark.filterwarnings("default", "error:::frankenlm")
def test_the_damaged_model_is_asked(tasks, tiny_model, tiny_tokenizer, tmp_path):
    """Figures differ where weights do, an untied head stays untied, and every byte is back at the end."""
    model = tiny_model("llama_tied")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    harness = Harness(["cats"], tasks)
    seen = []
    measure = harness.measure

    def watched(loaded, known):
        def state():
            table, head = loaded.model.get_input_embeddings().weight, loaded.model.get_output_embeddings().weight
            return table.clone(), head.clone()

        first = state()
        found = measure(loaded, known)
        assert all(torch.equal(a, b) for a, b in zip(first, state(), strict=True)), "the probe changes no weight"
        seen.append(not torch.equal(*first))
        return found

    harness.measure = watched
    config = SMALL | {"group": "embed_only", "tied_policy": "input_only", "levels": (0.0, 2.0), "n_rep": 1}
    tokenizer = tiny_tokenizer()
    pad = tokenizer.pad_token
    lab = Lab(model, RunOptions(output_dir=tmp_path, progress=False, harness=harness), tokenizer=tokenizer)
    lab.run(lab.plan(config))
    assert seen == [False, True] and tokenizer.pad_token == pad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.filterwarnings("default", "error:::frankenlm")
def test_an_edited_task_is_another(tasks, tmp_path):
    """By its file or its documents; not by its folder."""
    first = Harness(["cats"], tasks).identities["cats"]
    text = (tasks / "cats.yaml").read_text("utf-8")
    (tmp_path / "cats.yaml").write_text(text, encoding="utf-8")
    assert Harness(["cats"], tmp_path).identities["cats"] == first
    (tmp_path / "cats.yaml").write_text(text.replace("{{question}}", "Q: {{question}}"), encoding="utf-8")
    assert Harness(["cats"], tmp_path).misses({"cats": first})
    (tmp_path / "cats.yaml").write_text(text, encoding="utf-8")
    assert Harness(["cats"], tmp_path, limit=3).misses({"cats": first})


@pytest.mark.slow
@pytest.mark.filterwarnings("default", "error:::frankenlm")
def test_names_and_models_it_refuses(tasks, tiny_dir, tmp_path):
    with pytest.raises(UserError, match="no such task.*Did you mean 'cats'"):
        Harness(["cat"], tasks)
    words = ["--config", "smoke", "--dtype", "float32", "--lm_eval", "cats", "--lm_eval_path", str(tasks)]
    with pytest.raises(UserError, match="fills in masks"):
        main(["run", "--model", str(tiny_dir("bert")), "--output_dir", str(tmp_path / "out"), *words])
    (tmp_path / "broken.yaml").write_text(TASK.format(name="broken", data=tmp_path / "none.jsonl"), encoding="utf-8")
    with pytest.raises(UserError, match="--lm_eval broken: cannot be loaded"):
        Harness(["broken"], tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("default", "error:::frankenlm")
def test_an_offloaded_model_is_asked_where_it_computes(tasks, tiny_model, tiny_tokenizer):
    from accelerate import cpu_offload

    harness = Harness(["cats"], tasks)
    whole = harness.measure(wrap_model(tiny_model("llama"), tiny_tokenizer(), None), None)
    offloaded = cpu_offload(tiny_model("llama"), execution_device=torch.device("cpu"))
    assert next(offloaded.parameters()).device.type == "meta"
    assert harness.measure(wrap_model(offloaded, tiny_tokenizer(), None), None) == whole
