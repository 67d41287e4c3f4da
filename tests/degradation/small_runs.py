"""The smallest experiments of the lab's tests, and what two ways of running one must agree in; imported by path."""

import json

import pytest

from frankenlm.degradation import get_config, run_experiment

SMALL = get_config("smoke") | {
    "dtype": "float32", "levels": (0.0, 0.3), "n_rep": 2, "max_new_tokens": 6, "perplexity": False
}  # fmt: skip
# what may differ between two ways of getting the same rows
INCIDENTAL = {
    "timestamp", "duration", "batch_duration", "attempt", "batch_size_effective", "batch_shape", "rank", "device",
    "vram_usage_percent",
}  # fmt: skip
ROUNDED = ("mean_logprob", "mean_entropy")


def rows_of(path):
    return json.loads(path.read_text(encoding="utf-8"))


def essence(rows):
    """What rows say, apart from when and in which company; in the order of the file."""
    kept = [{name: value for name, value in row.items() if name not in INCIDENTAL} for row in rows]
    for row in kept:
        for name in ROUNDED:
            row[name] = pytest.approx(row[name], abs=1e-3) if row[name] is not None else None
    return kept


@pytest.fixture
def lab(tiny_model, tiny_tokenizer, tmp_path):
    """lab(config, folder="results") runs an experiment on a tiny Llama in this process, returns its rows."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()

    def run(config=SMALL, folder="results", **options):
        options = {"model": model, "tokenizer": tokenizer, "progress": False, **options}
        return rows_of(run_experiment(config, output_dir=tmp_path / folder, **options))

    run.model = model
    return run


@pytest.fixture(scope="module")
def unbroken(tiny_model, tiny_tokenizer, tmp_path_factory):
    """The rows of SMALL, in one go."""
    folder = tmp_path_factory.mktemp("unbroken")
    path = run_experiment(
        SMALL, model=tiny_model("llama"), tokenizer=tiny_tokenizer(), output_dir=folder, progress=False
    )  # fmt: skip
    return rows_of(path)
