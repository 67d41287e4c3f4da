"""scripts/evaluate.py behind its flags: the order of the checks, what is scored, and what is printed and written."""

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

import frankenlm.modeling  # noqa: F401  registers our architectures with the AutoModel classes

from ..cards import library_versions
from ..common.checkpoints import check_device, check_sacrebleu, default_device
from ..common.cli import Failed, UserError, check_model_name, check_new_file, check_numbers, one_line, user_mistakes
from ..common.files import replaced_file, write_csv, write_json, write_text
from ..common.logs import RunLog
from ..common.opening import read_tokenizer
from ..common.redaction import public_name, redact
from ..data.builtin_text import BUILTIN_NAMES
from ..evaluation import reporting
from ..evaluation.continuations import Beginning, choose_lengths, continue_documents, find_beginnings
from ..evaluation.dynamic import check_can_learn
from ..evaluation.flags import SCORED, TEXT_METRICS, TOKENIZED
from ..evaluation.pair_scores import ids_of_pairs, make_pairs_to_score, pair_scorers, score_pairs
from ..evaluation.reporting import MeasuredSplit
from ..evaluation.scored_text import check_split_flags, load_split_texts, parse_splits
from ..evaluation.scoring import (
    Scorer,
    fitting_metrics,
    learning_measures,
    load_scorer,
    parse_metrics,
    score,
    tokenized_measures,
)
from ..generation.sampling import Sampling
from ..metrics.text import TEXT_MEASURES, measure_written

logger = logging.getLogger("frankenlm.evaluate")

FILES = JSON, TABLE, FIGURE, PAGE = ("evaluation.json", "evaluation.csv", "evaluation.png", "evaluation.md")
# what the model shall go on from, and how; None where no metric asks for texts, or no document is long enough
Plan = tuple[list[Beginning], Sampling] | None


def evaluate(args: argparse.Namespace) -> None:
    """Score a model as scripts/evaluate.py's flags say.

    Raises:
        UserError: a mistake in the flags or in what they name, before any text is scored.
    """
    args.device = args.device or default_device()
    metrics = parse_metrics(args.metrics)
    check_model_name("--model", args.model, adapters=True)
    splits = chosen_splits(args)
    check_arguments(args, splits)

    with RunLog(args.log_level):
        with user_mistakes():
            texts = load_texts(args, splits)
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
            check_causal_flags(args, scorer)
            reference = None
            if args.reference_tokenizer is None:
                metrics = [name for name in metrics if name != "reference_perplexity"]
            else:
                metrics = list(dict.fromkeys([*metrics, "reference_perplexity"]))  # what the tokenizer is named for
                trust = args.trust_remote_code
                reference = read_tokenizer(
                    args.reference_tokenizer, option="--reference_tokenizer", trust_remote_code=trust
                )
            pairs = [] if args.minimal_pairs is None else make_pairs_to_score(args.minimal_pairs, args.seed)
            asked = pair_scorers(scorer, args.model, trust_remote_code=args.trust_remote_code) if pairs else {}
            for each in asked.values():
                ids_of_pairs(each, pairs)  # a sentence too long is told before anything is scored
            plans = {name: plan_texts(args, name, scorer, documents, metrics) for name, documents in texts.items()}
        measured = [
            measure_text(args, name, scorer, documents, metrics, reference) for name, documents in texts.items()
        ]
        preferences = {
            mode: score_pairs(each, pairs, draws=args.bootstrap_iters, seed=args.seed) for mode, each in asked.items()
        }
        failure = learn_texts(args, scorer, texts, measured, reference)
        try:
            for split in measured:
                write_texts(args.model, scorer, plans[split.name], metrics, split)
        except Failed as error:  # what was scored before is worth its report
            failure = failure or error
        report = make_report(args, scorer, metrics, measured, preferences)

    print(reporting.text_table(redact(args.model), report))
    write_reports(args, report)
    if failure is not None:
        raise failure


def check_causal_flags(args: argparse.Namespace, scorer: Scorer) -> None:
    """Raises UserError for what is measured of causal models alone, asked of another; or without what it needs; and
    ValueError for a model that cannot learn from the text and should."""
    for name in ("dynamic_evaluation", "reference_tokenizer"):
        if getattr(args, name) is not None and scorer.method != "causal":
            raise UserError(f"--{name}: is of causal models; {args.model!r} is scored by {scorer.method}.")
    if args.dynamic_evaluation is not None:
        check_can_learn(scorer.model)
    if args.reference_tokenizer is None and "reference_perplexity" in args.metrics:
        raise UserError("--metrics reference_perplexity needs --reference_tokenizer NAME, such as gpt2.")


def chosen_splits(args: argparse.Namespace) -> list[str]:
    """The splits to score: those asked for, else what fits the data."""
    if args.split is not None:
        return parse_splits(args.split)
    if args.test_dataset is not None or args.validation_dataset is not None:
        raise UserError("--validation_dataset and --test_dataset go with --split, which names what is scored.")
    return ["validation" if args.dataset in BUILTIN_NAMES and not args.one_text else "all"]


def load_texts(args: argparse.Namespace, splits: Sequence[str]) -> dict[str, Dataset]:
    return load_split_texts(
        args.dataset,
        splits,
        validation=args.validation_dataset,
        test=args.test_dataset,
        validation_fraction=args.validation_fraction,
        split_seed=args.split_seed,
        text_column=args.text_column,
        max_documents=args.max_documents,
        join_articles=args.join_articles,
        skip_bad_rows=args.skip_bad_rows,
        one_text=args.one_text,
    )


def measure_text(
    args: argparse.Namespace,
    name: str,
    scorer: Scorer,
    documents: Dataset,
    metrics: Sequence[str],
    reference: PreTrainedTokenizerBase | None = None,
) -> MeasuredSplit:
    """Measure what is measured on the text itself: likelihood and accuracy, and what it is in tokens."""
    split = MeasuredSplit(name, {"documents": len(documents)})
    if any(metric in SCORED for metric in metrics):
        logger.info("scoring %d documents of %s (%s), %s", len(documents), args.dataset, name, scorer.method)
        scored = score(scorer, documents, mlm_probability=args.mlm_probability, seed=args.seed, reference=reference)
        split.facts |= scored.facts
        split.measures |= scored.measures()
        split.summed += scored.summed
        split.unit = scored.unit
    if any(metric in TOKENIZED for metric in metrics):
        split.measures |= tokenized_measures(scorer, documents)
    return split


def learn_texts(
    args: argparse.Namespace,
    scorer: Scorer,
    texts: Mapping[str, Dataset],
    measured: Sequence[MeasuredSplit],
    reference: PreTrainedTokenizerBase | None,
) -> Failed | None:
    """Measure each text once more while the model learns from it; return why that ended, where it did."""
    rate = args.dynamic_evaluation
    if rate is None:
        return None
    for split in measured:
        try:
            found = learning_measures(scorer, texts[split.name], rate, reference)
        except (UserError, RuntimeError) as error:  # the rate is too high, or the memory too small for gradients
            told = one_line(error).removeprefix(f"--dynamic_evaluation {rate}: ")
            return Failed(f"--dynamic_evaluation {rate}: {told}; the report has what was measured without it.")
        split.facts["dynamic_evaluation"] = {"rate": rate, "measures": found}
    return None


def make_report(
    args: argparse.Namespace,
    scorer: Scorer,
    metrics: Sequence[str],
    measured: Sequence[MeasuredSplit],
    preferences: Mapping[str, Any],
) -> dict[str, Any]:
    """What the report tells: see evaluation/report.schema.json."""
    drawn = {"draws": args.bootstrap_iters, "seed": args.seed}
    return {
        **reporting.describe(measured, metrics, preferences=preferences, **drawn),
        "context_length": scorer.context_length,
        "dataset": public_name(args.dataset),
        "device": args.device,
        "method": scorer.method,
        "model": public_name(args.model),
        "one_text": args.one_text,
        "reference_tokenizer": public_name(args.reference_tokenizer) if args.reference_tokenizer else None,
        "parameters": scorer.model.num_parameters(),
        "schema_version": reporting.SCHEMA_VERSION,
        "stride": scorer.stride,
        "test_dataset": public_name(args.test_dataset) if args.test_dataset else None,
        "validation_dataset": public_name(args.validation_dataset) if args.validation_dataset else None,
        "versions": library_versions(),
    }


def write_reports(args: argparse.Namespace, report: Mapping[str, Any]) -> None:
    """Write the JSON of --report, and the four files of --output_dir."""
    if args.report:
        Path(args.report).absolute().parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(args.report), report)
        print(f"report: {args.report}")
    if args.output_dir:
        # the figure's library takes its time to import; mistakes are told before
        from ..evaluation.barcharts import plot_comparison

        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / JSON, report)
        write_csv(folder / TABLE, reporting.csv_rows(report))
        with replaced_file(folder / FIGURE) as scratch:
            plot_comparison(reporting.figure_rows(report), reporting.figure_panels(report), scratch)
        write_text(folder / PAGE, reporting.markdown_report(report, FIGURE))
        print(f"report: {folder / PAGE}")


def plan_texts(
    args: argparse.Namespace, split: str, scorer: Scorer, documents: Dataset, metrics: Sequence[str]
) -> Plan:
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
                f"--metrics {wanted[0]}: no document of {split} has {prompt + new} tokens; "
                "lower --prompt_tokens or --max_new_tokens."
            )
        logger.warning(
            "no document of %s has %d tokens, so nothing is written: no %s", split, prompt + new, ", ".join(wanted)
        )
        return None
    return beginnings, sampling


def write_texts(name: str, scorer: Scorer, plan: Plan, metrics: Sequence[str], split: MeasuredSplit) -> None:
    """Let the model go on with the documents of a split; add the measures, and how the texts were made."""
    if plan is None:
        return
    beginnings, sampling = plan
    wanted = [metric for metric in metrics if metric in TEXT_METRICS]
    logger.info("going on with %d documents of %s", len(beginnings), split.name)
    written = continue_documents(scorer, name, beginnings, sampling)
    measures = measure_written(written, wanted)
    split.continuations = {
        "bleu_signature": measures.pop("bleu_signature", None),
        "documents": len(beginnings),
        "new_tokens": sampling.max_new_tokens,
        "prompt_tokens": len(beginnings[0].prompt),
        "seed": sampling.seed,
        "temperature": sampling.temperature,
    }
    split.measures |= measures
    split.summed += [made(written) for metric in wanted for made in TEXT_MEASURES[metric].summed]


def check_arguments(args: argparse.Namespace, splits: Sequence[str]) -> None:
    """Refuse, before anything is read, numbers that nothing can be scored with and options that exclude each other."""
    check_numbers(
        args,
        least={
            "batch_size": 1,
            "bootstrap_iters": 0,
            "max_documents": 1,
            "max_length": 2,
            "stride": 1,
            "minimal_pairs": 1,
            "continuations": 1,
            "prompt_tokens": 1,
            "max_new_tokens": 1,
        },
        between=("mlm_probability", "validation_fraction"),
        seeds=("seed", "split_seed"),
    )
    rate = args.dynamic_evaluation
    if rate is not None and not 0 < rate < math.inf:
        raise UserError(f"--dynamic_evaluation {rate}: must be a positive learning rate, such as 1e-3.")
    Sampling(temperature=args.temperature).check()
    check_device(args.device)
    if args.one_text:
        for name in ("max_documents", "split"):
            if getattr(args, name) not in (None, "all"):
                raise UserError(f"--one_text takes the whole text: leave out --{name}.")
    check_split_flags(args, splits)
    if args.report:
        check_new_file("--report", Path(args.report))
    if args.output_dir:
        for name in FILES:
            check_new_file("--output_dir", Path(args.output_dir) / name)
