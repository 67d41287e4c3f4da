"""The built-in corpora: what is in them, what is not, and that nothing is executed on the way."""

import re
import sys

import pytest

from frankenlm.trainer_ext.data.builtin_text import _read_builtin, builtin_documents

read = _read_builtin.__wrapped__  # without the cache

LONG = "A sentence that is certainly longer than sixty characters, so that it counts."
OTHER = "Another sentence, of its own, which is also longer than sixty characters are."
THIRD = "A long one, which makes the document that it stands in the longest of all. " * 9


@pytest.fixture
def library(tmp_path):
    """A standard library of our own: two real modules and everything that must be left out."""
    topics = {"if": LONG, "compound": f"{LONG}\n\n{OTHER}\n\n{THIRD}"}
    files = {
        "pydoc_data/topics.py": f"# made by hand\ntopics = {topics!r}\n",
        "colorsys.py": f'"""{LONG}"""\nraise SystemExit\nclass A:\n    """{OTHER} colour"""\n    def f(self):\n'
        f'        """{LONG} f"""\n',
        "json/__init__.py": f'"""{OTHER}\n\n    {LONG}\n\n{LONG} json {OTHER}"""\n',
        "json/empty.py": "\n",
        "json/copy.py": f'"""{OTHER}\n\n    {LONG}\n\n{LONG} json {OTHER}"""\n',
        "test/test_x.py": f'"""{LONG} test"""',
        "json/tests/x.py": f'"""{LONG} tests"""',
        "site-packages/numpy.py": f'"""{LONG} numpy"""',
        "sitecustomize.py": f'"""{LONG} sitecustomize"""',
        "tkinter/ttk.py": f'"""{LONG} tkinter"""',
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_documentation_by_hand(library):
    documents = dict(read("builtin", library))
    # "if" is quoted by "compound"; of json's two equal docstrings, which repeat both topics, one paragraph is new.
    assert list(documents) == ["module colorsys.py", "module json/copy.py", "topic compound"]
    assert documents["topic compound"] == f"{LONG}\n\n{OTHER}\n\n{THIRD.strip()}"
    assert documents["module json/copy.py"] == f"json.copy\n\n{LONG} json {OTHER}"
    assert documents["module colorsys.py"] == f"colorsys\n\ncolorsys.A\n\n{OTHER} colour\n\ncolorsys.A.f\n\n{LONG} f"


def test_source_by_hand(library):
    # json/empty.py has no text, json/copy.py has the text of json/__init__.py.
    documents = read("builtin-code", library)
    assert [topic for topic, _ in documents] == ["colorsys.py", "json/__init__.py"]
    assert documents[0].text == (library / "colorsys.py").read_text()


def test_without_library_sources(tmp_path):
    with pytest.raises(ValueError, match="standard library's source files"):
        read("builtin-code", tmp_path)


def test_without_pydoc_topics(library):
    (library / "pydoc_data" / "topics.py").unlink()
    with pytest.raises(ValueError, match=r"topics\.py is missing"):
        read("builtin", library)


def test_unknown_name():
    with pytest.raises(ValueError, match="'builtin-text'.*Known: builtin, builtin-code"):
        builtin_documents("builtin-text")


def test_this_python_has_enough_text_without_duplicates():
    before = set(sys.modules)
    documents = builtin_documents("builtin")
    assert not {"antigravity", "this", "pydoc_data.topics"} & (set(sys.modules) - before), "a module was imported"

    assert 1e6 < sum(len(text.encode()) for _, text in documents) < 4e6
    assert len({topic for topic, _ in documents}) == len(documents) > 200
    paragraphs = [" ".join(part.split()) for _, text in documents for part in re.split(r"\n[ \t]*\n", text)]
    long = [paragraph for paragraph in paragraphs if len(paragraph) >= 60]
    assert len(long) == len(set(long))


def test_this_python_has_code():
    documents = builtin_documents("builtin-code")
    topics = [topic for topic, _ in documents]
    assert "json/decoder.py" in topics
    assert topics == sorted(topics)
    assert not [topic for topic in topics if topic.startswith(("site-packages", "test/", "idlelib", "encodings"))]
    assert len({text for _, text in documents}) == len(documents)
    assert sum(len(text.encode()) for _, text in documents) > 4e6
