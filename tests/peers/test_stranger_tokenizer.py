"""AutoTokenizer in a process that knows nothing of frankenlm: every kind of tokenizer that runs save, and no question.

transformers reads config.json before it looks at the tokenizer, and asks whether to run the code that is named there
(`y/N`); `trust_remote_code=False` answers it, and no code is needed.
"""

import json
import random
import subprocess
import sys

import pytest
from transformers import AutoTokenizer, BertTokenizerFast
from transformers.dynamic_module_utils import resolve_trust_remote_code

from frankenlm.trainer_ext.data.tokenizers import add_special_tokens
from peer_cells import TOOLS, WORKS, cells_of

STRANGER = """
import builtins, json, sys

class NoFrankenlm:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "frankenlm":
            raise ModuleNotFoundError(f"No module named {name!r}")

def ask(text=""):
    raise SystemExit("it asks: " + text)

sys.meta_path.insert(0, NoFrankenlm())
builtins.input = ask
from transformers import AutoTokenizer, PreTrainedTokenizerFast
texts = json.load(open(sys.argv[1], encoding="utf-8"))
answers = {}
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    plain = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = [tokenizer(text).input_ids for text in texts]
    assert ids == [plain(text).input_ids for text in texts]
    answers[folder] = {
        "ids": ids,
        "texts": [tokenizer.decode(each) for each in ids],
        "specials": [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id],
        "length": tokenizer.model_max_length,
    }
refused = []
for bad in ("\\ud800", "a\\udfffb"):
    try:
        tokenizer(bad)
    except Exception as error:
        refused.append(type(error).__name__)
print(json.dumps({"answers": answers, "refused": refused}))
"""


def some_texts() -> list[str]:
    """Texts of any characters, those that encoders stumble over among them."""
    draw = random.Random(0)
    kinds = [range(128), range(0x80, 0x800), range(0x800, 0xD800), range(0xE000, 0x10000), range(0x10000, 0x110000)]
    texts = ["".join(chr(draw.choice(draw.choice(kinds))) for _ in range(draw.randint(0, 40))) for _ in range(60)]
    return [*texts, "", " ", "the cat <mask> sat", "<eos><pad>", "\x00\x7f\ufeff\ufffe", "e\u0301", "🙂\u200d🙂"]


def is_by_byte(tokenizer) -> bool:
    return tokenizer("é").input_ids == list("é".encode())


@pytest.fixture(scope="module")
def from_a_hub(saved, tmp_path_factory):
    """A checkpoint of ours whose tokenizer is another project's, BERT's WordPiece."""
    folder = tmp_path_factory.mktemp("wordpiece")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s"]
    tokenizer = BertTokenizerFast(vocab={word: index for index, word in enumerate(words)})
    add_special_tokens(tokenizer, "mlm")
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_bytes((saved("standard") / "config.json").read_bytes())
    return folder


@pytest.fixture(scope="module")
def strangers(saved, from_a_hub, tmp_path_factory):
    place = tmp_path_factory.mktemp("stranger")
    (place / "texts.json").write_text(json.dumps(some_texts()))
    folders = [str(saved(family)) for family in TOOLS["tokenizer"].cells] + [str(from_a_hub)]
    command = [sys.executable, "-c", STRANGER, str(place / "texts.json"), *folders]
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=place, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check(folder, strangers):
    own, answer, texts = AutoTokenizer.from_pretrained(folder), strangers["answers"][str(folder)], some_texts()
    assert answer["ids"] == [own(text).input_ids for text in texts]
    assert answer["texts"] == [own.decode(ids) for ids in answer["ids"]]
    assert answer["specials"] == [own.pad_token_id, own.eos_token_id, own.mask_token_id]
    assert answer["length"] == own.model_max_length
    return own, answer, texts


@cells_of("tokenizer")
def test_ids_and_texts_are_the_same(family, cell, saved, strangers):
    assert cell.verdict == WORKS
    own, answer, texts = check(saved(family), strangers)
    if is_by_byte(own):
        assert answer["ids"] == [list(text.encode()) for text in texts]
    assert answer["length"] == 48
    plain = [index for index, text in enumerate(texts) if "<mask>" not in text]  # a mask swallows the space before it
    assert [answer["texts"][index] for index in plain] == [texts[index] for index in plain]


def test_a_tokenizer_of_others(from_a_hub, strangers):
    own, answer, texts = check(from_a_hub, strangers)
    assert type(own).__name__.startswith("Bert") and answer["ids"][texts.index("the cat <mask> sat")][1:3] == [5, 6]


def test_half_surrogate_pairs_are_no_text(strangers):
    assert len(strangers["refused"]) == 2


def test_without_the_word_the_library_asks(saved, monkeypatch):
    """A fact of transformers: where it no longer asks, docs/tools.md says too much."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "n")
    with pytest.raises(ValueError, match="contains custom code"):
        resolve_trust_remote_code(None, str(saved("decoder")), has_local_code=False, has_remote_code=True)
    assert len(asked) == 1 and "y/N" in asked[0]
