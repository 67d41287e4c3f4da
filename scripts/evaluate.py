"""Measure how well a saved language model predicts text (loss in nats, perplexity, bits per byte), and, for a causal
one, what it writes when it goes on with held-out documents (BLEU, repetition, diversity, vocabulary use).

    python scripts/evaluate.py --model runs/mini --dataset builtin --report report.json
    python scripts/evaluate.py --model runs/mini --dataset test.jsonl --method pseudo --max_documents 20
    python scripts/evaluate.py --model gpt2 --dataset test.jsonl --metrics perplexity,bits_per_byte --stride 256
    python scripts/evaluate.py --model gpt2 --dataset wiki.test.raw.txt --one_text --metrics perplexity,word_perplexity
    python scripts/evaluate.py --model runs/infinito --dataset builtin --metrics bleu,repetition --temperature 0

Compare models with different tokenizers by bits per byte, or by perplexity per word. `--one_text` reads all of the text
as one stream; its default windows are those of lm-evaluation-harness (rolling log-likelihood). Masked models have no
perplexity in the strict sense: `mlm` is their training loss on held-out text, `pseudo` the pseudo-perplexity of Salazar
et al. (2020).
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.utils import logging as transformers_logging

import frankenlm.modeling  # noqa: F401  registers our architectures with the AutoModel classes
from frankenlm.trainer_ext.cards import library_versions
from frankenlm.trainer_ext.common.checkpoints import check_device, check_sacrebleu
from frankenlm.trainer_ext.common.cli import (
    Failed,
    OneLineParser,
    UserError,
    check_model_name,
    check_new_file,
    check_numbers,
    run_command,
    user_mistakes,
)
from frankenlm.trainer_ext.common.files import write_json
from frankenlm.trainer_ext.common.logs import RunLog
from frankenlm.trainer_ext.common.redaction import public_name, redact
from frankenlm.trainer_ext.data.articles import JOIN_ARTICLES
from frankenlm.trainer_ext.data.builtin_text import BUILTIN_NAMES
from frankenlm.trainer_ext.evaluation.continuations import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    Beginning,
    choose_lengths,
    find_beginnings,
    measure_continuations,
)
from frankenlm.trainer_ext.evaluation.scoring import (
    LIKELIHOOD,
    METHODS,
    METRICS,
    TEXT_METRICS,
    Scorer,
    default_device,
    fitting_metrics,
    load_scorer,
    load_text,
    parse_metrics,
    score,
)
from frankenlm.trainer_ext.generation.sampling import DEFAULT_TEMPERATURE, Sampling
from frankenlm.trainer_ext.metrics.text import TEXT_MEASURES

logger = logging.getLogger("frankenlm.evaluate")


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", required=True, help="folder or hub name of a saved language model")
    add("--dataset", required=True, help="text, as for train.py: builtin, a hub name, a file, folder or glob")
    add(
        "--split",
        choices=["all", "validation"],
        help="score all documents, or those that train.py holds out. Default: validation of the built-in texts and of "
        "data sets that have one, else all",
    )
    add("--metrics", default="all", help=f"all, or some of {', '.join(METRICS)}, with commas (default: all)")
    add("--method", choices=list(METHODS), help="how to score (default: causal or mlm, by the model's class)")
    add("--report", help="JSON file to write")
    add("--max_documents", type=int, help="score only the first so many documents")
    add("--max_length", type=int, help="tokens the model sees at once (default: its max_position_embeddings)")
    add(
        "--stride",
        type=int,
        help="tokens a causal window scores, behind those it only reads (default: half of max_length; all of it with "
        "--one_text)",
    )
    add(
        "--one_text",
        action="store_true",
        help="score all the text as one, documents joined as they stand in the file (causal models)",
    )
    add("--batch_size", type=int, default=16, help="rows at once (default: 16)")
    add("--mlm_probability", type=float, default=0.15, help="share of tokens scored under mlm (default: 0.15)")
    add(
        "--seed",
        type=int,
        default=42,
        help="which tokens mlm scores (train.py's default gives its positions), and how texts are sampled",
    )
    add("--text_column", default="text", help="column that holds the text (default: text)")
    add(
        "--join_articles",
        choices=JOIN_ARTICLES,
        default="auto",
        help="join the lines of WikiText-like data into articles (default: where there are '= Title =' lines)",
    )
    add("--skip_bad_rows", action="store_true", help="pass rows over that are no text, and say how many")
    add("--validation_fraction", type=float, default=0.05, help="as in training (default: 0.05)")
    add("--split_seed", type=int, default=0, help="as in training (default: 0)")
    written = parser.add_argument_group("texts that a causal model writes")
    written.add_argument(
        "--continuations",
        type=int,
        default=20,
        help="go on with the first so many documents that are long enough (default: 20)",
    )
    written.add_argument(
        "--prompt_tokens", type=int, help=f"tokens of a document to go on from (default: {PROMPT_TOKENS}, or what fits)"
    )
    written.add_argument(
        "--max_new_tokens",
        type=int,
        help=f"tokens to write, and of the reference (default: {NEW_TOKENS}, or what fits)",
    )
    written.add_argument(
        "--temperature",
        type=float,
        default=DEFAULT_TEMPERATURE,
        help=f"0: the likeliest token each time (default: {DEFAULT_TEMPERATURE})",
    )
    add("--device", default=default_device(), help="cpu or cuda (default: the GPU if there is one)")
    add("--trust_remote_code", action="store_true", help="run model code that comes with the checkpoint")
    add("--log_level", choices=["debug", "info", "warning", "error"], default="info", help="(default: info)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    metrics = parse_metrics(args.metrics)
    check_model_name("--model", args.model)
    check_arguments(args)
    split = args.split or ("validation" if args.dataset in BUILTIN_NAMES and not args.one_text else "all")

    with RunLog(args.log_level):
        with user_mistakes():
            documents = load_text(
                args.dataset,
                split,
                validation_fraction=args.validation_fraction,
                split_seed=args.split_seed,
                text_column=args.text_column,
                max_documents=args.max_documents,
                join_articles=args.join_articles,
                skip_bad_rows=args.skip_bad_rows,
                one_text=args.one_text,
            )
            scorer = load_scorer(
                args.model,
                args.method,
                max_length=args.max_length,
                stride=args.stride,
                batch_size=args.batch_size,
                device=args.device,
                trust_remote_code=args.trust_remote_code,
                one_text=args.one_text,
            )
            metrics = fitting_metrics(metrics, scorer.method, asked_for_all=args.metrics == "all")
            plan = plan_texts(args, scorer, documents, metrics)
        result = {"documents": len(documents)}
        if any(name in LIKELIHOOD for name in metrics):
            logger.info(
                "scoring %d documents of %s with %s, %s", len(documents), args.dataset, args.model, scorer.method
            )
            result = score(scorer, documents, mlm_probability=args.mlm_probability, seed=args.seed)
        failure = None
        try:
            result |= write_texts(args.model, scorer, plan, metrics)
        except Failed as error:  # what was scored before is worth its report
            failure = error

    shown = {name: result[name] for name in (*measures(metrics), "tokens", "words", "bytes") if name in result}
    print(table(redact(args.model), scorer.method, shown))
    if args.report:
        write_report(args, scorer, split, metrics, result)
        print(f"report: {args.report}")
    if failure is not None:
        raise failure


def write_report(
    args: argparse.Namespace, scorer: Scorer, split: str, metrics: Sequence[str], result: dict[str, Any]
) -> None:
    """Write what was measured, of the metrics asked for, and how."""
    facts = {name: value for name, value in result.items() if name not in LIKELIHOOD or name in metrics}
    Path(args.report).absolute().parent.mkdir(parents=True, exist_ok=True)
    write_json(
        Path(args.report),
        {
            **facts,
            "dataset": public_name(args.dataset),
            "device": args.device,
            "method": scorer.method,
            "model": public_name(args.model),
            "one_text": args.one_text,
            "parameters": scorer.model.num_parameters(),
            "split": split,
            "versions": library_versions(),
        },
    )


def plan_texts(
    args: argparse.Namespace, scorer: Scorer, documents: Dataset, metrics: Sequence[str]
) -> tuple[list[Beginning], Sampling] | None:
    """What the model shall go on from, and how; None where no metric asks for texts."""
    wanted = [name for name in metrics if name in TEXT_METRICS]
    if not wanted:
        return None
    check_sacrebleu(wanted)
    prompt, new = choose_lengths(scorer.context_length, args.prompt_tokens, args.max_new_tokens)
    sampling = Sampling(max_new_tokens=new, temperature=args.temperature, seed=args.seed)
    sampling.check()
    beginnings = find_beginnings(scorer, documents, count=args.continuations, prompt=prompt, new=new)
    if not beginnings:
        if args.metrics != "all":
            raise UserError(
                f"--metrics {wanted[0]}: no document has {prompt + new} tokens; "
                "lower --prompt_tokens or --max_new_tokens."
            )
        logger.warning("no document has %d tokens, so nothing is written: no %s", prompt + new, ", ".join(wanted))
        return None
    return beginnings, sampling


def write_texts(
    name: str, scorer: Scorer, plan: tuple[list[Beginning], Sampling] | None, metrics: Sequence[str]
) -> dict[str, Any]:
    """Let the model go on with the documents; return the measures, and under `continuations` how they were made."""
    if plan is None:
        return {}
    beginnings, sampling = plan
    wanted = [name for name in metrics if name in TEXT_METRICS]
    logger.info("going on with %d documents", len(beginnings))
    report = measure_continuations(scorer, name, beginnings, wanted, sampling)
    made = {
        "bleu_signature": report.pop("bleu_signature", None),
        "documents": len(beginnings),
        "new_tokens": sampling.max_new_tokens,
        "prompt_tokens": len(beginnings[0].prompt),
        "seed": sampling.seed,
        "temperature": sampling.temperature,
    }
    return {**report, "continuations": made}


def measures(metrics: Sequence[str]) -> list[str]:
    """The names in the report of what --metrics names."""
    return [measure for name in metrics for measure in TEXT_MEASURES.get(name, (name,))]


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse, before anything is read, numbers that nothing can be scored with and options that exclude each other."""
    check_numbers(
        args,
        least={
            "batch_size": 1,
            "max_documents": 1,
            "max_length": 2,
            "stride": 1,
            "continuations": 1,
            "prompt_tokens": 1,
            "max_new_tokens": 1,
        },
        between=("mlm_probability", "validation_fraction"),
        seeds=("seed", "split_seed"),
    )
    Sampling(temperature=args.temperature).check()
    check_device(args.device)
    if args.one_text:
        for name in ("max_documents", "split"):
            if getattr(args, name) not in (None, "all"):
                raise UserError(f"--one_text takes the whole text: leave out --{name}.")
    if args.report:
        check_new_file("--report", Path(args.report))


def table(model: str, method: str, values: dict[str, float | None]) -> str:
    """Two columns: measure and value."""
    units = {
        "loss": "loss (nats per token)",
        "bits_per_byte": "bits per byte",
        "bytes": "bytes (UTF-8)",
        "perplexity": "perplexity (per token)",
        "word_perplexity": "perplexity per word",
    }
    if method == "pseudo":
        units["perplexity"] = "pseudo-perplexity"
    lines = [f"{model}, {method}"]
    for name, value in values.items():
        text = "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
        lines.append(f"  {units.get(name, name):<24} {text:>14}")
    return "\n".join(lines)


if __name__ == "__main__":
    transformers_logging.set_verbosity_warning()
    sys.exit(run_command(main))
