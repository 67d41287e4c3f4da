"""What evaluate and compare write fits a page of 1280 dots: tables of few columns, names that break, narrow figures."""

import struct

import pytest

from frankenlm.trainer_ext.evaluation.barcharts import plot_comparison
from frankenlm.trainer_ext.evaluation.comparing import MODELS_IN_TABLE, PANELS, markdown_report, markdown_table

FACTS = {"settings": {}, "dataset": None, "bleu_signature": None, "same_tokenizer": True}


def rows(count, label="gpt2_finetuned_on_python_documentation_10k_steps"):
    measures = {name: 12.34567 for names in PANELS.values() for name in names}
    about = {"model": "runs/a", "architecture": "A", "dtype": "float32", "texts": []}
    return [{"label": f"{label} #{index}", "measures": measures, **about} for index in range(count)]


@pytest.mark.parametrize("count", [1, 6, 7, 13])
def test_many_models_get_several_tables(count):
    lines = markdown_report(rows(count), FACTS).splitlines()
    heads = [line for line in lines if line.startswith("| measure |")]
    assert [line.count("|") - 2 for line in heads] == [
        min(MODELS_IN_TABLE, count - start) for start in range(0, count, MODELS_IN_TABLE)
    ]
    assert sum(line.startswith("| loss | 12.35 |") for line in lines) == len(heads)
    assert all(heads[place // MODELS_IN_TABLE].count(f"\\#{place} ") == 1 for place in range(count))


def test_long_names_at_the_head_may_break():
    head, _, row = markdown_table(["model_a", "a_name_that_is_far_too_long"], [["a_b", "a_name_that_is_far_too_long"]])
    assert head == r"| model\_a | a\_<wbr>name\_<wbr>that\_<wbr>is\_<wbr>far\_<wbr>too\_<wbr>long |"
    assert row == r"| a\_b | a\_name\_that\_is\_far\_too\_long |"


@pytest.mark.parametrize("count", [1, 9])
def test_figures_are_not_wider_than_a_page(tmp_path, count):
    plot_comparison(rows(count), PANELS, tmp_path / "bars.png")
    width, height = struct.unpack(">II", (tmp_path / "bars.png").read_bytes()[16:24])
    assert width <= 1280 < 2 * height
