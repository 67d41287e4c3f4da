"""A folder's model to the Hub: everything that can be wrong is found before the first request."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors import safe_open
from tqdm.auto import tqdm

import frankenlm.modeling  # noqa: F401  registers the architectures
from frankenlm.trainer_ext.common.checks import suggest
from frankenlm.trainer_ext.common.cli import ADAPTER_CONFIG, Failed, UserError, is_memory_error, one_line
from frankenlm.trainer_ext.common.opening import read_config, read_tokenizer, reading

from .card import (
    CardOptions,
    card_of,
    check_options,
    is_hub_name,
    names_repository,
    read_facts,
    read_text,
    text_of,
)
from .files import CARD, Collected, collect
from .scanning import LOCAL_PATH, WEIGHTS_END, Suspect, readable_part, scan, without_local_paths

logger = logging.getLogger("frankenlm.push")

TEXTS = (".json", ".md", ".py", ".csv", ".txt", ".jinja")  # local paths can be taken out of these
NAMES_SHOWN = 10


@dataclass(frozen=True)
class PushOptions:
    """Where a model goes, and how."""

    repo_id: str
    card: CardOptions = field(default_factory=CardOptions)
    include: tuple[str, ...] = ()
    hide_local_paths: bool = False
    not_secret: tuple[str, ...] = ()
    private: bool = False
    revision: str | None = None
    create_pr: bool = False
    trust_remote_code: bool = False
    message: str = "Model and card"


@dataclass(frozen=True)
class PushPlan:
    """What will be pushed: the files, contents that differ from the files here, and what was found in them."""

    options: PushOptions
    collected: Collected
    contents: Mapping[str, bytes]
    findings: Sequence[Suspect]

    @property
    def card(self) -> str:
        """The card as it will be pushed."""
        return self.contents[CARD].decode("utf-8")

    def size(self, name: str) -> int:
        """Bytes that are pushed of a file."""
        return len(self.contents[name]) if name in self.contents else self.collected.named(name).size

    @property
    def names(self) -> list[str]:
        """The files of the repository."""
        return sorted({CARD, *(file.name for file in self.collected.files)})


def make_plan(model: str, options: PushOptions) -> PushPlan:
    """Look at a model's folder and say what would be pushed. Writes and sends nothing.

    Raises:
        UserError: a name or a flag that cannot be, a folder that holds no whole and healthy model, a card that cannot
            be made.
    """
    check_repo_id(options.repo_id)
    check_options(options.card)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise UserError(f"MODEL {model}: no such folder.")
    collected = collect(folder, options.include)
    check_opens(folder, collected, options.trust_remote_code)
    contents = {CARD: card_of(collected, options.repo_id, options.card).encode("utf-8")}
    contents |= adapter_with_base(folder, collected, options.card)
    findings = []
    for name in sorted({CARD, *(file.name for file in collected.files)}):
        file = collected.named(name)
        content = contents[name] if name in contents else readable_part(file.path)
        found = scan(name, content, folder)
        if options.hide_local_paths and name.endswith(TEXTS) and any(each.kind == LOCAL_PATH for each in found):
            contents[name] = _hidden(file.path if file else folder / name, content, folder)
            found = scan(name, contents[name], folder)
        findings += found
    known = {f"{each.file}:{each.line}" for each in findings}
    for place in options.not_secret:
        if place not in known:
            raise UserError(f"--not_secret {place}: nothing was found there.{suggest(place, known)}")
    findings = [each for each in findings if f"{each.file}:{each.line}" not in options.not_secret]
    return PushPlan(options, collected, contents, findings)


def _hidden(path: Path, content: bytes, folder: Path) -> bytes:
    try:
        return without_local_paths(content, folder)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: holds a local path and is no text in UTF-8: take the path out by hand.") from error


def adapter_with_base(folder: Path, collected: Collected, options: CardOptions) -> dict[str, bytes]:
    """Return an adapter's configuration with a base that others can fetch; {} where it is no adapter, or has one.

    Raises:
        UserError: its base is a folder of this machine, and no flag names one on the Hub.
    """
    file = collected.named(ADAPTER_CONFIG)
    if file is None:
        return {}
    facts = read_facts(collected)
    base = text_of(facts, "base_model_name_or_path")
    if options.base_model:
        written = json.loads(read_text(file.path)) | {"base_model_name_or_path": options.base_model}
        return {ADAPTER_CONFIG: json.dumps(written, indent=2, sort_keys=True).encode() + b"\n"}
    if not names_repository(collected, facts, base) and ("/" in base or not is_hub_name(base) or Path(base).exists()):
        raise UserError(
            f"MODEL {folder}: holds an adapter of {base!r}, which is no name on the Hub: push that model first, and "
            "name it with --base_model."
        )
    return {}


def check_repo_id(repo_id: str) -> None:
    """Raises UserError where a repository cannot be called so."""
    if repo_id.count("/") != 1 or not is_hub_name(repo_id):
        raise UserError(f"REPO {repo_id!r}: write OWNER/NAME, of letters, digits, '-', '_' and '.'.")


def check_opens(folder: Path, collected: Collected, trust_remote_code: bool = False) -> None:
    """Make sure that somebody else can open what is pushed.

    Raises:
        UserError: a configuration or tokenizer that cannot be read, weights that are cut short, or that are no numbers.
    """
    name = str(folder)
    if collected.named("config.json") is not None:
        read_config(name, option="MODEL", trust_remote_code=trust_remote_code)
    if collected.named("tokenizer_config.json") is not None:
        read_tokenizer(name, option="MODEL", trust_remote_code=trust_remote_code)
    check_whole(collected)
    weights = [file for file in collected.files if file.name.endswith(WEIGHTS_END)]
    with tqdm(total=sum(file.size for file in weights), unit="B", unit_scale=True, desc="looking at weights") as bar:
        for file in weights:
            with reading(f"MODEL {name}", file.name), safe_open(file.path, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  not a mapping
                    tensor = opened.get_tensor(key)
                    # torch tests every type but those of one byte, and float() would make infinities of large float64
                    looked_at = tensor.float() if tensor.element_size() == 1 else tensor
                    if tensor.is_floating_point() and not torch.isfinite(looked_at).all():
                        raise UserError(f"MODEL {name}: {key} in {file.name} holds NaN or infinity: it is not pushed.")
                    bar.update(tensor.nbytes)


def check_whole(collected: Collected) -> None:
    """Raises UserError where the index of a checkpoint in parts names a part that is not there."""
    for index in (file for file in collected.files if file.name.endswith(".index.json")):
        with reading(f"MODEL {index.path.parent}", index.name):
            parts = set(json.loads(index.path.read_text(encoding="utf-8"))["weight_map"].values())
        lost = sorted(part for part in parts if collected.named(part) is None)
        if lost:
            raise UserError(f"MODEL: {index.name} names {lost[0]}, which is not there: the checkpoint is not whole.")


def check_secrets(plan: PushPlan) -> None:
    """Raises UserError where a secret would be pushed."""
    secrets = [each for each in plan.findings if each.kind != LOCAL_PATH]
    if secrets:
        raise UserError(
            f"{_listed(secrets)} would be published. Take it out of the file and, if it ever was public, make it "
            "invalid; where you have looked and it is none, --not_secret FILE:LINE. Nothing was pushed."
        )


def check_clean(plan: PushPlan) -> None:
    """Raises UserError where a secret or a local path would be pushed."""
    check_secrets(plan)
    paths = [each for each in plan.findings if each.kind == LOCAL_PATH]
    if paths:
        raise UserError(
            f"local paths would be published: {_listed(paths)}. --hide_local_paths pushes the last part of each in its "
            "place; the files here stay as they are. Nothing was pushed."
        )


def _listed(findings: Sequence[Suspect]) -> str:
    more = len(findings) - NAMES_SHOWN
    return ", ".join(map(str, findings[:NAMES_SHOWN])) + (f" and {more} more" if more > 0 else "")


def push(plan: PushPlan) -> str:
    """Make the repository if need be, and push all files in one commit; return its address.

    The token comes from HF_TOKEN and from nowhere else.

    Raises:
        UserError: a secret or a local path would be published, no token, or the Hub is switched off (HF_HUB_OFFLINE).
        Failed: the Hub refused, or could not be reached.
    """
    check_clean(plan)
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise UserError("HF_TOKEN is not set: put a token that may write into that variable of the environment.")
    options, api = plan.options, HfApi(token=token)
    operations = [CommitOperationAdd(name, _source(plan, name)) for name in plan.names]
    try:
        api.create_repo(options.repo_id, private=options.private or None, exist_ok=True)
        if options.revision is not None:
            api.create_branch(options.repo_id, branch=options.revision, exist_ok=True)
        done = api.create_commit(
            options.repo_id,
            operations,
            commit_message=options.message,
            revision=options.revision,
            create_pr=options.create_pr,
        )
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set: unset it to push.") from error
    except Exception as error:  # the client's own, its HTTP library's, and Python's
        if is_memory_error(error):
            raise
        logger.debug("push", exc_info=error)
        raise Failed(f"the Hub did not take {options.repo_id}: {one_line(error)}") from error
    return done.pr_url or done.commit_url


def _source(plan: PushPlan, name: str) -> bytes | str:
    return plan.contents[name] if name in plan.contents else str(plan.collected.named(name).path)


def summary(plan: PushPlan) -> str:
    """The plan as text: every file with its bytes, what stays here and why, and what stands in the way."""
    lines = [f"to {plan.options.repo_id}:"]
    lines += [f"  {plan.size(name):>13,}  {name}" for name in plan.names]
    lines.append(f"  {sum(map(plan.size, plan.names)):>13,}  bytes in {len(plan.names)} files")
    if plan.collected.left_out:
        lines.append("stays here:")
        lines += [f"  {name}: {reason}" for name, reason in plan.collected.left_out.items()]
    if plan.findings:
        lines.append("must not be pushed:")
        lines += [f"  {each}" for each in plan.findings]
    return "\n".join(lines)
