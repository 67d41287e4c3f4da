"""lm-evaluation-harness over our checkpoints: its three kinds of requests give what the model's own logits give."""

import importlib
import json
import math

import pytest
import torch
from datasets import Dataset, DatasetDict
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from frankenlm.trainer_ext.common.cli import run_command
from peer_cells import WORKS, cells_of
from peer_models import POSITIONS, TEXT, open_peer

# It passes quantization_config=None to a model that is packed already, and transformers warns of any.
pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")

CHOICES = (("the cat", " sat on a mat"), ("a", " dog"), (TEXT[:20], " b"), ("", "the hills"))


@pytest.fixture(scope="module")
def harness(saved):
    """harness(family) -> the harness's model of a folder."""
    made = {}

    def make(family):
        if family not in made:
            made[family] = HFLM(pretrained=str(saved(family)), device="cpu", batch_size=3, dtype="float32")
        return made[family]

    return make


def is_no_model(cell, make, family) -> bool:
    if cell.verdict == WORKS:
        return False
    with pytest.raises(ValueError, match=cell.message):
        make(family)
    return True


def requests(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=each, idx=index) for index, each in enumerate(arguments)]


def log_probabilities(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


@cells_of("choice")
def test_choices(family, cell, harness, saved):
    if is_no_model(cell, harness, family):
        return
    model = open_peer(family, saved(family))
    found = harness(family).loglikelihood(requests("loglikelihood", *CHOICES), disable_tqdm=True)
    for (context, continuation), (value, is_greedy) in zip(CHOICES, found, strict=True):
        asked, answer = list(context.encode()) or [model.config.bos_token_id], list(continuation.encode())
        scores = log_probabilities(model, asked + answer)[len(asked) - 1 : -1]
        expected = sum(float(row[token]) for row, token in zip(scores, answer, strict=True))
        assert value == pytest.approx(expected, rel=1e-4)
        assert is_greedy == (scores.argmax(-1).tolist() == answer)


@cells_of("rolling")
def test_rolling_is_what_evaluate_says_of_one_text(family, cell, harness, saved, tmp_path):
    """The last window of a text is shorter, and is filled up from before it, by both."""
    if is_no_model(cell, harness, family):
        return
    raw = "\n\n".join([TEXT] * 5)
    assert len(raw) % POSITIONS and len(raw) > 4 * POSITIONS
    (nats,) = harness(family).loglikelihood_rolling(requests("loglikelihood_rolling", (raw,)), disable_tqdm=True)
    (tmp_path / "text.txt").write_text(raw)
    report = tmp_path / "report.json"
    words = ["--model", saved(family), "--dataset", tmp_path / "text.txt", "--one_text", "--report", report]
    main = importlib.import_module("frankenlm.scripts.evaluate").main
    measures = "loss,bits_per_byte,word_perplexity"
    assert run_command(main, [str(word) for word in [*words, "--metrics", measures, "--device", "cpu"]]) == 0
    (measured,) = json.loads(report.read_text())["splits"].values()
    facts = measured | {name: entry["value"] for name, entry in measured["measures"].items()}
    assert -nats == pytest.approx(facts["loss"] * facts["tokens"], rel=1e-4)
    assert -nats / len(raw.encode()) / math.log(2) == pytest.approx(facts["bits_per_byte"], rel=1e-4)
    assert math.exp(-nats / len(raw.split())) == pytest.approx(facts["word_perplexity"], rel=1e-3)


@cells_of("until")
def test_generation_stops_where_it_is_told(family, cell, harness, saved):
    if is_no_model(cell, harness, family):
        return
    model = open_peer(family, saved(family))
    prompts = ["the cat sat", "a", TEXT[:30]]
    answers = [greedy(model, prompt, 9) for prompt in prompts]
    stop = answers[0][4:5]  # the fifth letter of the first answer, wherever it comes first
    options = {"until": [stop], "max_gen_toks": 9, "do_sample": False}
    asked = requests("generate_until", *((prompt, options) for prompt in prompts))
    found = harness(family).generate_until(asked, disable_tqdm=True)
    assert found == [answer.split(stop)[0] for answer in answers]


def greedy(model, prompt: str, count: int) -> str:
    """The most probable bytes, one at a time, from the whole text each time."""
    ids = list(prompt.encode())
    for _ in range(count):
        ids.append(int(log_probabilities(model, ids)[-1].argmax()))
    answer = [token for token in ids[len(prompt) :] if token < 256]
    return bytes(answer).decode("utf-8", "replace")


def test_a_task_of_ones_own(harness):
    """A multiple-choice task in memory, from the harness's front door: no hub, no files."""
    rows = {"question": ["the cat", "dogs run", "birds"], "choices": [[" sat", " ran"]] * 3, "label": [0, 1, 0]}
    task = ConfigurableTask(
        config={
            "task": "cats",
            "custom_dataset": lambda **kwargs: DatasetDict(test=Dataset.from_dict(rows)),
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{label}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    )
    model = harness("infinito")
    manager = TaskManager(include_defaults=False)  # or it reads the files of all its thousand tasks
    result = simple_evaluate(model=model, tasks=[task], task_manager=manager, bootstrap_iters=0)
    pairs = [(question, choice) for question in rows["question"] for choice in rows["choices"][0]]
    scores = [value for value, _ in model.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)]
    chosen = [int(scores[2 * row] < scores[2 * row + 1]) for row in range(3)]
    right = sum(a == b for a, b in zip(chosen, rows["label"], strict=True))
    assert result["results"]["cats"]["acc,none"] == pytest.approx(right / 3)
