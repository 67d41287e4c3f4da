"""Run facts -> the model card."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from .common.files import write_json, written_out
from .common.objectives import ANSWERS_LOSS, OBJECTIVES

__all__ = ["library_versions", "model_card", "write_json"]

LIBRARIES = ("accelerate", "datasets", "frankenlm", "tokenizers", "torch", "transformers")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries a run depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def model_card(name: str, facts: Mapping[str, Any]) -> str:
    """Write the model card (README.md) of a trained checkpoint.

    Args:
        name: title of the card.
        facts: the run's metrics as in metrics.json (see results.run_facts).
    """
    return "\n".join(
        [
            _front_matter(facts),
            f"# {name}\n",
            _summary(facts),
            _usage(facts),
            _results(facts),
            _training(facts),
            _limits(facts),
        ]
    )


def _front_matter(facts) -> str:
    lines = [
        "---",
        *_belongs_to(facts),
        f"pipeline_tag: {OBJECTIVES[facts['objective']].pipeline}",
        "tags:",
        "- frankenlm",
        f"- {facts['model_type']}",
        "---\n",
    ]
    return "\n".join(lines)


def _belongs_to(facts) -> list[str]:
    """Which library opens it; of an adapter, also the model that it belongs to."""
    if facts["adapter"] is None:
        return ["library_name: transformers"]
    return ["library_name: peft", f"base_model: {facts['adapter']['base']}"]


def _summary(facts) -> str:
    adapter = facts["adapter"]
    if adapter is not None:
        return (
            f"A LoRA adapter of {adapter['parameters']:,} parameters (rank {adapter['rank']}, alpha "
            f"{adapter['alpha']}, beside {', '.join(adapter['layers'])}) for `{adapter['base']}`, a "
            f"`{facts['architecture']}`, trained on `{facts['dataset']}` with the {facts['objective']} objective. The "
            "model's own weights are as they were.\n\n![Training curves](training.png)\n"
        )
    origin = f"the preset `{facts['preset']}`" if facts["preset"] else f"`{facts['model_name_or_path']}`"
    return (
        f"A `{facts['architecture']}` with {facts['parameters']:,} parameters and a vocabulary of "
        f"{facts['vocab_size']:,}, trained from {origin} on `{facts['dataset']}` with the {facts['objective']} "
        f"objective.\n\n![Training curves](training.png)\n"
    )


def _usage(facts) -> str:
    auto_class = OBJECTIVES[facts["objective"]].auto_class
    if facts["adapter"] is not None:
        return f"""## Use

```python
import frankenlm.modeling  # registers the architecture; without frankenlm pass trust_remote_code=True below
from peft import PeftModel
from transformers import AutoTokenizer, {auto_class}

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = PeftModel.from_pretrained({auto_class}.from_pretrained("{facts["adapter"]["base"]}"), "PATH")
```
"""
    return f"""## Use

```python
import frankenlm.modeling  # registers the architecture; without frankenlm pass trust_remote_code=True below
from transformers import AutoTokenizer, {auto_class}

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = {auto_class}.from_pretrained("PATH")
```
{_other_direction(facts)}"""


def _other_direction(facts) -> str:
    if not OBJECTIVES[facts["objective"]].goes_both_ways:
        return ""
    return (
        "\nThe same weights fill masks: `AutoModelForMaskedLM.from_pretrained` reads both ways, and its logits at "
        f"position i are for token i, as usual. Trained with {facts['causal_share']:g} of the rows left to right.\n"
    )


def _results(facts) -> str:
    mixes = OBJECTIVES[facts["objective"]].goes_both_ways
    rows = [
        ("loss on held-out text (nats)", _number(facts["eval_loss"])),
        ("of it, the next token, left to right (nats)", _number(facts["eval_causal_loss"] if mixes else None)),
        ("of it, hidden tokens, read both ways (nats)", _number(facts["eval_masked_loss"] if mixes else None)),
        ("perplexity per token, exp of it", _number(facts["eval_perplexity"], 2)),
        ("loss of the averaged weights, which are in `ema` (nats)", _number(facts["ema_eval_loss"])),
        ("step that they are the average of", _number(facts["ema_step"], 0)),
        ("accuracy on held-out documents", _number(facts["eval_accuracy"])),
        ("loss before the first step (nats)", _number(facts["loss_at_init"])),
        ("unigram cross-entropy of the held-out text (nats)", _number(facts["unigram_cross_entropy"])),
        ("ln of the vocabulary size (nats)", _number(facts["ln_vocab_size"])),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows if value)
    meaning = f"The loss is the {facts['loss_meaning']}.{_comparable(facts)}"
    return f"## Results\n\n| measure | value |\n|---|---|\n{table}\n\n{meaning}\n"


def _comparable(facts) -> str:
    """With which figures of others the perplexity may stand in one table."""
    if facts["eval_perplexity"] is None:
        return ""
    continues = OBJECTIVES[facts["objective"]].continues
    per_word = "word_perplexity,bits_per_byte" if continues else "bits_per_byte"
    named = "per word of the raw text and per byte" if continues else "per byte"
    return (
        " A perplexity per token compares with those of models that have the same tokenizer, on the same text in the "
        f"same windows, and with no others; `frankenlm evaluate --metrics {per_word}` measures {named}."
    )


def _training(facts) -> str:
    rows = [
        ("training text", _tokens(facts, "train_tokens")),
        ("held-out text", _tokens(facts, "validation_tokens")),
        ("documents", _documents(facts)),
        ("steps", f"{facts['steps']:,}"),
        ("of them with unrounded weights, before the rest", _number(facts["steps_unrounded"], 0)),
        ("teacher", _teacher(facts["teacher"])),
        ("tokens seen", f"{facts['tokens_seen']:,}"),
        ("speed", f"{facts['tokens_per_second']:,.0f} tokens/s" if facts["tokens_per_second"] else ""),
        ("peak memory of a process", f"{facts['peak_memory_mib']:,.0f} MiB"),
        ("processes, device, precision", f"{facts['num_processes']}, {facts['device']}, {facts['precision']}"),
        ("seed", str(facts["seed"])),
        ("versions", ", ".join(f"{name} {number}" for name, number in facts["versions"].items())),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows if value)
    return f"## Training\n\n```\n{facts['command']}\n```\n\n| | |\n|---|---|\n{table}\n"


def _documents(facts) -> str:
    return {
        "apart": f"packed into rows of {facts['max_length']} tokens; none sees another one",
        "joined": f"joined into rows of {facts['max_length']} tokens, as one text that runs over their ends",
        None: f"each in a row of its own, of at most {facts['max_length']} tokens",
    }[facts["packed_documents"]]


def _teacher(teacher: Mapping[str, Any] | None) -> str:
    """Who taught, and what counted how much."""
    if teacher is None:
        return ""
    parts = [("the labels' loss", teacher["own"]), ("its logits", teacher["logits"])]
    counts = ", ".join(f"{name} {weight:g}" for name, weight in [*parts, ("its hidden states", teacher["hidden"])])
    return (
        f"`{teacher['name']}`, {teacher['parameters']:,} parameters; weights in the loss: {counts}; temperature "
        f"{teacher['temperature']:g}"
    )


def _limits(facts) -> str:
    seen = facts["tokens_seen"] / facts["parameters"]
    return (
        "## Limits\n\n"
        f"The model saw {seen:.2g} tokens per parameter; compute-optimal training of dense models uses about 20. "
        "It repeats the errors and biases of its training text, knows nothing outside of it, and has not been tuned to "
        "be safe or truthful. The numbers above are of one run with one seed.\n"
    )


def _tokens(facts, name: str) -> str:
    """A count of tokens that are predicted, which classification does not make and of which a stream shows a sample."""
    if facts[name] is None:
        return ""
    of = " of answers" if facts["loss_meaning"] == ANSWERS_LOSS else ""
    return f"{facts[name]:,} tokens{of}" + (" (a sample of the stream)" if facts["streaming"] else "")


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else written_out(value, digits)
