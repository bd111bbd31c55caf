"""What runs VLMEvalKit: a child process with a bare environment. It reads one request and writes lines of JSON.

Only three dataset classes and what they call are imported; the package's own `__init__` files, which load torch, every
model family and every API client, never run. The stand-ins that this needs would confuse a process that wants the real
ones, and VLMEvalKit gives model text to `eval`: two reasons for a process of its own.
"""

import ast
import functools
import importlib
import importlib.util
import json
import logging
import multiprocessing
import numbers
import os
import resource
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

NEEDED = {
    "mathvision": ("index", "image", "question", "choices", "answer", "category"),
    "mathverse": ("index", "image", "question", "answer", "problem_version", "question_for_eval", "metadata"),
    "wemath": ("index", "image", "question", "answer", "ID", "key", "knowledge concept"),
}
"""Columns of a TSV that prompts, grading and tables read."""
WEMATH_KEYS = ("2steps_1", "2steps_2", "2steps_multi", "3steps_1", "3steps_2", "3steps_3", "3steps_multi")
TEXT_OF_MODELS = ("prediction", "res", "extract", "log", "log_extract", "log_score")
_MEMORY_BYTES = 4 << 30
_DOWNLOAD_SILENCE_S = 60
_REFERENCE_LENGTH = 64
"""An `image` cell of at most so many characters is the index of the row that holds the picture (VLMEvalKit's rule)."""


class Wrong(Exception):
    """The user's file is at fault; the message says row and column."""


def main() -> None:
    """Answer the request on standard input with lines {"advance": n} and at last {"result"}, {"wrong"} or {"judge"}."""
    _die_with_parent()
    request = json.load(sys.stdin)
    if request["verb"] == "score":  # model text is at work
        limits = {resource.RLIMIT_AS: _MEMORY_BYTES, resource.RLIMIT_CPU: request["limit_s"], resource.RLIMIT_CORE: 0}
        for which, limit in limits.items():
            resource.setrlimit(which, (limit, limit))
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # VLMEvalKit prints tables
    lock = threading.Lock()

    def tell(**message: Any) -> None:
        with lock:
            lines.write(json.dumps(message) + "\n")

    socket.setdefaulttimeout(_DOWNLOAD_SILENCE_S)  # its download has no time limit of its own
    multiprocessing.set_start_method("fork", force=True)  # under spawn it silently counts equal answers as wrong
    logging.getLogger("vlmeval").addHandler(logging.StreamHandler())
    try:
        tell(result={"locate": locate, "load": load, "score": score}[request["verb"]](request, tell))
    except Wrong as error:
        tell(wrong=str(error))


def _die_with_parent() -> None:
    """A killed evaluation leaves nothing behind that goes on asking a judge."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# ----------------------------------------------------------------------------------------------- the light import


_MODULES = {
    "image_base": "dataset.image_base", "vqa": "dataset.image_vqa", "mcq": "dataset.image_mcq",
    "mathv": "dataset.utils.mathv", "mathverse": "dataset.utils.mathverse", "wemath": "dataset.utils.wemath",
    "multiple_choice": "dataset.utils.multiple_choice", "judge_util": "dataset.utils.judge_util",
    "file": "smp.file", "gpt": "api.gpt", "base": "api.base",
}  # fmt: skip
_CLASSES = {"mathvision": ("vqa", "MathVision"), "mathverse": ("vqa", "MathVerse"), "wemath": ("mcq", "WeMath")}
_TABLES = {"mathvision": "mathv", "mathverse": "mathverse", "wemath": "wemath"}
"""Modules that make the tables."""


@functools.cache
def kit() -> "Kit":
    """VLMEvalKit, as far as it is used here."""
    return Kit()


class Kit:
    """Its modules by name, each imported when it is first asked for."""

    def __init__(self) -> None:
        root = next(iter(importlib.util.find_spec("vlmeval").submodule_search_locations))
        self._stand_in("vlmeval", root)
        self._stand_in("vlmeval.dataset", f"{root}/dataset")
        self.api = self._stand_in("vlmeval.api", f"{root}/api", HFChatModel=None, SiliconFlowAPI=None)

    @staticmethod
    def _stand_in(name: str, path: str, **attributes: Any) -> types.ModuleType:
        module = types.ModuleType(name)
        module.__dict__.update(attributes, __path__=[path])
        sys.modules[name] = module
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)
        return module

    def __getattr__(self, name: str) -> types.ModuleType:
        if name not in _MODULES:
            raise AttributeError(name)
        module = importlib.import_module(f"vlmeval.{_MODULES[name]}")
        setattr(self, name, module)
        if name == "mathv":
            module.eval = arithmetic
        if name in ("vqa", "mcq", *_TABLES.values()):
            # Model text is text: read back as a table, "null" would be nothing, "" would be the word "nan", whose "a"
            # counts as choice A, and a column of numbers would be no text at all.
            module.load = read_table
        return module

    def class_of(self, kind: str) -> Any:
        module, name = _CLASSES[kind]
        return getattr(getattr(self, module), name)


def read_table(path: str) -> Any:
    """VLMEvalKit's `load`, with the columns that models wrote as text."""
    if not path.endswith(".tsv"):
        return kit().file.load(path)
    import pandas

    return pandas.read_csv(path, sep="\t", converters=dict.fromkeys(TEXT_OF_MODELS, str), low_memory=False)


_NODES = (
    ast.Expression, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Tuple, ast.List,
    ast.Subscript, ast.Name, ast.Load, ast.Call, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
_FUNCTIONS = {function.__name__: function for function in (abs, bool, complex, float, int, len, max, min, round, sum)}
_MOST_BITS = 10_000


class _Powers(ast.NodeTransformer):
    """`a ** b` as a call of `pow`, which knows an end."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Pow):
            return node
        call = ast.Call(ast.Name("pow", ast.Load()), [node.left, node.right], [])
        return ast.fix_missing_locations(ast.copy_location(call, node))


def _power(base: Any, exponent: Any) -> Any:
    """Python's, without the powers that take longer than VLMEvalKit's 30 s, after which it says "not equal", too."""
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > _MOST_BITS:
        raise OverflowError(f"{base} ** {exponent}")
    return base**exponent


def arithmetic(text: str) -> Any:
    """What VLMEvalKit's `eval` gives for arithmetic and literals; ValueError for anything that could do more.

    It evals whole answers of the model. Its own local numbers stay visible to them, as they are there: the answer "a"
    to a question with a number for an answer counts as right, in its published scores too.
    """
    tree = ast.parse(text.strip(" \t"), mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, _NODES) or isinstance(node, ast.LShift):
            raise ValueError(f"{type(node).__name__} is no arithmetic")
    seen = sys._getframe(1).f_locals
    values = {
        name: value
        for name, value in seen.items()
        if isinstance(value, numbers.Number) or type(value).__module__.startswith("sympy.")
    }
    return eval(
        compile(_Powers().visit(tree), "answer", "eval"), {"__builtins__": {}}, {**_FUNCTIONS, "pow": _power, **values}
    )


# --------------------------------------------------------------------------------------------------------- loading


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
    dataset = _dataset(kind, request["dataset"], frame)
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
        asked.append({"images": images, "text": "\n".join(texts), "row": _plain(row.drop("image"))})
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
    except (ValueError, UnicodeError, pandas.errors.ParserError) as error:  # EmptyDataError is a ValueError
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
        raise Wrong("holds no row")
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


def _plain(row: Any) -> dict[str, Any]:
    """A row as JSON values."""
    import pandas

    values = {}
    for column, value in row.items():
        values[column] = None if pandas.isna(value) else value.item() if hasattr(value, "item") else value
    return values


def _dataset(kind: str, name: str, frame: Any) -> Any:
    """VLMEvalKit's own class over a table, under an official name: a name decides its prompts, and a user's file may
    have any. Nothing is looked up, downloaded or compared with a checksum."""
    base = kit().class_of(kind)
    local = type(base.__name__, (base,), {"load_data": lambda self, dataset: frame})
    return local(name)


# --------------------------------------------------------------------------------------------------------- scoring


def score(request: Mapping[str, Any], tell: Callable[..., None]) -> dict[str, Any]:
    """Judge rows with their predictions where no verdicts are given, and tabulate; in the working folder."""
    import pandas

    kind, name = request["kind"], request["dataset"]
    getattr(kit(), _TABLES[kind])  # before VLMEvalKit imports it: with our reader, and without its `eval`
    judge = None
    if request["judge"]:
        from dft_mm.evaluate.vlmevalkit_judge import Judge

        judge = Judge(request["judge"], tell)
    method = "judge" if judge else "exact_matching" if kind == "wemath" else "rule"
    frame = pandas.DataFrame(request["rows"])
    predictions, prefix = f"{name}.tsv", f"{name}_{method}"
    kit().file.dump(frame, predictions)
    for suffix, columns in request["judged"].items():
        kit().file.dump(frame.assign(**columns), f"{prefix}{suffix}.tsv")
    for suffix, known in request["known"].items():
        kit().file.dump({int(index): row for index, row in known.items()}, f"{prefix}{suffix}.pkl")
    hits: dict[str, bool] = {}
    if kind == "mathvision":
        kit().mathv.post_check = _recording(kit().mathv.post_check, hits)
        kit().mathv.latex2sympy("1")  # its parser's tables are built once here rather than once in every row's process
    if judge:
        judge.install(kit(), kind)
    settings = {"nproc": judge.threads, "retry": 1, "wait": 0, "verbose": False} if judge else {}
    dataset = _dataset(kind, name, frame)
    own_counts = False
    try:
        table = dataset.evaluate(predictions, model=method, **settings)
    except ZeroDivisionError:
        if kind != "wemath":
            raise
        # No compound question was right: the share of rote memorisation among those is 0 / 0. The parent counts itself.
        own_counts = True
        stored = f"{prefix}.tsv" if Path(f"{prefix}.tsv").is_file() else predictions
        table = pandas.DataFrame(kit().wemath.wemath_accuracy(stored))
    return {"table": _table(table), "own_counts": own_counts, **_verdicts(kind, predictions, prefix, hits, judge)}


def writable(text: str) -> str:
    """A text that a table of tab-separated values can hold; VLMEvalKit goes on without the table where one cannot."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _recording(post_check: Callable[..., Any], hits: dict[str, bool]) -> Callable[..., Any]:
    """VLMEvalKit's verdict on every row of a MathVision table, which it only counts."""

    def recorded(line: Any, prefetch: bool = False) -> Any:
        verdict = post_check(line, prefetch)
        if not prefetch:
            hits[str(line["index"])] = bool(verdict)
        return verdict

    return recorded


def _table(table: Any) -> list[dict[str, Any]]:
    return [_plain(row) for _, row in table.iterrows()]


def _verdicts(kind: str, predictions: str, prefix: str, hits: dict[str, bool], judge: Any) -> dict[str, Any]:
    """By index: VLMEvalKit's verdict, the judged columns, and rows that have no verdict of their own."""
    stored = f"{prefix}_score.tsv" if kind == "mathverse" else f"{prefix}.tsv"
    data = read_table(stored) if Path(stored).is_file() else kit().wemath.load_and_process_data(predictions)
    columns = {
        "mathvision": ["res", "log"], "mathverse": ["extract", "log_extract", "score", "log_score"],
        "wemath": ["hit", "log"] if "hit" in data else ["processed_answer", "joker"],
    }[kind]  # fmt: skip
    judged = {str(row["index"]): _plain(row[columns]) for _, row in data.iterrows()}
    if kind != "mathvision":
        verdict = next(column for column in ("score", "hit", "joker") if column in columns)
        hits = {index: bool(row[verdict]) for index, row in judged.items()}
    failed = dict(judge.failed) if judge else {}
    for index, row in judged.items() if judge else ():
        if any(mark in str(row[column]) for column in columns if column.startswith("log") for mark in judge.made_up):
            failed.setdefault(index, "its answers could not be used")
    options = judge.options if judge else {}
    return {"verdict": hits, "judged": judged, "failed": failed, "options": options, "topics": _topics(kind, data)}


def _topics(kind: str, data: Any) -> dict[str, int]:
    """Step questions under each of WeMath's topics, by VLMEvalKit's own tree of concepts."""
    if kind != "wemath":
        return {}
    topic = {node["full node"].split("_")[-1]: node["root2"] for node in kit().wemath.knowledge_structure_nodes}
    steps = data[~data["key"].str.endswith("multi")]
    return {name: int(count) for name, count in steps["knowledge concept"].map(topic).value_counts().items()}


if __name__ == "__main__":
    main()
