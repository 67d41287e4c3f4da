"""The kernel's lock of files and folders, and file systems that have none."""

import errno
import os

import pytest

from frankenlm.trainer_ext.common import kernel_lock
from frankenlm.trainer_ext.common.folder_lock import locked_folder
from frankenlm.trainer_ext.common.kernel_lock import lock_descriptor

pytestmark = pytest.mark.skipif(kernel_lock.fcntl is None, reason="needs fcntl")


def test_a_second_descriptor_waits_for_the_first_to_close(tmp_path):
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert lock_descriptor(first) is True and lock_descriptor(second) is False
    os.close(first)
    assert lock_descriptor(second) is True
    os.close(second)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF])
def test_without_such_locks_a_folder_is_used_and_a_line_says_so(tmp_path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(kernel_lock.fcntl, "flock", refuse)
    with caplog.at_level("INFO"), locked_folder(tmp_path), locked_folder(tmp_path):
        assert "cannot be locked against a second run" in caplog.text


def test_a_failing_disk_is_not_taken_for_one_without_locks(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(kernel_lock.fcntl, "flock", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), locked_folder(tmp_path):
        pass
