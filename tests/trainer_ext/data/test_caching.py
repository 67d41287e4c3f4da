"""Where tokenised data lie when the usual place cannot be written: told, and never a folder named ~."""

import errno
import os
from pathlib import Path

import datasets
import pytest

from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.data import caching
from frankenlm.trainer_ext.data.caching import cache_folder


@pytest.fixture(autouse=True)
def anew():
    """The choice is made once a process."""
    caching._writable_or_temporary.cache_clear()
    yield
    caching._writable_or_temporary.cache_clear()


def test_the_cache_of_datasets(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert cache_folder(None) == tmp_path / "cache" / "frankenlm"
    assert not caplog.records


@pytest.mark.parametrize("place", [f"{os.devnull}/nothing/datasets", "~/.cache/huggingface/datasets"])
def test_a_folder_of_this_process_where_there_is_no_home(monkeypatch, tmp_path, caplog, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(place))
    folder = cache_folder(None)
    assert folder.is_dir() and folder == cache_folder(None)
    assert "cannot be written" in caplog.text and str(folder) in caplog.text
    assert not list(tmp_path.iterdir())  # no folder named ~
    folder.rmdir()


@pytest.mark.parametrize("number, instead", [(errno.EROFS, True), (errno.EACCES, True), (errno.ENOSPC, False)])
def test_a_full_disk_is_no_reason_to_write_elsewhere(monkeypatch, tmp_path, number, instead):
    def refuse(path, *args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        folder = cache_folder(None)
    assert (folder != tmp_path / "cache" / "frankenlm") == instead
    if instead:
        folder.rmdir()


def test_a_folder_that_was_asked_for_is_the_one(tmp_path):
    (tmp_path / "file").write_text("x")
    assert cache_folder(tmp_path / "new") == tmp_path / "new" / "frankenlm"
    with pytest.raises(UserError, match="--cache_dir: cannot write to"):
        cache_folder(tmp_path / "file" / "cache")
