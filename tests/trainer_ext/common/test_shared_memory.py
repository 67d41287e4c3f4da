"""What asks for processes where they cannot share memory is refused; what can do without them does."""

import multiprocessing

import pytest
import torch

from frankenlm.degradation import cli
from frankenlm.trainer_ext.common.cli import EXIT_FAILED, UserError, run_command
from frankenlm.trainer_ext.common.shared_memory import check_processes, why_nothing_is_shared
from frankenlm.trainer_ext.data.collators import MaskingCollator
from frankenlm.trainer_ext.preflight import check_workers
from frankenlm.trainer_ext.presets import parse_run

RUN = ["--preset", "standard", "--dataset", "x.txt", "--output_dir", "out", "--max_steps", "10", "--use_cpu"]


@pytest.fixture
def no_shm(monkeypatch):
    """As in a container without /dev/shm."""

    def refuse(*args, **kwargs):
        raise FileNotFoundError(2, "No such file or directory")

    def share(tensor):
        raise RuntimeError("unable to open shared memory object </torch_1> in read-write mode")

    monkeypatch.setattr(multiprocessing.synchronize, "SemLock", refuse)
    monkeypatch.setattr(multiprocessing.synchronize.Lock, "__init__", refuse)
    monkeypatch.setattr(torch.Tensor, "share_memory_", share)


def test_here_it_is_shared():
    assert why_nothing_is_shared() is None


@pytest.mark.parametrize("words", [["--num_proc", "2"], ["--dataloader_num_workers", "1"]])
def test_processes_are_refused(no_shm, words):
    with pytest.raises(UserError, match=f"{words[0]} {words[1]}: processes cannot share memory here .*/dev/shm"):
        check_workers(parse_run([*RUN, *words]))


@pytest.mark.parametrize("words", [[], ["--num_proc", "1"], ["--dataloader_num_workers", "0"]])
def test_one_process_needs_nothing(no_shm, words):
    check_workers(parse_run([*RUN, *words]))


def test_tensors_alone_may_be_what_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "share_memory_", lambda tensor: (_ for _ in ()).throw(RuntimeError("full")))
    with pytest.raises(UserError, match="full"):
        check_processes("--num_proc", 2, alone=1)


def test_masking_needs_no_shared_memory(no_shm):
    from frankenlm.modeling.tokenization_bytes import byte_tokenizer

    tokenizer = byte_tokenizer()
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
    collator = MaskingCollator(tokenizer, padder=None)
    collator.set_epoch(3)
    assert collator.epoch == 3


def test_large_results_are_measured_in_one_process(no_shm, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(cli, "MANY_BYTES", 1)
    (tmp_path / "rows.json").write_text("[{}]")
    assert cli.workers_for([tmp_path / "rows.json"]) == 1
    assert "one process measures" in caplog.text


def test_a_small_shm_ends_in_one_line(capsys):
    def main(argv):
        raise RuntimeError("Bus error. It is possible that dataloader's workers are out of shared memory.")

    assert run_command(main) == EXIT_FAILED
    assert capsys.readouterr().err.startswith("failed: the memory does not suffice: ")
