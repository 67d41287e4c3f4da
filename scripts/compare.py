"""Compare causal language models on the same prompts and data: a table, a figure, and their texts side by side.

    python scripts/compare.py --models runs/infinito runs/mini_causal --dataset builtin --output_dir comparison
    python scripts/compare.py --models runs/a runs/b --prompts pairs.jsonl --metrics bleu,repetition --output_dir O
    python scripts/compare.py --models runs/a gpt2 --dataset test.jsonl --max_length 256 --output_dir O

Writes compare.json (everything), compare.md (table and texts), compare.csv (a row a model) and compare.png. All models
get the same prompts, settings and seeds, and are scored with the same context length. What is counted in tokens
compares models of one tokenizer only; across tokenizers, look at bits per byte and BLEU.
"""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging as transformers_logging

import frankenlm.modeling  # noqa: F401  registers our architectures with the AutoModel classes
from frankenlm.trainer_ext.cards import library_versions
from frankenlm.trainer_ext.common.checkpoints import (
    DTYPES,
    Checkpoint,
    check_device,
    check_sacrebleu,
    load_model,
    open_checkpoint,
)
from frankenlm.trainer_ext.common.cli import (
    OneLineParser,
    UserError,
    check_model_name,
    check_new_file,
    check_numbers,
    run_command,
    user_mistakes,
)
from frankenlm.trainer_ext.common.files import replaced_file, write_csv, write_json, write_text
from frankenlm.trainer_ext.common.logs import RunLog
from frankenlm.trainer_ext.common.redaction import public_name
from frankenlm.trainer_ext.data.articles import JOIN_ARTICLES
from frankenlm.trainer_ext.data.builtin_text import BUILTIN_NAMES
from frankenlm.trainer_ext.evaluation.comparing import (
    LIKELIHOOD,
    METRICS,
    Contestant,
    Likelihood,
    choose_metrics,
    common_context,
    compare,
    csv_rows,
    figure_panels,
    make_labels,
    markdown_report,
    same_tokenizer,
    text_table,
)
from frankenlm.trainer_ext.evaluation.scoring import default_device, load_text
from frankenlm.trainer_ext.generation.generate import encode_prompt
from frankenlm.trainer_ext.generation.prompts import BUILTIN_PROMPTS, Prompt, read_prompts
from frankenlm.trainer_ext.generation.sampling import DEFAULT_TEMPERATURE, Sampling

logger = logging.getLogger("frankenlm.compare")

FILES = JSON, TABLE, FIGURE, PAGE = ("compare.json", "compare.csv", "compare.png", "compare.md")
SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "num_return_sequences", "seed")


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--models", nargs="+", required=True, help="folders or hub names of saved causal language models")
    add("--output_dir", required=True, help="folder for the report")
    add(
        "--prompts",
        help='file: a prompt a line (.txt), or rows with "prompt" and, for BLEU, "reference" (.jsonl). '
        "Default: built-in prompts",
    )
    add("--dataset", help="text to score, as for train.py: builtin, a hub name, a file, folder or glob")
    add("--metrics", default="all", help=f"all, or some of {', '.join(METRICS)}, with commas (default: all)")
    how = parser.add_argument_group("how to generate")
    how.add_argument("--max_new_tokens", type=int, default=60, help="(default: 60)")
    how.add_argument(
        "--temperature",
        type=float,
        default=DEFAULT_TEMPERATURE,
        help=f"0: the likeliest token each time (default: {DEFAULT_TEMPERATURE})",
    )
    how.add_argument("--top_k", type=int, help="sample among the k likeliest tokens (default: off)")
    how.add_argument("--top_p", type=float, help="sample among the likeliest tokens of this mass (default: off)")
    how.add_argument("--repetition_penalty", type=float, default=1.0, help="above 1: repeat less (default: 1, off)")
    how.add_argument("--num_return_sequences", type=int, default=1, help="texts a prompt (default: 1)")
    how.add_argument("--seed", type=int, default=42, help="(default: 42)")
    data = parser.add_argument_group("how to score")
    data.add_argument(
        "--split",
        choices=["all", "validation"],
        help="all documents, or those train.py holds out (default: validation of the built-in texts, else all)",
    )
    data.add_argument("--max_documents", type=int, help="score only the first so many documents")
    data.add_argument(
        "--max_length", type=int, help="tokens a model sees at once (default: the smallest max_position_embeddings)"
    )
    data.add_argument("--stride", type=int, help="tokens a window moves on (default: half of max_length)")
    data.add_argument("--batch_size", type=int, default=16, help="windows at once (default: 16)")
    data.add_argument("--text_column", default="text", help="column that holds the text (default: text)")
    data.add_argument(
        "--join_articles",
        choices=JOIN_ARTICLES,
        default="auto",
        help="join the lines of WikiText-like data into articles (default: where there are '= Title =' lines)",
    )
    data.add_argument("--skip_bad_rows", action="store_true", help="pass rows over that are no text, and say how many")
    data.add_argument("--validation_fraction", type=float, default=0.05, help="as in training (default: 0.05)")
    data.add_argument("--split_seed", type=int, default=0, help="as in training (default: 0)")
    add("--device", default=default_device(), help="cpu or cuda (default: the GPU if there is one)")
    add("--dtype", choices=DTYPES, default="auto", help="number format of the weights (default: as saved)")
    add("--trust_remote_code", action="store_true", help="run model code that comes with the checkpoints")
    add("--log_level", choices=["debug", "info", "warning", "error"], default="info", help="(default: info)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    sampling = Sampling(**{name: getattr(args, name) for name in SAMPLING})
    sampling.check()
    check_arguments(args)
    prompts = read_prompts(Path(args.prompts)) if args.prompts else list(BUILTIN_PROMPTS)
    has_references = all(prompt.references for prompt in prompts)
    metrics = choose_metrics(args.metrics, has_data=args.dataset is not None, has_references=has_references)
    check_sacrebleu(metrics)

    with RunLog(args.log_level):
        with user_mistakes():
            checkpoints = [
                open_checkpoint(name, option="--models", trust_remote_code=args.trust_remote_code)
                for name in args.models
            ]
            ids = [[encode_prompt(checkpoint, prompt.text) for prompt in prompts] for checkpoint in checkpoints]
            likelihood = load_likelihood(args, checkpoints, metrics)
            contestants = load_contestants(args, checkpoints, ids)
        rows: list[dict] = []
        try:
            for row in compare(contestants, prompts, sampling, metrics, likelihood=likelihood, device=args.device):
                rows.append(row)
        finally:
            # whatever ends the work, the models that are measured are reported
            if rows:
                write_reports(args, rows, report_facts(args, checkpoints, prompts, sampling, metrics, likelihood, rows))
    print(text_table(rows))
    print(f"report: {Path(args.output_dir) / PAGE}")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse, before anything is read, what nothing can be done with."""
    check_numbers(
        args,
        least={"batch_size": 1, "max_documents": 1, "max_length": 2, "stride": 1},
        between=("validation_fraction",),
        seeds=("split_seed",),
    )
    check_device(args.device)
    for name in args.models:
        check_model_name("--models", name)
    for name in FILES:
        check_new_file("--output_dir", Path(args.output_dir) / name)


def load_likelihood(
    args: argparse.Namespace, checkpoints: Sequence[Checkpoint], metrics: Sequence[str]
) -> Likelihood | None:
    """The documents to score and the windows to read them in; None where no measure asks for them."""
    if not any(name in metrics for name in LIKELIHOOD):
        return None
    context = common_context(checkpoints, args.max_length)
    stride = args.stride or max(1, context // 2)
    if stride > context:
        raise UserError(f"--stride {stride}: must not exceed the {context} tokens the models see at once.")
    documents = load_text(
        args.dataset,
        chosen_split(args),
        validation_fraction=args.validation_fraction,
        split_seed=args.split_seed,
        text_column=args.text_column,
        max_documents=args.max_documents,
        join_articles=args.join_articles,
        skip_bad_rows=args.skip_bad_rows,
    )
    return Likelihood(documents, context, stride, args.batch_size)


def chosen_split(args: argparse.Namespace) -> str:
    return args.split or ("validation" if args.dataset in BUILTIN_NAMES else "all")


def load_contestants(
    args: argparse.Namespace, checkpoints: Sequence[Checkpoint], ids: Sequence[list[list[int]]]
) -> list[Contestant]:
    """Load all models, before the first is measured; they wait in main memory for their turn."""
    labels = make_labels(args.models)
    models = [load_model(each, device="cpu", dtype=args.dtype, option="--models") for each in checkpoints]
    return [Contestant(*parts) for parts in zip(labels, checkpoints, models, ids, strict=True)]


def report_facts(
    args: argparse.Namespace,
    checkpoints: Sequence[Checkpoint],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    metrics: Sequence[str],
    likelihood: Likelihood | None,
    rows: list[dict],
) -> dict:
    """What compare.json tells."""
    return {
        "bleu_signature": rows[0].get("bleu_signature"),
        "context_length": likelihood.context_length if likelihood else None,
        "dataset": public_name(args.dataset) if likelihood else None,
        "device": args.device,
        "documents": len(likelihood.documents) if likelihood else None,
        "metrics": list(metrics),
        "models": rows,
        "models_asked_for": len(checkpoints),
        "prompts": public_name(args.prompts) if args.prompts else "builtin",
        "prompts_count": len(prompts),
        "same_tokenizer": same_tokenizer(checkpoints),
        "settings": dataclasses.asdict(sampling),
        "split": chosen_split(args) if likelihood else None,
        "stride": likelihood.stride if likelihood else None,
        "versions": library_versions(),
    }


def write_reports(args: argparse.Namespace, rows: list[dict], facts: dict) -> None:
    # the figure's library takes its time to import; mistakes are told before
    from frankenlm.trainer_ext.evaluation.barcharts import plot_comparison

    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON, facts)
    write_csv(folder / TABLE, csv_rows(rows))
    with replaced_file(folder / FIGURE) as scratch:
        plot_comparison(rows, figure_panels(rows), scratch)
    write_text(folder / PAGE, markdown_report(rows, facts))


if __name__ == "__main__":
    transformers_logging.set_verbosity_warning()
    sys.exit(run_command(main))
