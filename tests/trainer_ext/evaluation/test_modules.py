"""The evaluate modules: loaded from folders, without a network, equal to the functions; and their cards."""

import contextlib
import io
import re
import socket
from pathlib import Path

import evaluate
import pytest
import torch
import yaml
from transformers import BertConfig, BertForMaskedLM

from evaluate_cache import evaluate_cache
from frankenlm.modeling import InfinitoForCausalLM
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.data.packing import template_ids
from frankenlm.trainer_ext.data.tokenizers import load_tokenizer
from frankenlm.trainer_ext.evaluation.modules import MODULES, as_tokens, module_path
from frankenlm.trainer_ext.metrics.language import causal_scores, pseudo_scores, top_accuracies
from frankenlm.trainer_ext.metrics.text import bleu, diversity, repetition, self_bleu, vocabulary_use
from tiny_infinito import tiny_infinito

TEXTS = ["the cat sat on the mat", "the cat sat on it", "rain"]


@pytest.fixture(autouse=True, scope="module")
def no_network(tmp_path_factory):
    """Nobody is asked, and what evaluate copies and caches stays in these tests."""

    def refuse(*args):
        raise OSError("a module asked the network")

    with pytest.MonkeyPatch.context() as patch, evaluate_cache(tmp_path_factory.mktemp("evaluate")):
        patch.setattr(socket.socket, "connect", refuse)
        yield


def load(name):
    return evaluate.load(module_path(name))


def test_every_folder_is_a_module_with_its_card():
    folders = {path.name for path in Path(module_path("repetition")).parent.iterdir() if path.name[0] != "_"}
    assert folders == set(MODULES)
    for name in MODULES:
        folder = Path(module_path(name))
        assert {f"{name}.py", "README.md", "requirements.txt"} <= {path.name for path in folder.iterdir()}
        _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        facts = yaml.safe_load(head)
        assert facts["tags"] == ["evaluate", "metric"] and facts["sdk"] and facts["license"] == "apache-2.0"
        assert f"OWNER/{name}" in text and "## Limits" in text
        assert (folder / "requirements.txt").read_text() == "frankenlm[train]\n"


@pytest.mark.parametrize("name", MODULES)
def test_the_example_of_the_card_runs(name):
    """And prints what stands behind each print."""
    (block,) = re.findall(r"```python\n(.*?)```", (Path(module_path(name)) / "README.md").read_text(), re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, f"{name}/README.md", "exec"), {"__name__": "__card__"})
    assert printed.getvalue().splitlines() == re.findall(r"^print.*\)  # (.*)$", block, re.MULTILINE)


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_says_of_itself(name):
    module = load(name)
    assert module.description and module.inputs_description.startswith("predictions: ")
    assert module.name == name


def test_modules_of_texts_are_the_functions():
    tokens = [text.split() for text in TEXTS]
    assert load("repetition").compute(predictions=TEXTS) == repetition(tokens)
    assert load("distinct_n").compute(predictions=TEXTS) == diversity(tokens)
    assert load("distinct_n").compute(predictions=[[1, 2, 1], [3]]) == diversity([[1, 2, 1], [3]])
    assert load("vocabulary_use").compute(predictions=TEXTS, vocab_size=9) == vocabulary_use(tokens, 9)
    assert load("self_bleu").compute(predictions=TEXTS) == {"self_bleu": self_bleu(TEXTS)}
    references = ["the cat sat under it", "a cat sat on it", "rain fell"]
    assert load("bleu_orders").compute(predictions=TEXTS, references=references) == bleu(
        TEXTS, [[r] for r in references]
    )
    assert as_tokens(["a  b\n", [1]]) == [["a", "b"], [1]]


def test_batches_are_gathered():
    module = load("repetition")
    for text in TEXTS:
        module.add(predictions=text)
    assert module.compute() == repetition([text.split() for text in TEXTS])


def test_modules_are_combined():
    """One call of several modules that take the same."""
    together = evaluate.combine([load("distinct_n"), load("repetition")])
    report = together.compute(predictions=TEXTS)
    assert report == {**load("distinct_n").compute(predictions=TEXTS), **load("repetition").compute(predictions=TEXTS)}


def test_top_k_accuracy():
    scores, answers = torch.randn(30, 12), torch.randint(12, (30,))
    answers[3] = -100
    report = load("top_k_accuracy").compute(predictions=scores.tolist(), references=answers.tolist())
    assert report == top_accuracies(scores, answers)
    order = scores.argsort(-1, descending=True)[:, :3]
    right = [answer in row for row, answer in zip(order.tolist(), answers.tolist(), strict=True) if answer >= 0]
    assert report["top_3_accuracy"] == pytest.approx(sum(right) / 29)
    assert top_accuracies(scores, torch.full((30,), -100)) == dict.fromkeys(report)
    with pytest.raises(ValueError, match="between 0 and 11"):
        top_accuracies(scores, torch.full((30,), 12))


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"'repetitions' is not known. Did you mean 'repetition'\?"):
        module_path("repetitions")
    with pytest.raises(ValueError, match="characters=True needs texts"):
        load("repetition").compute(predictions=[[1, 2]], characters=True)
    with pytest.raises(UserError, match="no such folder"):
        load("language_perplexity").compute(predictions=TEXTS, model_id="/no/such/folder")


@pytest.fixture(scope="module", params=["causal", "mlm"])
def saved(request, tmp_path_factory):
    """(its kind, its folder, the model, its tokenizer) of a tiny model of ours, and of BERT."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = load_tokenizer("train", documents=TEXTS * 5, objective=request.param, vocab_size=270)
    torch.manual_seed(0)
    if request.param == "causal":
        model = InfinitoForCausalLM(tiny_infinito(vocab_size=len(tokenizer), initializer_range=0.3))
    else:
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=48, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return request.param, folder, model.eval(), tokenizer


def test_perplexity(saved):
    kind, folder, model, tokenizer = saved
    module = load("language_perplexity")
    report = module.compute(
        predictions=TEXTS, model_id=str(folder), max_length=12, stride=4 if kind == "causal" else None
    )
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    if kind == "causal":
        scores = causal_scores(model, ids, context_length=12, stride=4, start_token_id=tokenizer.bos_token_id)
    else:
        around = dict(zip(("prefix", "suffix"), template_ids(tokenizer), strict=True))
        special = tokenizer.all_special_ids
        mask = tokenizer.mask_token_id
        scores = pseudo_scores(model, ids, mask_token_id=mask, special_ids=special, context_length=12, **around)
    assert report["tokens"] == scores.tokens == sum(map(len, ids))
    assert report["loss"] == pytest.approx(scores.nats / scores.tokens, rel=1e-5)
    assert report["losses"] == pytest.approx((scores.sums[:, 0] / scores.sums[:, 1]).tolist(), rel=1e-5)
    assert report["method"] == ("causal" if kind == "causal" else "pseudo")
    assert ("word_perplexity" in report) == (kind == "causal") and "top_5_accuracy" in report
