"""OpenR1-Math-220k as LUFFY filtered it, for Table 7 (appendix A.6) → data/openr1/train.jsonl, with problem, solution
(the trace of DeepSeek-R1) and answer.

    python -m scripts.paper.data.openr1

LUFFY (github.com/ElliottYan/LUFFY, luffy/scripts/data/prepare_openr1_data_v6.py) goes through the 93,733 problems of
the configuration `default`. Of a problem's traces it keeps those that math-verify found right, by the data set's column
`correctness_math_verify`, and that are complete (`is_reasoning_complete`); of these the ones of at most 8192 tokens; of
these the first. About 45,000 problems remain (Elliott/Openr1-Math-46k-8192).

Ours: LUFFY counts tokens by a tokenizer that it made of Qwen2.5-1.5B-Instruct's, here they are Qwen2.5's, so a trace at
the limit may fall on the other side. LUFFY's system prompt is left out, for the paper does not say that it was used.
`--regrade` has this package's grader verify the traces once more, and leaves out those that it does not find right.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from scripts.paper.data.derive import Derived, Place, parser, run
from scripts.paper.data.rows import Row
from scripts.paper.data.sources import Hub

if TYPE_CHECKING:
    from dft_mm.evaluate.grade_math import Grader

LONGEST = 8192
"""Tokens of a trace."""
_BATCH = 256  # rows whose traces are graded together


def verified(row: Row) -> list[str]:
    """The traces that are complete, and right by the data set's own column."""
    told = zip(row["generations"], row["correctness_math_verify"], row["is_reasoning_complete"], strict=True)
    return [trace for trace, right, complete in told if right and complete]


def filtered(rows: Iterable[Row], place: Place, grader: "Grader | None" = None) -> Iterator[Row | str]:
    """Each problem with its first trace that is verified and short enough."""
    rows = iter(rows)
    while batch := list(islice(rows, _BATCH)):
        traces = [verified(row) for row in batch]
        right = traces if grader is None else list(_right(grader, batch, traces))
        for row, before, left in zip(batch, traces, right):
            short = (trace for trace in left if _tokens(trace) <= LONGEST)
            trace = next(short, None)
            yield _why(before, left) if trace is None else _made(row, trace)


def _tokens(trace: str) -> int:
    return len(_tokenizer().tokenize(trace))


@cache
def _tokenizer() -> Any:
    from dft_mm.model.builtin import qwen_tokenizer

    return qwen_tokenizer()


def _right(grader: "Grader", rows: Sequence[Row], traces: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Of each row's traces those whose final answer our grader finds right."""
    grades = grader.grade_all([(trace, row["answer"], "stop") for row, own in zip(rows, traces) for trace in own])
    for own in traces:
        yield [trace for trace, grade in zip(own, islice(grades, len(own))) if grade.status == "correct"]


def _made(row: Row, trace: str) -> Row:
    about = {"id": row["uuid"], "source": row["source"]}
    return {**about, "problem": row["problem"], "solution": trace, "answer": row["answer"]}


def _why(verified: Sequence[str], right: Sequence[str]) -> str:
    """Why no trace is left, of those that were verified and of these the right ones."""
    if right:
        return f"no right trace of at most {LONGEST} tokens"
    return "no trace that our grader finds right" if verified else "no complete trace that math-verify found right"


OPENR1 = Derived(
    name="openr1",
    folder="data/openr1",
    file="train.jsonl",
    source=Hub(
        "open-r1/OpenR1-Math-220k",
        tuple(f"data/train-{number:05}-of-00010.parquet" for number in range(10)),
        "e4e141ec9dea9f8326f4d347be56105859b2bd68",
    ),
    columns=(
        "uuid", "source", "problem", "answer", "generations", "correctness_math_verify", "is_reasoning_complete",
    ),
    convert=filtered,
    settings={"longest": LONGEST, "regrade": False},
)  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    told = parser(OPENR1, __doc__)
    told.add_argument("--regrade", action="store_true", help="verify the traces with this package's grader, too")
    told.add_argument("--processes", type=int, default=2, metavar="N", help="of --regrade (default: 2)")
    return told


def main(words: Sequence[str] | None = None) -> int:
    given = arguments().parse_args(words)
    if not given.regrade:
        return run(OPENR1, given)
    from dft_mm.evaluate.grade_math import Grader

    with Grader(given.processes) as grader:
        settings = {**OPENR1.settings, "regrade": True}
        return run(replace(OPENR1, convert=partial(filtered, grader=grader), settings=settings), given)


if __name__ == "__main__":
    raise SystemExit(main())
