"""100,000 rows of NuminaMath-CoT for Table 1 (section 4.1.1) → data/numinamath/train_100k.jsonl, its columns kept.

    python -m scripts.paper.data.numinamath

The paper draws 100,000 rows at random and does not say which: here, seed 0. The authors' released script
(github.com/yongliang-wu/DFT, verl/examples/data_preprocess/numina_cot.py) takes the first 100,000 instead:

    python -m scripts.paper.data.numinamath --draw first
"""

from scripts.paper.data.derive import Derived, each, main
from scripts.paper.data.rows import Row, filled
from scripts.paper.data.sources import Hub


def learnable(row: Row) -> Row | str:
    """The row itself, if there is something to ask and to learn."""
    empty = [column for column in ("problem", "solution") if not filled(row, column)]
    return f"no {empty[0]}" if empty else row


NUMINAMATH = Derived(
    name="numinamath",
    folder="data/numinamath",
    file="train_100k.jsonl",
    source=Hub(
        "AI-MO/NuminaMath-CoT",
        tuple(f"data/train-{number:05}-of-00005.parquet" for number in range(5)),
        "9d8d210c9f6a36c8f3cd84045668c9b7800ef517",
    ),
    columns=("source", "problem", "solution", "messages"),
    convert=each(learnable),
    rows=100_000,
)

if __name__ == "__main__":
    raise SystemExit(main(NUMINAMATH, __doc__))
