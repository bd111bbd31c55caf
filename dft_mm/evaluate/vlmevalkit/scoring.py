"""MathVision, MathVerse and WeMath in VLMEvalKit's own tables.

VLMEvalKit judges and tabulates in a child process. The default judge is our own grader, whose verdicts are put where
VLMEvalKit keeps those of an earlier run.
"""

import ast
import json
import re
import shutil
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import EndpointJudge
from dft_mm.evaluate.grade_math import Grader
from dft_mm.evaluate.mathematics.choices import grade_choices, options_of
from dft_mm.evaluate.task import NOT_SCORED, RIGHT, Answer, Grade, Scored, Scoring
from dft_mm.evaluate.vlmevalkit import metrics
from dft_mm.evaluate.vlmevalkit.kit import writable
from dft_mm.evaluate.vlmevalkit.process import JudgeDown, judge_key, run

JUDGE_DEADLINE_S = 60.0
"""Within this a judge answers a request, retries included; else it counts as failed."""
JUDGE_THREADS = 8
_MOST_FAILED = 0.1
"""Share of rows without a judge's verdict above which there is no score."""


def score(kind: str, answers: Sequence[Answer], scoring: Scoring) -> Scored:
    """Judge all answers, then let VLMEvalKit tabulate each sample alone; a metric is the mean over samples."""
    if not answers:
        return Scored([], {})
    benchmark = _Scoring(kind, answers, scoring)
    judge = scoring.bench.judge
    if isinstance(judge, EndpointJudge):
        grades = benchmark.by_endpoint(judge)
    elif judge == "exact":
        grades = benchmark.by_exact_matching()
    else:
        grades = benchmark.by_rule()
    return benchmark.tabulate(grades)


class _Scoring:
    """One benchmark's answers, as samples of questions."""

    def __init__(self, kind: str, answers: Sequence[Answer], scoring: Scoring) -> None:
        self.kind, self.answers, self.scoring = kind, answers, scoring
        self.questions = list({answer.question.id: answer.question for answer in answers}.values())
        self.samples = len(answers) // len(self.questions)
        self.found: list[dict[str, Any]] = []
        """What VLMEvalKit made of each sample, where it judged."""
        self.folder = scoring.work / "vlmevalkit"
        # Tables that are there are taken for verdicts on these answers: none may be left of other ones.
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def _sample(self, number: int) -> list[Answer]:
        return list(self.answers[number :: self.samples])

    def by_rule(self) -> list[Grade]:
        """Our own grader: letters and option texts, or mathematical equality."""
        rows = [answer.question.about["row"] for answer in self.answers]
        options = [_options(self.kind, row) for row in rows]
        grades: list[Grade | None] = [None] * len(rows)
        choice = [place for place, found in enumerate(options) if found is not None]
        free = [place for place, found in enumerate(options) if found is None]
        with Grader() as grader:
            items = [(self.answers[place], options[place] or {}) for place in choice]
            graded = grade_choices(
                grader, [(each.text, each.question.gold, found, each.finish_reason) for each, found in items]
            )
            for place, grade in zip(choice, graded):
                grades[place] = grade
            self.scoring.advance(len(choice))
            golds = [(place, gold) for place in free for gold in _golds(self.answers[place].question.gold)]
            texts = [(self.answers[place].text, gold, self.answers[place].finish_reason) for place, gold in golds]
            for (place, gold), grade in zip(golds, grader.grade_all(texts)):
                if grades[place] is None or grade.status == "correct":
                    grades[place] = grade
                self.scoring.advance(int(gold == self.answers[place].question.gold))
        return [grade for grade in grades if grade is not None]

    def by_exact_matching(self) -> list[Grade]:
        """WeMath's own: the first letter after the last word `Answer`."""
        grades: list[Grade] = [Grade("wrong", None)] * len(self.answers)
        for number in range(self.samples):
            sample = self._sample(number)
            found = self._child(sample, self.folder / f"exact-{number}")
            for place, answer in enumerate(sample):
                read, right = found["judged"][str(place)]["processed_answer"], found["verdict"][str(place)]
                nothing = "truncated" if answer.finish_reason == "length" else "no_answer"
                status = "correct" if right else "wrong" if read else nothing
                grades[place * self.samples + number] = Grade(status, read)
                found["judged"][str(place)] = {"hit": int(right), "log": f"exact matching: {read}"}
            self.found.append(found)
            self.scoring.advance(len(sample))
        return grades

    def by_endpoint(self, judge: EndpointJudge) -> list[Grade]:
        """VLMEvalKit's prompts, put to a model behind a URL. Raises InputError for one that does not do its work."""
        grades: list[Grade] = [Grade("wrong", None)] * len(self.answers)
        failed: dict[int, str] = {}
        for number in range(self.samples):
            sample = self._sample(number)
            blank = [place for place, answer in enumerate(sample) if not answer.text.strip()]
            self.scoring.advance(len(blank))
            found = self._child(sample, self.folder / f"judged-{number}", judge, blank)
            self.found.append(found)
            for place, answer in enumerate(sample):
                grade = _endpoint_grade(self.kind, answer, str(place), found)
                grades[place * self.samples + number] = grade
                if grade.status == "ungradable":
                    failed[place * self.samples + number] = grade.detail
        if len(failed) > _MOST_FAILED * len(self.answers):
            first = min(failed)
            raise self._judge_error(
                judge, len(failed), f"question {self.answers[first].question.id!r}: {failed[first]}"
            )
        return grades

    def _judge_error(self, judge: EndpointJudge, failed: int, why: str) -> InputError:
        return InputError(
            f"benchmark {self.scoring.bench.key}: the judge {judge.model} at {judge.url} gave no verdict on {failed} "
            f"of {len(self.answers)} answers ({why}). Nothing was scored and all answers are kept: run it again when "
            "the judge works, or with `judge: rule`, another --out and --replay of the generations.jsonl here"
        )

    def tabulate(self, grades: Sequence[Grade]) -> Scored:
        """VLMEvalKit's tables over all questions that could be scored."""
        kept = self._kept(grades)
        notes = []
        if not kept:
            return Scored(list(grades), {})
        rows = [self.questions[place].about["row"] for place in kept]
        right = np.array([[self._at(grades, place, n).status in RIGHT for n in range(self.samples)] for place in kept])
        tables, topics = [], {}
        for number in range(self.samples):
            if self.found and len(kept) == len(self.questions):
                found = self.found[number]
            else:
                sample = [self._at(self.answers, place, number) for place in kept]
                judged = [self._columns(grades, place, number) for place in kept]
                found = self._child(sample, self.folder / f"table-{number}", judged=judged)
            for position, place in enumerate(kept):
                if found["verdict"][str(position)] != right[position, number]:
                    answer = self._at(self.answers, place, number)
                    raise RuntimeError(
                        f"{self.scoring.bench.key}, question {answer.question.id!r}: VLMEvalKit's table says "
                        f"{found['verdict'][str(position)]} where the grade is {self._at(grades, place, number).status}"
                    )
            tables.append(found["table"])
            topics = found["topics"]
            notes += [_NO_COMPOUND_RIGHT] if found["own_counts"] else []
        if self.kind == "wemath":
            values = metrics.wemath(rows, right, tables, topics)
            headline = ("Score (Strict)", "Score (Loose)")
            if len(rows) != metrics.WEMATH_ROWS:
                headline = ("One-step(S1)", "Two-step(S2)", "Three-step(S3)")  # what a subset does not distort
                notes.append(
                    f"{len(rows)} of WeMath's {metrics.WEMATH_ROWS:,} questions are scored. VLMEvalKit divides by 525 "
                    "groups whatever is there: the scores are too high, and compare with no others."
                )
        elif self.kind == "mathverse":
            values = metrics.mathverse(rows, right, tables)
            headline = ("Vision Only", "Vision Intensive", "Vision Dominant", "Overall")
        else:
            values = metrics.mathvision(rows, right, tables)
            headline = ("Overall",)
        shown = tuple(name for name in headline if name in values)
        return Scored(list(grades), values, shown, tuple(dict.fromkeys(notes)))

    def _at(self, items: Sequence[Any], place: int, number: int) -> Any:
        return items[place * self.samples + number]

    def _kept(self, grades: Sequence[Grade]) -> list[int]:
        """Questions of which all answers could be scored; of WeMath whole groups, since a gap would count as right."""
        lost = {
            place
            for place in range(len(self.questions))
            if any(self._at(grades, place, number).status in NOT_SCORED for number in range(self.samples))
        }
        if self.kind == "wemath":
            groups = [self.questions[place].about["row"] for place in range(len(self.questions))]
            keys = [(row["key"].split("_")[0], row["ID"]) for row in groups]
            gone = {keys[place] for place in lost}
            lost = {place for place, key in enumerate(keys) if key in gone}
        return [place for place in range(len(self.questions)) if place not in lost]

    def _columns(self, grades: Sequence[Grade], place: int, number: int) -> Mapping[str, Any]:
        """A row's judged columns, as an earlier run of VLMEvalKit would have left them."""
        if self.found:
            return self.found[number]["judged"][str(place)]
        grade = self._at(grades, place, number)
        right, said = grade.status in RIGHT, f"rule: {grade.status}: {grade.extracted}"
        if self.kind == "mathvision":
            # Its table judges `res` once more: the gold text is sure to pass, and a letter that is no answer to fail.
            gold = self.questions[place].gold
            return {"res": gold if right else "Y" if gold.strip().upper() == "Z" else "Z", "log": said}
        if self.kind == "mathverse":
            return {"extract": grade.extracted or "", "log_extract": said, "score": right, "log_score": said}
        return {"hit": int(right), "log": said}

    def _child(
        self,
        sample: Sequence[Answer],
        folder: Path,
        judge: EndpointJudge | None = None,
        blank: Sequence[int] = (),
        judged: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """VLMEvalKit over one sample of rows, in a new folder; rows go by their place, not by the index of the user."""
        folder.mkdir()
        rows = [
            {**answer.question.about["row"], "index": place, "question_id": answer.question.id}
            | {"prediction": writable(answer.text)}
            for place, answer in enumerate(sample)
        ]
        seconds = 600 + (2000 if judge else 40) * len(rows)  # its comparisons may take 30 s each
        request = {
            "verb": "score", "kind": self.kind, "dataset": sample[0].question.about["dataset"], "rows": rows,
            "judged": _tables(self.kind, judged), "known": _known(self.kind, blank), "limit_s": seconds,
            "judge": None if judge is None else {
                "url": judge.url, "model": judge.model, "key": judge_key(self.scoring.bench),
                "deadline_s": JUDGE_DEADLINE_S, "threads": JUDGE_THREADS,
            },
        }  # fmt: skip
        try:
            return run(request, folder, seconds, network=judge is not None, advance=self.scoring.advance)
        except JudgeDown as down:
            if judge is None:
                raise
            done = len(self.found) * len(sample) + len(blank) + down.judged
            raise self._judge_error(judge, len(self.answers) - done, str(down)) from down


_NO_COMPOUND_RIGHT = (
    "No compound question was answered right. RoteMemorization, a share of those that were, has no value, and "
    "VLMEvalKit stops there; the other columns of groups are counted from its own verdicts."
)


def _options(kind: str, row: Mapping[str, Any]) -> dict[str, str] | None:
    """Options by letter; None for a question without any. MathVerse's may be unreadable: then letters alone count."""
    if kind == "wemath":
        return {letter: str(row[letter]) for letter in "ABCDEFGH" if row.get(letter) is not None}
    if kind == "mathvision":
        return dict(zip(string.ascii_uppercase, map(str, ast.literal_eval(row["choices"])))) or None
    free = row.get("question_type", "multi-choice") != "multi-choice" or "Choices:" not in row["question_for_eval"]
    return None if free else options_of(row["question_for_eval"])


_NAMED_VALUE = re.compile(r"\s*[A-Za-z ]*\$\s*=\s*(.*)\$\s*", re.DOTALL)


def _golds(gold: str) -> list[str]:
    """MathVerse writes some answers as `Volume $=904.78 \\mathrm{~cm}^{3}$`: the value alone is as right."""
    named = _NAMED_VALUE.fullmatch(gold)
    return [f"${named[1]}$", gold] if named else [gold]


def _tables(kind: str, judged: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Columns of the judged tables, by what their names end in."""
    if not judged:
        return {}
    columns = {name: [row[name] for row in judged] for name in judged[0]}
    if kind == "mathverse":
        return {"_extract": {name: columns[name] for name in ("extract", "log_extract")}, "_score": columns}
    return {"": columns}


def _known(kind: str, blank: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Empty answers, which no judge is asked about: VLMEvalKit would give "nan" to it, or find choice A in that."""
    said = "no answer"
    cached: dict[str, dict[str, Any]] = {
        "mathvision": {"": {"res": "Z", "log": said}},
        "mathverse": {
            "_extract": {"extract": "", "log_extract": said}, "_score": {"score": False, "log_score": said},
        },
        "wemath": {"_result": {"hit": 0, "log": said}},
    }[kind]  # fmt: skip
    return {suffix: {str(place): row for place in blank} for suffix, row in cached.items()} if blank else {}


_NOTHING = frozenset({"", "null", "none", "nan", "na", "noanswer", "unknown"})
_WORD = re.compile(r"\w+")


def _endpoint_grade(kind: str, answer: Answer, place: str, found: Mapping[str, Any]) -> Grade:
    nothing = "truncated" if answer.finish_reason == "length" else "no_answer"
    if not answer.text.strip():
        return Grade(nothing, None)
    if place in found["failed"]:
        return Grade("ungradable", None, f"judge: {found['failed'][place]}")
    column = {"mathvision": "res", "mathverse": "extract"}.get(kind)
    read = str(found["judged"][place][column]) if column else found["options"].get(place)
    if found["verdict"][place]:
        return Grade("correct", read)
    if read is None or re.sub(r"\W+", "", read).casefold() in _NOTHING:
        return Grade(nothing, None)
    if kind == "mathvision" and _out_of_the_blue(read, answer):
        return Grade("ungradable", None, f"judge: read {read[:100]!r} where no such word is")
    return Grade("wrong", read)


def _out_of_the_blue(read: str, answer: Answer) -> bool:
    """Whether an extraction is words of which not one stands in question or answer: VLMEvalKit takes any for read."""
    words = {word.casefold() for word in _WORD.findall(read)}
    there = {word.casefold() for word in _WORD.findall(f"{answer.text} {json.dumps(answer.question.about['row'])}")}
    return any(word.isalpha() and len(word) > 1 for word in words) and not words & there
