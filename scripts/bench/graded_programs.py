"""Our verdicts on published outputs of Qwen2.5-Coder-1.5B beside the ones that the benchmarks' own harness gave.

python scripts/bench/graded_programs.py [--data ../shared/data] [--only humaneval …]  → a table, and every disagreement.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.task import Answer, Scoring
from dft_mm.evaluate.tasks.registry import TASKS

MULTIPL_E = ("cpp", "js", "php", "sh")
NAMES = ("humaneval", "humaneval_plus_mini", "humaneval_plus", *MULTIPL_E)


@dataclass(frozen=True)
class Graded:
    """A benchmark's file, and by id an answer and whether its harness passed it, with its words."""

    task: str
    file: Path
    answers: Mapping[str, tuple[str, bool, str]]


def graded(name: str, data: Path) -> Graded:
    if name in MULTIPL_E:
        file = data / "multipl_e" / f"humaneval-{name}.jsonl"
        return Graded("multipl_e", file, dict(_multipl_e(data, name, file)))
    folder = data / "graded_outputs" / "humaneval_qwen25coder_1.5b"
    verdicts = json.loads((folder / "generated_eval_results.json").read_text())["eval"]
    kind = "base_status" if name == "humaneval" else "plus_status"
    answers = {}
    for row in map(json.loads, (folder / "generated.jsonl").read_text().splitlines()):
        verdict = verdicts[row["task_id"]][0]
        passed = verdict["base_status"] == verdict[kind] == "pass"
        answers[row["task_id"]] = row["completion"], passed, verdict[kind]
    file = {
        "humaneval": data / "humaneval" / "HumanEval.jsonl",
        "humaneval_plus_mini": data / "humaneval_plus" / "HumanEvalPlus-Mini.jsonl",
        "humaneval_plus": data / "humaneval_plus" / "HumanEvalPlus.jsonl",
    }[name]
    return Graded("humaneval" if name == "humaneval" else "humaneval_plus", file, answers)


def _multipl_e(data: Path, name: str, file: Path) -> Iterator[tuple[str, tuple[str, bool, str]]]:
    """What the model wrote stands in the recorded program between prompt and tests."""
    rows = {row["name"]: row for row in map(json.loads, file.read_text().splitlines())}
    path = data / "graded_outputs" / "multipl_e_qwen25coder_1.5b" / f"humaneval-{name}-details.json"
    for key, samples in json.loads(path.read_text()).items():
        record = samples[0][1]
        if key in rows:
            body = record["code"].partition(rows[key]["prompt"])[2].rpartition(rows[key]["tests"].strip())[0]
            yield key, (body, record["passed"], record["result"])


@dataclass(frozen=True)
class Disagreement:
    id: str
    theirs: str
    ours: str
    detail: str


def compare(name: str, data: Path, work: Path, limit: int | None = None) -> tuple[int, list[Disagreement]]:
    """How many answers both have judged, and the ones on which they differ."""
    found = graded(name, data)
    bench = BenchmarkConfig(
        task=found.task, data=str(found.file), prompt="code_completion" if name in MULTIPL_E else None
    )
    task = TASKS[bench.task]
    questions = [each for each in task.load(bench, work) if each.id in found.answers][:limit]
    answers = [Answer(each, 0, found.answers[each.id][0], "stop") for each in questions]
    grades = task.score(answers, Scoring(bench, work)).grades
    differ = []
    for question, grade in zip(questions, grades, strict=True):
        _, passed, words = found.answers[question.id]
        if passed != (grade.status == "passed"):
            theirs = "passed" if passed else f"not passed: {' '.join(words.split())[:100]}"
            differ.append(Disagreement(question.id, theirs, grade.status, grade.detail))
    return len(questions), differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    arguments = parser.parse_args()
    for name in arguments.only:
        number, differ = compare(name, arguments.data, Path("work"))
        print(f"{name}: {number - len(differ)} of {number} verdicts agree", flush=True)
        for each in differ:
            print(f"    {each.id}: theirs {each.theirs}; ours {each.ours}: {each.detail}", flush=True)


if __name__ == "__main__":
    main()
