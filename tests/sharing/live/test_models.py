"""Which models may be opened: names, and never paths."""

import json

import pytest

from frankenlm.sharing.live.models import Catalogue, UnknownModel, kind_of_model, open_model
from frankenlm.trainer_ext.common.cli import UserError


def make_model(folder, architecture="GPT2LMHeadModel"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return folder


@pytest.fixture
def catalogue(tmp_path):
    runs = tmp_path / "runs"
    make_model(runs / "mine")
    make_model(runs / "sweep" / "best", "FrankensteinForMaskedLM")
    secret = make_model(tmp_path / "elsewhere")
    (runs / "out").symlink_to(secret)
    return Catalogue({"tiny": str(make_model(tmp_path / "listed"))}, runs)


def test_names_are_those_listed_and_those_below_the_runs_folder(catalogue, tmp_path):
    assert catalogue.names() == ["tiny", "runs/mine", "runs/sweep/best"]
    assert catalogue.names("causal") == ["tiny", "runs/mine"]
    assert catalogue.names("masked") == ["runs/sweep/best"]
    assert catalogue.place("runs/mine") == str(tmp_path / "runs" / "mine")
    assert Catalogue().names() == []
    assert Catalogue(runs=tmp_path / "nowhere").names() == []


@pytest.mark.parametrize(
    "name",
    [
        "../elsewhere",
        "runs/../../elsewhere",
        "runs/mine/../../elsewhere",
        "runs/out",
        "/etc/passwd",
        "",
        "runs/mine/",
        "runs\\mine",
        "\0",
        "\ud800",
        "<b>",
        "a" * 1_000_000,
        None,
        ["tiny"],
        {},
    ],
)
def test_other_names_are_not_there(catalogue, name):
    with pytest.raises(UnknownModel) as caught:
        catalogue.place(name)
    message = str(caught.value)
    assert "There are: tiny, runs/mine, runs/sweep/best." in message
    assert len(message) < 400
    assert message.isprintable()


def test_a_near_name_is_suggested(catalogue):
    with pytest.raises(UnknownModel, match="Did you mean 'runs/mine'"):
        catalogue.place("runs/mien")


def test_kinds_are_told_by_config_json_alone(catalogue, tmp_path):
    for text in ("", "[]", "null", '{"architectures": 3}', '{"architectures": [3]}', "[" * 100_000):
        (tmp_path / "listed" / "config.json").write_text(text)
        assert kind_of_model(str(tmp_path / "listed")) is None


def test_a_model_of_another_kind_is_refused(saved):
    with pytest.raises(UserError, match="mine: holds GPT2LMHeadModel, which is no masked model"):
        open_model("mine", str(saved("gpt2")), "masked")
    for name, said in (("nowhere/x/y", "model nowhere/x/y: no such"), ("mine", "mine nowhere/x/y: no such")):
        with pytest.raises(UserError, match=said):
            open_model(name, "nowhere/x/y")
    assert open_model("mine", str(saved("gpt2"))).positions == 128
