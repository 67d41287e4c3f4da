"""Generate: a model goes on with a text, token by token, under every option that chooses tokens."""

from collections.abc import Iterator

import gradio as gr

from frankenlm.degradation.configs import MOST_SEED
from frankenlm.trainer_ext.common.cli import LARGEST_NUMBER

from ...live.options import Options
from ..parts import WIDTH, check_prompt, choose_model, on_shelf, slider, stop_strings, told
from ..shelf import Shelf
from ..values import number, whole_number
from ..writing import WRITING, answer

TITLE = "Generate"
ABOUT = """A causal model goes on with your text. The shipped models are tiny: what they write looks like Python's
documentation and means nothing. The same text, options and seed give the same answer."""
EXAMPLES = ("Return a list of", "This module provides", "The following example shows how to")


def generate(
    models: Shelf,
    model: str,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical_p: float,
    repetition_penalty: float,
    no_repeat_ngram_size: int,
    num_beams: int,
    seed: int,
    stop: str,
) -> Iterator[tuple[str, str]]:
    """Go on with a text; yield (text so far, how it goes).

    top_k 0, top_p 1, min_p 0, typical_p 1 and no_repeat_ngram_size 0 are off. stop: one string a line.
    """
    with told():
        prompt, strings = check_prompt(prompt, models), stop_strings(stop)
        options = Options(
            max_new_tokens=whole_number("max_new_tokens", max_new_tokens, 1, models.limits.new_tokens),
            temperature=number("temperature", temperature),
            top_k=whole_number("top_k", top_k, 0, LARGEST_NUMBER) or None,
            top_p=number("top_p", top_p),
            min_p=number("min_p", min_p),
            typical_p=number("typical_p", typical_p),
            repetition_penalty=number("repetition_penalty", repetition_penalty),
            no_repeat_ngram_size=whole_number("no_repeat_ngram_size", no_repeat_ngram_size, 0, LARGEST_NUMBER),
            num_beams=whole_number("num_beams", num_beams, 1, models.limits.beams),
        ).check()
        seed = whole_number("seed", seed, 0, MOST_SEED)
        opened = models.open(model, "causal")
        for state in answer(opened, prompt, options, stop=strings, seed=seed, limits=models.limits):
            yield state.text, state.words()


def build(models: Shelf) -> None:
    """Lay the tab out; /generate streams (text, how it goes)."""
    limits = models.limits
    gr.Markdown(ABOUT)
    model = choose_model(models, "causal")
    prompt = gr.Textbox(EXAMPLES[0], label="Text to go on from", lines=3)
    gr.Examples([[example] for example in EXAMPLES], prompt, label="Examples")
    with gr.Row():
        new = slider("max_new_tokens", 1, limits.new_tokens, 60, "how long the answer may be")
        temperature = slider("temperature", 0, 2, 0.8, "0: the likeliest token each time", step=0.05)
    with gr.Accordion("More options", open=False):
        with gr.Row():
            top_k = slider("top_k", 0, 200, 0, "0: off")
            top_p = slider("top_p", 0.01, 1, 1, "1: off", step=0.01)
            min_p = slider("min_p", 0, 1, 0, "0: off", step=0.01)
            typical_p = slider("typical_p", 0.01, 1, 1, "1: off", step=0.01)
            penalty = slider("repetition_penalty", 0.5, 3, 1, "1: off", step=0.05)
            ngram = slider("no_repeat_ngram_size", 0, 10, 0, "0: off")
            beams = slider("num_beams", 1, limits.beams, 1, "above 1: with temperature 0")
            seed = gr.Number(42, precision=0, label="seed", info="another one: another answer", min_width=WIDTH)
        most = limits.stop_strings
        stop = gr.Textbox("", label="Stop strings", lines=2, info=rf"one a line, at most {most}; \n is a line's end")
    with gr.Row():
        run = gr.Button("Generate", variant="primary")
        halt = gr.Button("Stop")
    text = gr.Textbox(label="Answer", lines=6, interactive=False, buttons=["copy"])
    how = gr.Textbox(label="How it went", interactive=False, lines=1)
    inputs = [model, prompt, new, temperature, top_k, top_p, min_p, typical_p, penalty, ngram, beams, seed, stop]
    event = gr.on(
        [run.click, prompt.submit],
        on_shelf(generate, models),
        inputs,
        [text, how],
        api_name="generate",
        preprocess=False,  # what a visitor sends is looked at by us, who say what is wrong with it
        concurrency_limit=1,
    )
    halted = halt.click(None, cancels=event)
    halted.then(stopped, how, how, queue=False, api_visibility="private")


def stopped(how: str) -> str:
    """What stands below an answer that a visitor has stopped."""
    return how.removesuffix(WRITING) + "; stopped" if how.endswith(WRITING) else how
