"""VLMEvalKit, as far as it is used here, and what it must do otherwise. Only for the child process.

Only three dataset classes and what they call are imported; the package's own `__init__` files, which load torch, every
model family and every API client, never run.
"""

import ast
import functools
import importlib
import importlib.util
import numbers
import sys
import types
from typing import Any

TEXT_OF_MODELS = ("prediction", "res", "extract", "log", "log_extract", "log_score")
_MODULES = {
    "image_base": "dataset.image_base", "vqa": "dataset.image_vqa", "mcq": "dataset.image_mcq",
    "mathv": "dataset.utils.mathv", "mathverse": "dataset.utils.mathverse", "wemath": "dataset.utils.wemath",
    "multiple_choice": "dataset.utils.multiple_choice", "judge_util": "dataset.utils.judge_util",
    "file": "smp.file", "gpt": "api.gpt", "base": "api.base",
}  # fmt: skip
_CLASSES = {"mathvision": ("vqa", "MathVision"), "mathverse": ("vqa", "MathVerse"), "wemath": ("mcq", "WeMath")}
TABLES = {"mathvision": "mathv", "mathverse": "mathverse", "wemath": "wemath"}
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
        if name in ("vqa", "mcq", *TABLES.values()):
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


def dataset(kind: str, name: str, frame: Any) -> Any:
    """VLMEvalKit's own class over a table, under an official name: a name decides its prompts, and a user's file may
    have any. Nothing is looked up, downloaded or compared with a checksum."""
    base = kit().class_of(kind)
    local = type(base.__name__, (base,), {"load_data": lambda self, dataset: frame})
    return local(name)


def plain(row: Any) -> dict[str, Any]:
    """A row as JSON values."""
    import pandas

    values = {}
    for column, value in row.items():
        values[column] = None if pandas.isna(value) else value.item() if hasattr(value, "item") else value
    return values


def writable(text: str) -> str:
    """A text that a table of tab-separated values can hold; VLMEvalKit goes on without the table where one cannot."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
