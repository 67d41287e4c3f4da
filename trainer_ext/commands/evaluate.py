"""scripts/evaluate.py behind its flags: the order of the checks, what is scored, and what is printed and written."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

import frankenlm.modeling  # noqa: F401  registers our architectures with the AutoModel classes

from ..cards import library_versions
from ..common.checkpoints import check_device, check_sacrebleu, default_device
from ..common.cli import Failed, UserError, check_model_name, check_new_file, check_numbers, user_mistakes
from ..common.files import write_json
from ..common.logs import RunLog
from ..common.redaction import public_name, redact
from ..data.builtin_text import BUILTIN_NAMES
from ..evaluation.continuations import Beginning, choose_lengths, find_beginnings, measure_continuations
from ..evaluation.flags import LIKELIHOOD, TEXT_METRICS
from ..evaluation.scoring import Scorer, fitting_metrics, load_scorer, load_text, parse_metrics, score
from ..generation.sampling import Sampling
from ..metrics.text import TEXT_MEASURES

logger = logging.getLogger("frankenlm.evaluate")


def evaluate(args: argparse.Namespace) -> None:
    """Score a model as scripts/evaluate.py's flags say.

    Raises:
        UserError: a mistake in the flags or in what they name, before any text is scored.
    """
    args.device = args.device or default_device()
    metrics = parse_metrics(args.metrics)
    check_model_name("--model", args.model, adapters=True)
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
    return [
        measure for name in metrics for measure in (TEXT_MEASURES[name].names if name in TEXT_MEASURES else (name,))
    ]


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
