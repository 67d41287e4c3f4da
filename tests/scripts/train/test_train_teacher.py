"""scripts/train.py --teacher: from the flag to the card, resumed bitwise, TinyBERT's two stages, and mistakes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, RobertaConfig, XLNetConfig

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForMaskedLM,
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
)
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.data.tokenizers import load_tokenizer
from frankenlm.trainer_ext.preflight import check_saved_config, check_teacher
from frankenlm.trainer_ext.presets import parse_run
from frankenlm.trainer_ext.saving.training_csv import read_csv
from run_outcomes import assert_same_run, metrics

SIZES = {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32}
BERT = {**SIZES, "layer_pattern": ["standard_attn"], "position_type": "learned", "num_experts": 0}
TEACHERS = {
    "causal": (Legacy1BitForCausalLM, Legacy1BitConfig, {**SIZES, "use_bitnet": False}),
    "mlm": (FrankensteinForMaskedLM, FrankensteinConfig, {**BERT, "sparse_prediction": True}),
}
STUDENT = (
    "--model.hidden_size 16 --model.num_hidden_layers 2 --model.num_attention_heads 2 --model.intermediate_size 16"
)
STEPS = "--max_steps 4 --save_steps 2 --eval_steps 2 --logging_steps 1 --learning_rate 0.01 --batch_size 2 --use_cpu"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """teacher(objective) -> the folder of a small saved model of four layers, 24 wide, with its tokenizer, bytes."""
    made = {}

    def make(objective):
        if objective not in made:
            kind, config, fields = TEACHERS[objective]
            tokenizer = load_tokenizer("bytes", documents=[], objective=objective)
            ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
            ids["mask_token_id"] = tokenizer.mask_token_id if objective == "mlm" else None
            sizes = {"vocab_size": len(tokenizer), "hidden_size": 24, "num_hidden_layers": 4}
            torch.manual_seed(0)
            made[objective] = tmp_path_factory.mktemp("teachers") / objective
            kind(config(**sizes | fields | ids)).save_pretrained(made[objective])
            tokenizer.save_pretrained(made[objective])
        return made[objective]

    return make


@pytest.fixture(scope="module")
def taught(run_train, teacher, corpus, cache):
    """taught(objective, output_dir, *more) trains a small student for four steps and returns the exit code."""

    def train(objective, output_dir, *more):
        preset = "tinybert" if objective == "mlm" else "legacy-1bit"
        begin = () if "--model_name_or_path" in more else ("--preset", preset, *STUDENT.split(), "--tokenizer", "bytes")
        data = ("--objective", objective, "--dataset", corpus, "--cache_dir", cache, "--max_documents", 20)
        rest = ("--max_length", 32, "--disable_tqdm", "true", *STEPS.split(), "--output_dir", output_dir)
        return run_train(*begin, *data, *rest, "--teacher", teacher(objective), *more)

    return train


def test_a_run_with_a_teacher_is_told_and_resumed(taught, teacher, tmp_path):
    before = load_file(teacher("causal") / "model.safetensors")
    whole, words = tmp_path / "whole", ("--teacher_hidden_weight", 0.1, "--ternary_start", 2)
    assert taught("causal", whole, *words) == 0
    rows = [row for row in read_csv(whole / "training.csv") if "loss" in row]
    assert all(
        row["loss"]
        == pytest.approx(0.5 * row["label_loss"] + 0.5 * row["teacher_loss"] + 0.1 * row["teacher_hidden_loss"])
        for row in rows
    )
    assert [row.get("unrounded") for row in rows] == [1.0, 1.0, None, None]
    facts = metrics(whole)
    assert facts["steps_unrounded"] == 2 and facts["teacher"]["layers"] == [0, 2, 4]
    card = (whole / "README.md").read_text()
    assert f"`{teacher('causal')}`" in card and "the labels' loss 0.5, its logits 0.5, its hidden states 0.1" in card
    assert "| of them with unrounded weights, before the rest | 2 |" in card
    names = {name for folder in (whole, whole / "checkpoint-2") for name in load_file(folder / "model.safetensors")}
    assert not [name for name in names if "teacher" in name]
    assert facts["parameters"] == sum(tensor.numel() for tensor in load_file(whole / "model.safetensors").values())

    again = tmp_path / "again"
    shutil.copytree(whole / "checkpoint-2", again / "checkpoint-2")
    shutil.copy(whole / "training.csv", again)
    assert taught("causal", again, *words, "--resume_from_checkpoint", "last") == 0
    assert_same_run(whole, again)
    after = load_file(teacher("causal") / "model.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.slow
def test_a_changed_teacher_is_another_run(taught, teacher, tmp_path, capfd):
    other = tmp_path / "teacher"
    shutil.copytree(teacher("causal"), other)
    assert taught("causal", tmp_path / "run", "--teacher", other, "--max_steps", 2) == 0
    model = Legacy1BitForCausalLM.from_pretrained(other)
    torch.nn.init.zeros_(model.model.norm_f.weight)
    model.save_pretrained(other)
    words = ("--teacher", other, "--max_steps", 2, "--resume_from_checkpoint", "last")
    assert taught("causal", tmp_path / "run", *words) == 2
    assert "the weights of the teacher are not those it was trained with" in capfd.readouterr().err


@pytest.mark.slow
def test_the_two_stages_of_tinybert(taught, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert taught("mlm", first, "--teacher_stage", "hidden") == 0
    rows = [row for row in read_csv(first / "training.csv") if "loss" in row]
    assert all(row["loss"] == pytest.approx(row["teacher_hidden_loss"]) and "teacher_loss" not in row for row in rows)
    assert taught("mlm", second, "--teacher_stage", "logits", "--model_name_or_path", first) == 0
    rows = [row for row in read_csv(second / "training.csv") if "loss" in row]
    assert all(row["loss"] == pytest.approx(row["teacher_loss"]) and "teacher_hidden_loss" not in row for row in rows)
    assert json.loads((second / "metrics.json").read_text())["teacher"]["stage"] == "logits"


@pytest.mark.parametrize(
    ("objective", "words", "message"),
    [
        ("causal", "--teacher {dir}/nobody", "nobody"),
        ("causal", "--teacher {mlm}", "holds FrankensteinForMaskedLM, and --objective causal has another head"),
        (
            "causal",
            "--tokenizer train --vocab_size 290",
            "is another one: of 290 tokens here and 259 there",
        ),
        ("causal", "--vocab_size 300", "logits for 259 tokens, and the model for 300: add --vocab_size 259"),
        ("causal", "--max_length 64", "has 32 positions: add --max_length 32, or less"),
        ("causal", "--teacher_layers 0 1", "3 numbers are expected"),
        ("causal", "--teacher_stage hidden --teacher_weight 1", "decides what counts: leave out --teacher_weight"),
        ("causal", "--teacher_temperature 0", "--teacher_temperature 0.0: must be more than 0"),
        ("classification", "--teacher {mlm}", "--teacher and --objective classification exclude each other"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(taught, teacher, tmp_path, capfd, objective, words, message):
    words = words.format(dir=tmp_path, mlm=teacher("mlm")).split()
    words += ["--teacher_hidden_weight", "1"] if "layers" in str(words) else []
    out = tmp_path / "out"
    assert taught("causal", out, *words, *(["--objective", objective] if objective != "causal" else [])) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], lines
    assert not out.exists()


def test_a_loss_without_logits_is_refused(teacher, tmp_path):
    words = ["--preset", "legacy-1bit", "--teacher", str(teacher("causal")), "--use_liger_kernel", "true"]
    with pytest.raises(UserError, match="--teacher and --use_liger_kernel exclude each other: the latter returns no"):
        check_teacher(parse_run([*words, "--output_dir", str(tmp_path)]))


@pytest.mark.parametrize(
    ("config", "objective", "most"),
    [
        (GPT2Config(n_positions=33, architectures=["GPT2LMHeadModel"]), "causal", 33),
        # the first token stands at position pad_token_id + 1
        (RobertaConfig(max_position_embeddings=40, pad_token_id=3, architectures=["RobertaForMaskedLM"]), "mlm", 36),
        (XLNetConfig(architectures=["XLNetLMHeadModel"]), "causal", None),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_rows_fit_into_the_positions_of_models_of_another_house(tmp_path, config, objective, most):
    config.save_pretrained(tmp_path / "teacher")
    preset = "legacy-1bit" if objective == "causal" else "standard"
    shared = ["--objective", objective, "--no_packing", "--output_dir", str(tmp_path / "out"), "--max_length"]
    taught = ["--preset", preset, "--teacher", str(tmp_path / "teacher"), *shared]
    going_on = ["--model_name_or_path", str(tmp_path / "teacher"), *shared]
    check_teacher(parse_run([*taught, str(most or 9999)]))
    check_saved_config(parse_run([*going_on, str(most or 9999)]))
    if most is not None:
        with pytest.raises(UserError, match=f"has {most} positions: add --max_length {most}, or less"):
            check_teacher(parse_run([*taught, str(most + 1)]))
        with pytest.raises(UserError, match=f"add --max_length {most}"):
            check_saved_config(parse_run([*going_on, str(most + 1)]))


def test_flags_of_a_teacher_need_one(run_train, tmp_path, capfd):
    assert run_train("--preset", "mini", "--dataset", "builtin", "--output_dir", tmp_path, "--teacher_weight", 1) == 2
    assert "--teacher_weight belongs to --teacher: give both, or neither" in capfd.readouterr().err
