"""pipeline(...) with its defaults: what it answers is what the model's own logits say, on every kind and every preset;
texts that are too long are cut or refused, and nobody is warned of what they did not ask for.
"""

import json
import logging
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from frankenlm.modeling import FAMILIES, list_presets, read_preset
from frankenlm.trainer_ext.checking.tiny import tiny_config
from frankenlm.trainer_ext.common.objectives import OBJECTIVES
from frankenlm.trainer_ext.data.tokenizers import load_tokenizer, tell_lengths
from peer_cells import WORKS, cells_of
from peer_models import ENCODERS, POSITIONS, TEXT, open_peer
from peer_models import FAMILIES as FAMILIES_OF_PEERS

CONFIGS = {family.config_class.model_type: family.config_class for family in FAMILIES}
LONG = f"{TEXT} " * 30
WRITING = ("text-generation", "the cat", {"max_new_tokens": 6, "do_sample": False})
TOO_LONG = "max_position_embeddings="


def greedy(model, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == model.config.eos_token_id:
            break
    return ids


def check_filling(folder, model, tokenizer):
    text = f"the cat {tokenizer.mask_token} on a mat"
    answers = pipeline("fill-mask", model=str(folder), device="cpu")(text)
    ids = tokenizer(text, return_tensors="pt")
    place = int((ids["input_ids"][0] == tokenizer.mask_token_id).nonzero())
    with torch.no_grad():
        best = model(**ids).logits[0, place].softmax(-1).topk(5)
    assert [answer["token"] for answer in answers] == best.indices.tolist()
    torch.testing.assert_close(torch.tensor([answer["score"] for answer in answers]), best.values, rtol=1e-4, atol=1e-6)
    batch = pipeline("fill-mask", model=str(folder), device="cpu", batch_size=2)(
        [text, f"{tokenizer.mask_token} a cat"]
    )
    assert [answer["token"] for answer in batch[0]] == [answer["token"] for answer in answers]


def check_writing(folder, model, tokenizer):
    write = pipeline("text-generation", model=str(folder), device="cpu")
    ids = greedy(model, tokenizer("the cat")["input_ids"], 6)
    (answer,) = write("the cat", do_sample=False, max_new_tokens=6)
    assert answer["generated_text"] == tokenizer.decode(ids, skip_special_tokens=True)
    # without a word as far as the positions go; where they have no end it would be 256 tokens
    (answer,) = write("the cat", **({} if model.max_positions() else {"max_length": 20}))
    assert answer["generated_text"].startswith("the cat")


def check_features(folder, tokenizer):
    features = pipeline("feature-extraction", model=str(folder), device="cpu")("the cat")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(**tokenizer("the cat", return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(torch.tensor(features), hidden, rtol=1e-4, atol=1e-5)


def warnings_of(caplog) -> list[str]:
    """What was logged as a warning, but for transformers' report of the head that a stack has no place for."""
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    # a model without a table of positions goes on beyond the length that it was trained at
    return [text for text in told if "LOAD REPORT" not in text and "exceeded the model's predefined" not in text]


@cells_of("pipeline")
def test_defaults(family, cell, saved, caplog):
    assert cell.verdict == WORKS
    folder = saved(family)
    model, tokenizer = open_peer(family, folder), AutoTokenizer.from_pretrained(folder)
    (check_filling if family in ENCODERS else check_writing)(folder, model, tokenizer)
    check_features(folder, tokenizer)
    assert tokenizer.model_max_length == POSITIONS and not warnings_of(caplog)


@pytest.fixture(scope="module")
def of_preset(tmp_path_factory):
    """of_preset(name, objective) -> the folder of a preset made tiny, saved as a run saves it."""
    parent = tmp_path_factory.mktemp("presets")

    def make(name, objective):
        preset, folder = read_preset(name), parent / f"{name}-{objective}"
        if folder.exists():
            return folder
        spec = preset.data.get("tokenizer", "train")
        tokenizer = load_tokenizer(spec, documents=[TEXT] * 4, objective=objective)
        ids = {
            key: getattr(tokenizer, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id")
        }
        kind = CONFIGS[preset.model_type]
        config = tiny_config(kind, kind.from_preset(name), vocab_size=len(tokenizer), **ids)
        torch.manual_seed(0)
        model = OBJECTIVES[objective].auto_model.from_config(config).eval()
        tell_lengths(tokenizer, model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


STRANGER = """
import json, sys

class NoFrankenlm:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "frankenlm":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, NoFrankenlm())
from transformers import pipeline
answers = {}
for words in sys.argv[1:]:
    task, folder, text, options = json.loads(words)
    options = {"trust_remote_code": True, "device": "cpu", **options}
    answers[folder] = pipeline(task, model=folder, **options)(text)[0]
print(json.dumps(answers))
"""


@pytest.mark.slow  # of what test_remote_code.py shows of the models
def test_where_frankenlm_is_missing(saved, tmp_path):
    """The code in the folder answers the same."""
    asked = []
    for family in FAMILIES_OF_PEERS:
        task, text, options = ("fill-mask", "the <mask> sat", {}) if family in ENCODERS else WRITING
        asked.append((task, str(saved(family)), text, options))
    command = [sys.executable, "-c", STRANGER, *map(json.dumps, asked)]
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    for task, folder, text, options in asked:
        ours, theirs = pipeline(task, model=folder, device="cpu", **options)(text)[0], answers[folder]
        assert theirs.keys() == ours.keys()
        for name, value in ours.items():
            assert theirs[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value)


def objective_of(name) -> str:
    return read_preset(name).data["objective"]


@pytest.mark.parametrize("name", list_presets())
def test_every_preset(name, of_preset, caplog):
    objective = objective_of(name)
    folder = of_preset(name, objective)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = OBJECTIVES[objective].auto_model.from_pretrained(folder).eval()
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    (check_filling if objective == "mlm" else check_writing)(folder, model, tokenizer)
    check_features(folder, tokenizer)
    assert not warnings_of(caplog)


@pytest.mark.parametrize("name", list_presets())
def test_texts_that_are_too_long(name, of_preset):
    """Truncation cuts them where it is asked for; else a model with a table of positions says why it cannot."""
    objective = objective_of(name)
    folder = of_preset(name, objective)
    extract = pipeline("feature-extraction", model=str(folder), device="cpu")
    limit = extract.tokenizer.model_max_length
    assert len(extract(LONG, truncation=True)[0]) == limit
    is_bounded = extract.model.max_positions() is not None
    if is_bounded:
        with pytest.raises(ValueError, match=f"positions but {TOO_LONG}{limit}; truncate it"):
            extract(LONG)
    else:
        assert len(extract(LONG)[0]) > limit
    if objective == "causal" and is_bounded:
        write = pipeline("text-generation", model=str(folder), device="cpu")
        with pytest.raises(ValueError, match=f"positions but {TOO_LONG}{limit}: shorten the prompt"):
            write(LONG)


@pytest.mark.parametrize("name", [name for name in list_presets() if read_preset(name).model_type == "frankenstein"])
def test_classifiers(name, of_preset):
    folder = of_preset(name, "classification")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    classify = pipeline("text-classification", model=str(folder), device="cpu")
    texts = ["the cat", TEXT]
    for answer, text in zip(classify(texts, batch_size=2), texts, strict=True):
        with torch.no_grad():
            scores = model.eval()(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        assert answer["label"] == model.config.id2label[int(scores.argmax())]
        assert answer["score"] == pytest.approx(float(scores.max()), rel=1e-4)
    assert classify(LONG, truncation=True)


def test_a_count_of_new_tokens_is_no_second_wish(saved, caplog):
    """A saved bound yields to it in silence; asked for both, transformers says which counts."""
    model = open_peer("infinito", saved("infinito"))
    assert model.generation_config.max_length == POSITIONS
    ids = torch.arange(60, 70)[None]
    options = {"do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    assert model.generate(ids, max_new_tokens=4, **options).shape == (1, 14) and not warnings_of(caplog)
    assert model.generate(ids, **options).shape == (1, POSITIONS) and not warnings_of(caplog)
    assert model.generate(ids, max_new_tokens=4, max_length=12, **options).shape == (1, 14)
    assert len(warnings_of(caplog)) == 1 and "Both" in warnings_of(caplog)[0]
    with pytest.raises(ValueError, match=f"need {POSITIONS + 1} positions but {TOO_LONG}{POSITIONS}"):
        model.generate(ids, max_new_tokens=POSITIONS - 8, **options)
    with pytest.raises(ValueError, match=f"need {POSITIONS + 3} positions but {TOO_LONG}{POSITIONS}: shorten"):
        model.generate(torch.full((1, POSITIONS + 2), 60))
