"""A cache in the folder of the test, and two tokenizers."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from frankenlm.trainer_ext.data.splits import (
    load_splits,
)
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer
from sample_texts import TEXTS


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def load(cache):
    """load_splits, cached inside the test's own folder."""
    return lambda spec, **options: load_splits(str(spec), cache_dir=cache, **options)


@pytest.fixture(scope="module")
def byte_level():
    return train_tokenizer(TEXTS, vocab_size=300, mask=True)


@pytest.fixture(scope="module")
def bert_like():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)
