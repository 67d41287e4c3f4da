"""Train the tiny models that the page starts with, on the text that every Python carries.

    python -m frankenlm.sharing.space.train_tiny                  all of them, into sharing/space/tiny
    python -m frankenlm.sharing.space.train_tiny mini --output_dir runs/tiny

A few minutes each on one core. Each run is one of `frankenlm train`; what is kept of it are configuration, tokenizer,
the weights rounded to float16, and a card with the loss that the rounded weights have on held-out text.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frankenlm.trainer_ext.common.cli import OneLineParser, UserError, path_value, run_command
from frankenlm.trainer_ext.common.files import write_json, write_text

TINY = Path(__file__).with_name("tiny")
SHARED = (
    "--dataset builtin --max_length 256 --per_device_train_batch_size 8 --cpu_threads 1 --use_cpu "
    "--lr_scheduler_type cosine --warmup_steps 0.1 --weight_decay 0.01 --seed 42 --logging_steps 100 "
    "--overwrite_output_dir --model.dropout 0.0 --model.attention_dropout 0.0 --model.max_position_embeddings 256 "
)


@dataclass(frozen=True)
class TinyRecipe:
    """How a tiny model is made, and what its card says it is. flags: of `frankenlm train`, beside SHARED."""

    flags: str
    what: str
    steps: int


RECIPES = {
    "infinito": TinyRecipe(
        "--preset infinito-small --tokenizer train --vocab_size 704 --model.hidden_size 64 "
        "--model.num_hidden_layers 2 --model.intermediate_size 256 --model.memory_layers [1] --model.memory_slots 16 "
        "--model.memory_type slots --model.attention_window null --model.memory_dim 16 --learning_rate 5e-3",
        "a causal transformer of two layers, the second of which reads and writes a slot memory",
        2000,
    ),
    "legacy-1bit": TinyRecipe(
        "--preset legacy-1bit --model.hidden_size 64 --model.num_hidden_layers 2 --model.intermediate_size 256 "
        "--model.position_type rope --learning_rate 5e-3",
        "a causal transformer of two layers on bytes, whose weights are trained to be ternary (-1, 0, 1)",
        1800,
    ),
    "mini": TinyRecipe(
        "--preset mini --tokenizer train --vocab_size 1024 --model.hidden_size 64 --model.num_hidden_layers 3 "
        "--model.num_loops 1 --model.num_attention_heads 4 --model.retention_heads 4 --model.mamba_head_dim 16 "
        "--model.intermediate_size 96 --model.layer_pattern [retnet,titan_attn,mamba] "
        "--model.factorized_embedding_dim 24 --model.num_experts 1 --model.top_k_experts 1 --learning_rate 5e-3",
        "a masked model of three layers: retention, attention and Mamba",
        1200,
    ),
}


def train_tiny(name: str, folder: Path, steps: int | None = None) -> None:
    """Train one of the RECIPES and leave it in `folder`: config.json, tokenizer, model.safetensors and README.md."""
    from frankenlm.trainer_ext.commands.train import train
    from frankenlm.trainer_ext.presets import parse_run

    recipe = RECIPES[name]
    steps = steps or recipe.steps
    words = [*(recipe.flags + " " + SHARED).split(), "--max_steps", str(steps)]
    words += ["--eval_steps", str(steps), "--save_steps", str(steps)]
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / name
        train(parse_run([*words, "--output_dir", str(run)]))
        keep(run, folder)
        facts = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        facts["command"] = facts["command"].replace(str(run), f"runs/tiny-{name}")
    write_text(folder / "README.md", card(name, recipe, facts, held_out(folder)))


def keep(run: Path, folder: Path) -> None:
    """Copy what a model is opened from: its weights in float16, and no code, which travels with checkpoints."""
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from frankenlm.trainer_ext.common.objectives import OBJECTIVES

    config = AutoConfig.from_pretrained(run)
    objective = next(each for each in OBJECTIVES.values() if each.is_head(config.architectures[0]))
    model = objective.auto_model.from_pretrained(run).to(torch.float16)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(run).save_pretrained(scratch)
        for path in sorted(Path(scratch).iterdir()):
            if path.suffix == ".json":
                write_json(folder / path.name, plain(json.loads(path.read_text(encoding="utf-8"))))
            elif path.suffix == ".safetensors":
                (folder / path.name).write_bytes(path.read_bytes())


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A saved file's fields without the code that it names; weights in float16 are computed with in float32."""
    fields = {key: value for key, value in fields.items() if key != "auto_map"}
    return fields | ({"dtype": "float32"} if "dtype" in fields else {})


def held_out(folder: Path) -> dict[str, float]:
    """Measure a model on the documents of the built-in text that training does not see."""
    from frankenlm.trainer_ext.evaluation.scored_text import load_split_texts
    from frankenlm.trainer_ext.evaluation.scoring import load_scorer, score

    texts = load_split_texts(
        "builtin",
        ["validation"],
        validation_fraction=0.05,
        split_seed=0,
        text_column="text",
        max_documents=None,
    )
    scorer = load_scorer(
        str(folder), None, max_length=256, stride=None, batch_size=8, device="cpu", trust_remote_code=False
    )
    scored = score(scorer, texts["validation"], mlm_probability=0.15, seed=42)
    return scored.facts | scored.measures()


def card(name: str, recipe: TinyRecipe, facts: Mapping[str, Any], measured: Mapping[str, float]) -> str:
    """The card of a tiny model: what it is and is not, how it was made, and what was measured."""
    return f"""---
license: apache-2.0
library_name: transformers
language: en
pipeline_tag: {"fill-mask" if facts["objective"] == "mlm" else "text-generation"}
tags:
- frankenlm
- {facts["model_type"]}
---

# {name}, tiny

{recipe.what[0].upper() + recipe.what[1:]}; {facts["parameters"]:,} parameters. It lies in the repository so that the
page (`python app.py`) has something to show from the first minute.

## What it is not

A language model of any use. It has read {facts["tokens_seen"]:,} tokens of the documentation that Python carries, so it
writes and fills in words that look like such documentation and mean nothing. It knows no facts, follows no
instructions, and repeats the errors of its text. Numbers about quality belong to models trained for longer.

## How it was made

`python -m frankenlm.sharing.space.train_tiny {name}`, which runs

```
{facts["command"]}
```

in a few minutes of one core, and rounds the weights to float16. The text is the built-in one (pydoc
topics and docstrings of Python {facts["versions"]["python"]}); another version of Python has a slightly different one.

## Measured

On the documents held out of training, with the weights as they lie here:

| measure | value |
|---|---|
| loss (nats a token{", at masked tokens" if facts["objective"] == "mlm" else ""}) | {measured["loss"]:.3f} |
| bits per byte | {measured["bits_per_byte"]:.3f} |
| loss before training | {facts["loss_at_init"]:.3f} |
| unigram cross-entropy | {facts["unigram_cross_entropy"]:.3f} |
| tokens scored | {measured["tokens"]:,} |
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", help=f"of {', '.join(RECIPES)} (default: all)")
    parser.add_argument("--output_dir", type=path_value, default=TINY, help="folder for them (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="training steps, instead of each recipe's own")
    args = parser.parse_strictly(sys.argv[1:] if argv is None else argv)
    for name in args.names:
        if name not in RECIPES:
            raise UserError(f"{name!r} is no tiny model; there are {', '.join(RECIPES)}.")
    if args.steps is not None and args.steps < 1:
        raise UserError(f"--steps {args.steps}: must be at least 1.")
    for name in args.names or RECIPES:
        train_tiny(name, args.output_dir / name, args.steps)


if __name__ == "__main__":
    sys.exit(run_command(main))
