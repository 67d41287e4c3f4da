"""scripts/generate.py behind its flags: the order of the checks, the ways to write texts, and the report."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

import frankenlm.modeling  # noqa: F401  registers our architectures with the AutoModel classes

from ..cards import library_versions
from ..common.checkpoints import (
    Checkpoint,
    check_device,
    check_memory_switch,
    default_device,
    load_model,
    open_checkpoint,
)
from ..common.cli import UserError, check_model_name, check_new_file, user_mistakes
from ..common.files import write_json
from ..common.logs import RunLog, waiting
from ..common.output_streams import stop_if_unread
from ..common.redaction import public_name
from ..generation.conversation import Conversation, converse, typed_lines
from ..generation.flags import CONVERSATION_HELP, DEMO_TOKENS
from ..generation.generate import Text, check_chat_template, encode_prompt, generate_texts, tokens_per_second, written
from ..generation.prompts import BUILTIN_PROMPTS, Prompt, read_prompts
from ..generation.sampling import Sampling
from ..metrics.text import diversity, repetition

logger = logging.getLogger("frankenlm.generate")

# name -> settings; the seeds are the same in each, so the rows differ by the settings alone
DEMO = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0},
    "top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "penalised": {"temperature": 0.0, "repetition_penalty": 1.3},
}
DEMO_COLUMNS = ("repetition_1", "repetition_4", "longest_repeat", "distinct_1", "distinct_2", "tokens_per_second")
CHOOSING = ("temperature", "top_k", "top_p", "repetition_penalty", "num_beams", "num_return_sequences", "explore")


def generate(args: argparse.Namespace) -> None:
    """Let a model write as scripts/generate.py's flags say.

    Raises:
        UserError: a mistake in the flags or in what they name, before any text is written.
    """
    args.device = args.device or default_device()
    check_combinations(args)
    sampling = read_sampling(args)
    check_device(args.device)
    check_files(args)
    check_model_name("--model", args.model, adapters=True)
    prompts = collect_prompts(args)
    with RunLog(args.log_level):
        with user_mistakes():
            checkpoint = open_checkpoint(args.model, trust_remote_code=args.trust_remote_code)
            check_abilities(args, checkpoint)
            ids = [encode_prompt(checkpoint, prompt.text, chat=args.chat_template) for prompt in prompts]
            model = load_model(checkpoint, device=args.device, dtype=args.dtype)
            if args.attention_map:
                from ..generation.inspection import check_attention

                check_attention(model, checkpoint, ids[0])
        rows: list[dict] = []
        try:
            if args.interactive:
                chat_along(args, model, checkpoint, sampling, rows)
            elif args.demo:
                demonstrate(args, model, checkpoint, prompts, ids, sampling, rows)
            else:
                write_texts(args, model, checkpoint, prompts, ids, sampling, rows)
        finally:
            # whatever ends the work, the texts that are there are kept
            if args.json and (rows or args.interactive):
                write_report(args, model, sampling, rows)


# --- checks


def check_combinations(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    given = [f"--{name}" for name in CHOOSING if getattr(args, name) is not None]
    maps = [f"--{name}" for name in ("attention_map", "memory_map") if getattr(args, name)]
    if args.demo and given:
        raise UserError(f"--demo compares settings of its own: leave out {given[0]}.")
    if args.demo and args.interactive:
        raise UserError("--demo and --interactive are two things: leave one of them out.")
    if maps and (args.demo or args.interactive):
        raise UserError(f"{maps[0]} draws the text of a prompt: leave out --{'demo' if args.demo else 'interactive'}.")
    if args.interactive:
        for name in ("prompt", "prompts"):
            if getattr(args, name):
                raise UserError(f"--interactive reads its prompts from standard input: leave out --{name}.")
        for name in ("num_beams", "num_return_sequences"):
            if (getattr(args, name) or 1) > 1:
                raise UserError(f"--interactive writes one text as it comes: leave out --{name}.")
    elif not (args.demo or args.prompt or args.prompts):
        raise UserError("nothing to go on from: give --prompt, --prompts, --interactive or --demo.")
    if args.memory_map and args.no_memory:
        raise UserError("--memory_map draws what --no_memory switches off: leave one of them out.")


def read_sampling(args: argparse.Namespace) -> Sampling:
    """The settings of the command line, checked."""
    given = {name: getattr(args, name) for name in ("max_new_tokens", *CHOOSING) if getattr(args, name) is not None}
    if (args.num_beams or 1) > 1:
        given.setdefault("temperature", 0.0)
    if args.demo:
        given.setdefault("max_new_tokens", DEMO_TOKENS)
    sampling = Sampling(
        **given,
        seed=args.seed,
        stop=tuple(args.stop),
        use_cache=not args.no_cache,
        use_memory=False if args.no_memory else None,
    )
    sampling.check()
    return sampling


def check_files(args: argparse.Namespace) -> None:
    """Make sure, before the work, that what is asked for can be written."""
    for name, suffix in (("json", ".json"), ("attention_map", ".png"), ("memory_map", ".png")):
        if getattr(args, name):
            check_new_file(f"--{name}", Path(getattr(args, name)), suffix)
    maps = [Path(name).with_suffix(".csv") for name in (args.attention_map, args.memory_map) if name]
    if len(set(maps)) < len(maps):  # each map has its figures beside it
        raise UserError(f"--attention_map and --memory_map are both {args.memory_map}: give them different names.")


def check_abilities(args: argparse.Namespace, checkpoint: Checkpoint) -> None:
    """Refuse, before the weights are loaded, what this model has not."""
    if args.chat_template:
        check_chat_template(checkpoint)
    for name in ("no_memory", "memory_map"):
        if getattr(args, name):
            check_memory_switch(checkpoint, f"--{name}")


def collect_prompts(args: argparse.Namespace) -> list[Prompt]:
    prompts = [Prompt(text) for text in args.prompt]
    if args.prompts:
        prompts += read_prompts(Path(args.prompts))
    return prompts or (list(BUILTIN_PROMPTS) if args.demo else [])


# --- work


def write_texts(args, model, checkpoint, prompts, ids, sampling, rows: list[dict]) -> None:
    """Generate, on standard output, the texts of each prompt, and add each to the rows of the report."""
    many = len(prompts) * sampling.num_return_sequences > 1

    show = printer(args)

    def begin(index: int, number: int):
        if many:
            show(f"{chr(10) if number else ''}--- prompt {index + 1}, text {number + 1}\n")
        show(prompts[index].text)
        return show

    for index, prompt in enumerate(prompts):
        texts = generate_texts(
            model, checkpoint, ids[index], sampling, index=index, write=lambda number, at=index: begin(at, number)
        )
        show("\n")
        rows += [report_row(prompt.text, text) for text in texts]
        for number, text in enumerate(texts):
            draw_maps(
                args, model, checkpoint, [*ids[index], *text.tokens], f"-{index + 1}-{number + 1}" if many else ""
            )
    tokens, seconds = sum(row["tokens"] for row in rows), sum(row["seconds"] for row in rows)
    logger.info("%d tokens in %.1f s, %.1f tokens/s", tokens, seconds, tokens / seconds)


def demonstrate(args, model, checkpoint, prompts, ids, sampling, rows: list[dict]) -> None:
    """Generate under each of the DEMO settings; print the texts and a table of what the settings do to them."""
    lines = []
    show = printer(args)
    progress = tqdm(total=len(DEMO) * len(prompts), unit="text", disable=None)
    for name, changes in DEMO.items():
        setting = dataclasses.replace(sampling, **changes)
        texts = []
        tqdm.write(f"=== {name}: {', '.join(f'{key} {value}' for key, value in changes.items())}", file=sys.stdout)
        for index, prompt in enumerate(prompts):
            (text,) = generate_texts(model, checkpoint, ids[index], setting, index=index)
            tqdm.write(f"{prompt.text}|{text.text}\n", file=sys.stdout)
            show("")
            texts.append(text)
            rows.append({"setting": name, **report_row(prompt.text, text)})
            progress.update()
        tokens = written(texts, model, checkpoint.tokenizer).tokens
        measures = {**repetition(tokens), **diversity(tokens), "tokens_per_second": tokens_per_second(texts)}
        cells = ["-" if measures[column] is None else f"{measures[column]:.3g}" for column in DEMO_COLUMNS]
        lines.append(f"{name:<12}" + "".join(f"{cell:>18}" for cell in cells))
    progress.close()
    show(f"{'setting':<12}" + "".join(f"{column:>18}" for column in DEMO_COLUMNS) + "\n")
    show("".join(line + "\n" for line in lines))


def chat_along(args, model, checkpoint, sampling, rows: list[dict]) -> None:
    """Answer lines of standard input until it ends, and add each answer to the rows of the report."""

    def say(note: str) -> None:
        print(f"[{note}]", file=sys.stderr, flush=True)

    show = printer(args)
    conversation = Conversation(model, checkpoint, sampling, chat=args.chat_template, write=show, say=say)
    if sys.stdin is not None and sys.stdin.isatty():
        say(CONVERSATION_HELP)
    for line, text in converse(conversation, typed_lines(say), say=say):
        rows.append(report_row(line, text))


def draw_maps(args, model, checkpoint, ids, suffix: str) -> None:
    """Draw the maps that are asked for, of a prompt with its text."""
    if not (args.attention_map or args.memory_map):
        return
    # Figures take their time to import; only who draws waits for them.
    from ..generation.heatmaps import plot_attention, plot_memory
    from ..generation.inspection import attention_weights, memory_reads, token_texts

    tokens, name = token_texts(checkpoint.tokenizer, ids), public_name(args.model)
    if args.attention_map:
        path = numbered(Path(args.attention_map), suffix)
        with waiting("drawing the attention"):
            beside = plot_attention(attention_weights(model, ids), tokens, path, title=f"{name}: attention")
        logger.info("attention: %s, %s", path, beside)
    if args.memory_map:
        path = numbered(Path(args.memory_map), suffix)
        with waiting("drawing the memory"):
            kind = model.config.memory_type
            beside = plot_memory(
                *memory_reads(model, ids), tokens, path, title=f"{name}: slot memory", memory_type=kind
            )
        logger.info("memory: %s, %s", path, beside)


def numbered(path: Path, suffix: str) -> Path:
    return path.with_name(path.stem + suffix + path.suffix)


def report_row(prompt: str, text: Text) -> dict:
    """What the report says of one text."""
    return {
        "finished": text.finished,
        "prompt": prompt,
        "seconds": round(text.seconds, 4),
        "seed": text.seed,
        "text": text.text,
        "token_ids": text.tokens,
        "tokens": len(text.tokens),
        "tokens_per_second": round(len(text.tokens) / text.seconds, 1),
    }


def write_report(args, model, sampling: Sampling, rows: list[dict]) -> None:
    path = Path(args.json)
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    tokens, seconds = sum(row["tokens"] for row in rows), sum(row["seconds"] for row in rows)
    facts = {
        "architecture": type(model).__name__,
        "chat_template": args.chat_template,
        "demo": DEMO if args.demo else None,
        "device": args.device,
        "dtype": str(model.dtype).removeprefix("torch."),
        "interactive": args.interactive,
        "model": public_name(args.model),
        "parameters": model.num_parameters(),
        "settings": dataclasses.asdict(sampling),
        "texts": rows,
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "versions": library_versions(),
    }
    write_json(path, facts)
    logger.info("report: %s", path)


def printer(args: argparse.Namespace) -> Callable[[str], None]:
    """Return what shows text; where nobody reads it any more and nothing is to be kept of it, it ends the run."""
    kept = bool(args.json or args.attention_map or args.memory_map)

    def show(text: str) -> None:
        print(text, end="", flush=True)
        if not kept:
            stop_if_unread()

    return show
