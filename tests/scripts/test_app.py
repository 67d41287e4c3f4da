"""app.py: what a visitor sees, and a user's mistakes."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForMaskedLM

from frankenlm.trainer_ext.common.cli import run_command
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer

gr = pytest.importorskip("gradio", reason="needs gradio: pip install 'frankenlm[app]'")
POSITIONS = 24


@pytest.fixture(scope="module")
def app():
    from frankenlm import app

    return app


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Random models: two masked ones, of which RoBERTa counts positions from behind its pad token, and a causal one."""
    tokenizer = train_tokenizer(["the cat sat on a mat"] * 4, vocab_size=280, mask=True)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    narrow = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    models = {
        "bert": BertForMaskedLM(BertConfig(**sizes, **narrow, max_position_embeddings=POSITIONS)),
        "roberta": RobertaForMaskedLM(RobertaConfig(**sizes, **narrow, max_position_embeddings=POSITIONS + 2)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2)),
    }
    root = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in models}


@pytest.fixture(scope="module", params=["bert", "roberta"])
def fill(app, folders, request):
    """The function behind the page's button, without the page: gradio leaves an event loop open for each."""
    pipeline = app.load_pipeline(str(folders[request.param]))
    return lambda sentence: app.guess(pipeline, sentence)


def test_guesses(fill):
    guesses = fill("the <mask> sat")
    assert guesses and all(0 < value <= 1 for value in guesses.values())
    assert fill("<mask>" + " a" * (POSITIONS - 1)), "as many tokens as there are positions"
    assert fill("a <mask> and a <mask>")


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("", "Write <mask>"),
        ("no gap", "Write <mask>"),
        ("<mask>" + " a" * POSITIONS, f"reads at most {POSITIONS}"),
        ("<mask> " + "hello " * 3000, "shorten it"),
        ("<mask>" + "x" * 200_000, "characters"),
        ("<mask> \ud835", "half a character"),
    ],
)
def test_a_visitor_is_told(fill, sentence, message):
    with pytest.raises(gr.Error, match=message):
        fill(sentence)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "/nope"], "no such folder"),
        (["--model", "n" * 300], "no such folder"),
        (["--model", "{gpt2}"], "--method mlm does not fit"),
        (["--model", "{gpt2}/config.json"], "is no folder"),
        (["--model", ""], "--model is empty"),
        (["--modle", "x"], "Did you mean '--model'"),
        ([], "run `make demo` first"),
    ],
)
def test_mistakes(app, folders, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(app.main, [word.format(**folders) for word in words]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and err[0].startswith("error: ") and message in err[0]


def test_a_port_that_cannot_be_had(app, folders, monkeypatch, capsys):
    class Page:
        def launch(self):
            raise OSError("Cannot find empty port in range: 7860-7860.")

    monkeypatch.setattr(app, "build_page", lambda pipeline: Page())
    assert run_command(app.main, ["--model", str(folders["bert"])]) == 2
    assert "the page cannot be served: Cannot find empty port" in capsys.readouterr().err
