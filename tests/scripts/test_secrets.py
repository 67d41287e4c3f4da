"""Secrets that reach a command, by whichever way, are in nothing that it prints or writes: all commands, all files."""

import io
import shutil
from pathlib import Path

import pytest

import fuzz_command

ENVIRONMENT = {name: f"planted-{name.lower()}-0123456789" for name in ("HF_TOKEN", "WANDB_API_KEY", "DB_PASSWORD")}
FLAG, FILE, ADDRESS = "planted-by-flag-0123", "planted-by-file-0123", "planted-in-address-0123"
FOLDER, MODEL = "hf_plantedFolder0123456789", "hf_plantedModel0123456789"  # tokens of the hub in a path
PLANTED = [*ENVIRONMENT.values(), FLAG, FILE, ADDRESS, FOLDER, MODEL]
VERBS = ("train", "evaluate", "compare", "pack", "dry-run", "run", "measure", "report", "export", "generate", "groups")
URL = f"https://me:{ADDRESS}@example.org/data.jsonl?token={FLAG}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder whose model, texts and prompts lie in a folder that is named like a token."""
    scratch = tmp_path_factory.mktemp("secrets")
    fuzz_command.lay_out(scratch / FOLDER)
    shutil.move(scratch / FOLDER / "precious" / "model", scratch / FOLDER / "precious" / MODEL)
    return scratch


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def run(place, capfd):
    """run(verb, line) runs a command in this process; returns its exit code and all it printed."""

    def run(verb: str, line: list[str]) -> tuple[int, str]:
        streams = []
        code, _, fault = fuzz_command.run_line(
            fuzz_command.command_of(verb), line, lambda: streams.append(io.StringIO()) or streams[-1]
        )
        assert fault is None, fault
        return code, "".join(stream.getvalue() for stream in streams) + "".join(capfd.readouterr())

    return run


def line_of(place: Path, verb: str) -> list[str]:
    """Return a line that works on the planted model and texts, and writes below place/out."""
    if verb in ("measure", "report", "export"):
        (rows,) = (place / "out" / "lab").glob("outputs_*.json")
        return [str(rows), *([] if verb == "export" else ["--output_dir", str(place / "out" / verb)])]
    line = fuzz_command.base_of("train on" if verb == "train" else verb, place / FOLDER)
    line = [word.replace(str(place / FOLDER / "out"), str(place / "out")) for word in line]
    line = [word.replace("precious/model", f"precious/{MODEL}") for word in line]
    if verb == "train":
        (place / "run.yaml").write_text(f"training: {{hub_model_id: me/x, hub_token: {FILE}}}", encoding="utf-8")
        line += [
            "--config",
            str(place / "run.yaml"),
            "--use_cpu",
            "--save_steps",
            "1",
            "--eval_steps",
            "1",
            "--optim_args",
            f"api_key={FLAG}",
            "--log_level",
            "debug",
        ]
    return line


def leaks(texts: dict[str, bytes]) -> list[tuple[str, str]]:
    return [(name, secret) for name, text in texts.items() for secret in PLANTED if secret.encode() in text]


def written(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below a folder, and the names of all that lies there."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    contents = {name: path.read_bytes() for name, path in found.items() if path.is_file()}
    return contents | {"the names": "\n".join(found).encode()}


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_printed_or_written(place, run, verb):
    code, said = run(verb, line_of(place, verb))
    assert code == 0, said
    assert not leaks({"the console": said.encode(), **written(place / "out")})


MISTAKES = {
    "an address as data": ("train", ["--dataset", URL], None),
    "an address as data to score": ("evaluate", ["--dataset", URL], None),
    "an address as a model": ("evaluate", ["--model", URL], None),
    "a token as a model": ("generate", ["--model", f"me/{MODEL}"], None),
    "an address to compare": ("compare", ["--models", URL, URL], None),
    "an address to pack": ("pack", ["--model", URL], None),
    "an address to damage": ("run", ["--model", URL], None),
    "an address to estimate": ("dry-run", ["--model", URL], None),
    "an address to list": ("groups", ["--model", URL], None),
    "an address to measure": ("measure", [URL], None),
    "a value joined to a misspelt flag": ("train", [f"--hub_tokn={FLAG}"], None),
    "a value behind a misspelt flag": ("train", ["--hub_tokn", FLAG], None),
    "a secret of a flag no command has": ("run", ["--hub_token", FLAG], None),
    "a secret beside a mistake": ("train", ["--hub_token", FLAG, "--max_steps", "none"], None),
    "a misspelt section": ("train", [], "trainng: {{hub_token: {FILE}}}"),
    "a section that is a text": ("train", [], "training: 'hub_token={FILE}'"),
    "a section that is a list": ("train", [], "training: [hub_token, 'token={FILE}']"),
    "a secret that is no YAML": ("train", [], "training:\n  hub_token: {FILE}: x\n"),
    "a secret behind a tab": ("train", [], "training:\n\thub_token: {FILE}\n"),
    "an experiment with a secret": ("run", [], "hub_token: {FILE}"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_without_the_secret_in_it(place, run, tmp_path, name):
    verb, words, text = MISTAKES[name]
    line = [*([] if verb == "measure" else line_of(place, verb)), *words]
    if text:
        (tmp_path / "c.yaml").write_text(text.format(FILE=FILE), encoding="utf-8")
        line += ["--config", str(tmp_path / "c.yaml")]
    code, said = run(verb, line)
    assert code == 2 and "error: " in said, said
    assert not leaks({"the console": said.encode()})
