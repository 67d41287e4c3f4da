"""Give commands many odd command lines and damaged models, in one process; report their faults as JSON on stdout.

    python tests/tools/fuzz_command.py evaluate pack --scratch FOLDER --seed 0 --lines 60 --damages 60

The flags come from the command's own parser. Each line is a line that would work with one to three odd values put in,
or with a model one of whose files is damaged (damages.py). A fault is: an exception that leaves the command, an exit
code nobody specified, no message for a mistake, a line that takes longer than LIMIT seconds, or a change to what lies
in SCRATCH/precious, which lay_out() fills.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from damages import damages  # noqa: E402

LIMIT = 60  # seconds, on a busy machine
CODES = {0, 1, 2, 3, 4, 5, 6, 7, 141}
ODD = [
    "", " ", "-1", "0", "-0.5", "1.5", "nan", "inf", "-inf", "1e400", "1e9", "2e-2", "99999999999999999999", "None",
    "null", "true", "[]", "{}", '{"a": NaN}', "a" * 300, "../../x", "/dev/null", "~nobody/x", "x\ny",
    "caf\u00e9 \U0001f600", "\udcff", "'; rm -rf .", "%s%n", "--help", "\u2028", "0x10", "1_000", "\u0663",
]  # fmt: skip
LAB = ("run", "recover", "groups", "dry-run", "measure", "report", "export", "import-legacy")
LOADING = ("train", "evaluate", "generate", "compare", "pack", "run", "recover", "groups", "dry-run",
           "serve", "push", "export model")  # fmt: skip
# Where the work of a command is that is no module of trainer_ext.commands.
WORK = {"serve": "sharing.server.serving", "push": "sharing.hub.command", "export model": "sharing.export.exporting",
        "app": "sharing.space.allowed"} | dict.fromkeys(LAB, "degradation.lab")  # fmt: skip


class TooLong(BaseException):
    """A line took longer than LIMIT; not an Exception, so that no handler of the command swallows it."""


def lay_out(scratch: Path) -> None:
    """Put what command lines name into SCRATCH/precious: a ternary model with a tokenizer, texts, prompts, rows."""
    import torch

    from frankenlm.modeling import Legacy1BitConfig, Legacy1BitForCausalLM
    from frankenlm.modeling.tokenization_bytes import byte_tokenizer

    folder = scratch / "precious"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = Legacy1BitConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Legacy1BitForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [json.dumps({"text": f"the cat {number} sat on the mat and saw the dog"}) for number in range(20)]
    (folder / "t.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "late.jsonl").write_text("\n".join([*rows[:2], "no JSON", *rows]), encoding="utf-8")
    (folder / "p.txt").write_text("the cat\nthe dog\n", encoding="utf-8")
    (folder / "rows.json").write_text("[]", encoding="utf-8")


def command_of(name: str) -> Callable[[list[str]], object]:
    """Return main(argv) of a script or a verb of the lab; what it imports late is not what is timed."""
    work = importlib.import_module(f"frankenlm.{WORK.get(name, f'trainer_ext.commands.{name}')}")
    if name == "serve":
        work.run = end_at_once
    script = "degrade" if name in LAB else name.partition(" ")[0]
    module = importlib.import_module(f"frankenlm.scripts.{script}")
    if name in LAB:
        return lambda argv: module.main([name, *argv])
    return module.main


def end_at_once(engines, listening, key) -> None:
    """In place of a server, which would not end: the models are open and the address is taken."""
    listening.close()
    for engine in engines.values():
        engine.close(timeout=0)


def base_of(name: str, scratch: Path) -> list[str]:
    """Return a command line that works, or that fails as late as possible where the work itself would take long."""
    model, text, prompts = scratch / "precious" / "model", scratch / "precious" / "t.jsonl", scratch / "precious/p.txt"
    late = scratch / "precious" / "late.jsonl"  # its third row is no JSON: found when the data are read
    rows = scratch / "precious" / "rows.json"
    tiny = ["--preset", "standard", "--tokenizer", "train", "--vocab_size", "300", "--model.hidden_size", "16",
            "--model.num_hidden_layers", "1", "--model.num_attention_heads", "2", "--model.intermediate_size", "16",
            "--max_length", "16", "--batch_size", "4", "--max_steps", "1", "--cpu_threads", "1"]  # fmt: skip
    lines = {
        "train": [*tiny, "--dataset", late, "--output_dir", scratch / "out" / "run"],
        "train on": ["--model_name_or_path", model, "--objective", "causal", *tiny[-8:], "--dataset", text,
                     "--output_dir", scratch / "out" / "on", "--overwrite_output_dir"],
        "evaluate": ["--model", model, "--dataset", text, "--metrics", "perplexity", "--max_documents", "2",
                     "--report", scratch / "out" / "r.json"],
        "generate": ["--model", model, "--prompt", "the", "--max_new_tokens", "2"],
        "compare": ["--models", model, model, "--prompts", prompts, "--max_new_tokens", "2",
                    "--output_dir", scratch / "out" / "compared"],
        "pack": ["--model", model, "--output", scratch / "out" / "packed"],
        "serve": [model, "--port", "0", "--threads", "1"],
        "push": [model, "me/x", "--license", "mit", "--dry_run"],
        "export model": [model, "--format", "torch", "--output", scratch / "out" / "exported"],
        "suite": ["--output_dir", scratch / "out" / "suite", "--tasks", "memorization", "--mixers", "retnet",
                  "--hidden_sizes", "16", "--learning_rates", "0.01", "--seeds", "0", "--steps", "1",
                  "--batch_size", "2", "--test_rows", "2", "--threads", "1"],
        "app": ["--model", scratch / "precious" / "nothing"],  # a page that starts would not end
        "run": ["--config", "smoke", "--model", model, "--group", "mlp_only", "--method", "ablation", "--levels", "0",
                "--n_rep", "1", "--max_new_tokens", "1", "--output_dir", scratch / "out" / "lab"],
        "recover": ["--config", "smoke", "--model", model, "--group", "mlp_only", "--method", "ablation",
                    "--levels", "0", "--n_rep", "1", "--max_new_tokens", "1", "--train_text", prompts, "--steps", "1",
                    "--every", "1", "--train_batch", "1", "--train_length", "8",
                    "--dtype", "float32", "--output_dir", scratch / "out" / "recovered"],
        "groups": ["--model", model],
        "dry-run": ["--config", "smoke", "--model", model, "--group", "mlp_only", "--max_new_tokens", "1",
                    "--report", scratch / "out" / "estimate.json"],
        "measure": [rows],
        "report": [rows, "--output_dir", scratch / "out" / "report"],
        "export": [rows],
        "import-legacy": [rows],
    }  # fmt: skip
    return [str(word) for word in lines[name]]


def flags_of(main: Callable[[list[str]], object]) -> list[tuple[str, bool]]:
    """Return (flag, takes a value) of every option, from the parser that the command itself makes."""
    seen: list[argparse.ArgumentParser] = []
    original = argparse.ArgumentParser.parse_known_args

    def look(parser, *args, **kwargs):
        seen.append(parser)
        return original(parser, *args, **kwargs)

    argparse.ArgumentParser.parse_known_args = look
    try:
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with quiet[0], quiet[1], contextlib.suppress(SystemExit):
            main(["--help"])
        with quiet[0], quiet[1], contextlib.suppress(SystemExit):
            if not seen:
                main(["--help_all"])  # of train.py, whose short page is a file
    finally:
        argparse.ArgumentParser.parse_known_args = original
    found = {
        (option, action.nargs != 0)
        for parser in seen
        for action in parser._actions
        for option in action.option_strings
        if option not in ("-h", "--help")
    }
    return sorted(found)


def odd_line(base: list[str], flags: list[tuple[str, bool]], chance: random.Random, scratch: Path) -> list[str]:
    """Return the base line with odd values for one to three flags, in place of its own or behind it."""
    line = list(base)
    for flag, takes_value in chance.sample(flags, min(chance.choice((1, 1, 2, 3)), len(flags))):
        values = [chance.choice([*ODD, str(scratch / "precious"), str(scratch / "precious" / "t.jsonl")])]
        if chance.random() < 0.1:
            values = chance.choice(([], [values[0], chance.choice(ODD)]))
        if flag in line and takes_value:
            place = line.index(flag)
            del line[place : place + 2]
        line += [flag, *values] if takes_value else [flag]
    if chance.random() < 0.05:
        line.append(chance.choice(["--no_such_flag", "stray"]))
    return line


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of everything below a folder."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def run_line(main, line: list[str], console: Callable = io.StringIO) -> tuple[int | None, str, str | None]:
    """Run one line, printing to two streams that `console` makes; return exit code, stderr, and the fault or None."""
    from frankenlm.trainer_ext.common.cli import run_command

    def stop(signum, frame):
        raise TooLong

    out, err = console(), console()
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    code, fault = None, None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command(main, line)
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 0 if exit.code is None else 1
    except TooLong:
        fault = f"took longer than {LIMIT} s"
    except BaseException:
        fault = traceback.format_exc(limit=-6)
    finally:
        signal.alarm(0)
    said = err.getvalue()
    if fault is None and code not in CODES:
        fault = f"exit code {code}"
    elif fault is None and "Traceback (most recent call last)" in said:
        fault = said[-1500:]
    elif fault is None and code == 2 and not said.strip():
        fault = "a mistake without a message"
    return code, said, fault


class Fuzzer:
    """One command (for the lab: all its verbs in turn) and the faults found so far."""

    def __init__(self, name: str, scratch: Path, seed: int):
        self.scratch, self.chance = scratch, random.Random(f"{name} {seed}")
        if not (scratch / "precious").is_dir():
            lay_out(scratch)
        os.makedirs(scratch / "out", exist_ok=True)
        os.chdir(scratch / "out")
        self.verbs = LAB if name == "degrade" else (name,)
        self.mains = {verb: command_of(verb) for verb in self.verbs}
        self.flags = {verb: flags_of(self.mains[verb]) for verb in self.verbs}
        self.before = state_of(scratch / "precious")
        self.codes: dict[str, int] = {}
        self.faults: list[dict] = []

    def odd_lines(self, count: int) -> None:
        for number in range(count):
            verb = self.verbs[number % len(self.verbs)]
            self.run(verb, odd_line(base_of(verb, self.scratch), self.flags[verb], self.chance, self.scratch))

    def damaged_models(self, count: int) -> None:
        verbs = [verb for verb in self.verbs if verb in LOADING]
        if not verbs:
            return
        kinds = damages(self.scratch / "precious" / "model")
        for number, damage in enumerate(self.chance.sample(kinds, min(count, len(kinds)))):
            verb = verbs[number % len(verbs)]
            folder = self.scratch / "out" / "damaged"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(self.scratch / "precious" / "model", folder)
            damage.apply(folder)
            whole = str(self.scratch / "precious" / "model")
            line = base_of("train on" if verb == "train" else verb, self.scratch)
            self.run(verb, [str(folder) if word == whole else word for word in line], damage.name)

    def run(self, verb: str, line: list[str], damage: str | None = None) -> None:
        code, said, fault = run_line(self.mains[verb], line)
        self.codes[str(code)] = self.codes.get(str(code), 0) + 1
        after = state_of(self.scratch / "precious")
        if after != self.before:
            fault = f"changed {sorted(set(self.before.items()) ^ set(after.items()))[:4]}"
            self.before = after
        if fault:
            place = {"verb": verb, "line": line, "damage": damage}
            self.faults.append({**place, "code": code, "fault": fault, "said": said[-300:]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="+")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=int, default=50)
    parser.add_argument("--damages", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    reports = {}
    for name in args.commands:
        fuzzer = Fuzzer(name, args.scratch.resolve() / name, args.seed)
        fuzzer.odd_lines(args.lines)
        fuzzer.damaged_models(args.damages)
        flags = sum(map(len, fuzzer.flags.values()))
        reports[name] = {"flags": flags, "codes": fuzzer.codes, "faults": fuzzer.faults}
    json.dump(reports, sys.__stdout__)


if __name__ == "__main__":
    main()
