"""Benchmark questions that stand in the training data: rows that share 13 words in a row with one of them.

Thirteen words are the usual measure of contamination since GPT-3 (arXiv 2005.14165, appendix C).
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

WORDS = 13
_WORD = re.compile(r"\w+")


def ngrams(text: str) -> Iterator[int]:
    """A 64-bit hash of every 13 words in a row, case and punctuation aside; of a shorter text none."""
    words = _WORD.findall(text.casefold())
    for start in range(len(words) - WORDS + 1):
        digest = hashlib.blake2b(" ".join(words[start : start + WORDS]).encode("utf-8", "replace"), digest_size=8)
        yield int.from_bytes(digest.digest(), "big")


class Benchmarks:
    """The questions of benchmark files, ready to be looked for."""

    def __init__(self, questions: Iterable[tuple[str, str]]) -> None:
        """`questions`: (name, text) pairs; a shorter one than 13 words cannot be found, and counts in `short`."""
        self._names: list[str] = []
        self._where: dict[int, int] = {}
        self.short = 0
        for name, text in questions:
            grams = list(ngrams(text))
            self.short += not grams
            for gram in grams:
                self._where.setdefault(gram, len(self._names))
            self._names.append(name)
        self.fingerprint = hashlib.sha256(repr((self._names, sorted(self._where))).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def find(self, texts: Sequence[str]) -> str | None:
        """Name of the first question that shares 13 words in a row with one of the texts."""
        hits = (self._where.get(gram) for text in texts for gram in ngrams(text))
        return next((self._names[hit] for hit in hits if hit is not None), None)
