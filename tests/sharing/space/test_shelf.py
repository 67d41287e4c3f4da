"""The shelf: which models a visitor may open, and what it says of all others."""

import json
import shutil
import threading

import pytest

from frankenlm.sharing.space.allowed import SHIPPED as LISTED
from frankenlm.sharing.space.allowed import AllowedModel, read_allowed
from frankenlm.sharing.space.limits import Limits
from frankenlm.sharing.space.shelf import Shelf
from frankenlm.trainer_ext.common.cli import UserError

gr = pytest.importorskip("gradio", reason="needs gradio: pip install 'frankenlm[app]'")
SHIPPED = ["tiny/infinito", "tiny/legacy-1bit", "tiny/mini"]


def test_names(shelf):
    assert shelf.names()[:3] == SHIPPED
    assert shelf.names("causal") == ["tiny/infinito", "tiny/legacy-1bit", "runs/deep/gpt2"]
    assert shelf.names("masked") == ["tiny/mini", "runs/bert", "runs/roberta"]
    assert shelf.names("ternary") == ["tiny/legacy-1bit"]
    assert Shelf().names() == SHIPPED, "without a runs folder"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../../x", "any", "no model '../../x'.*There are: tiny/infinito"),
        ("tiny/infinto", "any", "Did you mean 'tiny/infinito'"),
        ("/etc/passwd", "any", "no model '/etc/passwd'"),
        ("runs/../runs/bert", "any", "no model"),
        ("<img src=x onerror=alert(1)>", "any", "no model"),
        ("x" * 1_000_000, "any", r"no model 'x{80}'"),
        ("\ud800\0", "any", "no model"),
        ("", "any", "no model ''"),
        (None, "any", "no model"),
        (["tiny/mini"], "any", "no model"),
        ("tiny/mini", "causal", r"tiny/mini is not of the kind .*\(causal\). There are: tiny/infinito"),
        ("tiny/infinito", "ternary", "There are: tiny/legacy-1bit"),
        ("runs/classifier", "any", "only causal language models|BertForSequenceClassification"),
    ],
)
def test_what_is_not_there(shelf, name, kind, message):
    with pytest.raises(gr.Error, match=message) as caught:
        shelf.open(name, kind)
    told = str(caught.value.message)
    assert "\n" not in told and len(told) < 600 and not caught.value.print_exception


def test_the_same_model_until_there_are_too_many(runs):
    shelf = Shelf(runs, limits=Limits(kept_models=2))
    first = shelf.open("tiny/mini")
    assert shelf.open("tiny/mini") is first
    shelf.open("runs/bert")
    assert shelf.open("tiny/mini") is first, "it was used last"
    shelf.open("runs/roberta")
    assert shelf.open("tiny/mini") is first
    shelf.open("runs/bert")
    shelf.open("runs/roberta")
    assert shelf.open("tiny/mini") is not first


def test_two_who_ask_at_once_get_one_model(runs):
    shelf, found = Shelf(runs), []
    threads = [threading.Thread(target=lambda: found.append(shelf.open("runs/bert"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len({id(opened.model) for opened in found}) == 1


def test_a_damaged_model_is_told_without_the_path(runs, tmp_path):
    shutil.copytree(runs / "bert", tmp_path / "mine" / "bert")
    (tmp_path / "mine" / "bert" / "model.safetensors").write_bytes(b"no weights")
    (tmp_path / "mine" / "odd").mkdir()
    (tmp_path / "mine" / "odd" / "config.json").write_text("[" * 100_000)
    shelf = Shelf(tmp_path / "mine")
    assert shelf.names("masked") == ["tiny/mini", "mine/bert"], "one that does not say what it is is of no kind"
    for name in ("mine/bert", "mine/odd"):
        with pytest.raises(gr.Error, match=name) as caught:
            shelf.open(name)
        assert str(tmp_path) not in caught.value.message


def test_a_model_that_is_too_large(runs):
    with pytest.raises(gr.Error, match="of at most 1,000"):
        Shelf(runs, limits=Limits(parameters=1000)).open("runs/bert")


def test_a_link_out_of_the_runs_folder_is_not_there(runs, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "out").symlink_to(runs / "bert", target_is_directory=True)
    assert Shelf(tmp_path / "mine").names() == SHIPPED


def test_models_saved_later_are_there(runs, tmp_path):
    shelf = Shelf(tmp_path / "mine")
    shutil.copytree(runs / "bert", tmp_path / "mine" / "bert")
    assert shelf.open("mine/bert").kind == "masked"


def test_the_allow_list(runs, tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text(f"mine:\n  model: {runs / 'bert'}\n  kind: masked\nhubs:\n  model: someone/thing\n  kind: causal\n")
    allowed = read_allowed(file)
    assert allowed["hubs"] == AllowedModel("someone/thing", "causal")
    shelf = Shelf(first=str(runs / "roberta"), allowed=allowed)
    assert shelf.names() == [str(runs / "roberta"), *SHIPPED, "mine", "hubs"]
    assert shelf.names("masked")[-1] == "mine" and shelf.names("causal")[-1] == "hubs"
    assert shelf.open("mine").name == "mine"
    with pytest.raises(gr.Error, match="hubs.*cannot be fetched"):
        shelf.open("hubs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "expected names"),
        ("a: b\n", "a: expected a model and a kind"),
        ("a:\n  modle: b\n", "Did you mean 'model'"),
        ("a:\n  model: b\n", "kind is missing"),
        ("a:\n  model: b\n  kind: masks\n", "Did you mean 'masked'"),
        ("a: [\n", "line"),
    ],
)
def test_an_allow_list_with_mistakes(tmp_path, text, message):
    file = tmp_path / "models.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_allowed(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        read_allowed(tmp_path / "none.yaml")


def test_the_list_in_the_repository_can_be_read():
    assert all(model.kind for model in read_allowed(LISTED).values())


def test_config_without_architectures(runs, tmp_path):
    shutil.copytree(runs / "bert", tmp_path / "mine" / "bert")
    config = tmp_path / "mine" / "bert" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": None}))
    assert Shelf(tmp_path / "mine").names("masked") == ["tiny/mini"]
