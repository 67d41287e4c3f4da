"""What trained memories do on the test text: how full they are, how often slots are replaced, and what reads bring.

    python scripts/fair/memory_use.py --sweep runs/memory_gap --test_dataset runs/texts/code/test.jsonl \
        --output_dir results/samples/memory_gap --card model_cards/fair_tables.md

For each reported run of a model with slots: its loss with the memory, without (`use_memory=False`: the same weights
see their window alone) and with each row reading another row's slots (`shuffle_memory=True`), and the statistics of the
memory at the ends of the rows (modeling/outputs_infinito.py). Rows have the length that the run was trained with, and
documents are joined. Written are use.csv and, in the card, the block `memory_use`.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import frankenlm.modeling  # noqa: F401  (registers the architectures)
from frankenlm.scripts.fair.blocks import with_block
from frankenlm.trainer_ext.common.cli import (
    OneLineParser,
    UserError,
    check_output_dir,
    path_value,
    run_command,
    user_mistakes,
)
from frankenlm.trainer_ext.common.files import write_csv, write_text
from frankenlm.trainer_ext.common.timing import markdown_table
from frankenlm.trainer_ext.data.splits import load_documents, prepare_dataset
from frankenlm.trainer_ext.metrics.seeds import plus_minus, summary
from frankenlm.trainer_ext.sweeps.choice import REPORT
from frankenlm.trainer_ext.sweeps.table import GROUP, STAGE

READS = {"with its memory": {}, "without": {"use_memory": False}, "another row's": {"shuffle_memory": True}}
STATISTICS = ("slots_used", "utilisation", "rotation", "slot_mass", "mean_importance")
COLUMNS = ("run", "seed", "rows", "length", *READS, *STATISTICS)
MARK = "memory_use: use.csv"
BATCH = 16  # rows; another row's memory is that of the next one of its batch, which may be of the same document


def reported_slots(sweep: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The folders of a sweep's finished, reported runs whose model keeps slots, and their lines of sweep.json.

    Raises:
        UserError: it is no folder of a sweep.
    """
    try:
        runs = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))["runs"]
        for run in runs:
            if (run[STAGE], run["status"]) != (REPORT, "finished"):
                continue
            config = json.loads((sweep / run["name"] / "config.json").read_text(encoding="utf-8"))
            if config.get("memory_type") == "attention_slots" and config["memory_layers"]:
                yield sweep / run["name"], run
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"--sweep {sweep}: no folder of a sweep ({type(error).__name__}: {error}).") from error


def rows_of(folder: Path, documents: Any) -> torch.Tensor:
    """The test text as the rows that a run would read, (rows, length); what is left over at the end is dropped."""
    length = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["max_length"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = prepare_dataset(documents, tokenizer, max_length=length, document_borders=False, objective="causal")
    return torch.tensor([row for row in rows["input_ids"] if len(row) == length])


@torch.no_grad()
def use_of(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, float]:
    """Losses (nats a token) and means of the statistics over rows; ids (rows, length), of whole batches."""
    found: dict[str, list[float]] = {}
    for batch in tqdm(ids.split(BATCH), desc="memory use", unit="batch"):
        for name, options in READS.items():
            output = model(batch, labels=batch, use_cache=False, **options)
            found.setdefault(name, []).append(output.loss.item())
            if not options:
                for statistic in STATISTICS:
                    found.setdefault(statistic, []).append(output.memory_stats[statistic].mean().item())
    return {name: sum(values) / len(values) for name, values in found.items()}


def use_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in words and as a table: means over seeds."""
    if not rows:
        return "No run is finished yet.\n"
    cells = {name: summary([float(row[name]) for row in rows]) for name in (*READS, *STATISTICS)}
    losses = {f"loss {name}": plus_minus(cells[name]) for name in READS}
    statistics = {name.replace("_", " "): plus_minus(cells[name], 2) for name in STATISTICS}
    length = ", ".join(sorted({str(row["length"]) for row in rows}))
    told = f"Mean ± sd over {len(rows)} seeds; statistics at the ends of rows of {length} tokens."
    return f"{markdown_table([losses | statistics])}\n\n{told}\n"


def read_use(path: Path) -> list[dict[str, str]]:
    """The rows of a use.csv, none where there is none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--sweep", type=path_value, required=True, help="output folder of the sweep")
    add("--test_dataset", required=True, help="text that neither trained nor chose, given as to scripts/train.py")
    add("--output_dir", type=path_value, required=True, help="folder of use.csv")
    add("--card", type=path_value, help="Markdown file whose block is written anew")
    args = parser.parse_strictly(sys.argv[1:] if argv is None else argv)
    check_output_dir(args.output_dir)
    with user_mistakes():
        runs = list(reported_slots(args.sweep))
        if not runs:
            raise UserError(f"--sweep {args.sweep}: no reported run of a model with slots is finished.")
        if args.card:  # a card without the block is told before anything is scored
            with_block(args.card, args.card.read_text(encoding="utf-8"), MARK, "")
        documents = load_documents(args.test_dataset)
    rows = []
    for folder, run in runs:
        ids = rows_of(folder, documents)
        ids = ids[: len(ids) // BATCH * BATCH]
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        facts = {"run": run[GROUP], "seed": run["seed"], "rows": len(ids), "length": ids.shape[1]}
        rows.append(facts | use_of(model, ids))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_csv(args.output_dir / "use.csv", rows, COLUMNS)
    text = use_text(read_use(args.output_dir / "use.csv"))
    if args.card:
        write_text(args.card, with_block(args.card, args.card.read_text(encoding="utf-8"), MARK, text))
    print(text)


if __name__ == "__main__":
    sys.exit(run_command(main))
