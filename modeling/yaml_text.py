"""YAML as people mean it: the core schema of YAML 1.2, read strictly.

PyYAML reads YAML 1.1, in which 2e-2 and 1e9 are texts, 010 is eight, 1:30 is ninety, 2026-01-02 is a date, and a plain
`no` is false where it was meant as the word. Here

- 2e-2, 1E5 and 1e+3 are numbers; whole numbers are decimal (also 0x1F, 0o17, 1_000); there are no dates and no minutes;
- true and false are the booleans. A plain yes, no, on or off is a `YamlWord`, for the reader to take as a word or not;
- numbers remember how they were written, for fields that are texts;
- a key that stands twice, a tag such as !!python, half a surrogate pair and a text that unfolds without end are errors.
"""

import re
from typing import Any

import yaml

# Aliases can unfold a few lines into more than a memory holds; no settings are that long.
_LONGEST = 100_000
_PLACE = "tag:yaml.org,2002:"
_TRUE_WORDS = {"yes", "on"}
# Ends of lines in YAML 1.1, characters like others in YAML 1.2.
_NO_LINE_ENDS = "\x85\u2028\u2029"


class YamlWord(str):
    """A plain yes, no, on or off."""

    @property
    def truth(self) -> bool:
        return self.lower() in _TRUE_WORDS


class YamlInt(int):
    """A whole number; `written` is its text."""

    written: str


class YamlFloat(float):
    """A number with a point or an exponent; `written` is its text."""

    written: str


class _Loader(yaml.SafeLoader):
    """The rules above; see the end of the file."""

    yaml_implicit_resolvers: dict = {}
    yaml_constructors: dict = {}

    def __init__(self, text: str):
        spare = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)
        hidden = {mark: next(spare) for mark in _NO_LINE_ENDS if mark in text}
        self._shown = str.maketrans({stand_in: mark for mark, stand_in in hidden.items()})
        super().__init__(text.translate(str.maketrans(hidden)))

    def construct_scalar(self, node):
        return super().construct_scalar(node).translate(self._shown)

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_PLACE}merge":
                continue
            if key.value in lines:
                problem = f"key {key.value!r} stands twice, first in line {lines[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node

    def construct_int(self, node: yaml.ScalarNode) -> YamlInt:
        text = self.construct_scalar(node)
        digits = text.lower().lstrip("+-").replace("_", "")
        base = {"0x": 16, "0o": 8}.get(digits[:2], 10)
        return self._number(node, text, lambda: YamlInt(int(digits, base) * (-1 if text.startswith("-") else 1)))

    def construct_float(self, node: yaml.ScalarNode) -> YamlFloat:
        text = self.construct_scalar(node)
        # .inf and .nan, as YAML spells them
        plain = re.sub(r"^([-+]?)\.(?=[in])", r"\1", text.lower())
        return self._number(node, text, lambda: YamlFloat(plain))

    def _number(self, node: yaml.ScalarNode, text: str, make) -> Any:
        try:
            number = make()
        except ValueError as error:  # thousands of digits, or a tag such as !!int before a text
            problem = f"{text[:20]!r} is no usable number"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error
        number.written = text
        return number

    def construct_truth(self, node: yaml.ScalarNode) -> bool:
        text = self.construct_scalar(node)
        if text.lower() not in ("true", "false"):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is neither true nor false", node.start_mark)
        return text.lower() == "true"


def load_yaml(text: str) -> Any:
    """Return what a YAML text holds: dicts, lists, texts, numbers, booleans, None.

    Raises:
        ValueError: it is no YAML by the rules above; one line, with the line of the text.
    """
    try:
        content = _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        raise ValueError(_explained(error)) from error
    except yaml.YAMLError as error:  # characters that YAML forbids
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError("not usable YAML: nested too deep.") from error
    _check_content(content)
    return content


def plain(value: Any) -> Any:
    """Return the same without memory of how it was written; a yes, no, on or off becomes a boolean."""
    if isinstance(value, YamlWord):
        return value.truth
    if isinstance(value, YamlInt):
        return int(value)
    if isinstance(value, YamlFloat):
        return float(value)
    if isinstance(value, dict):
        return {str(key) if isinstance(key, YamlWord) else plain(key): plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def _explained(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    hint = " (indent with spaces)" if "'\\t'" in str(error.problem) else ""
    what = str(error.problem or error.context)
    if what.startswith("but "):  # the second half of a sentence
        what = f"{error.context}, {what}"
    return f"not valid YAML: {where}{what}{hint}."


def _check_content(content: Any) -> None:
    stack, seen = [content], 0
    while stack:
        value = stack.pop()
        seen += 1
        if seen > _LONGEST:
            raise ValueError(f"not usable YAML: with its aliases unfolded it has more than {_LONGEST} values.")
        if isinstance(value, dict):
            stack += [*value, *value.values()]
        elif isinstance(value, list):
            stack += value
        elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("not usable YAML: a text holds half a surrogate pair, which is no character.")


def _teach(kind: str, pattern: str, first: str | None, constructor) -> None:
    tag = "!word" if kind == "word" else _PLACE + kind
    if pattern:
        _Loader.add_implicit_resolver(tag, re.compile(f"(?:{pattern})$"), first and list(first))
    _Loader.add_constructor(tag, constructor)


_DIGITS = "[0-9]+(?:_[0-9]+)*"
_teach("null", "~|null|Null|NULL|", None, _Loader.construct_yaml_null)
_teach("bool", "true|True|TRUE|false|False|FALSE", "tTfF", _Loader.construct_truth)
_teach(
    "word",
    "yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF",
    "yYnNoO",
    lambda loader, node: YamlWord(loader.construct_scalar(node)),
)
_teach("int", f"[-+]?{_DIGITS}|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789", _Loader.construct_int)
_teach(
    "float",
    rf"[-+]?(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "-+.0123456789",
    _Loader.construct_float,
)
_Loader.add_implicit_resolver(f"{_PLACE}merge", re.compile("<<$"), ["<"])
_teach("str", "", None, _Loader.construct_yaml_str)
_teach("seq", "", None, _Loader.construct_yaml_seq)
_teach("map", "", None, _Loader.construct_yaml_map)
_Loader.add_constructor(None, _Loader.construct_undefined)
