"""The card that is pushed: the model's own, with the metadata that the Hub reads made whole from measured facts.

What stands in the front matter already wins over what is found in the facts; a flag wins over both. Field names and
the shape of model-index: https://huggingface.co/docs/hub/model-cards (huggingface_hub.ModelCardData writes them).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from frankenlm.trainer_ext.common.checks import suggest
from frankenlm.trainer_ext.common.cli import ADAPTER_CONFIG, UserError
from frankenlm.trainer_ext.common.objectives import OBJECTIVES
from frankenlm.trainer_ext.common.redaction import public_name, redact

from .files import CARD, Collected

# Identifiers of the Hub (docs/hub/repositories-licenses); `other` needs a link in the card.
LICENSES = Path(__file__).with_name("licenses.txt").read_text(encoding="utf-8").split()
ENGLISH_DATASETS = ("builtin", "builtin-code")  # documentation and code that Python installations carry
UNNAMED_PLACE = "PATH"  # what the cards of runs write for the place of the model
OTHER_HEADS = {"TokenClassification": "token-classification", "QuestionAnswering": "question-answering"}
# measure of a report -> its name on the Hub, and its kind
MEASURES = {
    "loss": ("cross-entropy, nats per token", "loss"),
    "perplexity": ("perplexity", "perplexity"),
    "bits_per_byte": ("bits per byte", "bits_per_byte"),
    "accuracy": ("accuracy", "accuracy"),
    "top_1_accuracy": ("top-1 accuracy", "accuracy"),
}


@dataclass(frozen=True)
class CardOptions:
    """What the flags say of a card; empty where they say nothing."""

    license: str = ""
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    base_model: str = ""


def check_options(options: CardOptions) -> None:
    """Raises UserError for values of flags that the Hub would not know."""
    if options.license and options.license not in LICENSES:
        raise UserError(
            f"--license {options.license}: the Hub knows no such license.{suggest(options.license, LICENSES)} "
            "`other` goes with a text in the card or in LICENSE."
        )
    for language in options.language:
        if not (2 <= len(language) <= 3 and language.isascii() and language.islower()):
            raise UserError(f"--language {language}: write the code of ISO 639, such as en or es.")
    for option, names in (("--datasets", options.datasets), ("--base_model", (options.base_model,))):
        for name in filter(None, names):
            if not is_hub_name(name):
                raise UserError(f"{option} {name}: is no name on the Hub (owner/name).")


def is_hub_name(name: str) -> bool:
    """Whether a name could be one of the Hub: owner/name, or an old name without owner."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def card_of(collected: Collected, repo_id: str, options: CardOptions) -> str:
    """Return the card to push: front matter made whole, and the text of the folder's card with the model's name in it.

    Raises:
        UserError: front matter that is none, or no license anywhere.
    """
    facts, own = read_facts(collected), _own_card(collected)
    known = own.data.to_dict()
    data = dict(known)
    for field, value in found_metadata(collected, facts, options).items():
        if value and (not known.get(field) or field in asked_for(options)):
            data[field] = value
    if not data.get("license"):
        raise UserError(
            "--license: the card has none, and without one nobody may use the model; name one, such as apache-2.0."
        )
    data["tags"] = sorted({*_list(known.get("tags")), *filter(None, ("frankenlm", text_of(facts, "model_type")))})
    results = results_of(collected, facts) or own.data.eval_results
    name = repo_id.rpartition("/")[2]
    data.pop("model-index", None)
    written = ModelCardData(**data, model_name=name, eval_results=results) if results else ModelCardData(**data)
    text = own.text.strip() or f"# {name}\n\n{_usage(collected)}"
    text = text.replace(f'"{UNNAMED_PLACE}"', f'"{repo_id}"')
    return f"---\n{written.to_yaml()}\n---\n\n{text}\n"


def _list(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value)] if value else []


def asked_for(options: CardOptions) -> set[str]:
    """The fields of a card that a flag has set."""
    return {field for field, value in vars(options).items() if value}


def found_metadata(collected: Collected, facts: Mapping[str, Any], options: CardOptions) -> dict[str, Any]:
    """What flags and facts say of each field of the front matter; empty where they say nothing."""
    dataset = text_of(facts, "dataset").partition(":")[0]
    base = base_of(facts)
    objective = OBJECTIVES.get(text_of(facts, "objective"))
    return {
        "license": options.license,
        "language": list(options.language) or (["en"] if dataset in ENGLISH_DATASETS else []),
        "datasets": list(options.datasets) or ([dataset] if names_repository(collected, facts, dataset) else []),
        "base_model": options.base_model or (base if names_repository(collected, facts, base) else ""),
        "library_name": "peft" if collected.named("config.json") is None else "transformers",
        "pipeline_tag": objective.pipeline if objective else _pipeline_of(facts),
    }


def text_of(facts: Mapping[str, Any], name: str) -> str:
    """A fact that is a text; "" where there is none, or something else under its name."""
    value = facts.get(name)
    return value if isinstance(value, str) else ""


def base_of(facts: Mapping[str, Any]) -> str:
    """The model that this one was made from, as the records name it; "" where they name none."""
    adapter = facts.get("adapter")
    of_adapter = text_of(adapter, "base") if isinstance(adapter, Mapping) else ""
    names = (text_of(facts, "base_model_name_or_path"), text_of(facts, "model_name_or_path"), of_adapter)
    return next(filter(None, (*names, text_of(facts, "model"))), "")


def names_repository(collected: Collected, facts: Mapping[str, Any], name: str) -> bool:
    """Whether a name in the records is one of the Hub: not that of a folder here, now or when the model was made."""
    if "/" not in name or not is_hub_name(name) or public_name(name) != name:
        return False
    local = facts.get("local_sources")
    above = collected.files[0].path.resolve().parents
    return name not in (local if isinstance(local, list) else []) and not any((each / name).exists() for each in above)


def _pipeline_of(facts: Mapping[str, Any]) -> str:
    listed = facts.get("architectures")
    first = listed[0] if isinstance(listed, list) and listed else facts.get("architecture")
    heads = {each.head: each.pipeline for each in OBJECTIVES.values()} | OTHER_HEADS
    return next((pipeline for head, pipeline in heads.items() if str(first).endswith(f"For{head}")), "")


def read_facts(collected: Collected) -> dict[str, Any]:
    """Return what the configuration, packing.json and metrics.json tell; the last wins.

    Raises:
        UserError: one of them is no JSON object.
    """
    facts: dict[str, Any] = {}
    for name in ("config.json", ADAPTER_CONFIG, "packing.json", "metrics.json"):
        file = collected.named(name)
        if file is not None:
            facts |= _read_object(file.path)
    return facts


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is expected, not {type(value).__name__}.")
    return value


def read_text(path: Path) -> str:
    """Return a text. Raises UserError where it is none in UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start}).") from error


def _own_card(collected: Collected) -> ModelCard:
    file = collected.named(CARD)
    content = "" if file is None else read_text(file.path)
    if not content.startswith("---"):
        content = f"---\n{{}}\n---\n{content}"
    try:
        return ModelCard(content)
    except Exception as error:  # whatever YAML or huggingface_hub says of front matter that others wrote
        raise UserError(f"{CARD}: its front matter cannot be read: {redact(' '.join(str(error).split()))}") from error


def results_of(collected: Collected, facts: Mapping[str, Any]) -> list[EvalResult]:
    """Return measured results for model-index: of the reports of `frankenlm evaluate`, else the loss of the run."""
    results = []
    for file in collected.files:
        if file.name.endswith(".json") and file.name not in ("config.json", "tokenizer.json"):
            results += _of_report(file.path, collected, facts)
    objective, dataset = OBJECTIVES.get(text_of(facts, "objective")), text_of(facts, "dataset")
    if results or objective is None or not dataset:
        return results
    measured = {name: facts.get(f"eval_{name}") for name in ("loss", "perplexity", "accuracy")}
    return _results(objective.pipeline, dataset, "held-out part", measured, _type_of(dataset, collected, facts))


def _type_of(dataset: str, collected: Collected, facts: Mapping[str, Any]) -> str:
    """What model-index calls the type of a data set: its name on the Hub, `text` where it has none."""
    name = dataset.partition(":")[0]
    return name if names_repository(collected, facts, name) else "text"


def _of_report(path: Path, collected: Collected, facts: Mapping[str, Any]) -> list[EvalResult]:
    """Results of one of evaluate's reports; none of other JSON files."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        splits = {name: split["measures"] for name, split in report["splits"].items()}
        tasks = {"causal": "text-generation", "mlm": "fill-mask", "pseudo": "fill-mask"}
        return [
            result
            for name, measures in splits.items()
            for result in _results(
                tasks[report["method"]],
                report["dataset"],
                name,
                {measure: figure["value"] for measure, figure in measures.items()},
                _type_of(report["dataset"], collected, facts),
            )
        ]
    except (AttributeError, KeyError, TypeError, ValueError):  # a JSON file of another kind
        return []


def _results(
    task: str, dataset: str, split: str, measured: Mapping[str, Any], dataset_type: str
) -> Sequence[EvalResult]:
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset_type,
            dataset_name=public_name(dataset),
            dataset_split=split,
            metric_type=MEASURES[measure][1],
            metric_name=MEASURES[measure][0],
            metric_value=round(value, 6),
        )
        for measure, value in measured.items()
        if measure in MEASURES and isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def _usage(collected: Collected) -> str:
    """How a model without a card of its own is opened."""
    custom = collected.named("config.json") is not None and "auto_map" in read_facts(collected)
    remote = ", trust_remote_code=True" if custom else ""
    code = f'AutoModel.from_pretrained("{UNNAMED_PLACE}"{remote})'
    return f"```python\nfrom transformers import AutoModel\n\nmodel = {code}\n```"
