"""Answers → VLMEvalKit's verdicts and tables. Runs in the child."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dft_mm.evaluate.vlmevalkit.kit import TABLES, dataset, kit, plain, read_table


def score(request: Mapping[str, Any], tell: Callable[..., None]) -> dict[str, Any]:
    """Judge rows with their predictions where no verdicts are given, and tabulate; in the working folder."""
    import pandas

    kind, name = request["kind"], request["dataset"]
    getattr(kit(), TABLES[kind])  # before VLMEvalKit imports it: with our reader, and without its `eval`
    judge = None
    if request["judge"]:
        from dft_mm.evaluate.vlmevalkit.judge import Judge

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
    data = dataset(kind, name, frame)
    own_counts = False
    try:
        table = data.evaluate(predictions, model=method, **settings)
    except ZeroDivisionError:
        if kind != "wemath":
            raise
        # No compound question was right: the share of rote memorisation among those is 0 / 0. The parent counts itself.
        own_counts = True
        stored = f"{prefix}.tsv" if Path(f"{prefix}.tsv").is_file() else predictions
        table = pandas.DataFrame(kit().wemath.wemath_accuracy(stored))
    return {"table": _table(table), "own_counts": own_counts, **_verdicts(kind, predictions, prefix, hits, judge)}


def _recording(post_check: Callable[..., Any], hits: dict[str, bool]) -> Callable[..., Any]:
    """VLMEvalKit's verdict on every row of a MathVision table, which it only counts."""

    def recorded(line: Any, prefetch: bool = False) -> Any:
        verdict = post_check(line, prefetch)
        if not prefetch:
            hits[str(line["index"])] = bool(verdict)
        return verdict

    return recorded


def _table(table: Any) -> list[dict[str, Any]]:
    return [plain(row) for _, row in table.iterrows()]


def _verdicts(kind: str, predictions: str, prefix: str, hits: dict[str, bool], judge: Any) -> dict[str, Any]:
    """By index: VLMEvalKit's verdict, the judged columns, and rows that have no verdict of their own."""
    stored = f"{prefix}_score.tsv" if kind == "mathverse" else f"{prefix}.tsv"
    data = read_table(stored) if Path(stored).is_file() else kit().wemath.load_and_process_data(predictions)
    columns = {
        "mathvision": ["res", "log"], "mathverse": ["extract", "log_extract", "score", "log_score"],
        "wemath": ["hit", "log"] if "hit" in data else ["processed_answer", "joker"],
    }[kind]  # fmt: skip
    judged = {str(row["index"]): plain(row[columns]) for _, row in data.iterrows()}
    if kind != "mathvision":
        verdict = next(column for column in ("score", "hit", "joker") if column in columns)
        hits = {index: bool(row[verdict]) for index, row in judged.items()}
    failed = dict(judge.failed) if judge else {}
    for index, row in judged.items() if judge else ():
        if any(mark in str(row[column]) for column in columns if column.startswith("log") for mark in judge.made_up):
            failed.setdefault(index, f"its answers could not be used; the last one was {judge.said.get(index)!r}")
    options = judge.options if judge else {}
    return {"verdict": hits, "judged": judged, "failed": failed, "options": options, "topics": _topics(kind, data)}


def _topics(kind: str, data: Any) -> dict[str, int]:
    """Step questions under each of WeMath's topics, by VLMEvalKit's own tree of concepts."""
    if kind != "wemath":
        return {}
    topic = {node["full node"].split("_")[-1]: node["root2"] for node in kit().wemath.knowledge_structure_nodes}
    steps = data[~data["key"].str.endswith("multi")]
    return {name: int(count) for name, count in steps["knowledge concept"].map(topic).value_counts().items()}
