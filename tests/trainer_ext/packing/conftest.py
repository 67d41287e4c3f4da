"""The command that is tested here, in this process."""

from pathlib import Path

import pytest

from frankenlm.scripts import pack as script_module
from frankenlm.trainer_ext.common.cli import run_command


@pytest.fixture
def pack(tmp_path):
    """pack(model, *words) packs into a new folder, which it returns; pack.code(*words) returns the exit code."""

    def code(*words):
        return run_command(script_module.main, [str(word) for word in words])

    def run(model, *words):
        output = tmp_path / "packed" / Path(model).name
        assert code("--model", model, "--output", output, *words) == 0
        return output

    run.code = code
    return run
