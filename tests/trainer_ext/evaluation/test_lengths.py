"""trainer_ext/evaluation/lengths.py: nats are divided by the length of what they are of, and of nothing else.

The oracle is a model that holds all V tokens equally likely: log2 V bits a token, whatever it reads.
"""

import math

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from frankenlm.trainer_ext.evaluation.lengths import scored_lengths, scored_part
from frankenlm.trainer_ext.evaluation.scoring import Scorer, learning_measures, score

KNOWN = ["a", "b", "c", "d"]


def zeroed(model):
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    return model.eval()


def without_begin() -> PreTrainedTokenizerFast:
    """A token a word, and neither begin nor end."""
    places = {word: place for place, word in enumerate(["<unk>", *KNOWN])}
    words = Tokenizer(models.WordLevel(places, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


def bert_words() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *KNOWN]
    return BertTokenizer(vocab={word: place for place, word in enumerate(words)})


def byte_words() -> PreTrainedTokenizerFast:
    """A token a byte, without begin or end."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({sign: place for place, sign in enumerate(signs)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(scope="module")
def causal() -> Scorer:
    sizes = {"vocab_size": 5, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
    return Scorer(zeroed(model), without_begin(), "causal", 16, 8, 4)


def test_the_first_word_is_no_length_where_nothing_could_predict_it(causal):
    documents = Dataset.from_dict({"text": ["a b", "c d", "b a", "d", "  a b c "]})
    scored = score(causal, documents, mlm_probability=0, seed=0, reference=bert_words())
    # " b", " d", " a", nothing of the lone word, " b c "
    assert {name: scored.facts[name] for name in ("tokens", "words", "reference_tokens", "bytes")} == {
        "tokens": 5,
        "words": 5,
        "reference_tokens": 5,
        "bytes": 11,
    }
    learned = learning_measures(causal, documents, 1e-30, bert_words())
    for values in (scored.measures(), learned):
        for name in ("perplexity", "word_perplexity", "reference_perplexity"):
            assert values[name] == pytest.approx(5), name
        assert values["bits_per_byte"] == pytest.approx(5 * math.log2(5) / 11)


@pytest.mark.parametrize(("method", "unknown"), [("pseudo", 0), ("pseudo", 4), ("mlm", 4)])
def test_unknown_words_lower_no_bits_per_byte(method, unknown):
    """Every word that is known is a letter with the blank before it, so 2 bytes, the first 1."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    scorer = Scorer(zeroed(BertForMaskedLM(BertConfig(vocab_size=9, **sizes))), bert_words(), method, 32, 32, 8)
    text = " ".join(["a", "b", *["zebra"] * unknown, "c", "d"])
    scored = score(scorer, Dataset.from_dict({"text": [text] * 3}), mlm_probability=0.5, seed=0)
    assert scored.measures()["bits_per_byte"] == pytest.approx(4 * math.log2(9) / 7)
    if method == "pseudo":
        assert (scored.facts["tokens"], scored.facts["bytes"]) == (12, 21)


def test_a_part_of_a_text():
    words = bert_words()
    assert scored_part(words, "zebra a  zebra b zebra\n", "pseudo") == " a b"
    assert scored_part(words, "a [MASK] b \n", "mlm") == "a b \n"
    assert scored_part(words, "", "pseudo") == "" == scored_part(without_begin(), "", "causal")
    assert scored_part(words, "zebra a", "causal") == " a"  # it has neither begin nor end token either
    assert scored_part(byte_words(), "aé€", "causal") == "é€"
    assert scored_part(byte_words(), "é€", "causal") == "€"  # a letter of which a byte was not scored counts as none


def test_a_tokenizer_that_tells_no_places(causal, monkeypatch):
    """Whole texts have their length; of others it is not known, and nothing stands for it."""
    words = bert_words()
    monkeypatch.setattr(type(words), "is_fast", False)
    monkeypatch.setattr(words, "_encode_plus", without_places(words._encode_plus))
    assert scored_lengths(words, ["a b"], "pseudo").utf8_bytes == [3]
    assert scored_lengths(words, ["a b", "a zebra"], "pseudo").utf8_bytes is None


def without_places(encode):
    def encodes(*args, return_offsets_mapping=False, **options):
        assert not return_offsets_mapping
        return encode(*args, **options)

    return encodes
