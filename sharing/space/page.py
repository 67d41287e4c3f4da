"""The page: what it is and is not, and the tabs."""

from collections.abc import Sequence
from types import ModuleType

import gradio as gr

from .shelf import Declined, Shelf
from .tabs import check, compare, damage, fill_mask, generate, inside, ternary

TABS: tuple[ModuleType, ...] = (generate, fill_mask, inside, ternary, damage, check, compare)
ABOUT = """# frankenlm
Unusual small language models: look into them, shrink them, break them. The models named `tiny/` lie in the repository
and were trained for minutes on the documentation that Python carries: they show how things work, and are no assistants.
Nothing here is true, safe or meant as advice, and nothing that you write is kept."""
# No fonts from elsewhere: the visitor's own.
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}


class Page(gr.Blocks):
    """A page that says in words when a program sends it too little."""

    def validate_inputs(self, block_fn: gr.blocks.BlockFunction, inputs: list) -> None:
        wanted = len(block_fn.inputs)
        if len(inputs) < wanted:
            raise Declined(f"/{block_fn.api_name} takes {wanted} values, and got {len(inputs)}.")
        super().validate_inputs(block_fn, inputs)


def build_page(models: Shelf, tabs: Sequence[ModuleType] = TABS) -> gr.Blocks:
    """Lay the page out: each tab builds itself. `launch_options` go with it."""
    with Page(title="frankenlm", analytics_enabled=False) as page:
        gr.Markdown(ABOUT)
        for tab in tabs:
            with gr.Tab(tab.TITLE):
                tab.build(models)
    page.queue(default_concurrency_limit=1, max_size=models.limits.waiting)
    return page


def launch_options() -> dict:
    """Arguments of the page's launch(): how it looks, and that nobody loads files up."""
    return {"theme": gr.themes.Default(**FONTS), "max_file_size": "10kb", "footer_links": ["api"], "share": False}
