"""Going on from a checkpoint: runs that are over, damaged and incomplete checkpoints, other settings and other data."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file
from transformers import TrainerState

from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM
from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.optim.early_stopping import EarlyStopping
from frankenlm.trainer_ext.presets import parse_run
from frankenlm.trainer_ext.resuming import (
    check_data,
    choose_checkpoint,
    different_settings,
    fingerprint,
    run_settings,
)
from frankenlm.trainer_ext.saving.checkpoint_record import RunRecord, read_record
from frankenlm.trainer_ext.saving.saved_checkpoints import examine, newest_first
from frankenlm.trainer_ext.saving.training_csv import CSV_COLUMNS, CsvLog

VOCAB = 40
CONSTANT = {"lr_scheduler_type": "constant", "eval_strategy": "no", "learning_rate": 1e-2}


def rows() -> Dataset:
    ids = torch.randint(4, VOCAB, (16, 8), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}


def make_trainer(folder: Path, **fields) -> FrankenTrainer:
    torch.manual_seed(0)
    config = FrankensteinConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        layer_pattern=["retnet"],
        num_experts=2,
        top_k_experts=1,
    )
    settings = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "use_cpu": True, "disable_tqdm": True}
    settings |= {"per_device_train_batch_size": 4, "save_total_limit": 5, **CONSTANT, **fields}
    args = FrankenTrainingArguments(output_dir=str(folder), **settings)
    model = FrankensteinForMaskedLM(config)
    trainer = FrankenTrainer(model=model, args=args, train_dataset=rows(), eval_dataset=rows(), data_collator=collate)
    trainer.checkpoints.record = RunRecord({"seed": 42}, {"train": "a"}, run="one")
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with checkpoint-2 and checkpoint-4 of a run of 4 steps."""
    folder = tmp_path_factory.mktemp("finished")
    make_trainer(folder).train()
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


# --- runs that are over


@pytest.mark.parametrize(
    "fields",
    [{}, {"max_steps": 3}, {"max_steps": -1, "num_train_epochs": 1}, {"max_steps": -1, "num_train_epochs": 0.5}],
)
def test_a_run_that_is_over_trains_no_further(copied, fields, caplog):
    trainer = make_trainer(copied, **fields)
    with caplog.at_level(logging.INFO, logger="frankenlm"):
        trainer.train(resume_from_checkpoint=str(copied / "checkpoint-4"))
    saved = load_file(copied / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(weights(trainer.model)[name], value) for name, value in saved.items())
    assert trainer.state.global_step == 4
    assert [logs["step"] for logs in trainer.state.log_history if "loss" in logs] == [1, 2, 3, 4]
    assert "nothing is left to train" in caplog.text


def test_an_unfinished_run_trains_to_its_end(copied, finished):
    trainer = make_trainer(copied)
    trainer.train(resume_from_checkpoint=str(copied / "checkpoint-2"))
    saved = load_file(finished / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(weights(trainer.model)[name], value) for name, value in saved.items())


@pytest.mark.parametrize(("patience", "over"), [(2, True), (3, False)])
def test_a_run_that_was_stopped_early_is_over(patience, over):
    callback = EarlyStopping(patience)
    saved = {"EarlyStopping": {"args": {}, "attributes": {"early_stopping_patience_counter": 2}}}
    assert callback.is_over(SimpleNamespace(stateful_callbacks=saved)) is over
    assert not callback.is_over(SimpleNamespace(stateful_callbacks={}))


def test_given_rates_replace_those_of_the_checkpoint(copied):
    rates = {}
    for take in (False, True):
        trainer = make_trainer(copied, max_steps=3, learning_rate=5e-3, weight_decay=0.3, save_strategy="no")
        trainer.take_given_rates = take
        trainer.train(resume_from_checkpoint=str(copied / "checkpoint-2"))
        groups = trainer.optimizer.param_groups
        rates[take] = {group["lr"] for group in groups}, max(group["weight_decay"] for group in groups)
    assert rates == {False: ({1e-2}, 0.0), True: ({5e-3}, 0.3)}


# --- damage

DAMAGES = {
    "weights cut": ("model.safetensors", lambda data: data[:1000], "model.safetensors is damaged"),
    "weights altered": ("model.safetensors", lambda data: data[:-4] + b"\1\2\3\4", "model.safetensors is damaged"),
    "optimizer of garbage": ("optimizer.pt", lambda data: b"garbage", "optimizer.pt is damaged"),
    "optimizer cut": ("optimizer.pt", lambda data: data[:-100], "optimizer.pt is damaged"),
    "schedule of garbage": ("scheduler.pt", lambda data: b"", "scheduler.pt is damaged"),
    "random numbers of garbage": ("rng_state.pth", lambda data: b"\x80\x04K\x01.", "rng_state.pth is damaged"),
    "state empty": ("trainer_state.json", lambda data: b"", "no whole trainer_state.json"),
    "state of nothing": ("trainer_state.json", lambda data: b"{}", "no whole trainer_state.json"),
    "state cut": ("trainer_state.json", lambda data: data[:100], "no whole trainer_state.json"),
    "state nested deep": ("trainer_state.json", lambda data: b"[" * 100_000, "no whole trainer_state.json"),
    "state a list": ("trainer_state.json", lambda data: b"[1]", "no whole trainer_state.json"),
    "state of text": (
        "trainer_state.json",
        lambda data: json.dumps({**json.loads(data), "global_step": "x"}).encode(),
        "global_step is missing or odd",
    ),
}
RECORD_DAMAGES = {
    "record cut": ("resume.json", lambda data: data[:50], "resume.json is damaged"),
    "record of nothing": ("resume.json", lambda data: b"{}", "resume.json is damaged"),
    "record of a list": ("resume.json", lambda data: b"[]", "resume.json is damaged"),
    "record newer": (
        "resume.json",
        lambda data: data.replace(b'"format": 1', b'"format": 9'),
        "by a newer version",
    ),
}
# what formats alone do not show
ONLY_WITH_RECORD = {"weights altered"}


@pytest.mark.parametrize("name", [*DAMAGES, *RECORD_DAMAGES])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_damaged_checkpoint_is_known(copied, name, recorded):
    if not recorded and (name in ONLY_WITH_RECORD or name in RECORD_DAMAGES):
        pytest.skip("nothing in the file's format shows it")
    folder = copied / "checkpoint-4"
    if not recorded:
        (folder / "resume.json").unlink()
    assert examine(folder, 1).is_whole
    file, change, words = {**DAMAGES, **RECORD_DAMAGES}[name]
    (folder / file).write_bytes(change((folder / file).read_bytes()))
    found = examine(folder, 1)
    assert found.damage is not None and words in found.fault and "\n" not in found.fault


def test_no_pickle_runs(copied):
    folder = copied / "checkpoint-4"
    (folder / "resume.json").unlink()
    mark = copied / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (mark,)

    torch.save({"state": Evil()}, folder / "optimizer.pt")
    assert "optimizer.pt is damaged" in examine(folder, 1).fault
    assert not mark.exists()


def asked(folder: Path, allow: bool = False, world_size: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        training=SimpleNamespace(output_dir=str(folder), allow_inexact_resume=allow, world_size=world_size)
    )


def test_last_is_the_newest_whole_one_and_the_others_are_told(copied, caplog):
    assert choose_checkpoint(asked(copied), "last").folder == copied / "checkpoint-4"
    (copied / "checkpoint-4" / "model.safetensors").write_bytes(b"cut")
    (copied / "checkpoint-9").mkdir()
    assert choose_checkpoint(asked(copied), "last").folder == copied / "checkpoint-2"
    assert "checkpoint-4 is passed over: model.safetensors is damaged" in caplog.text
    assert "checkpoint-9 is passed over: incomplete" in caplog.text
    (copied / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(UserError, match="no whole checkpoint.*checkpoint-4: model.safetensors.*checkpoint-2: incom"):
        choose_checkpoint(asked(copied), "last")
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        choose_checkpoint(asked(copied), str(copied / "checkpoint-4"))


def test_after_going_back_the_newer_branch_is_the_last(copied):
    record = json.loads((copied / "checkpoint-2" / "resume.json").read_text())
    later = read_record(copied / "checkpoint-4").saved + 1
    (copied / "checkpoint-2" / "resume.json").write_text(json.dumps({**record, "saved": later}))
    assert newest_first(copied)[0] == copied / "checkpoint-2"


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("recorded", [True, False])
def test_missing_state_is_refused_passed_over_or_told(copied, file, recorded, caplog):
    folder = copied / "checkpoint-4"
    (folder / file).unlink()
    if not recorded:
        (folder / "resume.json").unlink()
        (copied / "checkpoint-2" / "resume.json").unlink()
    with pytest.raises(UserError, match=f"{file} is missing.*--allow_inexact_resume"):
        choose_checkpoint(asked(copied), str(folder))
    assert choose_checkpoint(asked(copied), "last").folder == copied / "checkpoint-2"
    caplog.clear()
    assert choose_checkpoint(asked(copied, allow=True), "last").folder == folder
    assert f"{file} is missing" in caplog.text


def test_each_process_has_random_numbers_of_its_own(copied):
    folder = copied / "checkpoint-4"
    (folder / "resume.json").unlink()
    (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
    assert examine(folder, 2).missing == ("rng_state_1.pth",)
    shutil.copy(folder / "rng_state_0.pth", folder / "rng_state_1.pth")
    assert examine(folder, 2).is_whole


# --- settings and data

WORDS = ["--preset", "standard", "--dataset", "x.txt", "--output_dir", "out", "--max_steps", "10", "--use_cpu"]
WORDS += ["--lr_scheduler_type"]


def record_of(*words):
    return SimpleNamespace(settings=json.loads(json.dumps(run_settings(parse_run([*WORDS, "linear", *words])))))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seed", "7"], "seed=42, now 7"),
        (["--learning_rate", "0.5"], "learning_rate="),
        (["--batch_size", "3"], "per_device_train_batch_size="),
        (["--gradient_accumulation_steps", "2"], "gradient_accumulation_steps=1, now 2"),
        (["--weight_decay", "0.123"], "weight_decay="),
        (["--warmup_steps", "3"], "warmup_steps="),
        (["--max_grad_norm", "0.5"], "max_grad_norm="),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor=0.0, now 0.1"),
        (["--lr_scheduler_type", "cosine"], "lr_scheduler_type=linear, now cosine"),
        (["--bf16"], "bf16=False, now True"),
        (["--objective", "causal"], "objective=mlm, now causal"),
        (["--max_length", "64"], "max_length="),
        (["--mlm_probability", "0.3"], "mlm_probability=0.15, now 0.3"),
        (["--no_packing"], "packing=True, now False"),
        (["--packed_documents", "joined"], "packed_documents=auto, now joined"),
        (["--tokenizer", "bytes"], "tokenizer="),
        (["--dataloader_drop_last"], "dataloader_drop_last=False, now True"),
        (["--ignore_data_skip"], "ignore_data_skip=False, now True"),
        (["--max_steps", "20"], "the schedule follows the length"),
    ],
)
def test_what_decides_the_weights_is_compared(words, told):
    found = different_settings(parse_run([*WORDS, "linear", *words]), record_of())
    assert any(told in text for text in found), found


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--output_dir", "elsewhere", "--logging_steps", "3", "--save_steps", "7", "--eval_steps", "2"],
        ["--dataloader_num_workers", "2", "--num_proc", "2", "--save_total_limit", "9", "--run_name", "x"],
        ["--dataset", "moved.txt", "--cpu_threads", "1", "--allow_inexact_resume"],
    ],
)
def test_what_does_not_decide_them_is_free(words):
    assert different_settings(parse_run([*WORDS, "linear", *words]), record_of()) == []


def test_a_record_from_before_documents_were_kept_apart_is_of_joined_ones():
    record = record_of()
    del record.settings["packed_documents"]
    assert different_settings(parse_run([*WORDS, "linear"]), record) == ["packed_documents=joined, now auto"]
    assert different_settings(parse_run([*WORDS, "linear", "--packed_documents", "joined"]), record) == []
    told = different_settings(parse_run([*WORDS, "linear", "--no_packing"]), record)
    assert "packing=True, now False" in told and not any("packed_documents" in text for text in told)


def test_a_schedule_that_goes_by_the_step_alone_may_go_on_longer():
    fixed = ["--warmup_steps", "2"]
    record = SimpleNamespace(settings=run_settings(parse_run([*WORDS, "constant_with_warmup", *fixed])))
    longer = [*WORDS, "constant_with_warmup", "--max_steps", "99"]
    assert different_settings(parse_run([*longer, *fixed]), record) == []
    shares = ["--warmup_steps", "0.2"]
    record = SimpleNamespace(settings=run_settings(parse_run([*WORDS, "constant_with_warmup", *shares])))
    assert different_settings(parse_run([*longer, *shares]), record)


def test_the_state_of_another_optimizer_fits_nothing():
    with pytest.raises(UserError, match="--optim sgd: the checkpoint's optimizer is of optim=adamw"):
        different_settings(parse_run([*WORDS, "linear", "--optim", "sgd", "--allow_inexact_resume"]), record_of())


def test_settings_hold_no_secret():
    words = ["--hub_token", "hf_planted0planted", "--optim_args", "token=planted0secret"]
    assert "planted" not in json.dumps(run_settings(parse_run([*WORDS, "linear", *words])))


def test_rows_have_a_fingerprint():
    one = {"input_ids": [[1, 2], [3]], "labels": [[1, 2], [3]]}
    prints = [
        fingerprint(Dataset.from_dict(columns), streaming=False)
        for columns in (
            one,
            one,
            {**one, "labels": [[1, 2], [4]]},
            {"input_ids": [[1], [2, 3]], "labels": [[1], [2, 3]]},
            {"input_ids": [[3], [1, 2]], "labels": [[3], [1, 2]]},
        )
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 4
    stream = IterableDataset.from_generator(lambda: iter(Dataset.from_dict(one)))
    assert fingerprint(stream, streaming=True) == prints[0]


@pytest.mark.parametrize("side", ["train", "validation"])
def test_other_data_is_refused_or_told(side, caplog):
    record = SimpleNamespace(data={"train": "a", "validation": "b"})
    now = {"train": "a", "validation": "b", side: "c"}
    run = asked(Path("x"))
    check_data(run, record, record.data)
    with pytest.raises(UserError, match="are not those it was trained with.*--allow_inexact_resume"):
        check_data(run, record, now)
    check_data(asked(Path("x"), allow=True), record, now)
    assert "are not those it was trained with" in caplog.text


# --- the curve


@pytest.mark.parametrize("damage", [None, b"", b"garbage\n", b"\xff\xfe\x00", "cut", "short"])
def test_a_damaged_curve_is_kept_aside_and_taken_from_the_checkpoint(tmp_path, damage, caplog):
    path = tmp_path / "training.csv"
    history = [{"step": n, "loss": 1.0 / n, "epoch": 0.1 * n, "num_input_tokens_seen": 8 * n} for n in (1, 2)]
    whole = ",".join(CSV_COLUMNS) + "\n" + "".join(
        ",".join({"step": str(n), "epoch": str(0.1 * n), "tokens_seen": str(8 * n), "loss": str(1.0 / n),
                  "seconds": "1.5"}.get(name, "") for name in CSV_COLUMNS) + "\n" for n in (1, 2, 3)
    )  # fmt: skip
    content = {None: whole.encode(), "cut": whole[:200].encode(), "short": whole.rsplit("\n", 3)[0].encode()}
    path.write_bytes(content.get(damage, damage))
    log = CsvLog(path, TrainerState(global_step=2, log_history=history))
    log.on_train_begin(None, None, None)
    assert [(row["step"], row["loss"], row["tokens_seen"]) for row in log.rows] == [(1, 1.0, 8), (2, 0.5, 16)]
    assert (tmp_path / "training.csv.damaged").exists() == (damage is not None)
    assert ("taken from the checkpoint" in caplog.text) == (damage is not None)
