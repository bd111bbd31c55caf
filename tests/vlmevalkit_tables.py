"""Small tables in VLMEvalKit's three layouts, with pictures drawn here."""

import base64
import csv
import io
from pathlib import Path

from PIL import Image


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
