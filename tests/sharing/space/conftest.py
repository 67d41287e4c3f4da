"""A shelf with the shipped models and a few random ones of other families, as a runs folder holds them."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from frankenlm.sharing.space.limits import Limits
from frankenlm.sharing.space.shelf import Shelf
from frankenlm.trainer_ext.data.tokenizers import train_tokenizer

ROOT = Path(__file__).resolve().parents[3]
POSITIONS = 24
PATIENCE = 15  # seconds; a busy machine takes its time to import
NARROW = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """Random models: two masked ones, of which RoBERTa counts positions from behind its pad token, a causal one, and a
    classifier, which the page has no use for."""
    tokenizer = train_tokenizer(["the cat sat on a mat"] * 4, vocab_size=280, mask=True)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    models = {
        "bert": BertForMaskedLM(BertConfig(**sizes, **NARROW, max_position_embeddings=POSITIONS)),
        "roberta": RobertaForMaskedLM(RobertaConfig(**sizes, **NARROW, max_position_embeddings=POSITIONS + 2)),
        "deep/gpt2": GPT2LMHeadModel(GPT2Config(**sizes, **ends, n_embd=16, n_layer=1, n_head=2)),
        "classifier": BertForSequenceClassification(BertConfig(**sizes, **NARROW)),
    }
    root = tmp_path_factory.mktemp("space") / "runs"
    for name, model in models.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture(scope="session")
def shelf(runs) -> Shelf:
    return Shelf(runs, limits=Limits(kept_models=8))


@dataclass(frozen=True)
class Site:
    """A page that is served by a process of its own."""

    url: str
    pid: int


@contextmanager
def served(runs: Path, folder: Path) -> Iterator[Site]:
    """Serve the page as a visitor of a plain checkout does: python app.py, with nothing installed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "app.py"), "--runs", str(runs)]
    with (
        (folder / "page.log").open("w") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        timer = threading.Timer(100, process.kill)
        timer.start()
        try:
            said = next((line for line in process.stdout if "Running on" in line), None)
            timer.cancel()
            if said is None:
                pytest.fail(f"the page does not start: {(folder / 'page.log').read_text()[-2000:]}")
            yield Site(f"http://127.0.0.1:{port}/", process.pid)
        finally:
            timer.cancel()
            process.terminate()
            process.wait(10)


@pytest.fixture
def serve():
    """serve(runs, folder) serves a page of the test's own."""
    return served


@pytest.fixture(scope="module")
def site(runs, tmp_path_factory) -> Iterator[Site]:
    with served(runs, tmp_path_factory.mktemp("site")) as found:
        yield found


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """A browser without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs a chromium on the PATH, such as Debian's package chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Window:
    """A visitor's window: the page, and what it asked for and complained about meanwhile."""

    def __init__(self, chromium, site: Site, width: int, dark: bool = False):
        self.page = chromium.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(1000 * PATIENCE)
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.goto(f"{site.url}?__theme={'dark' if dark else 'light'}")
        self.page.get_by_role("tab").first.wait_for()

    def open(self, tab: str) -> None:
        """Choose a tab; on a narrow window some stand in a menu."""
        found = self.page.get_by_role("tab", name=tab, exact=True).locator("visible=true")
        if not found.count():
            self.page.get_by_role("button", name="More tabs").click()
            found = self.page.locator(".overflow-dropdown button", has_text=tab)
        found.first.click()

    def write(self, label: str, text: str) -> None:
        self.box(label).fill(text)
        self.page.wait_for_timeout(200)  # faster than any hand, the page would not have taken note of it

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).locator("visible=true").first.click()

    def box(self, label: str):
        """The box below a label, which may have an explanation or a button beside it."""
        title = self.page.get_by_test_id("block-info").filter(has_text=re.compile(rf"^\s*{label}\s*$"))
        return self.page.locator("label:visible, .container:visible").filter(has=title).locator("textarea, input").first

    def read(self, label: str, until: Callable[[str], bool] = bool) -> str:
        """What stands in a box, as soon as it is what is waited for."""
        end = time.monotonic() + PATIENCE
        while not until(value := self.box(label).input_value()):
            assert time.monotonic() < end, f"{label}: {value!r}"
            self.page.wait_for_timeout(50)
        return value

    def cells(self, least: int) -> list[str]:
        """The cells of the table that is to be seen, as soon as it has some."""
        found = self.page.locator("[data-testid^=cell-]:visible")
        found.nth(least - 1).wait_for()
        return [text.strip() for text in found.all_inner_texts()]

    def toast(self) -> str:
        """The words of an error that has just come up; it is closed."""
        message = self.page.locator(".toast-body").first
        message.wait_for()
        text = message.inner_text()
        self.page.locator(".toast-close").first.click()
        return text

    def excess(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture
def window(chromium, site):
    """window(width) opens the page."""
    opened: list[Window] = []

    def open_window(width: int, dark: bool = False) -> Window:
        opened.append(Window(chromium, site, width, dark))
        return opened[-1]

    yield open_window
    for each in opened:
        each.page.close()
