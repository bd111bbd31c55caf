"""A user's table → rows, prompts and pictures. Runs in the child."""

import ast
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dft_mm.evaluate.vlmevalkit.kit import dataset as dataset_over
from dft_mm.evaluate.vlmevalkit.kit import kit, plain

NEEDED = {
    "mathvision": ("index", "image", "question", "choices", "answer", "category"),
    "mathverse": ("index", "image", "question", "answer", "problem_version", "question_for_eval", "metadata"),
    "wemath": ("index", "image", "question", "answer", "ID", "key", "knowledge concept"),
}
"""Columns of a TSV that prompts, grading and tables read."""
WEMATH_KEYS = ("2steps_1", "2steps_2", "2steps_multi", "3steps_1", "3steps_2", "3steps_3", "3steps_multi")
_NOTHING = "holds no question"
_REFERENCE_LENGTH = 64
"""An `image` cell of at most so many characters is the index of the row that holds the picture (VLMEvalKit's rule)."""


class Wrong(Exception):
    """The user's file is at fault; the message says row and column."""


def locate(request: Mapping[str, Any], _: Any) -> dict[str, Any]:
    """Path of an official TSV, downloaded by VLMEvalKit into its own folder where it is not there yet."""
    kind = kit().class_of(request["kind"])
    name = request["dataset"]
    # Found, not read: a table of over 1 GB is rewritten by a part of VLMEvalKit that needs all the rest of it.
    kit().image_base.load, kit().image_base.file_size = (lambda path: None), (lambda path, unit: 0)
    dataset = kind.__new__(kind)
    dataset.dataset_name = name
    try:
        dataset.load_data(name)
    except Exception as error:  # it raises plain Exceptions for a download that failed
        raise Wrong(f"{type(error).__name__}: {error}") from error
    wanted, found = kind.DATASET_MD5[name], kit().file.md5(dataset.data_path)
    if wanted != found:
        raise Wrong(f"{dataset.data_path} was downloaded, but its md5 is {found}, not {wanted}")
    return {"path": str(Path(dataset.data_path).absolute())}


def load(request: Mapping[str, Any], _: Any) -> list[dict[str, Any]]:
    """Rows, prompts and pictures of a TSV; the pictures are written below the working folder."""
    kind, folder = request["kind"], Path.cwd()  # LMUData names it, too
    cot = request["dataset"].endswith(("cot", "COT"))
    frame = checked_table(request["path"], kind, cot)
    if request["version"] is not None:
        frame = frame[frame["problem_version"] == request["version"]]
        if frame.empty:
            raise Wrong(f"column 'problem_version': no row is {request['version']!r}")
    whole = frame  # a picture may stand in a row that is not asked
    frame = frame.head(request["limit"]) if request["limit"] else frame
    # Two cells may name one picture; VLMEvalKit's file names are those of its index.
    pictures = dict(zip(map(str, whole["index"]), whole["image"]))
    frame = frame.assign(image=[pictures.get(str(cell), cell) for cell in frame["image"]])
    dataset = dataset_over(kind, request["dataset"], frame)
    rows = [row for _, row in dataset.data.iterrows()]

    def dump(row: Any) -> str | None:
        try:
            for path in dataset.dump_image(row):
                _opaque(path)
        except Exception as error:  # whatever base64 and Pillow raise for what is no picture
            return f"{type(error).__name__}: {error}"
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for number, (row, error) in enumerate(zip(rows, pool.map(dump, rows)), 1):
            if error is not None:
                raise Wrong(f"{_place(number, row['index'])}, column 'image': is no picture ({error})")
    asked = []
    for row in rows:
        parts = dataset.build_prompt(row)
        images = [str(Path(part["value"]).relative_to(folder)) for part in parts if part["type"] == "image"]
        texts = [str(part["value"]) for part in parts if part["type"] == "text"]
        asked.append({"images": images, "text": "\n".join(texts), "row": plain(row.drop("image"))})
    return asked


def _opaque(path: str) -> None:
    """Its pictures lose their alpha, but those with a palette keep a transparent colour in the file. Its models do not
    heed that; our loader would show white there."""
    from PIL import Image

    with Image.open(path) as picture:
        if "transparency" not in picture.info:
            return
        plain = picture.convert("RGB")
    plain.info.pop("transparency", None)
    plain.save(path)


def _read(path: str) -> Any:
    import pandas

    try:
        frame = pandas.read_csv(path, sep="\t", low_memory=False)  # as VLMEvalKit reads it
    except pandas.errors.EmptyDataError as error:
        raise Wrong(_NOTHING) from error
    except (ValueError, UnicodeError, pandas.errors.ParserError) as error:
        raise Wrong(f"is no table of tab-separated values: {error}") from error
    frame.columns = [str(column) for column in frame.columns]
    return frame


def checked_table(path: str, kind: str, cot: bool) -> Any:
    """A user's table with every cell that is needed; raises Wrong for the first that is not there."""
    import pandas

    frame = _read(path)
    prompt = {"mathverse": "query_cot", "wemath": "requirement"}.get(kind) if cot else None
    needed = [*NEEDED[kind], *([prompt] if prompt else [])]
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        raise Wrong(f"has no column {', '.join(map(repr, missing))} (it has {', '.join(frame.columns)[:300]})")
    if frame.empty:
        raise Wrong(_NOTHING)
    if kind == "mathverse" and "query_wo" in frame.columns:
        # A Vision Only question is in the picture. VLMEvalKit's official table says so in words; one made from the
        # published JSON has nothing there, which is no text to build a prompt of.
        frame["question"] = frame["question"].fillna(frame["query_wo"])
    frame = frame.drop(columns=["image_path"], errors="ignore")  # file names are VLMEvalKit's own, below our folder
    seen: dict[str, int] = {}
    for number, row in enumerate(frame.to_dict("records"), 1):
        where = _place(number, row["index"])
        for column in needed:
            if pandas.isna(row[column]) or not str(row[column]).strip():
                word = "is empty (pandas, and so VLMEvalKit, also reads NA, None, null and nan as empty)"
                raise Wrong(f"{where}, column {column!r}: {word}")
        index = str(row["index"])
        if index in seen:
            raise Wrong(f"{where}, column 'index': {index!r} is that of row {seen[index]} too; it must differ")
        if "/" in index or "\0" in index or len(index) > 100:
            raise Wrong(f"{where}, column 'index': {index[:100]!r} is no name for a picture's file")
        seen[index] = number
        _check_cells(kind, row, where)
    cells = list(map(str, frame["image"]))
    for number, (index, cell) in enumerate(zip(frame["index"], cells), 1):
        if len(cell) <= _REFERENCE_LENGTH and (cell not in seen or len(cells[seen[cell] - 1]) <= _REFERENCE_LENGTH):
            raise Wrong(
                f"{_place(number, index)}, column 'image': {cell!r} is no picture, nor the index of a row with one"
            )
    return frame


def _check_cells(kind: str, row: Mapping[str, Any], where: str) -> None:
    """What the tables parse, so that it fails here rather than after hours of generation."""
    column = {"mathvision": "choices", "mathverse": "metadata", "wemath": "key"}[kind]
    try:
        if kind == "mathvision":
            wanted = "a list such as [] or ['A', 'B']"
            sound = isinstance(ast.literal_eval(row[column]), list)
        elif kind == "mathverse":
            wanted = "{'subject': …, 'subfield': …} without apostrophes inside"
            sound = {"subject", "subfield"} <= json.loads(row[column].replace("'", '"')).keys()
        else:
            wanted = "2steps_1 to 3steps_multi"
            sound = row[column] in WEMATH_KEYS
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
        sound = False
    if not sound:
        raise Wrong(f"{where}, column {column!r}: is {str(row[column])[:80]!r}; wanted is {wanted}")


def _place(number: int, index: Any) -> str:
    return f"row {number} (index {str(index)[:100]!r})"
