"""Small tables in VLMEvalKit's three layouts with pictures drawn here, asked and graded by us and by VLMEvalKit."""

import base64
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

from asked import load_questions
from PIL import Image

from dft_mm.evaluate.benchmark import BenchmarkConfig
from dft_mm.evaluate.task import Answer, Scoring
from dft_mm.evaluate.tasks.registry import TASKS


def picture(colour: str, size: tuple[int, int] = (40, 30)) -> str:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, "PNG")
    drawn = Image.open(file)
    drawn.paste(Image.new("RGB", (10, 10), colour))
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def mathvision() -> list[dict]:
    rows = [
        ("4", "How many? <image1>", "[]", "6", "counting"),
        ("7", "Which colour? <image1>", "['red', 'blue', 'green']", "B", "logic"),
        ("9", "Which picture? <image1>", "['A', 'B', 'C', 'D', 'E']", "D", "logic"),
        ("12", "What part? <image1>", "[]", "0.5", "arithmetic"),
    ]
    names = ("index", "question", "choices", "answer", "category")
    return [dict(zip(names, row)) | {"image": picture("red"), "id": row[0], "level": "1"} for row in rows]


def mathverse() -> list[dict]:
    versions = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
    rows = []
    for problem, (answer, kind, below) in enumerate(
        [("(0,0)", "free-form", ""), ("B", "multi-choice", "\nChoices:\nA:$10$\nB:$20$\nC:$30$")]
    ):
        for number, version in enumerate(versions, 5 * problem + 1):
            text = f"Problem {problem}{below}"
            rows.append(
                {
                    "index": str(number), "problem_index": str(problem), "problem_version": version,
                    "question": "" if version == "Vision Only" else text, "answer": answer, "question_type": kind,
                    "metadata": "{'split': 'testmini', 'subject': 'Plane Geometry', 'subfield': 'Angle'}",
                    "query_wo": f"Please directly answer. {'' if version == 'Vision Only' else text}",
                    "query_cot": f"Please first reason. {text}", "question_for_eval": text, "image": picture("blue"),
                }
            )  # fmt: skip
    return rows


def wemath() -> list[dict]:
    rows = []
    for steps, group in (("2", "2steps_1"), ("2", "2steps_2"), ("3", "3steps_1")):
        for part in [*map(str, range(1, int(steps) + 1)), "multi"]:
            rows.append(
                {
                    "index": str(len(rows) + 1), "ID": group, "key": f"{steps}steps_{part}",
                    "question": f"Part {part}?",
                    "A": "300, 400", "B": "3 m", "C": "No correct answer", "D": "", "answer": "ABC"[len(rows) % 3],
                    "knowledge concept": "Understanding Angles (Using a Protractor)",
                    "requirement": "<Answer>: <<your option>>", "image": picture("green"),
                }
            )  # fmt: skip
    return rows


TABLES = {"mathvision": mathvision, "mathverse": mathverse, "wemath": wemath}


def write_table(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0].keys(), delimiter="\t")
        table.writeheader()
        table.writerows(rows)
    return path


SAMPLES = {"mathvision": "MathVision_SAMPLE", "mathverse": "MathVerse_SAMPLE", "wemath": "WeMath_SAMPLE"}


def direct(folder, kind, tsv, predictions, **more):
    """What VLMEvalKit gives by itself."""
    folder.mkdir()
    asked = {"kind": kind, "tsv": str(tsv), "predictions": predictions, "result": str(folder / "r.json"), **more}
    script = Path(__file__).parent / "evaluate/vlmevalkit/direct.py"
    command = [sys.executable, str(script)]
    subprocess.run(command, input=json.dumps(asked).encode(), cwd=folder, check=True, capture_output=True)
    return json.loads((folder / "r.json").read_text())


def in_fractions(kind, result):
    """Its tables as the names and values that ours has."""
    table = result["table"]
    if kind == "mathvision":
        return {row["Subject"]: row["acc"] / 100 for row in table}
    if kind == "mathverse":
        overall = {"Overall": sum(result["score"]) / len(result["score"])}
        return overall | {row["split"]: row["Overall"] / 100 for row in table}
    cells = {name: str(cell).split("%")[0] for name, cell in table[0].items() if name != "Model"}
    return {name: float(cell) / 100 for name, cell in cells.items() if cell != "nan"}


def ask(kind, data, work, **more):
    return load_questions(kind, data, work=work, **more)


_SAMPLED = {}


def sampled(kind, shared, factory):
    """A table of real questions, and its questions; read once for all tests."""
    if kind not in _SAMPLED:
        tsv = shared / "data/vlmevalkit_tsv" / f"{SAMPLES[kind]}.tsv"
        _SAMPLED[kind] = tsv, ask(kind, tsv, factory.mktemp("sampled"))
    return _SAMPLED[kind]


def drawn(kind, factory):
    """Questions of the table that is drawn here, likewise."""
    key = f"drawn {kind}"
    if key not in _SAMPLED:
        folder = factory.mktemp("drawn")
        _SAMPLED[key] = ask(kind, write_table(folder / "my_cot_COT.tsv", TABLES[kind]()), folder)
    return _SAMPLED[key]


def grade(kind, questions, texts, work, finish="stop", samples=1, **more):
    """`texts`: by question, or by question and sample."""
    bench = BenchmarkConfig.model_validate({"task": kind, "data": "-", **more})
    answers = []
    for question, text in zip(questions, texts, strict=True):
        for number, each in enumerate([text] if isinstance(text, str) else text):
            answers.append(Answer(question, number, each, finish))
    return TASKS[kind].score(answers, Scoring(bench, work))


def in_turn(questions):
    """Two right answers, then a wrong one, in texts that VLMEvalKit needs a judge to read."""
    right = {question.id: number % 3 != 1 for number, question in enumerate(questions)}
    said = {
        q.id: q.gold if right[q.id] else "987654" if not q.gold.isalpha() else "B" if q.gold == "A" else "A"
        for q in questions
    }
    return right, {
        q.id: f"It is \\boxed{{{said[q.id]}}} that we come to, as all of the above has shown beyond any doubt."
        for q in questions
    }
