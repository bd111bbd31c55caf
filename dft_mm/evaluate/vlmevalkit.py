"""MathVision, MathVerse and WeMath with VLMEvalKit's own prompts, pictures and tables.

Answers are generated here like any others. VLMEvalKit builds the prompts before, and judges and tabulates after, each
in a child process with a bare environment (`vlmevalkit_child`). The default judge is our own grader, whose verdicts are
put where VLMEvalKit keeps those of an earlier run.
"""

import ast
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dft_mm.config import read_text
from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.evaluate import vlmevalkit_metrics as metrics
from dft_mm.evaluate.benchmark import BenchmarkConfig, EndpointJudge
from dft_mm.evaluate.choices import grade_choices, options_of
from dft_mm.evaluate.grade_math import Grader
from dft_mm.evaluate.task import NOT_SCORED, RIGHT, Answer, Grade, Question, Scored, Scoring
from dft_mm.evaluate.vlmevalkit_child import writable

JUDGE_DEADLINE_S = 60.0
"""Within this a judge answers a request, retries included; else it counts as failed."""
JUDGE_THREADS = 8
_MOST_FAILED = 0.1
"""Share of rows without a judge's verdict above which there is no score."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from dft_mm.evaluate.vlmevalkit_child import main; main()"
)
_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LMUData")
_PASSED_TO_NETWORK = (
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
)  # fmt: skip


@dataclass(frozen=True)
class Split:
    dataset: str
    """VLMEvalKit's name, which decides the prompt; `cot` at its end asks for a chain of thought."""
    version: str | None = None
    """Of MathVerse's five versions of each question, the one that is asked."""
    published: str | None = None
    """Name of its official table, where it is another's."""

    @property
    def table(self) -> str:
        return self.published or self.dataset


def _mathverse() -> dict[str, Split]:
    splits = {"testmini": Split("MathVerse_MINI"), "cot": Split("MathVerse_MINI_cot", published="MathVerse_MINI")}
    for version in metrics.MATHVERSE_VERSIONS:
        name = f"MathVerse_MINI_{version.replace(' ', '_')}"
        splits[version.replace(" ", "_").lower()] = Split(name, version)
        splits[version.replace(" ", "_").lower() + "_cot"] = Split(f"{name}_cot", version, published=name)
    return splits


SPLITS: dict[str, dict[str, Split]] = {
    "mathvision": {"test": Split("MathVision"), "mini": Split("MathVision_MINI")},
    "mathverse": _mathverse(),
    "wemath": {"testmini": Split("WeMath"), "cot": Split("WeMath_COT")},
}
"""By task; the first one is the default."""

CLASSES = {"mathvision": "MathVision", "mathverse": "MathVerse", "wemath": "WeMath"}
"""VLMEvalKit's classes."""


def load(kind: str, bench: BenchmarkConfig, work: Path) -> list[Question]:
    """The questions of a TSV, or of the official one. Pictures and prompts are kept in `work`, below the TSV's hash.

    Pictures are VLMEvalKit's own files: it drops the alpha channel where our loader puts a picture on white, and scores
    are to compare with others made by it.
    """
    _require()
    _key(bench)
    split = split_of(bench)
    path = _data(kind, bench, split)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"benchmark {bench.key}: {path} cannot be read: {error}") from error
    # As much as decides the content: another table, prompt or limit has a folder of its own.
    folder = work / digest[:16] / "-".join([split.dataset, *([f"first{bench.limit}"] if bench.limit else [])])
    if not (folder / "questions.json").is_file():
        _write_questions(kind, bench, split, path, folder)
    asked = json.loads(read_text(folder / "questions.json", "questions"))
    return [_question(row, split, digest, folder) for row in asked]


def split_of(bench: BenchmarkConfig) -> Split:
    """The split that a benchmark's entry asks for."""
    splits = SPLITS[bench.task]
    return splits[bench.split or next(iter(splits))]


def _require() -> None:
    if importlib.util.find_spec("vlmeval") is None:
        raise InputError(
            "mathvision, mathverse and wemath need VLMEvalKit:\n"
            "  pip install 'dft_mm[eval]'\n"
            "  pip install --no-deps ms-vlmeval==0.0.20"
        )


def _data(kind: str, bench: BenchmarkConfig, split: Split) -> Path:
    if bench.data is not None:
        path = Path(bench.data)
        return path / f"{split.table}.tsv" if path.is_dir() else path
    request = {"verb": "locate", "kind": kind, "dataset": split.table}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = _run(request, Path(folder), limit_s=24 * 3600, network=True, own_data=False)
        except _Refused as error:
            raise InputError(
                f"benchmark {bench.key}: VLMEvalKit cannot have {split.table}.tsv ({error}); give it: `data: FILE.tsv`"
            ) from error
    return Path(found["path"])


def _write_questions(kind: str, bench: BenchmarkConfig, split: Split, path: Path, folder: Path) -> None:
    """Make a folder of pictures and questions.json; it takes its place when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    log.info("%s: VLMEvalKit writes the pictures of %s into %s", bench.key, path, folder)
    for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    making.chmod(0o755)
    try:
        request = {
            "verb": "load", "kind": kind, "dataset": split.dataset, "path": str(path.absolute()),
            "version": split.version, "limit": bench.limit,
        }  # fmt: skip
        asked = _run(request, making, limit_s=24 * 3600)
        (making / "questions.json").write_text(json.dumps(asked), encoding="utf-8")
        try:
            making.rename(folder)
        except OSError:
            if not (folder / "questions.json").is_file():  # else another rank was faster, with the same
                raise
    except _Refused as error:
        raise InputError(f"benchmark {bench.key}: {path}: {error}") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _question(asked: Mapping[str, Any], split: Split, digest: str, folder: Path) -> Question:
    row = asked["row"]
    content = [{"type": "image"}] * len(asked["images"]) + [{"type": "text", "text": asked["text"]}]
    return Question(
        id=str(row["index"]),
        messages=[{"role": "user", "content": content}],
        gold=str(row["answer"]),
        images=tuple(asked["images"]),
        image_root=str(folder),
        about={"tsv_sha256": digest, "dataset": split.dataset, "row": row},
    )


# --------------------------------------------------------------------------------------------------------- scoring


def score(kind: str, answers: Sequence[Answer], scoring: Scoring) -> Scored:
    """Judge all answers, then let VLMEvalKit tabulate each sample alone; a metric is the mean over samples."""
    if not answers:
        return Scored([], {})
    run = _Scoring(kind, answers, scoring)
    judge = scoring.bench.judge
    if isinstance(judge, EndpointJudge):
        grades = run.by_endpoint(judge)
    elif judge == "exact":
        grades = run.by_exact_matching()
    else:
        grades = run.by_rule()
    return run.tabulate(grades)


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
            if len(rows) != metrics.WEMATH_ROWS:
                notes.append(
                    f"{len(rows)} of WeMath's {metrics.WEMATH_ROWS:,} questions are scored. VLMEvalKit divides by 525 "
                    "groups whatever is there: the scores are too high, and compare with no others."
                )
            headline = ("Score (Strict)", "Score (Loose)")
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
                "url": judge.url, "model": judge.model, "key": _key(self.scoring.bench),
                "deadline_s": JUDGE_DEADLINE_S, "threads": JUDGE_THREADS,
            },
        }  # fmt: skip
        try:
            return _run(request, folder, seconds, network=judge is not None, advance=self.scoring.advance)
        except _JudgeDown as down:
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


def _key(bench: BenchmarkConfig) -> str | None:
    """The judge's key. Raises InputError where its variable is not set."""
    judge = bench.judge
    if not isinstance(judge, EndpointJudge) or judge.key_env is None:
        return None
    if not os.environ.get(judge.key_env):
        raise InputError(
            f"benchmark {bench.key}: judge.key_env is {judge.key_env}, and no such environment variable is set; set "
            "it, or leave key_env out for a server without keys"
        )
    return os.environ[judge.key_env]


# ----------------------------------------------------------------------------------------------------------- child


class _Refused(Exception):
    """The child found the user's file at fault."""


class _JudgeDown(Exception):
    def __init__(self, reason: str, judged: int) -> None:
        super().__init__(reason)
        self.judged = judged


def _run(
    request: dict[str, Any],
    folder: Path,
    limit_s: int,
    network: bool = False,
    own_data: bool = True,
    advance: Callable[[int], None] = lambda count: None,
) -> Any:
    """One request to a child of its own, which works in `folder`."""
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    if network:
        environment |= {name: os.environ[name] for name in _PASSED_TO_NETWORK if name in os.environ}
    environment |= {"PRED_FORMAT": "tsv", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if own_data:  # its folder of data sets, which it otherwise makes in the user's home
        environment["LMUData"] = str(folder.absolute())
    paths = [str(Path(path).absolute()) for path in sys.path]
    said = folder / "child.log"
    with said.open("wb") as errors:
        child = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, cwd=folder, env=environment, start_new_session=True,
        )  # fmt: skip
        timer = threading.Timer(limit_s, _kill, [child])
        timer.daemon = True
        timer.start()
        last: dict[str, Any] = {}
        try:
            with child:
                child.stdin.write(json.dumps(request).encode())
                child.stdin.close()
                for line in child.stdout:
                    last = json.loads(line)
                    advance(last.get("advance", 0))
        except BrokenPipeError:  # it ended before it read everything; its last words say why
            last = {}
        finally:
            timer.cancel()
            _kill(child)
    if "wrong" in last:
        raise _Refused(last["wrong"])
    if "judge" in last:
        raise _JudgeDown(last["judge"]["reason"], last["judge"]["judged"])
    if "result" not in last:
        words = said.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
        raise RuntimeError(f"VLMEvalKit ended without a result (exit {child.returncode}; {said}):\n{words}")
    return last["result"]


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The child and what it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
