"""Questions for the offline setting (section 4.2.1) → data/numinamath/questions_100k.jsonl, with id, problem and
answer, as `dft-mm sample --questions` takes them.

    python -m scripts.paper.data.numinamath
    python -m scripts.paper.data.questions

The paper samples answers to 100,000 mathematics questions and does not say whose: here, those of the rows that Table 1
learns from. The answer is the final one of the solution; rows whose solution states none, such as proofs, are left out.
The id is the number of the row, from 1.
"""

from collections.abc import Iterable, Iterator

from scripts.paper.data.derive import Derived, Place, main
from scripts.paper.data.rows import Row
from scripts.paper.data.sources import Made


def asked(rows: Iterable[Row], place: Place) -> Iterator[Row | str]:
    """A question of each row with a final answer."""
    from dft_mm.evaluate.mathematics.text import extract

    for number, row in enumerate(rows, 1):
        answer = extract(row["solution"])
        yield {"id": str(number), "problem": row["problem"], "answer": answer} if answer else "no final answer"


QUESTIONS = Derived(
    name="questions",
    folder="data/numinamath",
    file="questions_100k.jsonl",
    source=Made("numinamath", "data/numinamath", ("train_100k.jsonl",)),
    columns=("problem", "solution"),
    convert=asked,
)

if __name__ == "__main__":
    raise SystemExit(main(QUESTIONS, __doc__))
