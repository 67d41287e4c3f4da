"""app.py: a user's mistakes as one line, and a start without any of them. What a visitor sees: tests/sharing/space/."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from frankenlm.trainer_ext.common.cli import run_command
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer

gr = pytest.importorskip("gradio", reason="needs gradio: pip install 'frankenlm[app]'")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def app():
    from frankenlm.scripts import app

    return app


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Random models: one that fills masks, and one that the page has no use for."""
    tokenizer = train_tokenizer(["the cat sat on a mat"] * 4, vocab_size=280, mask=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    root = tmp_path_factory.mktemp("models")
    models = {"bert": BertForMaskedLM(config), "classifier": BertForSequenceClassification(config)}
    for name, model in models.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in models}


class Page:
    """Stands in for the page, and ends the command where it would be served."""

    def launch(self, **options):
        raise OSError("Cannot find empty port in range: 7860-7860.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "/nope"], "no such folder"),
        (["--model", "n" * 300], "no such folder"),
        (["--model", "{classifier}"], "BertForSequenceClassification"),
        (["--model", "{bert}/config.json"], "is no folder"),
        (["--model", ""], "--model is empty"),
        (["--modle", "x"], "Did you mean '--model"),
        (["--models", "nope.yaml"], "--models nope.yaml: no such file"),
        (["--models", "{bert}/config.json"], "--models"),
        (["--runs", ""], "--runs"),
        (["extra"], "unknown argument 'extra'"),
    ],
)
def test_mistakes(app, folders, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(app.main, [word.format(**folders) for word in words]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and err[0].startswith("error: ") and message in err[0]


def test_a_port_that_cannot_be_had(app, folders, monkeypatch, capsys):
    from frankenlm.sharing.space import page

    shelves = []
    monkeypatch.setattr(page, "build_page", lambda models: shelves.append(models) or Page())
    assert run_command(app.main, ["--model", str(folders["bert"]), "--runs", str(folders["bert"].parent)]) == 2
    assert "the page cannot be served: Cannot find empty port" in capsys.readouterr().err
    (shelf,) = shelves
    name, runs = str(folders["bert"]), folders["bert"].parent.name
    assert shelf.names("masked")[:2] == [name, "tiny/mini"] and f"{runs}/bert" in shelf.names("masked")


def test_nothing_need_be_trained_before(app, monkeypatch, tmp_path, capsys):
    from frankenlm.sharing.space import page

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "build_page", lambda models: models.open("tiny/mini") and Page())
    assert run_command(app.main, []) == 2
    assert "the page cannot be served" in capsys.readouterr().err, "it came as far as that"
    assert gc.isenabled(), "it is only off while the page is imported"


def test_help_comes_at_once():
    """Without torch and gradio, whose imports take seconds."""
    code = (
        "import sys\nsys.argv = ['app.py', '--help']\nimport runpy\n"
        "try: runpy.run_path('app.py', run_name='__main__')\n"
        "finally: assert not {'torch', 'gradio', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--runs" in done.stdout, done.stderr


@pytest.mark.parametrize("port", ["many", "-1", "65536", "1" * 5000, "", "٣"])
def test_odd_ports_are_told(app, port, monkeypatch, capsys):
    monkeypatch.setenv("GRADIO_SERVER_PORT", port)
    assert run_command(app.main, []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: GRADIO_SERVER_PORT=") and len(line) < 120


@pytest.mark.parametrize("name", ["nope.invalid", "192.0.2.1", "x" * 300, "a b"])
def test_odd_names_are_told(app, name, monkeypatch, capsys):
    monkeypatch.setenv("GRADIO_SERVER_NAME", name)
    assert run_command(app.main, []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: GRADIO_SERVER_NAME=") and len(line) < 200
