"""The tab Damage: a group of a model's weights is damaged by a method of the lab, and put back bit for bit.

Damage, measuring and restoring happen in one call under the model's lock: a visitor who leaves between two levels of a
curve leaves a whole model behind.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import torch
from matplotlib.figure import Figure

from frankenlm.degradation.answers.mask_filling import masked_copies, masked_logits, surroundings
from frankenlm.degradation.answers.masked_probe import MaskedTextProbe
from frankenlm.degradation.answers.text_probe import SHORTEST, TextProbe
from frankenlm.degradation.configs import METHODS, MOST_SEED, check_levels, default_levels
from frankenlm.degradation.weights.groups import describe_groups
from frankenlm.degradation.weights.restore import Baseline, apply_damage
from frankenlm.trainer_ext.common.checkpoints import check_vocabulary
from frankenlm.trainer_ext.common.cli import UserError, user_mistakes
from frankenlm.trainer_ext.generation.generate import run_generate
from frankenlm.trainer_ext.generation.sampling import Sampling
from frankenlm.trainer_ext.generation.streaming import continuation_text

from ..figures import draw_curve
from ..limits import Limits
from ..parts import check_prompt, choose_model, on_shelf, told
from ..shelf import Opened, Shelf
from ..values import number, one_of, whole_number

TITLE = "Damage"
NEW_TOKENS = 48  # of a text before and after
CURVE_TOKENS = 24
CURVE_LEVELS = 8
MOST_MASKED = 256  # tokens of a masked model's text: each is a row
LONGEST_GROUP = 100  # characters
NO_TEXT = "(no text: what the damaged model computes is no number any more)"
HEADERS, WIDTHS = ["level", "perplexity", "unchanged", "moved by"], ["90px", "130px", "130px", "130px"]
ABOUT = """Weights of a model are damaged as in the degradation lab, and it writes again: greedily, so that only the
damage makes the difference. A masked model fills in every token of the text instead. Then the weights are put back, bit
for bit."""
EXAMPLE = "Return the number of items in the list, and raise an error if it is empty."
EXAMPLES = (
    ("attn_only", "mult_gauss", "0.7", 42),
    ("mlp_only", "ablation", "0.3", 1),
    ("embed_only", "add_gauss", "1", 0),
)
USUAL_GROUPS = ["attn_only", "mlp_only", "embed_only"]  # until a model is chosen, whose own are then offered


@dataclass(frozen=True)
class Condition:
    """A model at one level of damage: what it writes, and what it makes of the text.

    tokens: the greedy continuation, of a masked model each token of the text filled in. perplexity: of the text.
    moved: relative L2 distance of the group's weights. Each is None where what is computed is no number.
    """

    level: float
    tokens: tuple[int, ...] | None
    perplexity: float | None
    moved: float | None

    def unchanged(self, undamaged: "Condition") -> float:
        """The share of tokens that are those of the undamaged model at the same place."""
        ours, theirs = self.tokens or (), undamaged.tokens or ()
        longest = max(len(ours), len(theirs))
        return sum(a == b for a, b in zip(ours, theirs, strict=False)) / longest if longest else 1.0


class Patient:
    """A model with one text, asked at several levels of one damage.

    Raises:
        UserError: a text that is too short or too long for the model.
    """

    def __init__(
        self, opened: Opened, text: str, new_tokens: int, most_tokens: int = Limits.prompt_tokens, rounds: int = 2
    ):
        self.opened, self.new_tokens = opened, new_tokens
        model, tokenizer = opened.model, opened.tokenizer
        bare = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        check_vocabulary(bare, model.config.get_text_config().vocab_size)
        if len(bare) < SHORTEST:
            raise UserError(f"The text is {len(bare)} token long for {opened.name}: write at least {SHORTEST}.")
        self.masked = opened.kind == "masked"
        if self.masked:
            if tokenizer.mask_token_id is None:
                raise UserError(f"The tokenizer of {opened.name} has no mask token, which a masked model needs.")
            self.before, self.behind = surroundings(tokenizer)
            self.ids, most = [*self.before, *bare, *self.behind], min(MOST_MASKED, most_tokens)
            self.probe = MaskedTextProbe(model, tokenizer, text, opened.positions)
        else:
            self.ids, most = list(tokenizer(text, verbose=False)["input_ids"]), most_tokens
            self.probe = TextProbe(model, tokenizer, text, opened.positions)
        room = math.inf if opened.positions is None else opened.positions - (0 if self.masked else new_tokens)
        if len(self.ids) > min(room, most):
            raise UserError(f"The text is {len(self.ids):,} tokens long; write at most {min(room, most):,}.")
        read = len(self.ids) ** 2 if self.masked else len(self.ids) + new_tokens
        Limits().check_work(opened.name, model.num_parameters(), read, rounds)

    def at(self, group: str, method: str, level: float, seed: int) -> Condition:
        """Damage the model, look at it, and put it back.

        Raises:
            UserError: the model has no such group, or its weights cannot be damaged in that way.
        """
        if group.isidentifier():  # of others the parts are named by what finds them
            one_of("The group", group, groups_of(self.opened))
        with self.opened.lock, user_mistakes(), Baseline(self.opened.model, group) as baseline:
            lesion = apply_damage(baseline, method, level, seed, 0)
            score = self.probe.measure()
            tokens = None if score.log_perplexity is None else tuple(self._write())
        return Condition(level, tokens, score.perplexity, lesion["rel_l2"])

    def _write(self) -> list[int]:
        model = self.opened.model
        if not self.masked:
            sampling = Sampling(max_new_tokens=self.new_tokens, temperature=0.0)
            return run_generate(model, self.ids, sampling, tokenizer=self.opened.tokenizer, seed=0).rows[0]
        places = range(len(self.before), len(self.ids) - len(self.behind))
        with torch.inference_mode():
            copies = masked_copies(self.ids, places, self.opened.tokenizer.mask_token_id)
            return masked_logits(model, copies, places).argmax(-1).tolist()

    def text_of(self, state: Condition) -> str:
        """What the model wrote, as the visitor reads it."""
        if state.tokens is None:
            return NO_TEXT
        tokenizer = self.opened.tokenizer
        if self.masked:
            return tokenizer.decode(state.tokens)
        return continuation_text(tokenizer, self.ids, state.tokens)


def groups_of(opened: Opened) -> list[str]:
    """Return the groups of weights that a model has, as the lab names them.

    Raises:
        UserError: weights that cannot be damaged, such as packed ones.
    """
    with opened.lock, user_mistakes():
        return [row["group"] for row in describe_groups(opened.model)]


def check_choices(group: Any, method: Any, level: Any, seed: Any) -> tuple[str, str, float, int]:
    """Return group, method, level and seed as the lab takes them.

    Raises:
        UserError: an unknown method, a level outside its range, a seed that is none, or a group that is no name.
    """
    method = one_of("The method", method, METHODS)
    level = number("The level", level)
    with user_mistakes():
        check_levels(method, (level,))
    if not isinstance(group, str) or not 0 < len(group) <= LONGEST_GROUP:
        raise UserError(f"The group must be a name of at most {LONGEST_GROUP} characters, such as attn_only.")
    return group, method, int(level) if method == "uni_quant" else level, whole_number("The seed", seed, 0, MOST_SEED)


def damage(patient: Patient, group: str, method: str, level: float, seed: int) -> tuple[str, str, str]:
    """Return the text of the undamaged and of the damaged model, and what happened, as Markdown.

    Raises:
        UserError: as Patient.at does.
    """
    before, after = (patient.at(group, method, each, seed) for each in (0, level))
    facts = (
        f"**{after.unchanged(before):.0%}** of the tokens are unchanged. The weights of `{group}` moved by "
        f"{_figure(after.moved)} of their length. Perplexity of the text{_PSEUDO if patient.masked else ''}: "
        f"{_figure(before.perplexity)} undamaged, {_figure(after.perplexity)} damaged. The model is whole again."
    )
    return patient.text_of(before), patient.text_of(after), facts


_PSEUDO = " (pseudo-perplexity)"


def _figure(value: float | None) -> str:
    return "no number" if value is None else f"{value:,.4g}"


def curve_levels(method: str, group: str) -> list[float]:
    """Return some of the thesis' levels for a method and a group, mild to severe, the undamaged one first."""
    levels = default_levels(method, group)
    step = math.ceil((len(levels) - 1) / (CURVE_LEVELS - 1))
    return [levels[0], *levels[:0:-step][::-1]]  # counted from the severest, which is one of them


def curve(
    patient: Patient, group: str, method: str, levels: Sequence[float], seed: int
) -> Iterator[tuple[list[Condition], list[list[Any]]]]:
    """Yield, after each level, the states so far, and the table of them.

    Raises:
        UserError: as Patient.at does.
    """
    states: list[Condition] = []
    for level in levels:
        states.append(patient.at(group, method, level, seed))
        yield (
            states,
            [
                [
                    f"{state.level:g}",
                    _figure(state.perplexity),
                    f"{state.unchanged(states[0]):.0%}",
                    _figure(state.moved),
                ]
                for state in states
            ],
        )


def patient_of(models: Shelf, model: str, text: str, new_tokens: int, rounds: int = 2) -> Patient:
    """A model of the shelf with a visitor's text, which it reads so many times."""
    return Patient(models.open(model), check_prompt(text, models), new_tokens, models.limits.prompt_tokens, rounds)


def damage_text(
    models: Shelf, model: str, text: str, group: str, method: str, level: str, seed: float
) -> tuple[str, str, str]:
    """Return the text of the undamaged and of the damaged model, and what happened, as Markdown."""
    with told():
        choices = check_choices(group, method, level, seed)
        return damage(patient_of(models, model, text, NEW_TOKENS), *choices)


def damage_curve(
    models: Shelf,
    model: str,
    text: str,
    group: str,
    method: str,
    seed: float,
    progress: gr.Progress = gr.Progress(),  # noqa: B008  how gradio hands it over
) -> Iterator[tuple[Figure, list[list[str]]]]:
    """Yield (figure, table) after each level, the last time with all of them."""
    with told():
        group, method, _, seed = check_choices(group, method, 0, seed)
        levels, scale = curve_levels(method, group), METHODS[method]
        patient = patient_of(models, model, text, CURVE_TOKENS, len(levels))
        for states, rows in curve(patient, group, method, levels, seed):
            progress((len(states), len(levels)), desc=f"{scale.symbol} = {states[-1].level:g}")
            yield (
                draw_curve(
                    [state.level for state in states],
                    [state.perplexity for state in states],
                    [state.unchanged(states[0]) for state in states],
                    level=scale.meaning,
                    title=f"{patient.opened.name}: {group}",
                ),
                rows,
            )


def offer_groups(models: Shelf, model: str, group: str) -> gr.Dropdown:
    """The groups of a model that has been chosen; the one that was chosen before stays, where it has that too."""
    with told():
        known = groups_of(models.open(model))
    return gr.Dropdown(known, value=group if group in known else known[0])


def offer_levels(method: str, group: str) -> gr.Dropdown:
    """The lab's levels of a method that has been chosen, and one in the middle of them."""
    choices = level_choices(method, group) if method in METHODS and isinstance(group, str) else []
    return gr.Dropdown(choices, value=choices[len(choices) // 2] if choices else None)


def level_choices(method: str, group: str) -> list[str]:
    """The levels of the thesis for a method and a group, as they are typed."""
    return [f"{level:g}" for level in default_levels(method, group)]


def build(models: Shelf) -> None:
    """Lay the tab out; /damage gives (text before, text after, facts), /damage_curve streams (figure, table)."""
    gr.Markdown(ABOUT)
    with gr.Row():
        model = choose_model(models)
        group = gr.Dropdown(USUAL_GROUPS, value=USUAL_GROUPS[0], label="Group", allow_custom_value=True)
        method = gr.Dropdown(list(METHODS), value="mult_gauss", label="Method", allow_custom_value=True)
        levels = level_choices("mult_gauss", USUAL_GROUPS[0])
        level = gr.Dropdown(levels, value="0.7", label="Level", allow_custom_value=True)
        seed = gr.Number(42, label="Seed")
    text = gr.Textbox(EXAMPLE, label="Text", lines=2)
    with gr.Row():
        one, many = gr.Button("Damage", variant="primary"), gr.Button("Curve over the levels")
        halt = gr.Button("Stop")
    with gr.Row():
        before = gr.Textbox(label="Before", lines=3, interactive=False)
        after = gr.Textbox(label="After", lines=3, interactive=False)
    facts = gr.Markdown(label="What happened")
    plot = gr.Plot(label="Curve over the levels")
    table = gr.Dataframe(headers=HEADERS, label="Levels", interactive=False, wrap=True, column_widths=WIDTHS)
    gr.Examples([list(example) for example in EXAMPLES], [group, method, level, seed], label="Examples")

    inputs = [model, text, group, method, level, seed]
    outputs = [before, after, facts]
    one.click(on_shelf(damage_text, models), inputs, outputs, api_name="damage", concurrency_limit=1)
    drawing = many.click(
        on_shelf(damage_curve, models),
        [model, text, group, method, seed],
        [plot, table],
        api_name="damage_curve",
        concurrency_limit=1,
    )
    halt.click(None, cancels=drawing, queue=False, api_visibility="private")
    private = {"api_visibility": "private", "show_progress": "hidden"}
    model.change(on_shelf(offer_groups, models), [model, group], group, **private)
    method.input(offer_levels, [method, group], level, **private)
