"""Opening saved models: whatever is wrong with a folder is one line, in a moment, with nothing else on the console."""

import json
import logging
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from frankenlm.trainer_ext.common.checkpoints import load_model, open_checkpoint
from frankenlm.trainer_ext.common.cli import UserError, check_model_name
from frankenlm.trainer_ext.common.opening import check_runs, held_back_logs, read_config, read_weights, reading
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A random GPT-2 with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    tokenizer = train_tokenizer(["the cat sat on a mat"] * 4, vocab_size=280, mask=False)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def change_config(**changes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


def change_tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def make_nan(tensors: dict) -> None:
    tensors["transformer.wte.weight"].fill_(float("nan"))


def index_of(target: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / f"{WEIGHTS}.index.json").write_bytes(target)

    return damage


def as_adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')


DEEP = b"[" * 100_000 + b"]" * 100_000
DAMAGES = {
    "weights cut within the header": (cut(100), "damaged or cut short"),
    "weights cut within the tensors": (cut(8000), "damaged or cut short"),
    "no byte of weights": (cut(0), "weights cannot be used"),
    "a header as long as the world": (write(WEIGHTS, struct.pack("<Q", 2**60) + b"{}"), "damaged or cut short"),
    "a page instead of weights": (write(WEIGHTS, b"<html>not found</html>" * 9), "damaged or cut short"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "weights cannot be used"),
    "a list as index": (index_of(b"[]"), "weights cannot be used"),
    "an index of files that are not there": (index_of(b'{"weight_map": {"a": "x.safetensors"}}'), "weights cannot"),
    "a tensor of another shape": (
        change_tensors(lambda tensors: tensors.update({"transformer.wte.weight": torch.zeros(3, 5)})),
        "weights cannot be used",
    ),
    "a tensor that is not there": (
        change_tensors(lambda tensors: tensors.pop("transformer.wpe.weight")),
        "lacks 1 weights, such as transformer.wpe",
    ),
    "weights of another model": (change_config(n_layer=0), "has no place for 11 of the 16"),
    "NaN": (change_tensors(make_nan), "its weights give NaN"),
    "JSON of 100,000 levels": (write("config.json", DEEP), "config.json cannot be used: nested too deep"),
    "a list as configuration": (write("config.json", b"[]"), "config.json cannot be used"),
    "half a configuration": (write("config.json", b'{"model_type": "gpt'), "config.json"),
    "a billion layers": (change_config(n_layer=10**9), "n_layer=1000000000 is more than"),
    "a billion layers, as a float": (change_config(num_hidden_layers=1e9), "num_hidden_layers=1000000000.0 is more"),
    "a billion layers inside": (change_config(text_config={"num_hidden_layers": 10**9}), "is more than"),
    "a billion heads": (change_config(n_head=10**9), "n_head=1000000000 is more than"),
    "a hundred million wide": (change_config(n_embd=10**8), "parameters, and its weights file holds"),
    "a trillion words": (change_config(vocab_size=10**12), "parameters, and its weights file holds"),
    "layers in words": (change_config(n_layer="two"), "config.json cannot be used"),
    "no head": (change_config(n_head=0), "cannot be used"),
    "heads that do not divide": (change_config(n_head=3), "cannot be used"),
    "an unknown activation": (change_config(activation_function="banana"), "cannot be used"),
    "an unknown family": (change_config(model_type="banana"), "config.json cannot be used"),
    "classes that are numbers": (change_config(architectures=[3]), "a list of class names is expected"),
    "an unknown number format": (change_config(dtype="banana"), "cannot be used"),
    "no tokenizer": (lambda folder: [file.unlink() for file in folder.glob("tokenizer*")], "tokenizer"),
    "half a tokenizer": (write("tokenizer.json", b"{"), "its tokenizer cannot be used"),
    "a tokenizer of another kind": (write("tokenizer_config.json", b"[]"), "its tokenizer cannot be used"),
    "an end token in words": (write("generation_config.json", b'{"eos_token_id": "q"}'), "is no token id"),
    "an adapter": (as_adapter, "its base owner/base: no folder of that name"),
    "an empty folder": (lambda folder: [file.unlink() for file in folder.iterdir()], "holds no config.json"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=list(DAMAGES))
def test_a_damaged_checkpoint_is_one_line(damage, saved, tmp_path, capfd):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    change, message = DAMAGES[damage]
    change(folder)
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        load_model(open_checkpoint(str(folder)), device="cpu")
    assert time.perf_counter() - start < 20
    assert message in str(caught.value) and str(folder) in str(caught.value)
    assert "[transformers]" not in capfd.readouterr().err


def test_a_good_checkpoint_loads(saved):
    model = load_model(open_checkpoint(str(saved)), device="cpu")
    assert isinstance(model, GPT2LMHeadModel) and not model.training


def test_what_a_library_says_is_kept_where_it_succeeds():
    library, said = logging.getLogger("some_library"), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    library.addHandler(handler)
    with held_back_logs("some_library"):
        library.warning("said in time")
        assert said == []
    assert said == ["said in time"]
    with pytest.raises(ZeroDivisionError), held_back_logs("some_library"):
        library.warning("said in vain")
        raise ZeroDivisionError
    assert said == ["said in time"] and library.handlers == [handler]
    library.removeHandler(handler)


def test_storage_and_memory_are_no_mistakes_of_the_user():
    for error in (OSError(28, "No space left on device"), MemoryError(), RuntimeError("CUDA out of memory.")):
        with pytest.raises(type(error)), reading("--model m", "weights"):
            raise error


def test_a_model_that_takes_no_text_is_told(saved):
    class Deaf(GPT2LMHeadModel):
        def forward(self, *args, **kwargs):
            raise IndexError("index out of range in self")

    model = Deaf(GPT2Config(vocab_size=9, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    with pytest.raises(UserError, match="--model m: its model cannot be used: index out of range|IndexError"):
        check_runs(model, "m")


def test_weights_are_read_for_the_class_that_is_asked_for(saved):
    config = read_config(str(saved))
    assert read_weights(AutoModelForCausalLM, str(saved), config).config.vocab_size == config.vocab_size


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("n" * 300, "no such folder (File name too long)"),
        ("~nobody-of-this-name/x", "no such folder"),
        ("/no/such", "no such folder"),
        ("caf\udce9", "is not valid UTF-8"),
        ("a\0b", "NUL"),
        ("{file}", "is no folder"),
    ],
)
def test_names_that_name_no_model(name, message, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as caught:
        check_model_name("--model", name.format(file=tmp_path / "file"))
    assert message in str(caught.value)
