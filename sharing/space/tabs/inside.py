"""The tab Inside: what a model does with one text. What a model does not have is said in words."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from matplotlib.figure import Figure

from frankenlm.trainer_ext.common.checkpoints import check_vocabulary
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.generation.heatmaps import draw_attention, draw_memory, readable
from frankenlm.trainer_ext.generation.inspection import (
    attention_by_head,
    memory_decays,
    memory_reads,
    norm_saturation,
    token_texts,
)

from ..figures import draw_decays, draw_saturation, half_life
from ..parts import check_prompt, choose_model, on_shelf, told
from ..shelf import Opened, Shelf
from ..values import one_of, whole_number

TITLE = "Inside"
MOST_TOKENS = 96  # of a text that is drawn
MOST_MAPS = 64
ALL, MEAN = "all", "mean"
ABOUT = "What a model does with a text: where it looks, what it reads from its memory, how fast it forgets."
EXAMPLE = "Return the number of items in the list."
EXAMPLES = ("attention", "slot memory", "decay rates", "norm saturation")


@dataclass(frozen=True)
class View:
    """What was seen: words, always; a figure and a table where the model has what was asked for."""

    words: str
    figure: Figure | None = None
    headers: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()


def encode(opened: Opened, text: str) -> list[int]:
    """Return the tokens of a text as the model reads it.

    Raises:
        UserError: none, or more than are drawn or than the model has positions for.
    """
    ids = list(opened.tokenizer(text, verbose=False)["input_ids"])
    check_vocabulary(ids, opened.model.config.get_text_config().vocab_size)
    most = min(MOST_TOKENS, opened.positions or MOST_TOKENS)
    if not 0 < len(ids) <= most:
        raise UserError(f"The text is {len(ids):,} tokens long for {opened.name}; write 1 to {most:,}.")
    return ids


def see_attention(opened: Opened, ids: list[int], layer: str, head: str) -> View:
    """Return maps of the attention weights: of one layer or all, of one head or the mean over them.

    Raises:
        UserError: a layer or a head that the model does not have.
    """
    layers = attention_by_head(opened.model, ids)
    if not layers:
        return View(f"No layer of {opened.name} has attention weights: it mixes tokens in other ways.")
    names = list(layers)
    if layer != ALL:
        names = [names[whole_number("The layer", layer, 0, len(names) - 1)]]
    fewest = min(len(layers[name]) for name in names)
    chosen = None if head == MEAN else whole_number("The head", head, 0, fewest - 1)
    maps = {name: layers[name].mean(0) if chosen is None else layers[name][chosen] for name in names[:MOST_MAPS]}
    meaning = "attention weight, mean over heads" if chosen is None else f"attention weight of head {chosen}"
    tokens = token_texts(opened.tokenizer, ids)
    figure = draw_attention(maps, tokens, title=f"{opened.name}: attention", meaning=meaning)
    rows = tuple(
        (name, readable(token), readable(tokens[best]), f"{weights[best]:.3f}")
        for name, each in maps.items()
        for token, weights in zip(tokens, each, strict=True)
        for best in (int(weights.argmax()),)
    )
    words = (
        f"{opened.name}: layers with attention weights: {len(layers)}, numbered among themselves; heads: {fewest}. A "
        "row is the token that looks, a column the one that is looked at."
    )
    return View(words, figure, ("layer", "token", "looks most at", "weight"), rows)


def see_memory(opened: Opened, ids: list[int]) -> View:
    """Return what each token reads from the slot memory."""
    config = opened.model.config
    if not hasattr(config, "memory_layers") or not config.memory_layers:
        return View(f"{opened.name} ({config.model_type}) has no slot memory; Infinito models have one.")
    tokens = token_texts(opened.tokenizer, ids)
    layers, statistics = memory_reads(opened.model, ids)
    rows = tuple(
        (name, readable(token), "none" if best == len(mass) - 1 else str(best), f"{mass[best]:.3f}", f"{mass[-1]:.3f}")
        for name, reads in layers.items()
        for token, mass in zip(tokens, reads, strict=True)
        for best in (int(mass.argmax()),)
    )
    slots = next(iter(layers.values())).shape[1] - 1
    if config.memory_type == "attention_slots":
        words = (
            f"The attention of {opened.name} has {slots} slots in each head, which keep tokens that have left its "
            f"window of {config.attention_window}. What a token reads adds up to 1; the last column is what stays in "
            "the window."
        )
    else:
        words = (
            f"The memory of {opened.name} has {slots} slots, written once in {config.memory_segment} tokens. What a "
            "token reads adds up to 1; the last column is the share that it leaves unread, all of it before the first "
            "write."
        )
    figure = draw_memory(
        layers, statistics, tokens, title=f"{opened.name}: slot memory", memory_type=config.memory_type
    )
    return View(words, figure, ("layer", "token", "slot read most", "mass", "mass of no slot"), rows)


def see_decays(opened: Opened, ids: list[int]) -> View:
    """Return how fast the heads of recurrent memories forget."""
    decays = memory_decays(opened.model, ids)
    if not decays:
        return View(f"{opened.name} has no layer whose decay is known here: retention, Mamba-2, Titan memory.")
    rows = tuple(
        (name, str(head), f"{share:.5f}", f"{half_life(float(share)):,.3g}")
        for name, kept in decays.items()
        for head, share in enumerate(kept)
    )
    words = (
        "What a head keeps of its memory from one token to the next. Retention's is fixed; Mamba-2 and Titan memories "
        "choose it at each token, and theirs is the mean over this text."
    )
    figure = draw_decays(decays, title=f"{opened.name}: how fast its memories fade")
    return View(words, figure, ("layer", "head", "kept at each token", "half-life (tokens)"), rows)


def see_norms(opened: Opened, ids: list[int]) -> View:
    """Return where the point-wise norms are flat."""
    shares = norm_saturation(opened.model, ids)
    if not shares:
        return View(f"{opened.name} has no Derf and no DynamicTanh layer: its norms do not saturate.")
    rows = tuple((name, f"{share:.2%}") for name, share in shares.items())
    words = (
        "The share of a norm's inputs (units times tokens of this text) at which its curve is flat, so that hardly "
        "any gradient passes."
    )
    figure = draw_saturation(shares, title=f"{opened.name}: flat inputs of each norm")
    return View(words, figure, ("norm", "flat inputs"), rows)


VIEWS: dict[str, Callable[..., View]] = {
    "attention": see_attention,
    "slot memory": see_memory,
    "decay rates": see_decays,
    "norm saturation": see_norms,
}


def see(opened: Opened, text: str, view: Any, layer: Any = ALL, head: Any = MEAN) -> View:
    """Return one of the VIEWS of a model on a text; layer and head choose among attention maps.

    Raises:
        UserError: an unknown view, layer or head, or a text that is too long.
    """
    look = VIEWS[one_of("The view", view, VIEWS)]
    ids = encode(opened, text)
    choice = (layer, head) if look is see_attention else ()
    with opened.lock:
        return look(opened, ids, *choice)


def look_inside(
    models: Shelf, model: str, text: str, view: str, layer: str, head: str
) -> tuple[str, Figure | None, dict[str, Any] | None, bool]:
    """Return words, a figure, its numbers, and whether there are the last two, which a model may not have."""
    with told():
        seen = see(models.open(model), check_prompt(text, models), view, layer, head)
    shown = seen.figure is not None
    rows = {"headers": list(seen.headers), "data": [list(row) for row in seen.rows]} if shown else None
    return seen.words, seen.figure, rows, shown


def show(shown: bool) -> tuple[gr.Plot, gr.Dataframe]:
    """No empty picture stands where there is nothing to see."""
    return gr.Plot(visible=shown), gr.Dataframe(visible=shown)


def offer_layers(models: Shelf, model: str) -> tuple[gr.Dropdown, gr.Dropdown]:
    """The layers and heads of a model that has been chosen."""
    with told():
        opened = models.open(model)
        ids = encode(opened, "a")
        with opened.lock:
            layers = attention_by_head(opened.model, ids)
    heads = min((len(each) for each in layers.values()), default=0)
    return (
        gr.Dropdown([ALL, *map(str, range(len(layers)))], value=ALL),
        gr.Dropdown([MEAN, *map(str, range(heads))], value=MEAN),
    )


def build(models: Shelf) -> None:
    """Lay the tab out; /inside gives (words, figure, table)."""
    gr.Markdown(ABOUT)
    with gr.Row():
        model = choose_model(models)
        view = gr.Dropdown(list(VIEWS), value="attention", label="View", allow_custom_value=True)
        layer = gr.Dropdown([ALL], value=ALL, label="Layer", allow_custom_value=True)
        head = gr.Dropdown([MEAN], value=MEAN, label="Head", allow_custom_value=True)
    text = gr.Textbox(EXAMPLE, label=f"Text (at most {MOST_TOKENS} tokens)", lines=2)
    button = gr.Button("Look inside", variant="primary")
    words, shown = gr.Markdown(label="In words"), gr.State(False)
    plot = gr.Plot(label="Figure", visible=False)
    table = gr.Dataframe(label="Numbers", visible=False, interactive=False, wrap=True)
    gr.Examples([[example] for example in EXAMPLES], view, label="Examples")
    looked = gr.on(
        [button.click, text.submit],
        on_shelf(look_inside, models),
        [model, text, view, layer, head],
        [words, plot, table, shown],
        api_name="inside",
        concurrency_limit=1,
    )
    private = {"api_visibility": "private", "show_progress": "hidden"}
    looked.then(show, shown, [plot, table], **private)
    model.change(on_shelf(offer_layers, models), model, [layer, head], **private)
