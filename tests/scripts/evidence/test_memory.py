"""scripts/evidence/memory.py: one smoke run of everything, resumed, contradicted, reported with a gap."""

import json
import random
import shutil
from pathlib import Path

import pytest

from frankenlm.scripts.evidence import memory as script_module
from frankenlm.scripts.evidence import plan as evidence
from frankenlm.trainer_ext.common.cli import run_command

TEXT = "the cat sat on a mat and saw dogs run over green hills while birds sang of rain in spring"
WORDS = TEXT.split()
MEMORIES = ("infinito-small", "shuffled-memory")  # the model, and its evaluation that reads its neighbours' memory


@pytest.fixture(scope="module")
def script():
    return script_module


@pytest.fixture(scope="module")
def command(script):
    """command(*words) runs the script in this process and returns its exit code."""
    return lambda *words: run_command(script.main, [str(word) for word in words])


@pytest.fixture(scope="module")
def articles(tmp_path_factory) -> Path:
    """Three files of short documents."""
    folder, rng = tmp_path_factory.mktemp("articles"), random.Random(0)
    for name, count in (("train", 60), ("validation", 8), ("test", 8)):
        rows = [{"text": " ".join(rng.choices(WORDS, k=rng.randint(40, 80)))} for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def smoke(articles) -> list:
    return ["--smoke", "--data", articles, "--seeds", 0, 1, "--tables", "wikipedia", "code"]


@pytest.fixture(scope="module")
def finished(command, smoke, tmp_path_factory) -> Path:
    """The output folder of a smoke run of the two memory tables with all models."""
    folder = tmp_path_factory.mktemp("evidence")
    assert command("--output_dir", folder, *smoke, "--card", folder / "cards" / "card.md") == 0
    return folder


@pytest.fixture
def untrained(monkeypatch):
    """Whoever trains or scores fails."""
    for name in ("train", "score"):
        monkeypatch.setattr(evidence, name, lambda *args, **kwargs: pytest.fail("a finished run is repeated"))


def run_files(folder: Path) -> list[Path]:
    return sorted((folder / "runs").rglob("*.json"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def test_every_run_is_a_file(finished):
    names = [f"{path.parent.name}/{path.stem}" for path in run_files(finished)]
    trained = [name for name in names if "shuffled" not in name]
    # wikipedia: 5 models x (3 rates + 1 more seed); code: 4 models x 2 seeds; shuffled: 2 tables x 2 seeds
    assert len(trained) == 5 * 4 + 4 * 2 and len(names) == len(trained) + 2 * 2
    assert not list(finished.rglob("*.tmp"))


def test_a_run_says_all_that_it_depends_on(finished):
    for path in run_files(finished):
        run = read(path)
        assert run["settings"]["recipe"]["steps"] == 4
        assert run["settings"]["config"]["vocab_size"] == 512
        assert {"data", "forward"} <= run["settings"].keys()
        assert {"seed", "learning_rate", "versions", "parameters", "threads"} <= run.keys()
        assert run["held_out"]["validation"]["perplexity"] > 1
        if run["model"] != "shuffled-memory":
            assert run["tokens"] == 2048 and len(run["curve"]) == 4
        if run["table"] == "code":
            assert len(run["by_position"]["validation"]) == 255


def test_models_of_a_table_have_equal_size_and_equal_text(finished):
    for table in ("wikipedia", "code"):
        runs = [read(path) for path in (finished / "runs" / table).glob("*.json")]
        budget = evidence.SMOKE_BUDGET
        assert all(abs(run["parameters"] - budget) <= 0.02 * budget for run in runs)
        assert len({run["settings"]["data"]["digest"] for run in runs}) == 1


def test_memory_off_uses_fewer_parameters_and_reports_no_memory(finished):
    on, off = (
        read(finished / "runs" / "code" / f"{name}_lr0.003_seed0.json") for name in ("infinito-small", "memory-off")
    )
    assert on["parameters"] == off["parameters"]
    assert 0.98 * on["trained_parameters"] < off["trained_parameters"] < on["trained_parameters"]
    assert on["memory"]["validation"]["slots_used"] > 0 and not off["memory"]["validation"]
    assert on["curve"][0] == off["curve"][0]  # same start, same rows; the memory's way out starts at zero


def test_shuffled_memory_is_an_evaluation_of_the_checkpoints(finished):
    shuffled = read(finished / "runs" / "code" / "shuffled-memory_lr0.003_seed1.json")
    assert shuffled["checkpoint_of"] == "code/infinito-small_lr0.003_seed1"
    assert (finished / "checkpoints" / shuffled["checkpoint_of"] / "model.safetensors").is_file()
    assert "curve" not in shuffled


def test_report_and_card(finished):
    report = read(finished / "report" / "report.json")
    assert [row["model"] for row in report["tables"]["wikipedia"]["rows"]] == [
        "infinito-small",
        "shuffled-memory",
        "memory-off",
        "hybrid",
        "attention",
        "gpt2",
    ]
    assert [row["model"] for row in report["tables"]["code"]["rows"]] == [
        "infinito-small",
        "shuffled-memory",
        "memory-off",
        "titan",
        "titan-memory",
    ]
    assert not any(table["missing"] for table in report["tables"].values())
    card = (finished / "cards" / "card.md").read_text()
    for difference in report["tables"]["code"]["differences"]:
        assert difference["n"] == 2 and f"{difference['name']}, " in card
    assert "titan-memory minus titan, each at its best rate (0.003 and 0.003), validation loss: " in card
    assert "titan-memory minus titan, validation loss beyond position 16" in card
    assert "hybrid minus attention, each at its best rate" in card and "hybrid minus plain attention" in card
    (titan,) = (row for row in report["tables"]["code"]["rows"] if row["model"] == "titan")
    assert set(titan["by_seed"]) == {"0", "1"}
    losses = (finished / "report" / "code_runs.csv").read_text().splitlines()
    assert losses[0] == "model,learning_rate,seed,parameters,validation_loss" and len(losses) == 1 + 5 * 2
    assert "infinito-small minus memory-off, test loss" in card
    assert "smoke run" in card and "missing" not in card and str(finished) not in card
    for name in ("wikipedia_training", "code_training", "code_positions"):
        assert f"../report/{name}.png" in card
        assert (finished / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    bins = (finished / "report" / "code_positions.csv").read_text().splitlines()
    assert bins[0] == "model,first_position,last_position,n,mean,sd" and len(bins) == 1 + 5 * 16


def test_a_card_comes_out_the_same_from_its_report_alone(command, finished, tmp_path, untrained):
    card = finished / "cards" / "again.md"
    assert command("--from_report", finished / "report" / "report.json", "--card", card) == 0
    assert card.read_text() == (finished / "cards" / "card.md").read_text()


@pytest.mark.slow
def test_the_mixers_table_takes_text_that_python_carries(command, tmp_path):
    words = ["--smoke", "--tables", "mixers", "--seeds", 0]
    card = tmp_path / "card.md"
    assert command("--output_dir", tmp_path, *words, "--learning_rates", 0.003, "--card", card) == 0
    text = card.read_text()
    assert text.startswith("# Do the mixers help?\n") and "--tables mixers --card card.md" in text
    assert "hybrid minus attention, each at its best rate (0.003 and 0.003), validation loss" in text
    assert "with one seed, which shows nothing about the spread" in text
    assert "lead over gpt2" in text and "missing" not in text
    report = read(tmp_path / "report" / "report.json")["tables"]["mixers"]
    assert report["splits"] == ["validation", "test"] and report["data"]["rows"]["test"] > 1
    configs = {run["model"]: run["settings"]["config"] for run in map(read, run_files(tmp_path))}
    assert set(configs["hybrid"]["layer_pattern"]) - {"ode"} == {"retnet", "titan_attn", "mamba"}
    assert configs["attention"]["layer_pattern"] == ["standard_attn"]


def test_without_data_the_default_tables_need_none(script):
    args = script.build_parser().parse_strictly(["--output_dir", "x"])
    assert script.choose_tables(args) == ["mixers", "code"]
    args.data = Path("somewhere")
    assert script.choose_tables(args) == ["mixers", "wikipedia", "code"]


def test_a_second_call_trains_nothing(command, smoke, finished, untrained):
    before = {path: path.stat().st_mtime_ns for path in run_files(finished)}
    assert command("--output_dir", finished, *smoke) == 0
    assert before == {path: path.stat().st_mtime_ns for path in run_files(finished)}


def test_only_what_is_missing_is_made_and_comes_out_the_same(command, smoke, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    gone = folder / "runs" / "code" / "titan_lr0.003_seed1.json"
    others = {path: path.stat().st_mtime_ns for path in run_files(folder) if path != gone}
    before = read(gone)
    gone.unlink()
    assert command("--output_dir", folder, *smoke, "--tables", "code", "--models", "titan") == 0
    assert read(gone)["held_out"] == before["held_out"] and read(gone)["curve"] == before["curve"]
    assert others == {path: path.stat().st_mtime_ns for path in others}


def first_table(folder: Path) -> tuple[dict, dict]:
    """The table wikipedia of a folder's report, and its row of the model with slots."""
    table = read(folder / "report" / "report.json")["tables"]["wikipedia"]
    return table, next(row for row in table["rows"] if row["model"] == "infinito-small")


@pytest.mark.slow
def test_a_rate_that_diverges_is_a_run_and_not_tried_again(command, smoke, finished, tmp_path, monkeypatch):
    """At a rate of its sweep it is the worst, at the best rate a seed less; at every rate the model has no row."""
    folder = shutil.copytree(finished, tmp_path / "copy")
    runs, (before, row) = folder / "runs" / "wikipedia", first_table(finished)
    best = row["learning_rate"]
    worse = next(rate for rate in before["learning_rates"] if rate != best)
    words = ["--output_dir", folder, *smoke, "--tables", "wikipedia", "--models", "infinito-small"]

    def diverges(*args, **kwargs):
        raise FloatingPointError("the loss of step 3 is nan.")

    monkeypatch.setattr(evidence, "train", diverges)
    for name in (f"infinito-small_lr{worse:g}_seed0", *(f"{one}_lr{best:g}_seed1" for one in MEMORIES)):
        (runs / f"{name}.json").unlink()
    assert command(*words) == 0
    monkeypatch.setattr(evidence, "train", lambda *args, **kwargs: pytest.fail("a run that gave up is repeated"))
    assert command(*words, "--card", folder / "card.md") == 0
    table, now = first_table(folder)
    told = {f"infinito-small, rate {worse:g}, seed 0", f"infinito-small, rate {best:g}, seed 1"}
    assert set(table["gave_up"]) == told and table["missing"] == []
    assert (now["learning_rate"], now["by_seed"]) == (best, {"0": row["by_seed"]["0"]})
    card = (folder / "card.md").read_text()
    assert "**Training gave up**" in card and "| gave up |" in card and "missing" not in card

    monkeypatch.setattr(evidence, "train", diverges)
    for path in runs.glob("infinito-small_lr*_seed0.json"):
        path.unlink()
    assert command(*words) == 0
    table, now = first_table(folder)
    assert (now["learning_rate"], now["held_out"], table["missing"]) == (None, {}, [])


def test_trials_at_other_rates_stay_apart(command, smoke, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    words = ["--output_dir", folder, *smoke, "--tables", "code"]
    assert command(*words, "--models", "titan", "--learning_rates", 0.002) == 0
    assert command(*words, "--report_only") == 0
    table, before = (read(path / "report" / "report.json")["tables"]["code"] for path in (folder, finished))
    (trial,) = table["other_rates"]
    assert (trial["model"], trial["learning_rate"], trial["validation_loss"]["n"]) == ("titan", 0.002, 2)
    assert table["rows"] == before["rows"] and table["runs"] == before["runs"]


def test_other_settings_are_refused(command, smoke, finished, untrained, capfd):
    assert command("--output_dir", finished, *smoke, "--tokens", 4096) == 2
    error = capfd.readouterr().err
    assert "other settings" in error and "recipe.tokens: 2048, now 4096" in error and "another --output_dir" in error


def test_a_report_of_other_settings_is_refused(command, smoke, finished, capfd):
    words = ["--report_only", "--tables", "wikipedia", "--report_dir", finished / "no"]
    assert command("--output_dir", finished, *words) == 2
    assert "does not belong into this report" in capfd.readouterr().err
    assert not (finished / "no").exists()


def test_a_missing_run_is_named(command, smoke, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    (folder / "runs" / "code" / "titan-memory_lr0.003_seed1.json").unlink()
    (folder / "runs" / "wikipedia" / "gpt2_lr0.01_seed0.json").unlink()
    assert command("--output_dir", folder, *smoke, "--report_only", "--card", folder / "card.md") == 0
    card = (folder / "card.md").read_text()
    assert "code: **incomplete**, runs that are missing: 1 " in card
    assert "**Missing runs**: titan-memory, rate 0.003, seed 1." in card
    assert "with one seed, which shows nothing about the spread" in card
    assert "gpt2, rate 0.01, seed 0; gpt2, the best rate, seed 1" in card


def test_a_missing_checkpoint_is_named(command, smoke, finished, tmp_path, capfd):
    folder = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(folder / "checkpoints")
    (folder / "runs" / "code" / "shuffled-memory_lr0.003_seed0.json").unlink()
    assert command("--output_dir", folder, *smoke, "--tables", "code") == 2
    assert "infinito-small_lr0.003_seed0.json to train the model again" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("\udcff", "is damaged"),
        ("[]", "holds no run"),
        ('{"settings": {}}', "holds no run"),
    ],
)
def test_a_damaged_run_is_named(content, message, command, smoke, finished, tmp_path, capfd):
    folder = shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    damaged = folder / "runs" / "code" / "titan_lr0.003_seed0.json"
    damaged.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert command("--output_dir", folder, *smoke, "--report_only") == 2
    error = capfd.readouterr().err
    assert f"titan_lr0.003_seed0.json {message}" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        "1",
        '{"tables": {"x": {}}, "seeds": [0], "versions": []}',
        '{"tables": {"code": {"rows": 1}}, "seeds": [], "versions": [{}]}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_report_is_one_line(content, command, tmp_path, capfd):
    (tmp_path / "report.json").write_text(content)
    assert command("--from_report", tmp_path / "report.json", "--card", tmp_path / "card.md") == 2
    error = capfd.readouterr().err
    assert "report.json: is no" in error and error.count("\n") == 1 and not (tmp_path / "card.md").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tables", "wikipidia"], "Did you mean 'wikipedia'"),
        (["--models", "gpt3"], "Did you mean 'gpt2'"),
        (["--models", "shuffled-memory"], "unknown name 'shuffled-memory'"),
        (["--tokens", "0"], "--tokens 0: must be at least 1"),
        (["--tokens", "100"], "one step takes 512 tokens"),
        (["--learning_rates", "0"], "--learning_rates 0: must lie between 0 and 1"),
        (["--threads", "0"], "--threads 0: must lie between 1 and 1024"),
        (["--threads", "100000"], "--threads 100000: must lie between"),
        (["--seeds", "0", "0"], "--seeds 0 0: must be different numbers"),
        (["--seeds", "-1"], "--seeds -1: must lie between 0 and 2^63 - 1"),
        (["--seeds", "1e3"], "invalid int value"),
        (["--seeds", "9" * 30], "must lie between 0 and 2^63 - 1"),
        (["--data", ""], "argument --data: is empty"),
        (["--card", "{folder}"], "is a folder; name a file in it"),
        (["--from_report", "{file}", "--card", "{file}"], "is the report itself"),
        (["--data", "/no/such/folder"], "there is no train.jsonl"),
        (["--from_report", "{file}"], "--from_report needs --card FILE"),
        (["--from_report", "{file}", "--card", "{file}.md"], "is not JSON"),
        (["--from_report", "{file}/no", "--card", "{file}.md"], "cannot be read"),
        (["--report_only"], "no finished run"),
        (["--card", "{file}/card.md"], "cannot"),
        (["--output", "x"], "unknown argument '--output'"),
    ],
)
def test_mistakes(words, message, command, smoke, tmp_path, untrained, capfd):
    (tmp_path / "file").write_text("")
    words = [word.format(file=tmp_path / "file", folder=tmp_path) for word in words]
    assert command("--output_dir", tmp_path / "out", *smoke, *words) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "file.md").exists()


def test_a_table_that_needs_data_says_so(command, tmp_path, untrained, capfd):
    assert command("--output_dir", tmp_path / "out", "--tables", "wikipedia") == 2
    error = capfd.readouterr().err
    assert "--tables wikipedia needs --data FOLDER with train, validation and test.jsonl" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_missing_output_dir_is_a_mistake(command, untrained, capfd):
    assert command("--smoke") == 2
    assert "--output_dir is missing" in capfd.readouterr().err
