"""What messages, logs and reports do not show: tokens, passwords, local paths."""

import logging

import pytest

from frankenlm.trainer_ext.common.cli import UserError, run_command
from frankenlm.trainer_ext.common.logs import RunLog
from frankenlm.trainer_ext.common.redaction import public_name, redact, secrets_in_environment

PLANTED = "planted-secret-0123"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hf_AbCdEfGhIjKl is a token", "*** is a token"),
        ("https://me:pass@huggingface.co/x", "https://***@huggingface.co/x"),
        ("https://hub/x?token=abc123&rev=2", "https://hub/x?token=***&rev=2"),
        ("https://hub/x?X-Amz-Signature=ab&a_token=b#c", "https://hub/x?X-Amz-Signature=***&a_token=***#c"),
        ("mail@example.org, key=value, half_life", "mail@example.org, key=value, half_life"),
    ],
)
def test_secrets_by_their_form(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"])
def test_secrets_of_the_environment(name, monkeypatch):
    monkeypatch.setenv(name, PLANTED)
    assert redact(f"no access with {PLANTED}!") == "no access with ***!"


def test_ordinary_variables_are_no_secrets():
    variables = {"TOKENIZERS_PARALLELISM": "false", "A_TOKEN": "short", "B_TOKEN": "123456789", "PATH": "/usr/bin/x"}
    assert secrets_in_environment(variables) == []
    assert secrets_in_environment({"A_TOKEN": "longer-one", "B_TOKEN": "longer-one-still"})[0] == "longer-one-still"


def test_no_secret_in_messages_and_logs(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_TOKEN", PLANTED)

    def main(argv):
        with RunLog("info") as log:
            log.write_to(tmp_path / "training.log", append=False)
            logging.getLogger("frankenlm.test").warning("asked with %s", PLANTED)
            raise UserError(f"refused: {PLANTED}")

    assert run_command(main) == 2
    out, err = capsys.readouterr()
    written = (tmp_path / "training.log").read_text()
    assert "asked with ***" in written and "refused: ***" in written and "refused: ***" in err
    assert PLANTED not in out + err + written


def test_public_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mini").mkdir(parents=True)
    names = {
        "gpt2": "gpt2",
        "owner/model": "owner/model",
        "runs/mini": "mini",
        "runs/mini/": "mini",
        str(tmp_path / "runs" / "mini"): "mini",
        "/gone/away": "away",
        "~/m": "m",
        "/data/*.txt": "*.txt",
        "https://me:pass@hub/x": "https://***@hub/x",
        ".": tmp_path.name,
    }
    assert {name: public_name(name) for name in names} == names


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path, capsys, monkeypatch):
    logger = logging.getLogger("frankenlm.test")

    def full(text):
        raise OSError(28, "No space left on device")

    def main(argv):
        with RunLog("info") as log:
            log.write_to(tmp_path / "training.log", append=False)
            logger.warning("half \ud835 a pair")
            monkeypatch.setattr(log.file.stream, "write", full)
            for _ in range(3):
                logger.warning("lost")
            monkeypatch.undo()

    assert run_command(main) == 0
    assert "half \\ud835 a pair" in (tmp_path / "training.log").read_text()
    err = capsys.readouterr().err
    assert err.count("the log is not written any more") == 1 and "Traceback" not in err
