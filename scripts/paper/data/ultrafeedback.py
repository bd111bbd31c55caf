"""10,000 prompts of UltraFeedback, each with its best-rated response, for Table 3 (section 4.3.1)
→ data/ultrafeedback/train_10k.jsonl, with prompt and completion.

    python -m scripts.paper.data.ultrafeedback

The paper takes "the response with the highest average score": GPT-4's mean rating of four aspects, which the data set
calls `fine-grained_score` (its `overall_score` is one more rating, no average); of equal ones, the first. It does not
say which 10,000 prompts: here, seed 0 over the six files in the order of their names. The prompt is the instruction
alone, without the system prompt under which the responses were made.
"""

from scripts.paper.data.derive import Derived, each, main
from scripts.paper.data.rows import Row, filled
from scripts.paper.data.sources import Hub

FILES = ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")
_SCORE = "fine-grained_score"


def best(row: Row) -> Row | str:
    """The prompt of a row and its best-rated response."""
    if not filled(row, "instruction"):
        return "no instruction"
    rated = [told for told in row["completions"] if told.get(_SCORE) is not None and filled(told, "response")]
    if not rated:
        return f"no response with a {_SCORE}"
    top = max(rated, key=lambda completion: completion[_SCORE])
    about = {"source": row["source"], "model": top["model"], "score": top[_SCORE]}
    return {"prompt": row["instruction"], "completion": top["response"], **about}


ULTRAFEEDBACK = Derived(
    name="ultrafeedback",
    folder="data/ultrafeedback",
    file="train_10k.jsonl",
    source=Hub(
        "openbmb/UltraFeedback",
        tuple(f"{name}.jsonl" for name in FILES),
        "40b436560ca83a8dba36114c22ab3c66e43f6d5e",
    ),
    columns=("source", "instruction", "completions"),
    convert=each(best),
    rows=10_000,
)

if __name__ == "__main__":
    raise SystemExit(main(ULTRAFEEDBACK, __doc__))
