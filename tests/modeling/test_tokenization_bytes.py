"""The byte tokenizer: ids are bytes, any text comes back, markup stays apart, and AutoTokenizer opens it alone."""

import pytest
from transformers import AutoTokenizer

from frankenlm.modeling import byte_tokenizer

TEXTS = (
    "the cat sat",
    " leading and trailing ",
    "tabs\tand\r\n\nlines\x00\x7f",
    "Ünïcode 世界 🙂 e\u0301 \u200b\ufeff",
    "<eos> <pad> <bos>",
    "Ġ Ċ are letters, don't  merge",
    "\u00a0\u2028",
)

STRANGER = """
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
text = "a <eos> \\U0001f642"
assert tokenizer(text).input_ids == list(text.encode()), tokenizer(text).input_ids
assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (259, 256, 257, 258)
"""


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


def test_259_entries(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == 259
    ids = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    assert ids == (256, 257, 258) and sorted(tokenizer.all_special_ids) == list(ids)
    assert tokenizer.unk_token is None


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_the_bytes_and_come_back(text, tokenizer, saved):
    for each in (tokenizer, AutoTokenizer.from_pretrained(saved)):
        ids = each(text).input_ids
        assert ids == list(text.encode())
        assert each.decode(ids) == each.decode(ids, skip_special_tokens=True) == text


def test_every_character_comes_back(tokenizer):
    text = "".join(chr(point) for point in range(0x3000) if not 0xD800 <= point < 0xE000)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_byte_is_its_own_id(tokenizer):
    assert sorted(tokenizer.get_vocab().values()) == list(range(259))
    assert [tokenizer.decode([byte]) for byte in range(128)] == [chr(byte) for byte in range(128)]
    assert tokenizer.decode([0xC3, 0xA9]) == "é"
    assert tokenizer.decode([0xFF, 0x41]) == "\ufffdA"  # not UTF-8; bytes(ids) is the way to raw bytes


def test_markup_is_what_ids_say(tokenizer):
    ids = [257, *b"Hi", 258]
    assert tokenizer.decode(ids) == "<bos>Hi<eos>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Hi"
    assert tokenizer("<eos>").input_ids == list(b"<eos>")


def test_a_batch_is_padded(tokenizer):
    batch = tokenizer(["abc", "é"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[97, 98, 99], [0xC3, 0xA9, 256]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert tokenizer("abcdef", truncation=True, max_length=4).input_ids == list(b"abcd")


def test_opens_where_the_package_is_missing(saved, stranger, tmp_path):
    done = stranger.run(STRANGER, saved, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(saved.glob("*.py"))
