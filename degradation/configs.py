"""What an experiment is: one frozen dataclass, the configurations by name, and the levels of Wainstock's thesis.

config = get_config("iq_it") | {"group": "mlp_only", "n_rep": 5}
config = dataclasses.replace(get_config("smoke"), levels=(0.0, 0.1))
"""

import dataclasses
import numbers
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, get_args

from frankenlm.trainer_ext.common.checks import check_choice, suggest


class Scale(NamedTuple):
    """How figures name the levels of a method."""

    symbol: str
    meaning: str


METHODS = {
    "mult_gauss": Scale("σ", "noise σ (multiplicative)"),
    "ablation": Scale("p", "share of weights removed p"),
    "uni_quant": Scale("N", "quantisation levels N (log₂, fewer to the right)"),
    "add_gauss": Scale("σ", "noise σ (additive, in units of rms(W))"),
}
DTYPES = ("bfloat16", "float32", "float16")
# methods that remove whole units, so many as the level says
TARGETED = {
    "targeted": Scale("k", "units removed k, most important first"),
    "matched": Scale("k", "units removed k, drawn in the layers of the targeted"),
}
WHOLE = ("uni_quant", *TARGETED)  # their levels are whole numbers
ALL_METHODS = METHODS | TARGETED
UNITS = ("element", "row", "column", "head", "neuron", "expert")
IMPORTANCES = ("gradient", "magnitude", "activation", "ablation")
MOST_LEVELS = 1 << 20  # of uni_quant: beyond, the values are finer than the weights are stored
MOST_LEVEL = 1e30  # of noise: weights times it are still numbers
MOST = 10_000_000  # of anything that is counted
MOST_CELLS = 100_000
MOST_SEED = 1 << 53  # whole numbers up to it survive every reader of JSON
COLDEST = 1e-4
# Fields that decide how a method damages a tensor: `damage.methods.MethodOptions`.
METHOD_OPTIONS = frozenset(
    {
        "noise_coupling",
        "quant_range",
        "quant_symmetric",
        "quant_percentile",
        "unit",
        "exact_count",
        "legacy_rng",
        "force_requantise",
    }
)
# Fields that say how the work is done, not what comes out: changing them is no conflict with rows that exist. The
# picture counts by its content, not by where it lies (run/plan.py).
ONLY_TARGETED = ("importance", "shuffle_importance")  # these count for methods of TARGETED
NOT_IN_HASH = frozenset(
    {
        *ONLY_TARGETED,
        "importance_prompts",  # what counts is the scores, whose digest stands in every lesion
        "config_name",
        "name_suffix",
        "group",
        "levels",
        "n_rep",
        "prompts",
        "prompt_group",
        "max_prompts",
        "image",
        "max_batch_size",
        "restore_strategy",
        "verify_every",
        "perplexity",
        "perplexity_per_repeat",
        "force_run",
        "force_where",
    }
)


def _option(default, help, choices=None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: a model is damaged by one method, in one group, at several levels, and asked a set of prompts.

    Every field is a flag of `scripts/degrade.py` of the same name; `field.metadata["help"]` describes it.
    """

    config_name: str = _option("custom", "name of the configuration this one started from")
    prompts: str = _option(
        "smoke", "prompt set: smoke, dreams_it, iq_it, cookie_theft_it, battery_en, battery_es, or a JSONL file"
    )
    prompt_group: str | None = _option(None, "name of the task in the rows (default: that of the prompt set)")
    max_prompts: int | None = _option(None, "use only the first so many prompts")
    image: str | None = _option(None, "picture shown with every prompt: a file, or kitchen for the drawn one")
    system_prompt: str | None = _option(None, "system message before every prompt")
    model_variant: str = _option("it", "it: instruction-tuned; written into every row")
    name_suffix: str = _option("smoke", "last part of the names of experiment and files")

    method: str = _option("mult_gauss", "how weights are damaged", ALL_METHODS)
    group: str = _option("attn_only", "which weights: see the command groups")
    levels: tuple[float | int, ...] | None = _option(None, "levels, mild to severe (default: those of the thesis)")
    n_rep: int = _option(10, "independent repeats of every level")
    seed_base: int = _option(42, "seed of the first repeat")
    noise_coupling: str = _option(
        "trajectory",
        "trajectory: the levels of a repeat share one field of noise; independent: each has its own",
        ("trajectory", "independent"),
    )
    tied_policy: str = _option(
        "both", "which side of tied embeddings is damaged", ("both", "input_only", "output_only")
    )
    norm_gain: bool = _option(True, "group norm: damage the gain 1 + w where the model scales by it (Gemma)")
    quant_range: str = _option("per_tensor", "uni_quant: what shares one range", ("per_tensor", "per_row", "group128"))
    quant_symmetric: bool = _option(False, "uni_quant: a range symmetric about zero")
    quant_percentile: float | None = _option(None, "uni_quant: clip the range to this percentile of |w|, below 100")
    unit: str = _option("element", "what mult_gauss, add_gauss and ablation draw for, and targeted removes", UNITS)
    importance: str = _option("gradient", "targeted, matched: what makes a unit important", IMPORTANCES)
    importance_prompts: str | None = _option(
        None, "targeted, matched: prompt set it is measured on (default: the prompts that are asked)"
    )
    shuffle_importance: bool = _option(False, "targeted, matched: shuffle the scores, as a control")
    exact_count: bool = _option(False, "ablation: drop exactly round(p n) elements of every tensor")
    legacy_rng: bool = _option(False, "draw as the original program does, in the weights' own type; to compare with it")

    dtype: str = _option("bfloat16", "compute type of the model", DTYPES)
    load_4bit: bool = _option(False, "load the linear layers in 4 bits (bitsandbytes)")
    quant_type: str = _option("nf4", "4-bit data type", ("nf4", "fp4"))
    double_quant: bool = _option(False, "4-bit: quantise the block scales too")
    quant_target_mode: str = _option(
        "dense_target", "how 4-bit weights are damaged", ("dense_target", "requantise", "dense_original")
    )
    force_requantise: bool = _option(False, "requantise: allow noise below what requantising itself does")

    do_sample: bool = _option(True, "sample; false: always the likeliest token")
    temperature: float = _option(1.0, "temperature of the sampling")
    top_k: int | None = _option(64, "keep the k likeliest tokens; 0: all of them")
    top_p: float | None = _option(0.95, "keep the likeliest tokens up to this probability mass; 1: all of them")
    min_p: float | None = _option(None, "drop tokens below this share of the likeliest one's probability")
    repetition_penalty: float = _option(1.0, "CTRL penalty for tokens that were there before; 1: none")
    max_new_tokens: int = _option(350, "longest answer, in tokens")
    max_seq_length: int = _option(512, "longest rendered prompt, in tokens; longer ones are refused")
    couple_levels: bool = _option(True, "the levels of a repeat share the sampling noise too")
    invariance: str = _option(
        "rng",
        "rng: sampling noise does not depend on the batch; shape: tensor shapes are fixed too; single: batch 1",
        ("rng", "shape", "single"),
    )

    max_batch_size: int = _option(40, "most answers written at once")
    restore_strategy: str = _option(
        "subset_in_memory",
        "where the undamaged weights are kept",
        ("subset_in_memory", "subset_on_device", "mmap_checkpoint"),
    )
    verify_every: int = _option(10, "check the undamaged weights every so many cells")
    perplexity: bool = _option(True, "measure perplexity on the shipped text in every level's first repeat")
    perplexity_per_repeat: bool = _option(False, "measure it in every repeat")
    force_run: bool = _option(
        False, "write the chosen rows again, as a new attempt; once it was interrupted, leave it out or choose the rest"
    )
    force_where: str | None = _option(None, "which rows --force_run writes again: field=value, with commas")

    def __or__(self, changes: Mapping[str, Any]) -> "ExperimentConfig":
        """Return a copy with `changes`; an unknown field is an error with a suggestion."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                raise ValueError(f"unknown field {name!r} of an experiment.{suggest(name, known)}")
        return dataclasses.replace(self, **changes)

    def __post_init__(self) -> None:
        check_values(self)
        if self.levels is not None:
            if isinstance(self.levels, str) or not isinstance(self.levels, Iterable):
                raise ValueError(f"levels={self.levels!r} must be a list of numbers, such as (0.0, 0.1).")
            check_levels(self.method, tuple(self.levels))
            kind = int if self.method in WHOLE else float  # 0 and 0.0 are one level
            object.__setattr__(self, "levels", tuple(kind(level or 0) for level in self.levels))
        self._check_counts()
        self._check_sampling()
        self._check_targeting()
        if self.force_where is not None and not self.force_run:
            raise ValueError(f"force_where={self.force_where!r} chooses among the rows of force_run: set that too.")

    def _check_targeting(self) -> None:
        if self.method not in TARGETED:
            if self.unit in ("neuron", "expert"):
                raise ValueError(
                    f"unit={self.unit!r}: method {self.method} knows no such unit; take targeted or matched."
                )
            return
        if self.quant_target_mode == "requantise" and self.load_4bit:
            raise ValueError(f"method={self.method!r}: quant_target_mode='requantise' is not for it; use dense_target.")

    def _check_counts(self) -> None:
        for name in ("n_rep", "max_new_tokens", "max_seq_length", "max_batch_size", "verify_every", "max_prompts"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MOST:
                raise ValueError(f"{name}={value} must be at least 1{f' and at most {MOST:,}' if value > 1 else ''}.")
        if self.top_k is not None and not 0 <= self.top_k <= MOST:
            raise ValueError(f"top_k={self.top_k} must lie between 0, which keeps every token, and {MOST:,}.")
        if not 0 <= self.seed_base <= MOST_SEED:
            raise ValueError(f"seed_base={self.seed_base} must not be negative, and at most 2^53.")
        cells = self.n_rep * len(self.resolved_levels)
        if cells > MOST_CELLS:
            raise ValueError(f"n_rep={self.n_rep}: {cells:,} cells are more than {MOST_CELLS:,}; take fewer repeats.")

    def _check_sampling(self) -> None:
        # beyond, scores leave float32
        if not COLDEST <= self.temperature <= 1 / COLDEST:
            raise ValueError(
                f"temperature={self.temperature} must be positive, from {COLDEST} to {1 / COLDEST:g}; for greedy "
                "answers set do_sample=False."
            )
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}={value} must lie above 0 and not above 1.")
        if not COLDEST <= self.repetition_penalty <= 1 / COLDEST:
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty} must be positive, from {COLDEST} to {1 / COLDEST:g}; "
                "1 is no penalty."
            )

    @property
    def resolved_levels(self) -> tuple[float | int, ...]:
        """The levels, mild to severe; those of the thesis where none are given."""
        return self.levels if self.levels is not None else default_levels(self.method, self.group)

    def result_fields(self) -> dict[str, Any]:
        """Return the fields that decide what a row holds, apart from its cell and prompt."""
        names = [f.name for f in fields(self) if f.name not in NOT_IN_HASH]
        found = {name: getattr(self, name) for name in (*names, *(ONLY_TARGETED if self.method in TARGETED else ()))}
        # the first rows of such methods were keyed by the name of the prompts too, which is none by default
        return found | ({"importance_prompts": None} if self.method in TARGETED else {})


def level_key(level: float | int | None) -> str:
    """Return the text by which levels are told apart: 12 significant digits; "null" for the baseline of uni_quant."""
    if level is None:
        return "null"
    text = f"{float(level):.12g}"
    return "0" if text == "-0" else text


_KINDS = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    bool: (bool, "true or false"),
    float: ((int, float), "a number"),
}


def check_values(options: Any) -> None:
    """Raise ValueError for a value of these dataclass fields that its choices, its type or its range leave out."""
    for f in fields(options):
        if f.metadata["choices"]:
            check_choice(f.name, getattr(options, f.name), f.metadata["choices"])
        check_kind(f.name, getattr(options, f.name), f.type)
    if options.quant_percentile is not None and not 50 < options.quant_percentile < 100:
        raise ValueError(f"quant_percentile={options.quant_percentile} must lie between 50 and 100.")


def check_kind(name: str, value: Any, annotation: Any) -> None:
    """Raise ValueError for a value of another type than its field, and for a text that is empty or none.

    Args:
        annotation: of the field: str, int, float or bool, perhaps | None. Others (levels) are not looked at.
    """
    kinds = get_args(annotation) or (annotation,)
    known = [_KINDS[kind] for kind in kinds if kind in _KINDS]
    optional = len(kinds) > 1
    if not known or (value is None and optional):
        return
    ((kind, wanted),) = known
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name}={value!r} must be {wanted}.")
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"{name}={value!r} must not be empty{'; leave it out' if optional else ''}.")
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError(f"{name}={value!a} is no text: it holds a NUL character or half of a character.")


def check_levels(method: str, levels: tuple[float | int | None, ...]) -> None:
    """Raise ValueError for an empty list, a level outside the method's range, or one that is there twice."""
    if not levels:
        raise ValueError("levels must hold at least one level.")
    if len(levels) > MOST_CELLS:
        raise ValueError(f"levels: {len(levels):,} are more than {MOST_CELLS:,}.")
    for level in levels:
        if level == 0 or (method == "uni_quant" and level is None):
            continue  # the baseline cell
        if isinstance(level, bool) or not isinstance(level, numbers.Real) or not -MOST_LEVEL <= level <= MOST_LEVEL:
            raise ValueError(f"levels: {str(level)[:40]!r} is not a number that weights could bear.")
        if method == "uni_quant" and (level != int(level) or level < 2):
            raise ValueError(f"levels: uni_quant takes whole numbers of at least 2 (0 is the baseline), not {level}.")
        if method == "uni_quant" and level > MOST_LEVELS:
            raise ValueError(f"levels: uni_quant takes at most {MOST_LEVELS} levels, not {level}.")
        if method in TARGETED and (level != int(level) or not 0 < level <= MOST):
            raise ValueError(f"levels: {method} takes whole numbers of units, up to {MOST:,}, not {level}.")
        if method == "ablation" and not 0 <= level <= 1:
            raise ValueError(f"levels: ablation takes shares between 0 and 1, not {level}.")
        if level < 0:
            raise ValueError(f"levels: {method} takes a level of at least 0, not {level}.")
    twice = [key for key, count in Counter(level_key(level) for level in levels).items() if count > 1]
    if twice:
        raise ValueError(f"levels: {twice[0]} is there twice.")


def linear_levels(end: float, count: int) -> tuple[float, ...]:
    """Return `count` levels from 0 to `end`, both included, rounded to 12 significant digits."""
    return tuple(float(level_key(end * i / (count - 1))) for i in range(count))


def geometric_levels(start: int, end: int, count: int) -> tuple[int, ...]:
    """Return whole numbers in a geometric row from `start` to `end`, rounded, each once, none below 2."""
    ratio = (end / start) ** (1 / (count - 1))
    return tuple(dict.fromkeys(max(2, round(start * ratio**i)) for i in range(count)))


def default_levels(method: str, group: str) -> tuple[float | int, ...]:
    """Return the thesis' levels of a method for a group; a baseline stands first, uni_quant's as 0.

    The thesis has sigma to 1.4 (values), 0.5 (MLP) and 1.0 (embeddings), p to 0.8 and N from 1024 to 4 (values);
    other groups take those of values, and an additive sigma those of a multiplicative one.
    """
    if method in TARGETED:
        return (0, *(2**step for step in range(6)))
    if method == "ablation":
        return linear_levels(0.8, 17)
    if method == "uni_quant":
        return (0, *geometric_levels(1024, 4, 9))
    if group.startswith("mlp"):
        return linear_levels(0.5, 11)
    if group.startswith(("embed", "lm_head")):
        return linear_levels(1.0, 21)
    return linear_levels(1.4, 15)


# method and group by one name; gauss_* , ablation_attn and quant_attn are the five of the thesis
VARIANTS: dict[str, tuple[str, str]] = {
    f"{short}_{part}": (method, group)
    for short, method in (("gauss", "mult_gauss"), ("ablation", "ablation"), ("quant", "uni_quant"))
    for part, group in (("attn", "attn_only"), ("mlp", "mlp_only"), ("embed", "embed_only"))
}

CONFIGS: dict[str, ExperimentConfig] = {
    config.config_name: config
    for config in (
        ExperimentConfig(config_name="dreams_it", prompts="dreams_it", name_suffix="dreams"),
        ExperimentConfig(config_name="iq_it", prompts="iq_it", name_suffix="iq"),
        ExperimentConfig(
            config_name="cookie_theft_it",
            prompts="cookie_theft_it",
            name_suffix="cookie_theft",
            image="kitchen",
            max_seq_length=1024,
        ),
        *(
            ExperimentConfig(config_name=name, prompts=name, name_suffix=name, max_new_tokens=128)
            for name in ("battery_en", "battery_es")
        ),
        ExperimentConfig(config_name="smoke", levels=(0.0, 0.1), n_rep=2, max_new_tokens=8, max_batch_size=4),
    )
}


def get_config(name: str) -> ExperimentConfig:
    """Return the configuration of that name.

    Raises:
        ValueError: there is none; the message suggests one.
    """
    check_choice("config", name, CONFIGS)
    return CONFIGS[name]
