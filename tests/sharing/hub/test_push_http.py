"""frankenlm push against a stand-in of the Hub: what arrives there, opening it elsewhere, refusals."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from forking import ForkServer
from frankenlm.modeling import InfinitoForCausalLM
from frankenlm.scripts import push as script
from frankenlm.sharing.hub.card import CardOptions
from frankenlm.sharing.hub.push import PushOptions, make_plan
from frankenlm.trainer_ext.common.cli import run_command
from hub_stand_in import hub_stand_in

TOKEN = "hf_0123456789abcdefghijABCDEFGHIJ"


@pytest.fixture(scope="module")
def hub():
    with hub_stand_in(TOKEN) as hub:
        yield hub


def environment_of(hub, home: Path) -> dict[str, str]:
    """In which the stand-in is the Hub: the client reads that once, when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return environment | {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}


@pytest.fixture(scope="module")
def push(hub, tmp_path_factory):
    """push(*words, **environment) runs `frankenlm push` in a process of its own."""
    place = tmp_path_factory.mktemp("pushing")
    environment = environment_of(hub, place / "home")
    imports = "import frankenlm.sharing.hub.command, transformers\nfrom frankenlm.command import main\n"
    with ForkServer(imports + "transformers.AutoModel, transformers.PreTrainedModel", env=environment) as server:
        yield lambda *words, **more: server.run(PUSH, *words, cwd=place, env=environment | more)


PUSH = "sys.exit(main(['push', *sys.argv[1:]]))"
LOAD = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
assert 'frankenlm' not in sys.modules
ids = tokenizer("the cat", return_tensors="pt").input_ids
with torch.no_grad():
    torch.save(model.eval()(ids).logits, sys.argv[2])
"""


def check_refused(done, hub, token):
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "the Hub did not take me/tiny" in last, done.stderr
    assert "Traceback" not in done.stderr and not hub.repositories
    assert token not in done.stdout and token not in done.stderr


def test_what_the_hub_refuses_is_one_line(trained, hub, push):
    check_refused(push(trained, "me/tiny", "--license", "mit", HF_TOKEN="hf_wrong"), hub, "hf_wrong")


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_one_line(trained, tmp_path):
    with hub_stand_in(TOKEN) as hub:
        environment = environment_of(hub, tmp_path) | {"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9"}
        line = [sys.executable, "-m", "frankenlm", "push", str(trained), "me/tiny", "--license", "mit"]
        check_refused(subprocess.run(line, env=environment, capture_output=True, text=True, cwd=tmp_path), hub, TOKEN)


def test_pushed_and_opened_again(trained, hub, push, tmp_path):
    done = push(trained, "me/tiny", "--license", "mit", "--private", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert f"pushed: {hub.address}/me/tiny/commit/" in done.stdout and TOKEN not in done.stdout + done.stderr
    plan = make_plan(str(trained), PushOptions("me/tiny", CardOptions(license="mit")))
    assert sorted(hub.files("me/tiny")) == plan.names and hub.private["me/tiny"]
    assert hub.files("me/tiny")["model.safetensors"] == (trained / "model.safetensors").read_bytes()
    assert hub.messages == ["Model and card"]
    line = [sys.executable, "-c", LOAD, "me/tiny", str(tmp_path / "logits.pt")]
    done = subprocess.run(line, env=environment_of(hub, tmp_path), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = InfinitoForCausalLM.from_pretrained(trained).eval()
    ids = AutoTokenizer.from_pretrained(trained)("the cat", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, torch.load(tmp_path / "logits.pt", weights_only=True))


@pytest.mark.parametrize(("token", "message"), [("", "HF_TOKEN is not set"), (TOKEN, "HF_HUB_OFFLINE is set")])
def test_refused_before_anything_is_sent(trained, token, message, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run_command(script.main, [str(trained), "me/tiny", "--license", "mit"]) == 2
    assert message in capsys.readouterr().err
