"""The page: a few words, and the tabs."""

from collections.abc import Sequence
from types import ModuleType

import gradio as gr

from .shelf import Shelf

TABS: tuple[ModuleType, ...] = ()


def build_page(models: Shelf, tabs: Sequence[ModuleType] = TABS) -> gr.Blocks:
    """Lay the page out: each tab builds itself."""
    with gr.Blocks(title="frankenlm") as page:
        gr.Markdown("# frankenlm")
        for tab in tabs:
            with gr.Tab(tab.TITLE):
                tab.build(models)
    page.queue(default_concurrency_limit=1, max_size=models.limits.waiting)
    return page
