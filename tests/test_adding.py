"""CONTRIBUTING's "To add a command", "a metric" and "a damage method", followed in a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from forking import ForkServer

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("modeling", "trainer_ext", "degradation", "kernels", "scripts")

COMMAND = '''
"""Count the words of a file. A sentence that the overview leaves out."""

import argparse
import sys
from pathlib import Path

from frankenlm.trainer_ext.common.cli import OneLineParser, UserError, run_command


def main(argv=None):
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--file", required=True, type=Path)
    args = parser.parse_strictly(sys.argv[1:] if argv is None else argv)
    if not args.file.is_file():
        raise UserError(f"--file {args.file}: no such file.")
    print(len(args.file.read_text().split()))
'''
MEASURE = '''
def mean_length(texts):
    """Return the mean number of tokens."""
    return {"mean_length": _mean(map(len, texts))}


'''
USE_MEASURE = """
from frankenlm.trainer_ext.evaluation.comparing import choose_metrics
from frankenlm.trainer_ext.evaluation.scoring import fitting_metrics, parse_metrics
from frankenlm.trainer_ext.metrics.text import Written, measure_written

assert fitting_metrics(parse_metrics("length"), "causal", asked_for_all=False) == ["length"]
assert choose_metrics("length,speed", has_data=False, has_references=False) == ["length", "speed"]
assert measure_written(Written([[1, 2, 3], [4]], ["a", "b"], 9), ["length"]) == {"mean_length": 2.0}
"""


METHOD = '''
def mult_sign(request: TensorRequest) -> TableDamage:
    """Return the damage w (1 + s sign(e))."""
    level = np.float32(request.level)
    return TableDamage(tuple(np.float32(1) + level * np.sign(table) for table in gaussian_tables()), "multiply")


'''
USE_METHOD = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from frankenlm.degradation.configs import get_config
from frankenlm.degradation.report.level_axis import LevelAxis
from frankenlm.degradation.weights.restore import Baseline, apply_damage

assert (get_config("smoke") | {"method": "mult_sign", "levels": (0.0, 0.25)}).method == "mult_sign"
assert LevelAxis.of("mult_sign", [0.25], True).label == "signs s"
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()
weight = model.model.layers[0].self_attn.v_proj.weight
before = weight.detach().clone()
with Baseline(model, "attn_only") as baseline:
    apply_damage(baseline, "mult_sign", 0.25, 42, 0)
    ratio = weight.detach() / before
    assert torch.isclose((ratio - 1).abs(), torch.tensor(0.25)).all() and ratio.min() < 1 < ratio.max()
"""


@pytest.fixture
def package(tmp_path) -> Path:
    """The folder of a copy of frankenlm, laid out as an installed one is."""
    folder = shutil.copytree(ROOT / "frankenlm", tmp_path / "frankenlm", ignore=shutil.ignore_patterns("__pycache__"))
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "bench", "evidence"))
    return folder


def environment_of(package: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(package.parent), "HF_HUB_OFFLINE": "1"}


def run(package: Path, *words: str) -> subprocess.CompletedProcess:
    command, environment = [sys.executable, "-m", "frankenlm", *words], environment_of(package)
    return subprocess.run(command, cwd=package.parent, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def use():
    """use(package, code) runs code with a package, in a process of its own."""
    with ForkServer("import torch, transformers\nfrom transformers import LlamaForCausalLM, Trainer") as server:
        yield lambda package, code: server.run(code, cwd=package.parent, env=environment_of(package))


def insert(path: Path, line: str, addition: str) -> None:
    """Put a text before the line that it belongs to, which must be there once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(line) == 1, line
    path.write_text(text.replace(line, addition + line), encoding="utf-8")


def test_a_command_is_a_file(package):
    (package / "scripts" / "count.py").write_text(COMMAND.lstrip())
    assert "  count      Count the words of a file\n" in run(package).stdout
    (package.parent / "text").write_text("one two three")
    done = run(package, "count", "--file", "text")
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    done = run(package, "count", "--file", "none")
    assert (done.returncode, done.stderr) == (2, "error: --file none: no such file.\n")


def test_a_measure_of_texts_is_a_function_and_its_line(package, use):
    file = package / "trainer_ext" / "metrics" / "text.py"
    insert(file, "# --- diversity, across texts\n", MEASURE.lstrip("\n"))
    line = '    "length": TextMeasure(("mean_length",), lambda written: mean_length(written.tokens)),\n'
    insert(file, '    "vocabulary": TextMeasure(\n', line)
    done = use(package, USE_MEASURE)
    assert done.returncode == 0, done.stderr


def test_a_damage_method_is_a_function_and_a_line_in_two_tables(package, use):
    file = package / "degradation" / "damage" / "methods.py"
    insert(file, 'LEGACY_METHODS = ("mult_gauss", "ablation")\n', METHOD.lstrip("\n"))
    insert(file, '"add_gauss": add_gauss}\n', '"mult_sign": mult_sign, ')
    insert(package / "degradation" / "configs.py", "}\nDTYPES = (", '    "mult_sign": Scale("s", "signs s"),\n')
    done = use(package, USE_METHOD)
    assert done.returncode == 0, done.stderr
