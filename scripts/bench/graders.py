"""Graders of mathematics beside each other, on real model outputs with the verdicts of the harnesses they came from.

    python scripts/bench/graders.py --data FOLDER [--out graders.json]

FOLDER holds `math_cot_60.jsonl` (Qwen2.5-Math), `mathvision/` (MATH-V) and `geoqa_qwen2vl_7b_grpo.json` (R1-V), each as
its authors publish it. Three graders read every output: ours, the rules of Qwen2.5-Math's script, and math-verify as it
comes. Where one of them and the upstream verdict disagree about ours, a person decided who is right: those decisions
stand in adjudicated.json, and a disagreement that nobody decided ends the run with exit code 1.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from string import ascii_uppercase

from dft_mm.evaluate.grade_math import Grader
from dft_mm.evaluate.mathematics.choices import grade_choices
from dft_mm.evaluate.task import RIGHT

DECISIONS = Path(__file__).with_name("adjudicated.json")
MODELS = ("gemini-pro-cot", "internlm-xcomposer2-vl-cot", "qwen-vl-max-cot")


@dataclass(frozen=True)
class Output:
    source: str
    id: str
    response: str
    gold: str
    options: dict[str, str]
    upstream: bool


def outputs(folder: Path) -> Iterator[Output]:
    for row in _lines(folder / "math_cot_60.jsonl"):
        for number, (text, verdict) in enumerate(zip(row["code"], row["score"])):
            yield Output("math_cot", f"{row['idx']}/{number}", text, row["gt"], {}, bool(verdict))
    questions = {row["id"]: row for row in _lines(folder / "mathvision/questions.jsonl")}
    for model in MODELS:
        for row in _lines(folder / f"mathvision/{model}.jsonl"):
            question = questions.get(row["id"])
            if question and isinstance(row["response"], str):
                options = dict(zip(ascii_uppercase, question["options"]))
                verdict = bool(row["correct"])
                yield Output(model, row["id"], row["response"], question["answer"], options, verdict)
    rows = json.loads((folder / "geoqa_qwen2vl_7b_grpo.json").read_text(encoding="utf-8"))
    for number, row in enumerate(rows):
        yield Output("geoqa", str(number), row["model_output"], str(row["ground_truth"]), {}, bool(row["is_correct"]))


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def ours(grader: Grader, rows: list[Output]) -> list[bool]:
    choices = [row for row in rows if row.options]
    plain = [row for row in rows if not row.options]
    graded = dict(
        zip(map(id, choices), grade_choices(grader, [(r.response, r.gold, r.options, "stop") for r in choices]))
    )
    graded |= dict(zip(map(id, plain), grader.grade_all([(row.response, row.gold, "stop") for row in plain])))
    return [graded[id(row)].status in RIGHT for row in rows]


def math_verify_alone(rows: list[Output]) -> list[bool]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

    numbers = (LatexExtractionConfig(), ExprExtractionConfig())  # its defaults
    letters = (StringExtractionConfig(strings=tuple("ABCDE")), *numbers)

    # Its own time limits are on; what raises counts as it would for somebody who calls it in a loop: as not equal.
    def one(row: Output) -> bool:
        try:
            if row.gold in ascii_uppercase:
                return bool(verify(parse(row.gold, letters), parse(row.response, letters)))
            return bool(verify(parse(f"${row.gold}$", numbers), parse(row.response, numbers)))
        except Exception as error:
            print(f"math-verify: {row.source} {row.id}: {type(error).__name__}", file=sys.stderr)
            return False

    return [one(row) for row in rows]


def figures(verdicts: list[bool], rows: list[Output], truth: list[bool]) -> dict[str, float]:
    right, wrong = sum(truth), len(truth) - sum(truth)
    return {
        "agrees_with_upstream": sum(v == row.upstream for v, row in zip(verdicts, rows)) / len(rows),
        "right_rejected": sum(t and not v for v, t in zip(verdicts, truth)) / max(right, 1),
        "wrong_accepted": sum(v and not t for v, t in zip(verdicts, truth)) / max(wrong, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = list(outputs(arguments.data))
    with Grader() as grader:
        verdicts = {
            "dft_mm": ours(grader, rows),
            "Qwen2.5-Math's rules": list(grader.official_all([(row.response, row.gold) for row in rows])),
        }
    verdicts["math-verify alone"] = math_verify_alone(rows)
    decided = {(row["source"], row["id"]): row for row in json.loads(DECISIONS.read_text(encoding="utf-8"))}
    truth = [bool(decided.get((row.source, row.id), {"right": row.upstream})["right"]) for row in rows]
    undecided = []
    for row, verdict in zip(rows, verdicts["dft_mm"]):
        if verdict != row.upstream:
            decision = decided.get((row.source, row.id))
            undecided += [] if decision else [row]
            who = "nobody decided" if decision is None else "ours" if decision["right"] == verdict else "upstream"
            why = decision["why"] if decision else repr(row.response[-160:])
            said = "right" if row.upstream else "wrong"
            print(f"{row.source} {row.id}: upstream says {said}; who is right: {who}; gold {row.gold!r}: {why}")
    names = (*dict.fromkeys(row.source for row in rows), "all")
    table = {
        name: {
            grader: figures(*_select(name, rows, each, truth)) | {"n": len(_select(name, rows, each, truth)[0])}
            for grader, each in verdicts.items()
        }
        for name in names
    }
    table["all"]["upstream"] = figures([row.upstream for row in rows], rows, truth) | {"n": len(rows)}
    print(f"\n{'outputs':28} {'grader':22} {'n':>5} {'agrees':>8} {'right rejected':>15} {'wrong accepted':>15}")
    for name, graders in table.items():
        for grader, each in graders.items():
            shares = (each["agrees_with_upstream"], each["right_rejected"], each["wrong_accepted"])
            shown = "{:>8.1%} {:>15.1%} {:>15.1%}".format(*shares)
            print(f"{name:28} {grader:22} {each['n']:>5} {shown}")
    if arguments.out:
        versions = {package: version(package) for package in ("math-verify", "latex2sympy2-extended", "sympy")}
        result = {"table": table, "versions": versions, "undecided": [asdict(row) for row in undecided]}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if undecided else 0


def _select(
    name: str, rows: list[Output], verdicts: list[bool], truth: list[bool]
) -> tuple[list[bool], list[Output], list[bool]]:
    kept = [each for each in zip(verdicts, rows, truth) if name in ("all", each[1].source)]
    return tuple(map(list, zip(*kept)))


if __name__ == "__main__":
    sys.exit(main())
