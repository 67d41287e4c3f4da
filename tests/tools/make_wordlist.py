"""Count the words of a text collection.

    python tests/tools/make_wordlist.py TRAIN.jsonl degradation/assets/words_en.txt

Reads JSON lines with the key `text`, splits them as `text_words.words` does, and writes every word that occurs at least
twice: one line for each count, the most frequent first, `count<TAB>word word word`.
"""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

from frankenlm.degradation.measures.text_words import words

AT_LEAST = 2


def count_words(lines) -> Counter:
    counts: Counter = Counter()
    for line in lines:
        counts.update(words(json.loads(line)["text"]))
    return counts


def word_list(counts: Counter) -> str:
    """Return the file: the number of words counted in the first line, then the words by falling count."""
    by_count = defaultdict(list)
    for word, count in counts.items():
        if count >= AT_LEAST and word.isascii() and not any(character.isdigit() for character in word):
            by_count[count].append(word)
    lines = [f"{count}\t{' '.join(sorted(by_count[count]))}" for count in sorted(by_count, reverse=True)]
    return "\n".join([f"total\t{counts.total()}", *lines]) + "\n"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    with source.open(encoding="utf-8") as lines:
        target.write_text(word_list(count_words(lines)), encoding="utf-8")
