"""Lines, encodings and packed files, read in one way by every reader; JSON from outside; prompts of files."""

import bz2
import gzip
import json
import lzma
import pickle

import pyarrow as pa
import pytest

from frankenlm.degradation.prompts import load_prompts
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.common.text_files import BadRowError, kind_of, parse_json, read_text, text_lines
from frankenlm.trainer_ext.generation.prompts import Prompt, read_prompts

# What str.splitlines takes for the end of a line, and no text file does.
NO_LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
DEEP = "[" * 100_000


def zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


def lines_of(path):
    return [line for _, line in text_lines(path)]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"one\ntwo\r\nthree\rfour", ["one", "two", "three", "four"]),
        (b"one\rtwo\r", ["one", "two"]),
        (b"\xef\xbb\xbfone\r\n\r\ntwo\n", ["one", "", "two"]),
        (b"\xef\xbb\xbf", []),
        (b"", []),
        (f"a{NO_LINE_ENDS}b\nc".encode(), [f"a{NO_LINE_ENDS}b", "c"]),
        ("one\ufeff\n\ufefftwo".encode(), ["one\ufeff", "\ufefftwo"]),  # a mark elsewhere is a character
        (b"a\0b\n", ["a\0b"]),
    ],
)
def test_lines(tmp_path, content, lines):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert list(text_lines(path)) == list(enumerate(lines, start=1))
    assert read_text(path) == content.decode("utf-8-sig")


@pytest.mark.parametrize("read", [lines_of, read_text])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one\ncafé".encode("latin1"), r"a\.txt, line 2: not UTF-8 \(byte 0xe9\).*iconv -f latin1"),
        (b"one\r\ntwo\r" + b"x" * 20_000 + b"\xff", r"line 3: not UTF-8 \(byte 0xff\)"),
        ("one\ntwo".encode("utf-16"), "UTF-16, not UTF-8.*iconv -f utf-16 -t utf-8"),
        (b"\xfe\xff" + "one".encode("utf-16-be"), "UTF-16, not UTF-8"),
        ("one\ntwo".encode("utf-16-le"), "UTF-16LE, not UTF-8.*iconv -f utf-16le"),
        ("one\ntwo".encode("utf-16-be"), "UTF-16BE, not UTF-8"),
        ("日本語".encode("utf-16"), "UTF-16, not UTF-8"),
        ("one".encode("utf-32"), "UTF-32, not UTF-8"),
    ],
)
def test_other_encodings_are_named(tmp_path, read, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / "a.txt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_files(tmp_path, suffix):
    path = tmp_path / f"a.TXT{suffix}"
    packed = PACKERS[suffix]("\ufeffone\rtwö\n".encode() * 500)
    path.write_bytes(packed)
    assert kind_of(path) == ".txt"
    assert lines_of(path)[:3] == ["one", "twö", "\ufeffone"]
    assert len(lines_of(path)) == 1000
    for damaged in (packed[: len(packed) // 2], packed[:-3], b"this was never packed"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or cut off") as caught:
            lines_of(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_errors_of_the_disk_stay_what_they_are(tmp_path):
    for name in ("none.txt", "none.txt.gz", "none.txt.zst"):
        with pytest.raises(FileNotFoundError):
            lines_of(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "here: JSON nested too deep"),
        ('{"a":' * 100_000, "here: JSON nested too deep"),
        ("9" * 5000, "here: not usable JSON"),
        ('{"a": 1', r"here: not JSON \(Expecting ',' delimiter, column 8\)"),
        ("[\n1", "line 2, column 2"),
    ],
)
def test_json_from_outside(text, message):
    with pytest.raises(BadRowError, match=message):
        parse_json(text, "here")


def test_a_bad_row_comes_home_from_a_loader_worker():
    told = (
        'Caught BadRowError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "x"\n'
    )
    error = BadRowError(f"{told}frankenlm.trainer_ext.common.text_files.BadRowError: a.jsonl, line 3: not JSON.\n")
    assert str(error) == "a.jsonl, line 3: not JSON."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# --- prompts

STRANGE = f"one line{NO_LINE_ENDS}the same line"


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.txt", f"\ufeff{STRANGE}\r\n\r\ntwo\rthree", [STRANGE, "two", "three"]),
        ("a.jsonl", f'\ufeff{{"prompt": "{STRANGE[:8]}\u2028"}}\r{{"prompt": "two"}}', ["one line\u2028", "two"]),
        ("a.json", '\ufeff[\n{"prompt": "one"},\n{"prompt": "two"}]', ["one", "two"]),
        ("a.json", '{"prompt": "one"}\n{"prompt": "two"}', ["one", "two"]),
    ],
)
def test_prompt_files(tmp_path, name, content, prompts):
    (tmp_path / name).write_bytes(content.encode())
    assert [prompt.text for prompt in read_prompts(tmp_path / name)] == prompts


def test_references_keep_their_characters(tmp_path):
    row = {"prompt": "a", "reference": ["b\u2028c", "d\x85"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8-sig")
    assert read_prompts(tmp_path / "a.jsonl") == [Prompt("a", ("b\u2028c", "d\x85"))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", rb'{"prompt": "x", "reference": "half \ud835 here"}', "line 1: the text holds half a surrogate"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": "\\ud835"}', "line 2: the text holds half a surrogate"),
        ("a.jsonl", DEEP.encode(), "line 1: JSON nested too deep"),
        ("a.json", DEEP.encode(), "JSON nested too deep"),
        ("a.json", b"[1]", 'record 1: needs a field "prompt"'),
        ("a.json", b"[]", "holds no prompt"),
        ("a.txt", "x".encode("utf-16"), "UTF-16, not UTF-8"),
        ("a.txt", b"one\n\xe9", "line 2: not UTF-8"),
        ("a.txt", b"\xef\xbb\xbf\r\r", "holds no prompt"),
        ("a.txt.gz", b"junk", "damaged or cut off"),
    ],
)
def test_prompt_files_that_are_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value) and f"--prompts {tmp_path / name}" in str(caught.value)


def test_prompt_sets_are_read_alike(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes('\ufeff{"text": "one\u2028line"}\r\n\r{"text": "two\x85"}\r'.encode())
    assert [prompt.text for prompt in load_prompts(path)] == ["one\u2028line", "two\x85"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": "\\ud835"}', "line 2: the text holds half a surrogate"),
        (DEEP.encode(), "line 1: JSON nested too deep"),
        ('{"text": "é"}'.encode("latin1"), "line 1: not UTF-8"),
        ('{"text": "a"}'.encode("utf-16"), "UTF-16, not UTF-8"),
        (b'{"text": "a", "skill": 5}', "line 1: skill=5 must be a text"),
        (b'{"text": "a", "choices": 5, "grader": "choice", "answer": 5}', "choices=5 must be a list of texts"),
        (b'{"text": "a", "grader": "number", "answer": 1, "tolerance": NaN}', "tolerance=nan must be a number"),
    ],
)
def test_prompt_sets_that_are_none(tmp_path, content, message):
    (tmp_path / "mine.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_prompts(tmp_path / "mine.jsonl")
    assert "\n" not in str(caught.value)
