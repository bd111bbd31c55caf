"""Questions of MathVision, MathVerse and WeMath, with VLMEvalKit's own prompts and pictures."""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import BenchmarkConfig, EndpointJudge
from dft_mm.evaluate.task import Question
from dft_mm.evaluate.vlmevalkit.judge import contact
from dft_mm.evaluate.vlmevalkit.process import Refused, judge_key, run
from dft_mm.evaluate.vlmevalkit.splits import Split, split_of
from dft_mm.sections import read_text


def load(kind: str, bench: BenchmarkConfig, work: Path) -> list[Question]:
    """The questions of a TSV, or of the official one. Pictures and prompts are kept in `work`, below the TSV's hash.

    Pictures are VLMEvalKit's own files: it drops the alpha channel where our loader puts a picture on white, and scores
    are to compare with others made by it.
    """
    _require()
    key = judge_key(bench)
    if isinstance(bench.judge, EndpointJudge):
        _contact(bench, bench.judge, key)
    split = split_of(bench)
    path = _data(kind, bench, split)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"benchmark {bench.key}: {path} cannot be read ({error.strerror or error})") from error
    # As much as decides the content: another table, prompt or limit has a folder of its own.
    folder = work / digest[:16] / "-".join([split.dataset, *([f"first{bench.limit}"] if bench.limit else [])])
    if not (folder / "questions.json").is_file():
        _write_questions(kind, bench, split, path, folder)
    asked = json.loads(read_text(folder / "questions.json", "questions"))
    return [_question(row, split, digest, folder) for row in asked]


def local(bench: BenchmarkConfig) -> BenchmarkConfig | None:
    """The same without its judge, and with the official table where VLMEvalKit has downloaded it already."""
    folder = os.environ.get("LMUData") or "~/LMUData"  # noqa: SIM112 (VLMEvalKit's own spelling)
    table = Path(folder).expanduser() / f"{split_of(bench).table}.tsv"
    data = bench.data or (str(table) if table.is_file() else None)
    return bench.model_copy(update={"data": data, "judge": "rule"}) if data else None


def _contact(bench: BenchmarkConfig, judge: EndpointJudge, key: str | None) -> None:
    """Raises InputError for a judge that is not there: known now rather than after hours of generation."""
    if reason := contact(judge.url, key):
        raise InputError(
            f"benchmark {bench.key}: the judge {judge.model} at {judge.url} does not answer ({reason}). Start it, or "
            "see judge.url and judge.key_env; or generate with `judge: rule` now, and judge later with another --out "
            "and --replay of its generations.jsonl"
        )


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
        if not path.is_dir():
            return path
        table = path / f"{split.table}.tsv"
        if not table.exists():
            names = sorted(child.name for child in path.iterdir())
            there = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"
            raise InputError(f"benchmark {bench.key}: {path} holds no {table.name} (there: {there}); name the file")
        return table
    request = {"verb": "locate", "kind": kind, "dataset": split.table}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = run(request, Path(folder), limit_s=24 * 3600, network=True, own_data=False)
        except Refused as error:
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
        asked = run(request, making, limit_s=24 * 3600)
        (making / "questions.json").write_text(json.dumps(asked), encoding="utf-8")
        try:
            making.rename(folder)
        except OSError:
            if not (folder / "questions.json").is_file():  # else another rank was faster, with the same
                raise
    except Refused as error:
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
