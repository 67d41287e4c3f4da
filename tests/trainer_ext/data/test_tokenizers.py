"""Tokenizers: trained, local, by name; the special tokens of each objective; what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from frankenlm.trainer_ext.data.tokenizers import (
    add_special_tokens,
    load_tokenizer,
    separator_id,
    special_token_ids,
    train_tokenizer,
)

GPT2 = Path(__file__).parents[4] / "shared" / "data" / "gpt2-tokenizer"
needs_gpt2 = pytest.mark.skipif(not GPT2.is_dir(), reason=f"the GPT-2 tokenizer is not at {GPT2}")

DOCUMENTS = ["the cat sat on the mat.", "the dog sat on the log.", "a cat, a dog: the end"] * 3


def bert_like(**specials):
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(names | specials))


def test_trained_tokenizer_round_trips_any_text():
    tokenizer = load_tokenizer("train", documents=iter(DOCUMENTS), vocab_size=300, objective="mlm")
    for text in ("the cat sat", "Ünïcode 世界 🙂", "tabs\tand\n\nlines ", " , ."):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.unk_token is None
    assert len(tokenizer("the cat")["input_ids"]) < len("the cat"), "nothing was learnt"


@pytest.mark.parametrize(("objective", "specials"), [("mlm", 3), ("causal", 2), ("classification", 2)])
def test_trained_tokenizer_has_the_special_tokens(objective, specials):
    tokenizer = load_tokenizer("train", documents=DOCUMENTS, vocab_size=290, objective=objective)
    assert len(tokenizer) <= 290
    assert special_token_ids(tokenizer) == list(range(specials))
    assert (tokenizer.mask_token is not None) == (objective == "mlm")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id == tokenizer.bos_token_id
    assert separator_id(tokenizer, objective) == tokenizer.eos_token_id


def test_a_mask_among_bytes_can_be_written(tmp_path):
    """Or no pipeline could fill it; it takes the place of a byte, and the space before it stays."""
    load_tokenizer("bytes", documents=(), objective="mlm").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("a <mask>at").input_ids == [*b"a ", tokenizer.mask_token_id, *b"at"]
    assert load_tokenizer("bytes", documents=(), objective="causal")("<eos>").input_ids == list(b"<eos>")


@pytest.mark.parametrize(("objective", "size"), [("causal", 259), ("classification", 259), ("mlm", 260)])
def test_bytes_need_no_text_to_learn_from(objective, size):
    tokenizer = load_tokenizer("bytes", documents=iter(()), objective=objective)
    assert len(tokenizer) == size and tokenizer("a cat")["input_ids"] == list(b"a cat")
    assert separator_id(tokenizer, objective) == tokenizer.eos_token_id == 258
    with pytest.raises(ValueError, match="more than vocab_size=100"):
        load_tokenizer("bytes", documents=(), vocab_size=100, objective=objective)


def test_vocabulary_size_counts_everything():
    text = ["".join(chr(97 + (i * i + j) % 26) for j in range(9)) for i in range(500)]
    assert len(train_tokenizer(text, vocab_size=301, mask=True)) == 301
    assert len(load_tokenizer("train", documents=text * 40, objective="causal")) <= 8192


def test_training_is_deterministic():
    first, second = (train_tokenizer(iter(DOCUMENTS), vocab_size=300, mask=True) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_mask_swallows_the_space_before_it():
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size=300, mask=True)
    ids = tokenizer("the <mask> sat")["input_ids"]
    whole = tokenizer("the cat sat")["input_ids"]
    assert ids[0] == whole[0]
    assert ids[1] == tokenizer.mask_token_id
    assert ids[2:] == whole[-len(ids[2:]) :]


def test_saved_tokenizer_loads_the_same(tmp_path):
    tokenizer = train_tokenizer(DOCUMENTS, vocab_size=300, mask=True)
    tokenizer.save_pretrained(tmp_path)
    for again in (
        AutoTokenizer.from_pretrained(tmp_path),
        load_tokenizer(str(tmp_path), documents=(), objective="mlm"),
    ):
        assert len(again) == len(tokenizer)
        assert again.special_tokens_map == tokenizer.special_tokens_map
        assert again("the <mask> sat  on")["input_ids"] == tokenizer("the <mask> sat  on")["input_ids"]


@needs_gpt2
def test_gpt2_grows_by_mask_and_pad():
    tokenizer = load_tokenizer(str(GPT2), documents=(), objective="mlm")
    assert len(tokenizer) == 50257 + 2
    assert special_token_ids(tokenizer) == [50256, 50257, 50258]
    assert len(load_tokenizer(str(GPT2), documents=(), objective="causal")) == 50257 + 1
    assert len(load_tokenizer(str(GPT2), documents=(), objective="mlm", vocab_size=50259)) == 50259


@needs_gpt2
def test_larger_than_the_vocabulary_asked_for():
    with pytest.raises(ValueError, match=r"50259 entries.*vocab_size=50258.*raise it to at least 50259"):
        load_tokenizer(str(GPT2), documents=(), objective="mlm", vocab_size=50258)


def test_complete_tokenizer_is_left_alone():
    tokenizer = bert_like()
    assert add_special_tokens(tokenizer, "mlm") == 0
    assert len(tokenizer) == 8
    assert separator_id(tokenizer, "mlm") == separator_id(tokenizer, "causal") == tokenizer.sep_token_id


def test_separator_is_added_where_there_is_none():
    tokenizer = bert_like(sep_token=None)
    assert add_special_tokens(tokenizer, "causal") == 1
    assert separator_id(tokenizer, "causal") == tokenizer.eos_token_id == 8


def test_separator_prefers_eos_for_causal_and_sep_for_masked():
    tokenizer = bert_like(eos_token="c")
    assert separator_id(tokenizer, "causal") == 7
    assert separator_id(tokenizer, "mlm") == 3


def test_added_special_tokens_count_as_special():
    tokenizer = bert_like()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=True), AddedToken("word")])
    assert special_token_ids(tokenizer) == [0, 1, 2, 3, 4, 8, 9]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("./nowhere", "folder './nowhere' does not exist"),
        ("a/b/c", "folder 'a/b/c' does not exist"),
    ],
)
def test_missing_folder(spec, message):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(spec, documents=(), objective="mlm")


def test_folder_without_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="holds no usable tokenizer"):
        load_tokenizer(str(tmp_path), documents=(), objective="mlm")
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(ValueError, match="holds no usable tokenizer"):
        load_tokenizer(str(tmp_path), documents=(), objective="mlm")


DEEP = "[" * 100_000


def changed(key, value):
    """What a field of tokenizer_config.json, set to `value`, makes of its text."""
    return lambda text: json.dumps({**json.loads(text), key: value})


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("tokenizer.json", lambda text: text[: len(text) // 2], "line"),
        ("tokenizer.json", lambda text: "{}", "KeyError"),
        ("tokenizer.json", lambda text: "[]", "TypeError"),
        ("tokenizer.json", lambda text: "null", "AttributeError"),
        ("tokenizer.json", lambda text: "", "Expecting value"),
        ("tokenizer.json", lambda text: DEEP, "nested too deep"),
        ("tokenizer.json", lambda text: text.replace('"model":', '"mdoel":'), "Model missing|expected"),
        ("tokenizer_config.json", lambda text: text[:40], "Unterminated string"),
        ("tokenizer_config.json", lambda text: "[]", "AttributeError"),
        ("tokenizer_config.json", lambda text: DEEP, "nested too deep"),
        ("tokenizer_config.json", changed("tokenizer_class", 5), "AttributeError"),
        ("tokenizer_config.json", changed("eos_token", 5), "eos_token"),
        ("tokenizer_config.json", changed("padding_side", "up"), "[Pp]adding side"),
        ("tokenizer_config.json", changed("added_tokens_decoder", {"x": {"content": "a"}}), "invalid literal"),
        ("config.json", lambda text: "[", "not a valid JSON"),
    ],
)
def test_damaged_folder(tmp_path, name, change, reason):
    tokenizer = load_tokenizer("bytes", documents=(), objective="mlm")
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(change((tmp_path / name).read_text()))
    if name == "config.json":
        (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="holds no usable tokenizer") as caught:
        load_tokenizer(str(tmp_path), documents=(), objective="mlm")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert re.search(reason, str(caught.value))


@pytest.mark.parametrize(
    ("spec", "message"),
    [("", "tokenizer '' is empty"), (" ", "tokenizer ' ' is empty"), ("~nobody-of-this-name/x", "home directory")],
)
def test_names_that_are_none(spec, message):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(spec, documents=DOCUMENTS, objective="mlm")


@pytest.mark.parametrize("spec", ["train", "bytes"])
@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_not_the_default(spec, size):
    with pytest.raises(ValueError, match=f"vocab_size={size} must be at least 1"):
        load_tokenizer(spec, documents=DOCUMENTS, objective="mlm", vocab_size=size)


@needs_gpt2
def test_file_instead_of_folder(tmp_path):
    shutil.copy(GPT2 / "tokenizer.json", tmp_path)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        load_tokenizer(str(tmp_path / "tokenizer.json"), documents=(), objective="mlm")


def test_hub_name_without_connection(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.\nSecond line.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(ValueError, match=r"'trian' is no local folder.*Did you mean 'train'\?") as caught:
        load_tokenizer("trian", documents=(), objective="mlm")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": [], "objective": "mlm"}, "no documents to train a tokenizer on"),
        ({"documents": ["a"], "objective": "mlm", "vocab_size": 258}, "vocab_size=258 is too small.*at least 259"),
        ({"documents": ["a"], "objective": "msm"}, "objective='msm' is not known. Did you mean 'mlm'?"),
    ],
)
def test_training_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_tokenizer("train", **arguments)
