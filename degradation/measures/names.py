"""What the analysis knows of each measure: its name for readers, which way is better, and whether it is a share."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .measure import CELL_MEASURES, ROW_MEASURES

PER_SKILL = "accuracy/"  # accuracy/math is the accuracy of the sub-skill math
PER_PART = "score/"  # score/repetition is the score of that part of a battery
SKILLS = (PER_SKILL, PER_PART)
PER_TASK = "lm_eval/"  # lm_eval/piqa/acc is that metric of a task of lm-evaluation-harness, of whole cells


@dataclass(frozen=True)
class Measure:
    """A column of the tables.

    better: +1 more is better, -1 less is better, None neither (then damage may move it either way).
    share: between 0 and 1, shown in per cent. least: no value lies below it, so no end of an interval does.
    """

    name: str
    label: str
    better: int | None = None
    share: bool = False
    least: float = -math.inf

    @property
    def worse(self) -> int | None:
        return None if self.better is None else -self.better

    def text(self, value: float | None) -> str:
        """Return a value for a table, "–" for none."""
        if value is None or value != value:
            return "–"
        if self.share:
            return f"{100 * value:.1f} %"
        size = abs(value)
        if size >= 1e7:  # no digit of it is measured: a perplexity of broken weights
            return f"{value:.3g}"
        return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.3g}"


CORRECT = "correct"  # the row measure from which accuracies come
GRADED = ("accuracy", "score")  # over all graded answers; each has a chance level
# measures the analysis makes itself, beside those of rows and cells
OWN = (
    Measure("accuracy", "Accuracy", 1, share=True),
    Measure("ended_by_itself", "Answers that end by themselves", None, share=True),
    Measure("cut_off", "Answers cut off at the limit", None, share=True),
    Measure("non_finite", "Answers stopped by non-finite logits", -1, share=True),
    Measure("perplexity", "Perplexity", -1, least=1.0),
    Measure("log_perplexity", "Log-perplexity (nats per token)", -1, least=0.0),
    Measure("kl_to_baseline", "KL to the undamaged model (nats per token)", -1, least=0.0),
)
SIGNED = ("mean_logprob", "word_frequency")  # of rows; all others count something, or are shares
# names for readers; a measure without one goes by its own name, and all are explained at the end of the report
LABELS = {
    "tokens": "Length of the answers (tokens)",
    "looped": "Looping answers",
    "unknown_words": "Unknown words",
    "prompt_overlap": "Prompt words taken up",
    "content_units": "Content units named",
    "score": "Battery score",
    "error_no_answer": "Errors: no answer",
    "error_perseveration": "Errors: perseveration-like",
    "error_neologism": "Errors: neologism-like",
    "error_semantic": "Errors: like in meaning",
    "error_form": "Errors: like in form",
    "error_unrelated": "Errors: unrelated",
    "error_wrong": "Errors: the other of yes and no",
    "error_incomplete": "Errors: incomplete",
    "unparsed": "Answers without an answer in them",
    "lexical_density": "Lexical density",
    "word_frequency": "Word frequency (Zipf)",
    "carry_over": "Carry-over between sentences",
    "distinct_2": "Different word pairs",
    "self_bleu_4": "Self-BLEU-4 across prompts",
}
MEANINGS = {
    "score": "mean score of the answers of a battery; score/X is that of the part X",
    "accuracy": "share of the graded questions whose answer is right; accuracy/X is that of the sub-skill X",
    "ended_by_itself": "the model ended its answer before the token limit",
    "cut_off": "the answer was cut off at the token limit",
    "non_finite": "the answer was stopped because the model's logits were not finite",
    "perplexity": "exp of the mean negative log-likelihood of the shipped text (of masked models: pseudo-perplexity); "
    "its curve is the median over repeats",
    "log_perplexity": "logarithm of the perplexity",
    "kl_to_baseline": "mean KL of the next token's distribution from the undamaged model's, on the shipped text",
}
# shown first, in this order, where the results have them
HEADLINE = (*GRADED, "content_units", "looped", "tokens", "unknown_words", "prompt_overlap", "log_perplexity")
ANSWERS = ("looped", "ended_by_itself", "cut_off", "tokens")
# what can break beside the sub-skills, and which of it ranks groups
BREAKS = ("content_units", "looped", "unknown_words", "prompt_overlap", "log_perplexity")
RANKED = (*GRADED, "content_units", "looped", "log_perplexity")


def known_measures(names: Iterable[str]) -> dict[str, Measure]:
    """Return what is known of the measures of rows, cells and models, and of the sub-skills among `names`."""
    found = {
        name: Measure(
            name,
            LABELS.get(name, name.replace("_", " ").capitalize()),
            known.better,
            known.share,
            -math.inf if name in SIGNED else 0.0,
        )
        for name, known in {**ROW_MEASURES, **CELL_MEASURES}.items()
    }
    found |= {measure.name: measure for measure in OWN}
    for name in names:
        if name.startswith(PER_SKILL):
            skill = name.removeprefix(PER_SKILL)
            found[name] = Measure(name, f"{skill.capitalize()} accuracy", 1, share=True)
        elif name.startswith(PER_PART):
            part = name.removeprefix(PER_PART)
            found[name] = Measure(name, f"{part.capitalize()} score", 1, share=True)
    return found


def meaning(name: str) -> str | None:
    """Return what a measure is, in words; None for one that the shipped tables do not have."""
    if name.startswith(PER_TASK):
        return "what lm-evaluation-harness says of this task and metric"
    known = {**ROW_MEASURES, **CELL_MEASURES}
    return MEANINGS.get(name) or (known[name].meaning if name in known else None)
