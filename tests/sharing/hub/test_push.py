"""frankenlm push: what goes to the Hub and what stays, the card, secrets, and opening what was pushed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from frankenlm.scripts import push as script
from frankenlm.sharing.hub.card import LICENSES, CardOptions
from frankenlm.sharing.hub.push import PushOptions, make_plan
from frankenlm.trainer_ext.common.cli import UserError, run_command


def plan_of(folder, repo="me/tiny", **options):
    return make_plan(str(folder), PushOptions(repo, CardOptions(license="mit"), **options))


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_what_is_pushed_and_what_stays(folder):
    (folder / ".cache").mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "ema").mkdir()
    (folder / "ema" / "config.json").write_text("{}")
    (folder / "ema" / "optimizer.pt").write_text("x")
    plan = plan_of(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json", "metrics.json", "README.md", "ema/config.json"} < set(
        plan.names
    )
    assert "modeling_infinito.py" in plan.names, "the code that opens it elsewhere"
    assert set(plan.collected.left_out) == {
        ".cache",
        "checkpoint-1",
        "notes.txt",
        "training.log",
        "training_args.bin",
    }
    assert "ema/optimizer.pt" not in plan.names
    assert "notes.txt" in plan_of(folder, include=("notes*",)).names


def test_card_has_what_was_measured(folder, facts):
    data = front_matter(plan_of(folder).card)
    (model,) = data.pop("model-index")
    assert data == {
        "datasets": ["Salesforce/wikitext"],
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["frankenlm", "infinito"],
    }
    (result,) = model["results"]
    assert model["name"] == "tiny" and result["task"]["type"] == "text-generation"
    assert result["dataset"] == {
        "name": facts["dataset"],
        "type": "Salesforce/wikitext",
        "split": "held-out part",
    }
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {"loss": 4.25, "perplexity": 70.105412}
    assert 'from_pretrained("me/tiny")' in plan_of(folder).card and "PATH" not in plan_of(folder).card


def test_reports_of_evaluate_win_over_the_loss_of_the_run(folder):
    figures = {"loss": {"value": 3.5, "low": 3.4, "high": 3.6}, "bleu_1": {"value": 1.0, "low": None, "high": None}}
    report = {"method": "causal", "dataset": "/somewhere/a/text.txt", "splits": {"test": {"measures": figures}}}
    (folder / "evaluation.json").write_text(json.dumps(report))
    plan = plan_of(folder)
    (result,) = front_matter(plan.card)["model-index"][0]["results"]
    assert result["dataset"] == {"name": "text.txt", "type": "text", "split": "test"}
    assert [metric["value"] for metric in result["metrics"]] == [3.5]


@pytest.mark.parametrize("dataset", ["pröm.txt", "builtin", "texts/*.txt", "/somewhere/texts/"])
def test_what_is_no_data_set_of_the_hub_is_text(folder, facts, dataset):
    (folder / "metrics.json").write_text(json.dumps({**facts, "dataset": dataset}))
    data = front_matter(plan_of(folder).card)
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"]["type"] == "text" and "datasets" not in data


def test_own_front_matter_stays_and_flags_win(folder):
    (folder / "README.md").write_text("---\nlicense: gpl-3.0\nlanguage: es\nthumbnail: x.png\n---\nMine.\n")
    data = front_matter(make_plan(str(folder), PushOptions("me/x")).card)
    assert (data["license"], data["language"], data["thumbnail"]) == ("gpl-3.0", "es", "x.png")
    assert front_matter(plan_of(folder).card)["license"] == "mit"


def test_no_license_is_asked_for(folder):
    with pytest.raises(UserError, match="--license: the card has none"):
        make_plan(str(folder), PushOptions("me/x"))


SECRETS = {
    "config.json": ('"x": "hf_abcdefghijABCDEFGHIJ0123"', "a token of the Hub"),
    "a.py": ("KEY = 'AKIAABCDEFGHIJKLMNOP'", "a key of AWS"),
    "b.py": ("token = 'ghp_" + "a1B2" * 9 + "'", "a token of GitHub"),
    "c.py": ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
    "README.md": ("see https://me:pass@example.org/x", "a password in an address"),
    "metrics.json": ('"api_key": "0123456789"', "a password or key"),
    "chat_template.jinja": ("{{ 'planted-in-the-environment' }}", "of this machine's environment"),
    "training.csv": ("sk-proj-abcdefghijklmnopqrstuv1x", "a key of OpenAI's kind"),
}


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_found_and_not_shown(folder, name, monkeypatch, capsys):
    monkeypatch.setenv("MY_API_KEY", "planted-in-the-environment")
    text, kind = SECRETS[name]
    path = folder / name
    if name in ("config.json", "metrics.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **json.loads("{" + text + "}")}, indent=1))
    else:
        path.write_text((path.read_text() if path.exists() else "first\n") + text + "\n")
    code = run_command(script.main, [str(folder), "me/x", "--license", "mit", "--dry_run"])
    said = capsys.readouterr()
    assert code == 2 and f"{name}:" in said.err and kind in said.err
    assert text.split("'")[-2 if "'" in text else -1] not in said.err


def test_secrets_in_the_header_of_the_weights(folder):
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "note": "hf_abcdefghijABCDEFGHIJ0123"})
    (found,) = plan_of(folder).findings
    assert (found.file, found.shown) == ("model.safetensors", "a token of the Hub")


def test_what_a_dry_run_prints_holds_no_secret(folder, capsys):
    (folder / "README.md").write_text("my token is hf_abcdefghijABCDEFGHIJ0123")
    assert run_command(script.main, [str(folder), "me/x", "--license", "mit", "--dry_run"]) == 2
    said = capsys.readouterr()
    assert "hf_abc" not in said.out + said.err and "README.md:" in said.err


def test_a_place_that_was_looked_at(folder):
    (folder / "a.py").write_text("x = 1\npassword = 'changeme'\n")
    (found,) = plan_of(folder).findings
    assert (found.file, found.line) == ("a.py", 2)
    assert plan_of(folder, not_secret=("a.py:2",)).findings == []
    with pytest.raises(UserError, match="nothing was found there"):
        plan_of(folder, not_secret=("a.py:3",))


def test_local_paths_are_refused_or_replaced(folder, facts, capsys):
    here = str(folder.resolve())
    facts = {**facts, "command": f"train.py --dataset /home/me/texts/a.txt --output_dir {here} --log C:\\Users\\me\\l"}
    (folder / "metrics.json").write_text(json.dumps(facts))
    line = [str(folder), "me/x", "--license", "mit", "--dry_run"]
    assert run_command(script.main, line) == 2
    assert "/home/me/texts/a.txt" in capsys.readouterr().err
    assert run_command(script.main, [*line, "--hide_local_paths"]) == 0
    plan = plan_of(folder, hide_local_paths=True)
    pushed = json.loads(plan.contents["metrics.json"])
    assert pushed["command"] == "train.py --dataset a.txt --output_dir tiny --log l"
    assert json.loads((folder / "metrics.json").read_text())["command"] == facts["command"], "the file here stays"


def test_nothing_outside_the_folder_is_pushed(folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text("{}")
    (folder / "LICENSE").symlink_to(tmp_path / "outside" / "config.json")
    (folder / "ema").symlink_to(tmp_path / "outside")
    os.mkfifo(folder / "merges.txt")
    plan = plan_of(folder)
    assert not {"LICENSE", "ema/config.json", "merges.txt"} & set(plan.names)
    assert {plan.collected.left_out[name] for name in ("LICENSE", "ema")} == {"a link that leads out of the folder"}


@pytest.mark.parametrize("name", ["a.PT", "weights.Bin", "x.npy", "innocent.txt"])
def test_pickles_of_any_name_stay(folder, name):
    torch.save({}, folder / name)
    assert "pickle" in plan_of(folder).collected.left_out[name]
    with pytest.raises(UserError, match="pickles are never pushed"):
        plan_of(folder, include=(name,))


def test_parts_of_a_sentence_transformer(folder):
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    assert {"modules.json", "1_Pooling/config.json"} < set(plan_of(folder).names)
    with pytest.raises(UserError, match="whole folders are not taken"):
        plan_of(folder, include=("1_Pool*",))


@pytest.mark.parametrize("where", ["beside", "recorded"])
def test_folders_of_this_machine_are_no_repositories(folder, facts, where):
    facts = {**facts, "model_name_or_path": "runs/first", "dataset": "texts/mine"}
    if where == "recorded":
        facts["local_sources"] = ["runs/first", "texts/mine"]
    else:
        for name in ("runs/first", "texts/mine"):
            (folder.parent / name).mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(facts))
    assert not {"base_model", "datasets"} & set(front_matter(plan_of(folder).card))
    (folder / "metrics.json").write_text(json.dumps({**facts, "model_name_or_path": "me/first", "local_sources": []}))
    assert front_matter(plan_of(folder).card)["base_model"] == "me/first"


def test_an_adapter_names_a_base_that_others_can_fetch(folder):
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "runs/causal", "r": 4}))
    (folder.parent / "runs" / "causal").mkdir(parents=True)
    with pytest.raises(UserError, match="push that model first"):
        plan_of(folder)
    plan = make_plan(str(folder), PushOptions("me/x", CardOptions(license="mit", base_model="me/causal")))
    assert json.loads(plan.contents["adapter_config.json"]) == {"base_model_name_or_path": "me/causal", "r": 4}
    data = front_matter(plan.card)
    assert (data["base_model"], data["library_name"]) == ("me/causal", "transformers")


@pytest.mark.parametrize(
    "odd", [{"objective": "causal", "eval_loss": 1.0}, {"adapter": "x"}, {"dataset": 3}, {"model_type": []}]
)
def test_facts_that_are_not_ours(folder, odd):
    (folder / "metrics.json").write_text(json.dumps(odd))
    assert "model-index" not in front_matter(plan_of(folder).card)


def test_our_own_files_hold_nothing_suspicious(folder):
    assert plan_of(folder).findings == []


WRONG = {
    "no folder": (lambda folder: shutil.rmtree(folder), "no such folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights in safetensors"),
    "cut short": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
        "damaged or cut short",
    ),
    "odd config": (lambda folder: (folder / "config.json").write_text("[1]"), "config.json"),
    "odd facts": (lambda folder: (folder / "metrics.json").write_text("[1]"), "a JSON object is expected"),
    "latin-1 card": (lambda folder: (folder / "README.md").write_bytes(b"caf\xe9"), "README.md: is no text in UTF-8"),
    "odd card": (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), "front matter"),
    "lost part": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
        "names b.safetensors, which is not there",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_nobody_could_open_is_not_pushed(folder, case):
    spoil, message = WRONG[case]
    spoil(folder)
    with pytest.raises(UserError, match=message):
        plan_of(folder)


def test_sick_weights_are_not_pushed(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    name = sorted(state)[0]
    state[name].view(-1)[0] = float("nan")
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{name} in model.safetensors holds NaN"):
        plan_of(folder)


def test_large_numbers_are_numbers(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    state[sorted(state)[0]] = torch.full((2,), 1e300, dtype=torch.float64)
    save_file(state, path, metadata={"format": "pt"})
    assert "model.safetensors" in plan_of(folder).names


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["me/x", "--license", "apache2.0"], "Did you mean 'apache-2.0'"),
        (["x"], "OWNER/NAME"),
        (["a/b/c"], "OWNER/NAME"),
        (["../../x"], "OWNER/NAME"),
        (["me/<b>"], "OWNER/NAME"),
        (["me/x", "--language", "English"], "ISO 639"),
        (["me/x", "--datasets", "/home/me/x.txt"], "--datasets"),
        (["me/x", "--base_model", "a b"], "--base_model"),
        (["me/x", "--include", "nothing*"], "no file of"),
        (["me/x", "--include", "*.bin"], "pickles are never pushed"),
        (["me/x", "--message", " "], "--message"),
        (["me/x", "--privat"], "Did you mean"),
    ],
)
def test_a_users_mistakes(trained, line, message, capsys):
    line = line if "--license" in line else [*line, "--license", "mit"]
    assert run_command(script.main, [str(trained), *line, "--dry_run"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and message in said


def test_licenses_are_those_of_the_hub():
    assert sorted(LICENSES) == LICENSES and {"apache-2.0", "mit", "other", "cc-by-4.0"} < set(LICENSES)


def test_the_page_has_commands_that_run(trained, tmp_path, monkeypatch, capsys):
    page = Path(__file__).parents[3] / "docs" / "push.md"
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if "frankenlm push runs/" in line]
    assert len(lines) == 3
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for line in lines:
        words = line.removeprefix("HF_TOKEN=... ").removesuffix(" --dry_run").split()[2:]
        Path(words[0]).is_symlink() or Path(words[0]).symlink_to(trained)
        assert run_command(script.main, [*words, "--dry_run"]) == 0, capsys.readouterr().err
        assert f"to {words[1]}:" in capsys.readouterr().out
