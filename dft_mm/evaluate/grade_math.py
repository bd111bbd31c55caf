"""Is the final answer of a response the gold one? Extraction, exact comparison, then math-verify in a child process."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dft_mm.evaluate.mathematics import text as math_text
from dft_mm.evaluate.mathematics.worker import MathWorker, Verdict
from dft_mm.evaluate.task import Grade, Status

T = TypeVar("T")
U = TypeVar("U")
_WAIT_S = 9.0
"""`grade` promises an end within 10 s."""

_LONGEST = 500
"""Characters that a final answer may have, beside four times the gold one's."""
_STATUS: dict[Verdict, Status] = {
    "equal": "correct", "different": "wrong", "bad_gold": "ungradable", "timeout": "timeout",
}  # fmt: skip
_DETAIL: dict[Status, str] = {
    "ungradable": "the gold answer is empty or cannot be read",
    "timeout": "the comparison ran out of time or memory",
}


_shared: dict[int, MathWorker] = {}
_shared_lock = threading.Lock()


def grade(response: str, gold: str, finish_reason: str = "stop") -> Grade:
    """Grade one response. Never raises for any text, and ends within 10 s."""
    return _grade(_shared_worker(), response, gold, finish_reason, _WAIT_S)


def _shared_worker() -> MathWorker:
    with _shared_lock:
        pid = os.getpid()  # a forked process must not talk through its parent's pipes
        if pid not in _shared:
            _shared[pid] = MathWorker()
        return _shared[pid]


class Grader:
    """Grades many responses over a few child processes, in order."""

    def __init__(self, processes: int = 2) -> None:
        self._workers = [MathWorker() for _ in range(processes)]

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    def grade_all(
        self, items: Sequence[tuple[str, str, str]], tolerances: Sequence[float] | None = None
    ) -> Iterator[Grade]:
        """Grades of (response, gold, finish_reason), in their order, as they become known.

        `tolerances`: how far a number may be from the gold one where the benchmark says so; 0 where it does not.
        """

        def one(worker: MathWorker, item: tuple[tuple[str, str, str], float]) -> Grade:
            return _grade(worker, *item[0], wait_s=None, tolerance=item[1])

        return self._each(one, list(zip(items, tolerances or [0.0] * len(items), strict=True)))

    def official_all(self, items: Sequence[tuple[str, str]], keep_units: bool = False) -> Iterator[bool]:
        """Verdicts of Qwen2.5-Math's own rules on (response, gold); see `mathematics.official`."""
        return self._each(lambda worker, item: worker.official(*item, keep_units), items)

    def _each(self, work: Callable[[MathWorker, T], U], items: Sequence[T]) -> Iterator[U]:
        idle = list(self._workers)  # as many threads as workers: there is always one for a thread that starts a task

        def one(item: T) -> U:
            worker = idle.pop()
            try:
                return work(worker, item)
            finally:
                idle.append(worker)

        with ThreadPoolExecutor(len(self._workers)) as pool:
            yield from pool.map(one, items)


def _grade(
    worker: MathWorker, response: str, gold: str, finish_reason: str, wait_s: float | None, tolerance: float = 0.0
) -> Grade:
    extracted = math_text.extract(response)
    if extracted is None:
        return Grade("truncated" if finish_reason == "length" else "no_answer", None)
    status = _compare(worker, extracted, gold, wait_s)
    if status == "wrong" and tolerance and math_text.within(gold, extracted, tolerance):
        return Grade("correct", extracted, f"within {tolerance:g} of the gold answer, as the benchmark allows")
    return Grade(status, extracted, _DETAIL.get(status, ""))


def _compare(worker: MathWorker, answer: str, gold: str, wait_s: float | None) -> Status:
    clean_gold, clean_answer = math_text.clean(gold), math_text.clean(answer)
    gold_key, answer_key = math_text.squash(clean_gold), math_text.squash(clean_answer)
    if not gold_key:
        return "ungradable"
    if gold_key == answer_key:
        return "correct"
    if len(gold_key) == 1 and gold_key.isupper():
        return "correct" if math_text.choice(answer) == gold_key else "wrong"
    gold_number, answer_number = math_text.number(gold_key), math_text.number(answer_key)
    if gold_number is not None and answer_number is not None:
        same = math_text.same_number(gold_number, answer_number, answer_key)
        return "correct" if same else "wrong"
    if (differ := math_text.bases_differ(gold_key, answer_key)) is not None:
        return "wrong" if differ else "correct"
    if math_text.is_words(gold_key):
        return "wrong"
    if len(clean_answer) > _LONGEST + 4 * len(clean_gold):
        return "wrong"  # a model that repeats itself without end: nothing a parser should spend seconds on
    verdict = worker.compare(clean_gold, clean_answer, wait_s)
    return _STATUS[verdict]
