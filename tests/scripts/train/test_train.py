"""scripts/train.py from preset to checkpoint: outputs, resume, objectives, processes, mistakes."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    pipeline,
)

from frankenlm.trainer_ext import FrankenTrainer
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.common.folder_lock import locked_folder
from frankenlm.trainer_ext.recipe import hold_output_dir
from frankenlm.trainer_ext.saving.training_csv import read_csv
from run_outcomes import assert_same_run, metrics, weights

from ..conftest import write_corpus

GALORE = pytest.param("galore --galore_rank 2 --galore_update_gap 2", marks=pytest.mark.slow)
ROOT = Path(__file__).resolve().parents[3]
# --- outputs


def test_output_folder_is_complete(unbroken):
    names = {path.name for path in unbroken.iterdir()}
    assert names >= {
        *("config.json", "model.safetensors", "tokenizer.json", "modeling_frankenstein.py", "README.md"),
        *("metrics.json", "training.csv", "training.png", "training.log", "checkpoint-3", "checkpoint-6"),
    }


def test_metrics_are_sorted_finite_and_consistent(unbroken):
    text = (unbroken / "metrics.json").read_text()
    facts = json.loads(text, parse_constant=pytest.fail)
    assert text == json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    rows = read_csv(unbroken / "training.csv")
    assert facts["loss_at_init"] == rows[0]["eval_loss"]
    assert facts["eval_loss"] == rows[-1]["eval_loss"]
    assert facts["steps"] == 6 and facts["tokens_seen"] == rows[-1]["tokens_seen"] > 0
    assert facts["vocab_size"] == 300 and math.isclose(facts["ln_vocab_size"], math.log(300))
    assert facts["num_processes"] == 1 and facts["precision"] == "fp32"


def test_training_starts_at_the_unigram_distribution(unbroken):
    facts = metrics(unbroken)
    assert abs(facts["loss_at_init"] - facts["unigram_cross_entropy"]) < 0.3


def test_a_zero_bias_starts_at_the_uniform_distribution(train, tmp_path):
    words = ("--max_steps", 2, "--eval_strategy", "no", "--learning_rate", 0.01, "--model.head_bias_init", "zeros")
    assert train(tmp_path, *words) == 0
    facts = metrics(tmp_path)
    assert abs(facts["loss_at_init"] - facts["ln_vocab_size"]) < 0.3
    assert (facts["best_eval_loss"], facts["best_step"]) == (facts["eval_loss"], 2)  # evaluated at the end alone
    assert facts["lowest_eval_loss"] == facts["eval_loss"] < facts["loss_at_init"]


def test_rows_card_and_log(unbroken):
    rows = read_csv(unbroken / "training.csv")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 3, 6]
    assert {"aux_loss", "expert_load_min", "norm_f_saturation", "tokens_per_second", "grad_norm"} <= rows[1].keys()
    card = (unbroken / "README.md").read_text()
    assert f"{metrics(unbroken)['eval_loss']:.4f}" in card and "scripts/train.py --preset mini" in card
    log = (unbroken / "training.log").read_text()
    assert "unigram cross-entropy" in log and "step 6/6 | eval loss" in log


def test_checkpoint_loads_with_auto_classes(unbroken):
    model = AutoModelForMaskedLM.from_pretrained(unbroken)
    tokenizer = AutoTokenizer.from_pretrained(unbroken)
    assert model.config.vocab_size == len(tokenizer) == 300
    assert model.config.mask_token_id == tokenizer.mask_token_id
    logits = model(**tokenizer(f"the cat {tokenizer.mask_token}", return_tensors="pt")).logits
    assert logits.shape[-1] == 300


# --- resume


def test_resumed_run_equals_the_unbroken_one(train, unbroken, tmp_path):
    shutil.copytree(unbroken / "checkpoint-3", tmp_path / "checkpoint-3")
    shutil.copy(unbroken / "training.csv", tmp_path)
    (tmp_path / "checkpoint-5").mkdir()  # cut off while it was written: passed over
    assert train(tmp_path, "--max_steps", 6, "--resume_from_checkpoint", "last") == 0
    assert_same_run(unbroken, tmp_path)
    assert metrics(tmp_path)["loss_at_init"] == metrics(unbroken)["loss_at_init"]


@pytest.mark.parametrize("optimizer", [GALORE, "muon"])
def test_a_run_with_an_optimizer_of_its_own_for_matrices_resumes(train, tmp_path, optimizer):
    words = ["--max_steps", 6, "--matrix_optimizer", *optimizer.split()]
    assert train(tmp_path / "whole", *words) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-6")
    assert train(tmp_path / "again", *words, "--resume_from_checkpoint", "last") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "again")


def test_interrupted_run_continues_without_a_seam(train, unbroken, tmp_path, monkeypatch, capsys):
    step = FrankenTrainer.training_step

    def interrupted_step(self, *args, **kwargs):
        if self.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(FrankenTrainer, "training_step", interrupted_step)
        assert train(tmp_path, "--max_steps", 6, "--log_level", "error") == 128 + signal.SIGTERM
    assert "interrupted: stopped at step 5" in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()
    assert train(tmp_path, "--max_steps", 6, "--resume_from_checkpoint") == 0
    assert_same_run(unbroken, tmp_path)


def test_resume_in_a_later_epoch_batched_by_length_and_between_log_events(train, tmp_path):
    words = ["--max_documents", 24, "--no_packing", "--num_train_epochs", 3, "--logging_steps", 4, "--save_steps", 9,
             "--gradient_accumulation_steps", 2, "--batch_size", 2, "--eval_strategy", "epoch"]  # fmt: skip
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert train(whole, *words) == 0
    assert metrics(whole)["steps"] > 12
    shutil.copytree(whole / "checkpoint-9", half / "checkpoint-9")
    shutil.copy(whole / "training.csv", half)
    assert train(half, *words, "--resume_from_checkpoint", half / "checkpoint-9") == 0
    assert_same_run(whole, half)


def test_early_stopping_keeps_the_best_weights(train, tmp_path):
    words = ["--max_steps", 40, "--eval_steps", 1, "--early_stopping_patience", 2]
    assert train(tmp_path, *words, "--learning_rate", 1.0, "--warmup_steps", 0, "--max_grad_norm", 0) == 0
    facts = metrics(tmp_path)
    assert facts["stopped_early"] and facts["steps"] < 40
    evals = [row for row in read_csv(tmp_path / "training.csv") if "eval_loss" in row]
    assert facts["eval_loss"] == pytest.approx(min(row["eval_loss"] for row in evals if row["step"]), rel=1e-5)
    assert [row["step"] for row in evals] == list(range(facts["steps"] + 1))  # the best weights add no second point


# --- objectives, precision, data


def test_causal(train, tmp_path):
    assert train(tmp_path, "--max_steps", 2, "--objective", "causal") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(model).__name__ == "FrankensteinForCausalLM" and model.config.is_decoder
    facts = metrics(tmp_path)
    assert abs(facts["loss_at_init"] - facts["unigram_cross_entropy"]) < 0.3


@pytest.mark.parametrize("objective", ["causal", "mlm"])
def test_pipelines_know_how_long_a_text_may_be(objective, train, tmp_path):
    words = ["--model.position_type", "learned", "--model.max_position_embeddings", 48, "--objective", objective]
    assert train(tmp_path, "--max_steps", 1, *words) == 0
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 48
    if objective == "causal":
        (answer,) = pipeline("text-generation", model=str(tmp_path))("the cat")
        assert answer["generated_text"].startswith("the cat")
    else:
        fill = pipeline("fill-mask", model=str(tmp_path), tokenizer_kwargs={"truncation": True})
        assert len(fill(f"the {fill.tokenizer.mask_token} sat " + "on a mat " * 60)) == 5


def test_classification(train, tmp_path):
    assert train(tmp_path, "--max_steps", 2, "--objective", "classification") == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert model.config.id2label == {0: "early", 1: "late"}
    facts = metrics(tmp_path)
    assert 0 <= facts["eval_accuracy"] <= 1 and facts["unigram_cross_entropy"] is None
    assert "text-classification" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("preset", ["infinito-small", pytest.param("legacy-1bit", marks=pytest.mark.slow)])
def test_classification_by_the_causal_families(preset, corpus, cache, run_train, tmp_path):
    sizes = "--model.hidden_size 16 --model.num_hidden_layers 2 --model.num_attention_heads 2"
    memory = "--model.memory_layers [1] --model.memory_dim 8 --model.memory_heads 2" if "inf" in preset else ""
    words = f"--preset {preset} {sizes} {memory} --max_length 32 --max_steps 2 --batch_size 4 --use_cpu".split()
    places = ["--dataset", corpus, "--cache_dir", cache, "--output_dir", tmp_path / "run"]
    assert run_train(*words, *places, "--objective", "classification") == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "early", 1: "late"} and model.config.is_decoder
    assert 0 <= metrics(tmp_path / "run")["eval_accuracy"] <= 1


def test_bf16(train, tmp_path):
    assert train(tmp_path, "--max_steps", 2, "--bf16") == 0
    assert metrics(tmp_path)["precision"] == "bf16"
    assert {tensor.dtype for tensor in weights(tmp_path).values() if tensor.is_floating_point()} == {torch.float32}


def test_streaming(train, tmp_path):
    assert train(tmp_path, "--max_steps", 3, "--streaming") == 0
    assert metrics(tmp_path)["steps"] == 3


def test_a_saved_model_trains_on_and_its_vocabulary_grows(unbroken, cache, corpus, tmp_path, run_train):
    words = ["--model_name_or_path", unbroken, "--dataset", corpus, "--cache_dir", cache, "--vocab_size", 310]
    words += ["--max_steps", 1, "--learning_rate", 0, "--max_length", 32, "--use_cpu", "--disable_tqdm", "true"]
    words += ["--output_dir", tmp_path]
    assert run_train(*words) == 0
    assert metrics(tmp_path)["vocab_size"] == 310
    bias = "lm_head.decoder.bias"  # the learned one, not the unigram one again
    assert torch.equal(weights(tmp_path)[bias][:300], weights(unbroken)[bias])


def test_packed_documents_stay_apart_where_the_model_is_known_to_do_so(
    unbroken, train, corpus, cache, run_train, tmp_path, capfd
):
    card = (unbroken / "README.md").read_text()
    assert metrics(unbroken)["packed_documents"] == "apart" and "packed into rows of 32 tokens; none sees" in card
    assert train(tmp_path / "joined", "--max_steps", 1, "--packed_documents", "joined") == 0
    assert metrics(tmp_path / "joined")["packed_documents"] == "joined"
    assert "joined into rows of 32 tokens" in (tmp_path / "joined" / "README.md").read_text()

    AutoTokenizer.from_pretrained(unbroken).save_pretrained(tmp_path / "gpt2")
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    words = ["--model_name_or_path", tmp_path / "gpt2", "--objective", "causal", "--dataset", corpus]
    words += ["--cache_dir", cache, "--max_steps", 1, "--max_length", 32, "--use_cpu", "--output_dir", tmp_path / "out"]
    assert run_train(*words, "--packed_documents", "apart") == 2
    assert "whether a gpt2 keeps the documents of a row apart is not known" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run_train(*words) == 0
    assert metrics(tmp_path / "out")["packed_documents"] == "joined"
    assert run_train(*words, "--no_packing", "--packed_documents", "apart", "--overwrite_output_dir") == 0
    assert metrics(tmp_path / "out")["packed_documents"] is None


def test_sequences_longer_than_a_saved_model_takes(unbroken, corpus, tmp_path, run_train, capfd):
    words = [
        "--model_name_or_path",
        unbroken,
        "--dataset",
        corpus,
        "--max_length",
        600,
        "--output_dir",
        tmp_path / "out",
    ]
    assert run_train(*words, "--max_steps", 1) == 2
    assert "add --max_length 512" in capfd.readouterr().err and not (tmp_path / "out").exists()


# --- mistakes: one line, exit code 2, nothing written


@pytest.fixture
def odd_files(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "corrupt.jsonl").write_text('{"text": "one document"}\n{"text": "two"\n')
    (tmp_path / "run.yaml").write_text("training: {learning_rte: 1}")
    (tmp_path / "file").write_text("no folder")
    write_corpus(tmp_path / "o.jsonl", documents=40, seed=9)
    return tmp_path


def test_an_objective_that_the_family_has_no_head_for(run_train, tmp_path, capfd):
    words = ["--preset", "legacy-1bit", "--dataset", "builtin", "--output_dir", tmp_path / "out"]
    assert run_train(*words, "--objective", "mlm") == 2
    assert "legacy_1bit has no such head; it has: causal, classification" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "mni"], "Did you mean 'mini'"),
        (["--config", "{dir}/run.yaml"], "unknown key 'learning_rte'. Did you mean 'learning_rate'"),
        (["--dataset", "{dir}/missing.txt"], "missing.txt"),
        (["--dataset", "{dir}/empty.txt"], "empty.txt"),
        (["--dataset", "{dir}/corrupt.jsonl"], "corrupt.jsonl, line 2"),
        (["--tokenizer", "{dir}/no-tokenizer"], "no-tokenizer"),
        (["--tokenizer", "{unbroken}", "--vocab_size", "290"], "300 entries"),
        (["--output_dir", "{dir}/file/out"], "cannot write to"),
        (["--output_dir", "{unbroken}"], "already holds a run"),
        (["--resume_from_checkpoint", "last"], "no whole checkpoint"),
        (["--resume_from_checkpoint", "{dir}"], "not a checkpoint folder"),
        (["--resume_from_checkpoint", "last", "--overwrite_output_dir"], "exclude each other"),
        (["--resume_from_checkpoint", "{unbroken}/checkpoint-3", "--model.hidden_size", "32"], "has hidden_size=16"),
        (["--resume_from_checkpoint", "{unbroken}/checkpoint-3", "--seed", "7"], "seed=42, now 7"),
        (
            [
                "--resume_from_checkpoint",
                "{unbroken}/checkpoint-3",
                "--max_steps",
                "6",
                "--dataset",
                "{dir}/o.jsonl",
            ],
            "the rows of the dataset are not those it was trained with",
        ),
        (["--output_dir", "{unbroken}", "--overwrite_output_dir", "--report_to", "wandb"], "requires wandb"),
        (["--output_dir", "{unbroken}", "--overwrite_output_dir", "--optim", "galore_adamw"], "galore_torch"),
        (["--output_dir", "{unbroken}", "--overwrite_output_dir", "--dataset", "{dir}/missing.txt"], "missing.txt"),
        (["--learning_rate", "nan"], "learning_rate nan"),
        (["--max_steps", "-5"], "--max_steps -5: must be at least 1, or -1"),
        (["--dataset", ""], "--dataset is empty"),
        (["--dataloader_drop_last", "--batch_size", "5000"], "leaves nothing to train on"),
        (["--fp16"], "fp16 needs a GPU"),
        (["--ternary_training", "sign_accum"], "this model has none: set use_bitnet"),
        (["--ternary_training", "sign_accum", "--model.use_bitnet", "true", "--model.w_scheme", "binary"], "w_scheme"),
        (["--objective", "causal", "--model.is_decoder", "false"], "needs is_decoder=True"),
        (["--objective", "classification", "--label_column", "lable"], "lable"),
        (["--model.num_attention_heads", "3"], "must divide hidden_size"),
        (["--model.num_loops", "many"], "num_loops"),
        (["--model.dropout", "1.5"], "dropout=1.5 must lie in [0, 1)"),
        (["--max_length", "600"], "--model.max_position_embeddings 600"),
        (["--max_length", "1"], "--max_length 1: must be at least 2"),
        (["--mlm_probability", "1.5"], "--mlm_probability 1.5: must be in (0, 1)"),
        (["--streaming", "--max_steps", "-1"], "needs --max_steps"),
        (["--early_stopping_patience", "2", "--eval_strategy", "no"], "needs evaluations"),
    ],
)
def test_mistake(words, message, odd_files, unbroken, train, capfd):
    before = {path: path.stat().st_mtime_ns for path in [*odd_files.rglob("*"), *unbroken.iterdir()]}
    words = [word.format(dir=odd_files, unbroken=unbroken) for word in words]
    assert train(odd_files / "out", "--max_steps", 2, *words) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ") and message in lines[0]
    assert {path: path.stat().st_mtime_ns for path in [*odd_files.rglob("*"), *unbroken.iterdir()]} == before


def test_an_earlier_run_is_replaced_only_when_asked(train, unbroken, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(unbroken, folder)
    (folder / "mine.txt").write_text("keep")
    assert train(folder, "--max_steps", 1, "--overwrite_output_dir") == 0
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-1"}
    assert (folder / "mine.txt").read_text() == "keep"
    assert metrics(folder)["steps"] == 1


def test_secrets_reach_no_file_and_no_console(train, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_TOKEN", "planted-in-the-environment")
    words = ["--hub_token", "planted-in-a-flag", "--optim_args", "token=planted-in-options", "--save_steps", 1]
    assert train(tmp_path / "out", "--max_steps", 1, *words) == 0
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"README.md", "metrics.json", "training.log", "training_args.bin"}
    assert not [path for path in files if b"planted" in path.read_bytes()]
    out, err = capfd.readouterr()
    assert "planted" not in out + err


def test_full_storage_has_its_own_exit_code(train, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FrankenTrainer, "_save", full)
    assert train(tmp_path, "--max_steps", 1, "--log_level", "error") == 6
    assert "storage: " in capsys.readouterr().err


def test_a_folder_in_use_is_left_alone(train, tmp_path, capsys):
    constant = ["--lr_scheduler_type", "constant", "--warmup_steps", 0]  # so that a longer run is the same run
    assert train(tmp_path, "--max_steps", 3, *constant) == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with locked_folder(tmp_path):
        for words in (["--overwrite_output_dir"], ["--resume_from_checkpoint", "last"]):
            capsys.readouterr()
            assert train(tmp_path, "--max_steps", 6, *constant, *words, "--log_level", "error") == 2
            assert "is in use by another run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert train(tmp_path, "--max_steps", 6, *constant, "--resume_from_checkpoint", "last") == 0


def test_a_run_that_came_first_is_noticed_though_the_folder_was_empty_when_looked_at(tmp_path):
    run = SimpleNamespace(training=SimpleNamespace(output_dir=str(tmp_path), overwrite_output_dir=False))
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(UserError, match="another run has written into it"), hold_output_dir(run, []):
        pytest.fail("it was opened")


@pytest.mark.parametrize("state", [pytest.param("", marks=pytest.mark.slow), '{"global_step": 4'])
def test_a_checkpoint_that_was_cut_off_is_passed_over(train, unbroken, tmp_path, state, capsys):
    torn = tmp_path / "checkpoint-4"
    shutil.copytree(unbroken / "checkpoint-3", tmp_path / "checkpoint-3")
    shutil.copytree(unbroken / "checkpoint-3", torn)
    (torn / "trainer_state.json").write_text(state)
    capsys.readouterr()
    for wanted in (torn, torn / "trainer_state.json"):
        assert train(tmp_path, "--max_steps", 6, "--resume_from_checkpoint", wanted) == 2
    assert "not a checkpoint folder" in capsys.readouterr().err
    assert train(tmp_path, "--max_steps", 6, "--resume_from_checkpoint", "last") == 0
