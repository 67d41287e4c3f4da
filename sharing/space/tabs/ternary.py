"""Ternary: the same text from a model with its weights in full precision, and packed to two bits each."""

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr
from transformers import PreTrainedModel

from frankenlm.degradation.configs import MOST_SEED
from frankenlm.modeling.packed_operators import has_native_operators
from frankenlm.modeling.quantizer_ternary import pack_model
from frankenlm.trainer_ext.common.cli import user_mistakes

from ...live.options import Options
from ..parts import WIDTH, check_prompt, choose_model, on_shelf, slider, told
from ..shelf import Opened, Shelf
from ..values import number, whole_number
from ..writing import AnswerState, answer

TITLE = "Ternary"
ABOUT = """A model whose weights are -1, 0 or 1 computes the same whether they are kept as ordinary numbers and rounded
anew at each step, or packed, four in a byte. Both forms go on with your text from the same seed."""
EXAMPLES = ("Return a list of", "This module provides", "The following example shows how to")
COLUMNS = ["weights", "bytes", "tokens/s"]


@dataclass
class PackedTwin:
    """The packed form of the model that was asked for last."""

    source: PreTrainedModel | None = None
    packed: PreTrainedModel | None = None

    def of(self, opened: Opened) -> PreTrainedModel:
        """Return the packed twin of a model, which is left as it is."""
        if self.source is not opened.model:
            with opened.lock, user_mistakes():
                self.packed = pack_model(copy.deepcopy(opened.model))
            self.source = opened.model
        return self.packed


def weight_bytes(model: PreTrainedModel) -> int:
    """The bytes that a model's weights take; shared ones count once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def compare_texts(full: str, packed: str) -> str:
    """Say whether two texts are equal, and where they part."""
    if full == packed:
        return "Both texts are equal."
    same = len(os.path.commonprefix([full, packed]))
    return (
        f"The texts part after {same} characters: packed weights are summed up in another order, and where two tokens "
        "are nearly as likely, rounding decides."
    )


def ternary(
    models: Shelf, twins: PackedTwin, model: str, prompt: str, max_new_tokens: int, temperature: float, seed: int
) -> Iterator[tuple[str, str, list[list], str]]:
    """Yield (text in full precision, text packed, table, verdict), the last time with all of it."""
    with told():
        prompt = check_prompt(prompt, models)
        options = Options(
            max_new_tokens=whole_number("max_new_tokens", max_new_tokens, 1, models.limits.new_tokens),
            temperature=number("temperature", temperature),
        ).check()
        seed = whole_number("seed", seed, 0, MOST_SEED)
        opened = models.open(model, "ternary")
        full = packed = AnswerState()
        for full in answer(opened, prompt, options, seed=seed, limits=models.limits):
            yield full.text, "", [], full.words()
        twin = twins.of(opened)
        for packed in answer(opened, prompt, options, seed=seed, limits=models.limits, model=twin):
            yield full.text, packed.text, [], packed.words()
        rows = [facts(str(opened.model.dtype), opened.model, full), facts("packed", twin, packed)]
        operators = "our operators" if has_native_operators() else "plain PyTorch"
        verdict = f"{compare_texts(full.text, packed.text)} The packed weights ran on {operators}."
        yield full.text, packed.text, rows, verdict


def facts(weights: str, model: PreTrainedModel, state: AnswerState) -> list:
    """A row of the table."""
    return [weights.removeprefix("torch."), weight_bytes(model), round(state.tokens_per_second, 1)]


def build(models: Shelf) -> None:
    """Lay the tab out; /ternary streams (text in full precision, text packed, table, verdict)."""
    gr.Markdown(ABOUT)
    model = choose_model(models, "ternary")
    prompt = gr.Textbox(EXAMPLES[0], label="Text to go on from", lines=2)
    gr.Examples([[example] for example in EXAMPLES], prompt, label="Examples")
    with gr.Row():
        new = slider("max_new_tokens", 1, models.limits.new_tokens, 60, "how long each text may be")
        temperature = slider("temperature", 0, 2, 0, "0: the likeliest token each time", step=0.05)
        seed = gr.Number(42, precision=0, label="seed", info="another one: another text", min_width=WIDTH)
    run = gr.Button("Write both", variant="primary")
    with gr.Row():
        full = gr.Textbox(label="Full precision", lines=5, min_width=WIDTH, interactive=False, buttons=["copy"])
        packed = gr.Textbox(label="Packed", lines=5, min_width=WIDTH, interactive=False, buttons=["copy"])
    verdict = gr.Textbox(label="How it went", interactive=False)
    table = gr.Dataframe(headers=COLUMNS, label="Speed and size", interactive=False)
    gr.on(
        [run.click, prompt.submit],
        on_shelf(ternary, models, PackedTwin()),
        [model, prompt, new, temperature, seed],
        [full, packed, table, verdict],
        api_name="ternary",
        preprocess=False,
        concurrency_limit=1,
    )
