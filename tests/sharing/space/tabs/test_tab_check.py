"""The tab Check: the table of `frankenlm check`, and its bounds."""

import json

import gradio as gr
import pytest

from frankenlm.scripts import check as command
from frankenlm.sharing.space.tabs import check as tab
from frankenlm.sharing.space.tabs.check import check, rows_of, summary
from frankenlm.trainer_ext.checking.judging import BROKEN
from frankenlm.trainer_ext.checking.promises.table import PROMISES
from frankenlm.trainer_ext.common.cli import UserError


def test_the_table_is_that_of_the_command(on_shelf, same_bits, tmp_path, capsys):
    opened = on_shelf("ternary")
    same = same_bits(opened)
    for findings, promises in check(opened):  # noqa: B007  the last ones are looked at
        assert not opened.lock.locked()
    assert promises == len(findings) == len(PROMISES) and same()
    opened.model.save_pretrained(tmp_path / "model")
    command.main([str(tmp_path / "model"), "--json", str(tmp_path / "report.json")])
    told = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["findings"]
    assert [vars(each) for each in findings] == told
    rows = rows_of(findings)
    assert [row[0] for row in rows] == list(PROMISES)
    assert summary(opened, findings, promises).strip("*") == capsys.readouterr().out.splitlines()[-1].replace(
        str(tmp_path / "model"), "ternary"
    )


def test_a_leak_is_found(on_shelf, monkeypatch):
    opened = on_shelf("infinito")
    forward = opened.model.forward

    def leaking(input_ids, **inputs):
        output = forward(input_ids=input_ids, **inputs)
        output.logits = output.logits + 0.1 * output.logits.mean(1, keepdim=True)
        return output

    monkeypatch.setattr(opened.model, "forward", leaking)
    monkeypatch.setattr(tab, "PROMISES", dict(list(PROMISES.items())[:2]))
    *_, (findings, promises) = check(opened)
    assert findings[1].promise == "causality" and findings[1].verdict == BROKEN
    assert "breaks" in summary(opened, findings, promises)


def test_large_models_are_refused_with_the_way_out(on_shelf, monkeypatch):
    monkeypatch.setattr(tab, "LARGEST", 1000)
    with pytest.raises(UserError, match=r"parameters; models of at most 1,000 .* frankenlm check infinito"):
        next(check(on_shelf("infinito")))


def test_what_takes_too_long_is_untried(on_shelf):
    opened = on_shelf("encoder")
    assert list(check(opened, seconds=0.0)) == [] and not opened.lock.locked()
    assert summary(opened, [], 16) == "No promise of encoder could be tried in time."
    findings, promises = next(check(opened))
    assert f"{promises - 1} of {promises} promises are untried" in summary(opened, findings, promises)


def test_what_the_page_asks_for(shelf):
    *_, (words, rows) = tab.check_model(shelf, "encoder")
    assert words.startswith("**encoder breaks no promise") and len(rows) == len(PROMISES)
    for bad in ("../../x", "", None, ["encoder"], "x" * 10**6):
        with pytest.raises(gr.Error, match="no model"):
            next(tab.check_model(shelf, bad))
