"""Every tab in a browser, on a desk and on a telephone: type, click, read. Screenshots lie in the test's folder."""

import pytest

pytestmark = pytest.mark.slow
WIDTHS = (1280, 390)


@pytest.fixture(params=WIDTHS)
def visitor(window, request, tmp_path):
    """A window that must not scroll sideways, ask anything of others, or complain."""
    found = window(request.param)
    yield found
    found.page.screenshot(path=tmp_path / "tab.png", full_page=True)
    assert found.excess() == 0
    assert found.errors == []
    home = found.page.url.partition("?")[0]
    assert [url for url in found.asked if not url.startswith((home, "data:", "blob:"))] == []


def test_generate(visitor):
    visitor.open("Generate")
    visitor.write("Text to go on from", "This module provides")
    visitor.press("Generate")
    how = visitor.read("How it went", lambda text: "as long as" in text)
    assert how.startswith("60 tokens in ") and visitor.read("Answer")


def test_generate_is_stopped(visitor):
    visitor.open("Generate")
    visitor.write("Text to go on from", "This module provides")
    visitor.page.get_by_label("number input for max_new_tokens").first.fill("256")
    visitor.press("Generate")
    visitor.read("How it went", lambda text: " tokens in" in text)
    visitor.press("Stop")
    assert visitor.read("How it went", lambda text: "..." not in text)
    visitor.write("Text to go on from", "Return")
    visitor.press("Generate")
    visitor.read("How it went", lambda text: "tokens in" in text)


def test_an_example_and_an_option(visitor):
    visitor.open("Generate")
    visitor.page.get_by_role("button", name="The following example shows how to").click()
    assert visitor.read("Text to go on from", lambda text: text.startswith("The following"))
    visitor.page.get_by_role("button", name="More options").click()
    visitor.write("Stop strings", "e")
    visitor.press("Generate")
    assert "stop string" in visitor.read("How it went", lambda text: ";" in text)


def test_fill_mask(visitor):
    visitor.open("Fill mask")
    visitor.write("Sentence", "The<mask> method returns a new<mask>.")
    visitor.press("Fill")
    assert "mask" not in visitor.read("With the likeliest tokens")
    cells = visitor.cells(30)
    assert cells[::3] == ["1"] * 5 + ["2"] * 5 and all(0 < float(cell) < 1 for cell in cells[2::3])


def test_inside(visitor):
    visitor.open("Inside")
    visitor.press("Look inside")
    visitor.page.locator("[data-testid=matplotlib] img:visible").wait_for()


def test_ternary(visitor):
    visitor.open("Ternary")
    visitor.press("Write both")
    assert "equal" in visitor.read("How it went", lambda text: "The packed weights" in text)
    assert visitor.read("Full precision") == visitor.read("Packed")


def test_damage(visitor):
    visitor.open("Damage")
    visitor.press("Damage")
    assert visitor.read("Before") and visitor.read("After")
    visitor.press("Curve over the levels")
    assert len(visitor.cells(20)) >= 20
    visitor.page.locator("[data-testid=matplotlib] img:visible").wait_for()


def test_check(visitor):
    visitor.open("Check")
    visitor.press("Check")
    visitor.page.get_by_text("breaks no promise: of 16").wait_for()
    assert {"causality", "save and load"} <= set(visitor.cells(5 * 16))


def test_compare(visitor):
    visitor.open("Compare")
    visitor.press("Compare")
    assert "bits per byte" in visitor.cells(20)


@pytest.mark.parametrize("text", ["<img src=x onerror='document.title=1'>", "<script>document.title=1</script>"])
def test_html_stays_text(visitor, text):
    visitor.open("Generate")
    visitor.write("Text to go on from", text)
    visitor.press("Generate")
    visitor.read("How it went", lambda words: "as long as" in words)
    visitor.write("Model", text)
    visitor.box("Model").press("Enter")
    visitor.press("Generate")
    assert "no model" in visitor.toast()
    assert visitor.page.title() == "frankenlm"


def test_a_mistake_is_told(visitor):
    visitor.open("Fill mask")
    visitor.write("Sentence", "no gap")
    visitor.press("Fill")
    assert visitor.toast().endswith("Write <mask> where a word is missing.")


def test_dark(window, tmp_path):
    visitor = window(1280, dark=True)
    for tab in ("Generate", "Damage", "Compare"):
        visitor.open(tab)
        visitor.page.screenshot(path=tmp_path / f"{tab}.png", full_page=True)
    paper = visitor.page.evaluate("getComputedStyle(document.querySelector('gradio-app')).backgroundColor")
    assert max(int(part) for part in paper.strip("rgb()").split(",")) < 60, "what a dark page has behind its words"
