"""A suite's plan, the file of its runs, and what is said of them."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
from PIL import Image

from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.synthetic.cells import cells_of, findings, main_cells
from frankenlm.trainer_ext.synthetic.figure import plot_suite
from frankenlm.trainer_ext.synthetic.models import MODELS
from frankenlm.trainer_ext.synthetic.plan import (
    CommonSize,
    FinishedRuns,
    SuiteCell,
    SuitePlan,
    best_rate,
    digest,
    read_rows,
)
from frankenlm.trainer_ext.synthetic.reports import accuracy_table, command_of, page, rate_table, state_table
from frankenlm.trainer_ext.synthetic.tasks import TASKS, chosen_tasks

ROOT = Path(__file__).resolve().parents[3]
PLAN = SuitePlan(
    tasks={name: TASKS[name] for name in ("recall", "mqar")},
    mixers=("softmax", "mamba"),
    hidden_sizes=(32, 16),
    mamba_states=(8, 4),
    learning_rates=(0.01, 0.03),
    selection_seed=9,
    seeds=(0, 1),
    steps=(3, 7),
    batch_size=2,
    test_rows=4,
)
MEASURED = {"accuracy": 0.5, "loss": 1.0, "chance": 0.25, "parameters": 7, "state_size": 5, "seconds": 0.5}


def cells(rows):
    """The cells of rows of PLAN."""
    return cells_of(rows, PLAN.common)


def row(task="mqar", mixer="softmax", accuracy=1.0, *, seed=0, width=32, state=8, rate=0.01, role="report", **more):
    return {
        "task": task,
        "mixer": mixer,
        "hidden_size": width,
        "mamba_state": state,
        "learning_rate": rate,
        "seed": seed,
        "role": role,
        **MEASURED,
        "accuracy": accuracy,
        "steps": 3,
        "batch_size": 2,
        "test_rows": 4,
        "task_fields": json.dumps({"length": 32}),
        **more,
    }


def test_mqar_comes_first_and_alone_at_other_sizes():
    assert PLAN.cells == [
        SuiteCell("mqar", "softmax", 32, 8, 3),
        SuiteCell("mqar", "mamba", 32, 8, 3),
        SuiteCell("mqar", "softmax", 16, 8, 3),
        SuiteCell("mqar", "mamba", 16, 8, 3),
        SuiteCell("mqar", "mamba", 32, 4, 3),
        SuiteCell("mqar", "mamba", 32, 8, 7),
        SuiteCell("recall", "softmax", 32, 8, 3),
        SuiteCell("recall", "mamba", 32, 8, 3),
    ]


def test_every_setting_tells_runs_apart():
    (run, *_), task = PLAN.trials(PLAN.cells[0]), TASKS["mqar"]
    others = [dataclasses.replace(run, **{field.name: "x"}) for field in dataclasses.fields(run)]
    digests = [
        digest(run, task),
        digest(run, dataclasses.replace(task, pairs=2)),
        *(digest(each, task) for each in others),
    ]
    assert len(set(digests)) == len(digests) and digest(run, task) == digest(dataclasses.replace(run), task)


def test_finished_runs_are_found_again(tmp_path):
    finished = FinishedRuns(tmp_path / "suite.csv")
    cell, task = PLAN.cells[0], TASKS["mqar"]
    trials = PLAN.trials(cell)
    for run, accuracy in zip(trials, (0.2, 0.4), strict=True):
        assert finished.of(run, task) is None
        finished.add(run, task, "selection", {**MEASURED, "accuracy": accuracy})
    best, worse = PLAN.reported(cell, 0.03)[0], PLAN.reported(cell, 0.01)[0]
    finished.add(best, task, "report", MEASURED)
    finished.add(worse, task, "report", MEASURED)  # of a time when other rates were tried
    again = FinishedRuns(tmp_path / "suite.csv")
    assert again.rows == finished.rows and again.of(best, task)["accuracy"] == 0.5
    assert [(each["role"], each["learning_rate"]) for each in again.in_plan(PLAN)] == [
        ("selection", 0.01),
        ("selection", 0.03),
        ("report", 0.03),
    ]
    order = [each["config"] for each in again.arrange(dataclasses.replace(PLAN, learning_rates=(0.03, 0.01)))]
    assert [each["config"] for each in read_rows(tmp_path / "suite.csv")] == [*order, digest(worse, task)]
    assert len(order) == 3 and again.rows == finished.rows


def test_what_a_run_counts_as_is_up_to_the_plan(tmp_path):
    """With other seeds a run that was reported chooses, and one that chose is reported."""
    finished, cell, task = FinishedRuns(tmp_path / "suite.csv"), PLAN.cells[0], TASKS["mqar"]
    for run in PLAN.trials(cell):
        finished.add(run, task, "selection", MEASURED)
    for run in (*PLAN.reported(cell, 0.01), PLAN.run(cell, 0.03, 0)):
        finished.add(run, task, "report", MEASURED)
    rows = finished.arrange(dataclasses.replace(PLAN, selection_seed=0, seeds=(9, 1)))
    assert [(each["role"], each["seed"]) for each in rows] == [
        *(("selection", 0), ("selection", 0)),
        *(("report", 9), ("report", 1)),
    ]
    assert cells(rows)[0]["accuracies"] == {9: 0.5, 1: 0.5}
    assert read_rows(tmp_path / "suite.csv")[: len(rows)] == rows and len(finished.rows) == 5


def test_of_equal_accuracies_the_least_loss_decides():
    trials = [row(rate=0.1, loss=0.3), row(rate=0.2, loss=0.1), row(accuracy=0.9, rate=0.3, loss=0.0)]
    assert best_rate(trials) == 0.2


def test_a_run_that_diverged_is_a_run(tmp_path):
    finished, (run, other), task = FinishedRuns(tmp_path / "suite.csv"), PLAN.trials(PLAN.cells[0]), TASKS["mqar"]
    finished.add(run, task, "selection", {**MEASURED, "loss": math.nan})
    finished.add(other, task, "selection", {**MEASURED, "loss": 9.0})
    again = FinishedRuns(tmp_path / "suite.csv")
    assert math.isnan(again.of(run, task)["loss"]) and best_rate(list(again.rows.values())) == 0.03


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "config,role\nx,y\n"])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "suite.csv").write_text(text)
    with pytest.raises(UserError, match="is no table of a suite .*choose another --output_dir"):
        read_rows(tmp_path / "suite.csv")


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["mqr"], [], "'mqr' is not known. Did you mean 'mqar'"),
        (["mqar"], ["mqar.pair=3"], "'pair' is not known. Did you mean 'pairs'"),
        (["mqar"], ["mqar.pairs=x"], "--set mqar.pairs=x: must be a whole number"),
        (["mqar"], ["mqar.random_filler=1"], "must be true or false"),
        (["mqar"], ["pairs=3"], "expected TASK.FIELD=VALUE"),
        (["mqar"], ["recall.length=32"], "recall is not among --tasks mqar"),
        (["mqar"], ["mqar.pairs=9"], "task mqar: pairs=9 do not fit into length=32: .* at most 8"),
    ],
)
def test_tasks_that_cannot_be_are_refused(names, changes, message):
    with pytest.raises(UserError, match=message):
        chosen_tasks(names, changes)


def test_fields_of_tasks_are_set():
    tasks = chosen_tasks(["mqar"], ["mqar.pairs=2", "mqar.power=0.5", "mqar.random_filler=true"])
    assert tasks == {"mqar": dataclasses.replace(TASKS["mqar"], pairs=2, power=0.5, random_filler=True)}


def test_the_command_that_is_told_runs_the_same_tasks():
    changes = ["mqar.pairs=2", "mqar.power=0.5", "mqar.random_filler=true"]
    assert command_of(PLAN).endswith("--test_rows 4")
    told = command_of(dataclasses.replace(PLAN, tasks=chosen_tasks(["recall", "mqar"], changes)))
    assert sorted(told.partition(" --set ")[2].split()) == changes


def test_widths_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="softmax at --hidden_sizes 31: .*num_attention_heads"):
        dataclasses.replace(PLAN, hidden_sizes=(31,)).check()


ROWS = [
    row(seed=9, role="selection", accuracy=0.7, state_size=64),
    row(seed=9, role="selection", accuracy=0.8, rate=0.03, state_size=64),
    *(row(seed=seed, rate=0.03, accuracy=accuracy, state_size=64) for seed, accuracy in enumerate((0.96, 1.0))),
    *(row(mixer="retnet", accuracy=0.5, state_size=8, seed=seed) for seed in (0, 1)),
    row(width=16, state_size=32, accuracy=0.97),
    *(row(mixer="retnet", width=16, state_size=4, accuracy=0.3, seed=seed) for seed in (0, 1)),
    row(mixer="retnet", accuracy=0.9, seed=1, state_size=8, steps=7),
    *(row("recall", mixer, accuracy) for mixer, accuracy in (("softmax", 0.99), ("mamba", 0.28), ("ode", 0.6))),
]


def test_cells_have_means_over_the_reported_seeds_and_the_rates():
    first, *_ = cells(ROWS)
    assert (first["n"], first["mean"], first["learning_rate"]) == (2, pytest.approx(0.98), 0.03)
    assert first["tried"] == {0.01: 0.7, 0.03: 0.8} and first["accuracies"] == {0: 0.96, 1: 1.0}
    assert first["low"] == pytest.approx(0.98 - 12.706 * 0.02) and first["at_edge"]
    assert main_cells(cells(ROWS))["mqar", "retnet"]["hidden_size"] == 32


def test_findings_say_what_the_cells_say():
    assert findings(cells(ROWS)) == [
        "mqar: softmax attention solves it (more than 0.95) at 2 of 2 widths, as published (attention at every width): "
        "0.970 at width 16, 0.980 at width 32.",
        "mqar: retnet by the numbers that its state holds: 0.300 with 4 (retnet, width 16), 0.500 with 8 (retnet, "
        "width 32): more with every larger state, as published.",
        "mqar: retnet, width 32: 0.500 after 3 steps, 0.900 after 7: longer training is what it lacks there, by the "
        "means; their intervals over seeds overlap or are missing, so that no order is shown.",
        "mqar: solved by softmax; nothing reported at this size: sigmoid, titan, titan_memory, mamba, ode.",
        "recall: solved by softmax; not 0.05 above chance (0.250): mamba; nothing reported at this size: sigmoid, "
        "titan, titan_memory, retnet.",
        "The best rate lies at an end of those tried, and did not solve the task, in 1 of 8 cells, where a better one "
        "may lie beyond it: mqar, softmax, width 32, at 0.03.",
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_mixers_are_told_side_by_side_at_the_common_size_alone(order):
    """Whatever is finished, and in whatever order: one that lacks it has an empty place."""
    rows = [row(width=16, accuracy=0.99), row("recall", "mamba", steps=7), row("recall", "mamba", state=4)]
    rows = [*rows, row(mixer="ode", accuracy=0.3), row("recall", "ode", 0.4)][::order]
    made = cells(rows)
    assert [cell["mean"] for _, cell in sorted(main_cells(made).items())] == [0.3, 0.4]
    assert all(line["softmax"] == line["mamba"] == "" != line["ode"] for line in accuracy_table(made))
    told = [line for line in findings(made) if "solved by" in line]
    assert len(told) == 2 and all("solved by none (best ode" in line and "size: softmax" in line for line in told)


def test_an_order_that_seeds_do_not_bear_out_is_doubted():
    small, large = ((0.3, 0.31), (0.2, 0.9))
    rows = [row(mixer="retnet", accuracy=mean, seed=seed, state_size=4) for seed, mean in enumerate(small)]
    rows += [row(mixer="retnet", accuracy=mean, seed=seed, width=64) for seed, mean in enumerate(large)]
    assert findings(cells(rows))[0].endswith(
        "as published, by the means; their intervals over seeds overlap or are missing, so that no order is shown."
    )


@pytest.mark.parametrize(
    ("means", "said"),
    [
        ((0.2, 0.26), "never 0.05 above chance, so that nothing is said of its state"),
        ((0.6, 0.5), "no more with the largest state than with the smallest, not as published"),
        ((0.5, 0.4, 0.6), "more with the largest state than with the smallest, but not step by step"),
    ],
)
def test_findings_say_what_is_not_as_published(means, said):
    rows = [row(mixer="mamba", accuracy=mean, state=state, state_size=state) for state, mean in enumerate(means)]
    line = findings(cells(rows))[0]
    assert line.startswith("mqar: mamba by the numbers") and line.endswith(f": {said}.")
    (line, *_) = findings(cells([row(accuracy=0.9)]))
    assert "at 0 of 1 widths, not as published (attention at every width): 0.900" in line


def test_seeds_that_disagree_are_told():
    rows = [row(seed=9, role="selection", accuracy=0.9), row(accuracy=0.6), row(seed=1, accuracy=0.8)]
    assert findings(cells(rows))[-1] == (
        "mqar: softmax, width 32: 0.600 to 0.900 by the seed alone, that of the selection included: its mean says "
        "little."
    )
    assert not any("by the seed alone" in line for line in findings(cells(rows[:1] + rows[2:])))


def test_more_steps_that_change_little_are_told_as_such():
    rows = [row(mixer="mamba", accuracy=0.5), row(mixer="mamba", accuracy=0.6, steps=7)]
    assert "after 7: longer training changes little." in findings(cells(rows))[0]
    # whichever comes first, and is the usual one
    assert findings(cells(rows[::-1]))[0] == (
        "mqar: mamba, width 32, state 8: 0.500 after 3 steps, 0.600 after 7: longer training changes little."
    )
    less = [row(mixer="mamba", accuracy=0.9, seed=seed) for seed in (0, 1)]
    less += [row(mixer="mamba", accuracy=0.6, steps=7, seed=seed) for seed in (0, 1)]
    assert "0.900 after 3 steps, 0.600 after 7: less with longer training." in findings(cells(less))[0]
    # where the usual ones were not reported there is nothing to compare with
    rows = [row(mixer="mamba", role="selection"), row(mixer="mamba", accuracy=0.6, steps=7)]
    assert findings(cells(rows)) == []


def test_nothing_is_said_of_more_steps_where_the_seed_alone_makes_more():
    """Those of a mean, among them the selection's run: a line that says so must not stand beside a verdict."""
    rows = [row(mixer="mamba", role="selection", seed=9, accuracy=0.9)]
    rows += [row(mixer="mamba", accuracy=0.2), row(mixer="mamba", accuracy=0.2, steps=7)]
    first, second, *_ = findings(cells(rows))
    assert first.endswith(
        "the seed alone makes a difference of more than 0.2, so that nothing is said of longer training."
    )
    assert "; not 0.05 above chance (0.250): mamba (by a mean that says little)" in second


def test_tables_and_page():
    made = cells(ROWS)
    assert accuracy_table(made)[0] == {
        **{"task": "mqar", "chance": "0.250", **dict.fromkeys(MODELS, "")},
        **{"softmax": "0.980 ± 0.028", "retnet": "0.500 ± 0.000"},
    }
    assert accuracy_table(made)[1]["ode"] == "0.600 (1)"
    assert [line["state"] for line in state_table(made)] == ["32", "64", "4", "8", "8"]
    assert rate_table(made)[0]["chosen"] == "0.03" and rate_table(made)[1]["0.03"] == ""
    text = page(ROWS, PLAN.common, 99, {"torch": "1"}, "frankenlm suite", "a.png")
    assert f"**{len(ROWS)} of 99 planned runs are finished**" in text and "![accuracy](a.png)" in text
    assert "3 steps of 2 rows, 4 rows asked; 7 steps" in text and "- recall: length 32" in text
    assert "This page was written with torch 1; the rows do not say" in text
    assert "planned runs" not in page(ROWS, PLAN.common, len(ROWS), {}, "", "a.png")
    assert "Nothing was finished." in page([], PLAN.common, 3, {}, "", "a.png")


@pytest.mark.parametrize("rows", [ROWS, ROWS[:2], []], ids=["some", "none reported", "none"])
def test_figure(tmp_path, rows):
    plot_suite(cells(rows), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 1000


def test_the_card_says_what_was_measured():
    """Every number of the card comes from the rows of the committed table, by the code that is here now."""
    folder = ROOT / "results" / "samples" / "suite"
    rows, facts = read_rows(folder / "suite.csv"), json.loads((folder / "suite.json").read_text(encoding="utf-8"))
    common, picture = CommonSize(**facts["common_size"]), "../results/samples/suite/suite.png"
    expected = page(rows, common, facts["planned_runs"], facts["versions"], facts["command"], picture)
    assert (ROOT / "model_cards" / "suite.md").read_text(encoding="utf-8") == expected
    assert facts["finished_runs"] == len(rows)
    with (folder / "suite.csv").open(newline="", encoding="utf-8") as file:
        assert len({line["config"] for line in csv.DictReader(file)}) == len(rows)
