"""scripts/train.py --lora: an adapter beside every family, for PEFT, resumed bitwise and merged where that is exact."""

import json
import math
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    InfinitoConfig,
    InfinitoForCausalLM,
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
)
from frankenlm.modeling.quantizer_ternary import pack_model
from frankenlm.trainer_ext import FrankenTrainer
from frankenlm.trainer_ext.common.checkpoints import load_model, open_checkpoint
from frankenlm.trainer_ext.data.tokenizers import load_tokenizer
from frankenlm.trainer_ext.saving.checkpoint_record import read_record
from frankenlm.trainer_ext.saving.training_csv import read_csv
from run_outcomes import curves, metrics

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
FRANKENSTEIN = {**SIZES, "layer_pattern": ["mamba", "retnet"], "mamba_head_dim": 8, "num_experts": 2}
STEADY = {"dropout": 0.0, "attention_dropout": 0.0}
INFINITO = {**SIZES, "memory_layers": [1], "memory_slots": 2, "memory_segment": 4, "memory_heads": 2}
BASES = {
    "causal": (FrankensteinForCausalLM, FrankensteinConfig, {**FRANKENSTEIN, **STEADY, "is_decoder": True}),
    "mlm": (FrankensteinForMaskedLM, FrankensteinConfig, FRANKENSTEIN),
    "infinito": (InfinitoForCausalLM, InfinitoConfig, INFINITO),
    "legacy_1bit": (Legacy1BitForCausalLM, Legacy1BitConfig, SIZES),
    "legacy full": (Legacy1BitForCausalLM, Legacy1BitConfig, {**SIZES, "use_bitnet": False}),
}
ROUNDS = {"legacy_1bit"}
ALIKE = {"infinito", "legacy full"}  # to the causal one, as far as an adapter goes
STEPS = ("--max_steps", 4, "--save_steps", 2, "--eval_steps", 2, "--logging_steps", 1, "--learning_rate", 0.05)
# PEFT asks transformers by a name that transformers has given another.
peft_speaks_old_names = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """base(family) -> the folder of a small saved model with its tokenizer, bytes."""
    made = {}

    def make(family):
        if family not in made:
            objective = "mlm" if family == "mlm" else "causal"
            tokenizer = load_tokenizer("bytes", documents=[], objective=objective)
            kind, config, fields = BASES[family]
            ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
            ids["mask_token_id"] = tokenizer.mask_token_id if objective == "mlm" else None
            torch.manual_seed(0)
            model = kind(config(vocab_size=len(tokenizer), **fields, **ids))
            with torch.no_grad():  # wider than at the start, so that a step shows
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.normal_(std=0.3)
            made[family] = tmp_path_factory.mktemp("bases") / family
            model.save_pretrained(made[family])
            tokenizer.save_pretrained(made[family])
        return made[family]

    return make


@pytest.fixture(scope="module")
def lora(run_train, base, corpus, cache):
    """lora(family, output_dir, *more) trains an adapter for a step or four and returns the exit code."""

    def train(family, output_dir, *more):
        objective = "mlm" if family == "mlm" else "causal"
        words = ("--model_name_or_path", base(family), "--objective", objective, "--dataset", corpus, "--cache_dir")
        rest = ("--max_documents", 20, "--max_length", 32, "--batch_size", 2, "--disable_tqdm", "true", "--use_cpu")
        return run_train(*words, cache, *rest, "--lora", "--lora_rank", 2, *STEPS, "--output_dir", output_dir, *more)

    return train


def adapter(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in BASES]
)
@peft_speaks_old_names
def test_an_adapter_is_trained_resumed_loaded_and_merged(family, lora, base, tmp_path):
    before = load_file(base(family) / "model.safetensors")
    whole = tmp_path / "whole"
    assert lora(family, whole) == 0
    names = {path.name for path in whole.iterdir()}
    assert names >= {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md", "metrics.json"}
    assert not {"model.safetensors", "config.json"} & names
    assert any(tensor.any() for name, tensor in adapter(whole).items() if "lora_B" in name)
    assert read_record(whole / "checkpoint-2").health.fault is None

    again = tmp_path / "again"
    shutil.copytree(whole / "checkpoint-2", again / "checkpoint-2")
    shutil.copy(whole / "training.csv", again)
    assert lora(family, again, "--resume_from_checkpoint", "last") == 0
    assert curves(again) == curves(whole)
    assert all(torch.equal(tensor, adapter(again)[name]) for name, tensor in adapter(whole).items())

    after = load_file(base(family) / "model.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    check_loading(family, whole, base(family))


def check_loading(family, folder, base):
    auto_model = AutoModelForMaskedLM if family == "mlm" else AutoModelForCausalLM
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"]])
    plain = auto_model.from_pretrained(base).eval()
    loaded = PeftModel.from_pretrained(auto_model.from_pretrained(base), folder).eval()
    with torch.no_grad():
        logits = loaded(input_ids=ids).logits
        assert (logits - plain(input_ids=ids).logits).abs().max() > 1e-3
        if family != "mlm":
            assert torch.equal(AutoPeftModelForCausalLM.from_pretrained(folder).eval()(input_ids=ids).logits, logits)
            opened = load_model(open_checkpoint(str(folder)), device="cpu")  # as generate, evaluate and compare do
            assert torch.equal(opened(input_ids=ids).logits, logits)
        if family in ROUNDS:
            with pytest.raises(ValueError, match=r"cannot be merged into .* \(BitLinear\)"):
                loaded.merge_and_unload()
            return
        merged = loaded.merge_and_unload()(input_ids=ids).logits
    torch.testing.assert_close(merged, logits, atol=1e-5, rtol=0)


def test_what_is_told_of_an_adapter(lora, base, tmp_path, monkeypatch):
    monkeypatch.chdir(base("causal").parent)  # a name from here leads to the base from everywhere
    words = ("--model_name_or_path", base("causal").name, "--lora_targets", "q_proj", "router", "--max_steps", 1)
    assert lora("causal", tmp_path, *words) == 0
    assert "norm_f_saturation" in next(row for row in read_csv(tmp_path / "training.csv") if "loss" in row)
    facts = metrics(tmp_path)
    found = facts["adapter"]
    assert found["layers"] == ["q_proj", "router"] and found["rank"] == 2 and found["base"] == str(base("causal"))
    assert facts["architecture"] == "FrankensteinForCausalLM"
    assert found["parameters"] == sum(tensor.numel() for tensor in adapter(tmp_path).values())
    card = (tmp_path / "README.md").read_text()
    assert "A LoRA adapter of" in card and f'from_pretrained("{base("causal")}"), "PATH")' in card
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["q_proj", "router"] and config["lora_alpha"] == 32
    assert config["base_model_name_or_path"] == str(base("causal"))


def test_the_guard_brings_an_adapter_through_nan(lora, tmp_path, monkeypatch):
    """A gradient of NaN for once: the weights end as if it had not been."""
    words = ("--lora_dropout", 0.0)
    assert lora("causal", tmp_path / "clean", *words) == 0
    step, poisoned = FrankenTrainer.training_step, []

    def faulty(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        if self.state.global_step == 2 and not poisoned:
            poisoned.append(True)
            next(p for p in self.model.parameters() if p.requires_grad).grad.fill_(math.nan)
        return loss

    monkeypatch.setattr(FrankenTrainer, "training_step", faulty)
    assert lora("causal", tmp_path / "faulty", *words) == 0 and poisoned
    assert read_record(tmp_path / "faulty" / "checkpoint-4").health.guard == {"none": 3, "retry": 1}
    clean = adapter(tmp_path / "clean")
    assert all(torch.equal(tensor, clean[name]) for name, tensor in adapter(tmp_path / "faulty").items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--matrix_optimizer muon", "--lora and --matrix_optimizer muon exclude each other"),
        ("--use_galore", "--lora and --matrix_optimizer galore exclude each other"),
        ("--ternary_training sign_accum", "--lora and --ternary_training sign_accum exclude each other"),
        ("--objective classification", "--lora and --objective classification exclude each other"),
        ("--objective mlm", "holds FrankensteinForCausalLM, and an adapter cannot give it another head"),
        ("--lora_targets q_prj", "--lora_targets q_prj: no layer of that name. Did you mean 'q_proj'?"),
        ("--lora_rank 0", "--lora_rank 0: must be at least 1"),
        ("--lora_dropout 1", "--lora_dropout 1.0: must be in [0, 1)"),
        ("--lora_alpha 0", "--lora_alpha 0: must be more than 0"),
        ("--vocab_size 300", "an adapter leaves the embedding as it is"),
        ("--lora false", "--lora_rank belongs to --lora"),
        ("--preset mini", "exclude each other"),
    ],
)
def test_what_an_adapter_cannot_stand_beside(words, message, lora, tmp_path, capsys):
    assert lora("causal", tmp_path / "run", *words.split()) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run" / "adapter_config.json").exists()


def test_bases_that_an_adapter_cannot_stand_beside(run_train, lora, base, tiny, tmp_path, capsys):
    assert run_train(*tiny, "--lora", "--output_dir", tmp_path / "run") == 2
    assert (
        "--lora and --preset mini exclude each other: the latter starts from fresh weights" in capsys.readouterr().err
    )
    pack_model(AutoModelForCausalLM.from_pretrained(base("legacy_1bit"))).save_pretrained(tmp_path / "packed")
    AutoTokenizer.from_pretrained(base("legacy_1bit")).save_pretrained(tmp_path / "packed")
    assert lora("legacy_1bit", tmp_path / "run", "--model_name_or_path", tmp_path / "packed") == 2
    assert "quantised or packed" in capsys.readouterr().err
    assert lora("causal", tmp_path / "adapter", "--max_steps", 1) == 0
    assert lora("causal", tmp_path / "run", "--model_name_or_path", tmp_path / "adapter") == 2
    assert "holds an adapter (LoRA and the like) for" in capsys.readouterr().err


def test_a_resumed_adapter_keeps_its_shape(lora, tmp_path, capsys):
    assert lora("causal", tmp_path, "--max_steps", 2) == 0
    assert lora("causal", tmp_path, "--resume_from_checkpoint", "last", "--lora_rank", 3) == 2
    assert "--lora_rank 3: the checkpoint's optimizer is of lora_rank=2" in capsys.readouterr().err
