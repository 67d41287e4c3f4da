"""scripts/compare.py behind its flags: the order of the checks, the models in turn, and the reports."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import frankenlm.modeling  # noqa: F401  registers our architectures with the AutoModel classes

from ..cards import library_versions
from ..common.checkpoints import Checkpoint, check_device, check_sacrebleu, default_device, load_model, open_checkpoint
from ..common.cli import UserError, check_model_name, check_new_file, check_numbers, user_mistakes
from ..common.files import replaced_file, write_csv, write_json, write_text
from ..common.logs import RunLog
from ..common.redaction import public_name
from ..data.builtin_text import BUILTIN_NAMES
from ..evaluation import comparing
from ..evaluation.comparing import LIKELIHOOD, Contestant, Likelihood
from ..evaluation.scored_text import load_split_texts
from ..generation.generate import encode_prompt
from ..generation.prompts import BUILTIN_PROMPTS, Prompt, read_prompts
from ..generation.sampling import Sampling

FILES = JSON, TABLE, FIGURE, PAGE = ("compare.json", "compare.csv", "compare.png", "compare.md")
SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "num_return_sequences", "seed")


def compare(args: argparse.Namespace) -> None:
    """Compare models as scripts/compare.py's flags say.

    Raises:
        UserError: a mistake in the flags or in what they name, before any text is written.
    """
    args.device = args.device or default_device()
    sampling = Sampling(**{name: getattr(args, name) for name in SAMPLING})
    sampling.check()
    check_arguments(args)
    prompts = read_prompts(Path(args.prompts)) if args.prompts else list(BUILTIN_PROMPTS)
    has_references = all(prompt.references for prompt in prompts)
    metrics = comparing.choose_metrics(args.metrics, has_data=args.dataset is not None, has_references=has_references)
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
            for row in comparing.compare(
                contestants, prompts, sampling, metrics, likelihood=likelihood, device=args.device
            ):
                rows.append(row)
        finally:
            # whatever ends the work, the models that are measured are reported
            if rows:
                write_reports(args, rows, report_facts(args, checkpoints, prompts, sampling, metrics, likelihood, rows))
    print(comparing.text_table(rows))
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
        check_model_name("--models", name, adapters=True)
    for name in FILES:
        check_new_file("--output_dir", Path(args.output_dir) / name)


def load_likelihood(
    args: argparse.Namespace, checkpoints: Sequence[Checkpoint], metrics: Sequence[str]
) -> Likelihood | None:
    """The documents to score and the windows to read them in; None where no measure asks for them."""
    if not any(name in metrics for name in LIKELIHOOD):
        return None
    context = comparing.common_context(checkpoints, args.max_length)
    stride = args.stride or max(1, context // 2)
    if stride > context:
        raise UserError(f"--stride {stride}: must not exceed the {context} tokens the models see at once.")
    split = chosen_split(args)
    texts = load_split_texts(
        args.dataset,
        [split],
        validation_fraction=args.validation_fraction,
        split_seed=args.split_seed,
        text_column=args.text_column,
        max_documents=args.max_documents,
        join_articles=args.join_articles,
        skip_bad_rows=args.skip_bad_rows,
    )
    return Likelihood(texts[split], context, stride, args.batch_size)


def chosen_split(args: argparse.Namespace) -> str:
    return args.split or ("validation" if args.dataset in BUILTIN_NAMES else "all")


def load_contestants(
    args: argparse.Namespace, checkpoints: Sequence[Checkpoint], ids: Sequence[list[list[int]]]
) -> list[Contestant]:
    """Load all models, before the first is measured; they wait in main memory for their turn."""
    labels = comparing.make_labels(args.models)
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
        "same_tokenizer": comparing.same_tokenizer(checkpoints),
        "settings": dataclasses.asdict(sampling),
        "split": chosen_split(args) if likelihood else None,
        "stride": likelihood.stride if likelihood else None,
        "versions": library_versions(),
    }


def write_reports(args: argparse.Namespace, rows: list[dict], facts: dict) -> None:
    # the figure's library takes its time to import; mistakes are told before
    from ..evaluation.barcharts import plot_comparison

    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / JSON, facts)
    write_csv(folder / TABLE, comparing.csv_rows(rows))
    with replaced_file(folder / FIGURE) as scratch:
        plot_comparison(rows, comparing.figure_panels(rows), scratch)
    write_text(folder / PAGE, comparing.markdown_report(rows, facts))
