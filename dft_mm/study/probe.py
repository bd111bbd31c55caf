"""`probe`: what the model already gives to the tokens of the data, and so what DFT would do with them.

DFT weights each token's gradient by its probability p (arXiv 2508.05629), so the histogram of p (the paper's Figure 2)
is that of its weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from dft_mm.config import Recipe
from dft_mm.data.dataset import Dataset
from dft_mm.errors import InputError
from dft_mm.model.folder import adapter_base, resolve
from dft_mm.model.processing import Processing, load_processing
from dft_mm.report.plots import histogram_plot
from dft_mm.study.advice import IGNORED, advise, source_advice
from dft_mm.study.probabilities import Probabilities, choose_rows, load_probed, measure
from dft_mm.study.token_kinds import KINDS, kinds_of
from dft_mm.train.feed import image_settings, make_renderer, prepare_data
from dft_mm.train.telemetry import P_BINS, p_bins

ROWS = 256
_FEW = 200
"""Tokens of a sample below which its figures are rough."""
_BAR, _FLOOR = 40, 1e-4
"""Letters of a bar for all tokens, and the share that has none: bars are logarithmic, as the axis of Figure 2."""


def probe(recipe: Recipe, rows: int = ROWS, model: str | None = None, after: Sequence[str] = ()) -> dict[str, Any]:
    """Measure a model, and those `after` training, on one sample of the recipe's training rows; one process.

    Args:
        rows: how many to draw at most; the same ones each time.
        model: instead of the recipe's: a Hugging Face folder or hub id, a run folder (its export), an adapter's.
        after: likewise, laid over it.

    Returns:
        `probe --json` of the design; per source in `sources`; for each model of `after` the same figures in `after`.

    Raises:
        InputError: a folder that holds no model, or a model that writes the rows with other tokens.
    """
    paths = [_find(model, "--model")] if model else [recipe.model.path]
    paths += [_find(path, "--after") for path in after]
    processing = load_processing(recipe.model.path)
    for path, option in zip(paths, ["--model" if model else "", *["--after"] * len(after)]):
        _check_tokens(recipe, processing, path, option)
    end_id = prepare_data(recipe, processing)["end_id"]
    dataset = Dataset(recipe.run_dir / "data", "train", image_settings(recipe, processing))
    if not len(dataset):
        raise InputError("data.train: no row is left to learn from, so there is nothing to probe")
    sample = choose_rows(dataset, [source.weight for source in recipe.data.train], rows, recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reports = []
    for path in paths:
        found = measure(load_probed(path, recipe, device), dataset, sample, recipe, processing)
        reports.append({"model": path} | describe(found, dataset.sources[sample], recipe, processing, end_id))
    report = reports[0]
    measured = [source for source in report["sources"] if source["tokens"]]
    for source in measured:
        source["advice"] = source_advice(source)
    advice, reasons = advise(report, measured)
    return report | {"advice": advice, "reasons": reasons, "warnings": _warnings(report), "after": reports[1:]}


def _find(path: str, option: str) -> str:
    """The model of a run folder, of another folder, or of a hub id."""
    folder = Path(path)
    if (folder / "recipe.yaml").is_file():
        if not (folder / "export").is_dir():
            raise InputError(
                f"{option} {path}: the run has not written its model yet; finish it, or write a checkpoint with "
                f"`dft-mm export {path} --out DIR` and give that folder"
            )
        return str(folder / "export")
    try:
        resolve(path)
    except InputError as error:
        raise InputError(f"{option}: {str(error).removeprefix('model.path: ')}") from error
    return path


def _check_tokens(recipe: Recipe, processing: Processing, path: str, option: str) -> None:
    """Probabilities can be laid over each other only where they are of the same tokens."""
    whole = adapter_base(Path(path)) or path
    if whole == recipe.model.path:
        return
    theirs = load_processing(whole)
    if make_renderer(recipe, theirs).fingerprint != make_renderer(recipe, processing).fingerprint:
        raise InputError(
            f"{option} {path}: its tokenizer or chat template is not that of model.path ({recipe.model.path}), so it "
            f"writes the rows with other tokens; to probe it alone, say model.path={path} output=ANOTHER_FOLDER"
        )


def describe(
    found: Probabilities, source_of_row: np.ndarray, recipe: Recipe, processing: Processing, end_id: int
) -> dict[str, Any]:
    """The figures of a sample and of each source in it; `source_of_row` is (R,)."""
    names = kinds_of(processing.tokenizer, set(found.targets.tolist()))
    kinds = np.array([names[target] or "control" for target in found.targets.tolist()])
    sources = []
    for number, source in enumerate(recipe.data.train):
        here = source_of_row[found.rows] == number
        figures = _figures(found.p[here], kinds[here], found.rows[here]) if here.any() else {"rows": 0, "tokens": 0}
        sources.append({"path": source.path, "loss": (source.loss or recipe.loss).name} | figures)
    ends = found.p[found.targets == end_id]
    told: dict[str, Any] = {"vocabulary": found.vocabulary} | _figures(found.p, kinds, found.rows)
    return told | ({"eos_p": float(ends.mean())} if len(ends) else {}) | {"sources": sources}


def _figures(p: np.ndarray, kinds: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """Of N tokens, N > 0: p, kind and row are (N,)."""
    lengths, kept = np.array([(len(of_row), signal_kept(of_row)) for of_row in _by_row(p, rows)]).T
    return {
        "rows": len(kept),
        "tokens": len(p),
        "p_hist": torch.bincount(p_bins(torch.from_numpy(p)), minlength=P_BINS).tolist(),
        "p_mean": float(p.mean()),
        "p_median": float(np.median(p)),
        "ce": float(-np.log(np.maximum(p, np.finfo(p.dtype).tiny)).mean()),
        "effective_token_ratio": effective_token_ratio(p),
        "signal_kept": float(np.median(kept)),
        "ignored_examples": float((kept < IGNORED).mean()),
        "answer_tokens": float(np.median(lengths)),
        "classes": {kind: _mean_of(p[kinds == kind]) for kind in KINDS},
        "control_tokens": _mean_of(p[kinds == "control"]),
    }


def _by_row(p: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    return np.split(p, np.flatnonzero(np.diff(rows)) + 1)


def _mean_of(p: np.ndarray) -> dict[str, Any]:
    return {"tokens": len(p), "p_mean": float(p.mean()) if len(p) else None}


def effective_token_ratio(p: np.ndarray) -> float:
    """(Σp)² / (N·Σp²): the share of N tokens that, weighted alike, would be as many as these weighted by p (Kish's
    effective sample size).
    """
    squares = float((p**2).sum())
    return float(p.sum()) ** 2 / (len(p) * squares) if squares else 1.0  # all weighted alike: by nothing


def signal_kept(p: np.ndarray) -> float:
    """Σ p (1 − p) / Σ (1 − p): the share of SFT's gradient that DFT keeps, whose norm for a token's logits is between
    (1 − p) and √2 times that. 1 where nothing is left to learn.
    """
    to_learn = float((1 - p).sum())
    return float((p * (1 - p)).sum()) / to_learn if to_learn > 0 else 1.0


def _warnings(report: dict[str, Any]) -> list[str]:
    absent = [source["path"] for source in report["sources"] if not source["tokens"]]
    warnings = [f"{path}: none of its tokens is in the sample; raise --rows, or look at its rows" for path in absent]
    if report["tokens"] < _FEW:
        warnings.append(f"{report['tokens']} tokens are few: these figures are rough; raise --rows")
    return warnings


def to_text(report: dict[str, Any]) -> str:
    """The figures for reading, with bars."""
    models = [report, *report["after"]]
    lines = [f"{report['rows']} rows, {report['tokens']:,} tokens that are learned", ""]
    for name, each in zip(labels(report), models):
        lines += [f"{name}: {each['model']}", *_histogram(each["p_hist"]), f"  {_numbers(each)}", ""]
    lines += ["mean p of", *_table([["", "tokens", *labels(report)], *_kind_rows(models)]), ""]
    header = ["source", "rows", "tokens", "answer", "p mean", "effective", "kept", "ignored", "advice"]
    lines += _table([header, *map(_source_row, report["sources"])])
    lines += ["answer: median tokens; kept: share of SFT's gradient that DFT keeps, in the median example; ignored: "]
    lines[-1] += f"examples that keep less than {IGNORED:.0%}"
    lines += ["", f"advice: {report['advice']}", *(f"  - {reason}" for reason in report["reasons"])]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in report["warnings"])])


def labels(report: dict[str, Any]) -> list[str]:
    """What the models are called: before, and after (with its run's name where there are several)."""
    several = len(report["after"]) > 1
    after = [f"after {_run_name(each['model'])}" if several else "after" for each in report["after"]]
    return ["before" if after else "model", *after]


def _run_name(model: str) -> str:
    folder = Path(model)
    return folder.parent.name if folder.name == "export" else folder.name


def _histogram(counts: Sequence[int]) -> list[str]:
    total = sum(counts)
    lines = []
    for bin_, count in enumerate(counts):
        share = count / total
        length = round(_BAR * (1 - np.log10(share) / np.log10(_FLOOR))) if count else 0
        bar = "█" * max(length, int(count > 0))
        lines.append(f"  {bin_ / P_BINS:.1f} to {(bin_ + 1) / P_BINS:.1f}  {share:7.2%}  {bar}")
    return lines


def _numbers(figures: dict[str, Any]) -> str:
    return (
        f"mean p {figures['p_mean']:.3g}, median {figures['p_median']:.3g}, effective tokens "
        f"{figures['effective_token_ratio']:.1%}, cross-entropy {figures['ce']:.3f}, examples all but ignored "
        f"{figures['ignored_examples']:.1%}"
    )


def _kind_rows(models: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = [(kind, [each["classes"][kind] for each in models]) for kind in KINDS]
    rows.append(("control tokens", [each["control_tokens"] for each in models]))
    return [
        [kind, f"{of_kind[0]['tokens']:,}", *("" if m["p_mean"] is None else f"{m['p_mean']:.3g}" for m in of_kind)]
        for kind, of_kind in rows
    ]


def _source_row(source: dict[str, Any]) -> list[str]:
    if not source["tokens"]:
        return [source["path"], "0", "0", *[""] * 6]
    numbers = [f"{source['rows']}", f"{source['tokens']:,}", f"{source['answer_tokens']:g}", f"{source['p_mean']:.3g}"]
    shares = [f"{source[name]:.0%}" for name in ("effective_token_ratio", "signal_kept", "ignored_examples")]
    return [source["path"], *numbers, *shares, source["advice"]]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of even width, all but the first to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  " + "  ".join(cell.rjust(w) if at else cell.ljust(w) for at, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    ]


def write_html(report: dict[str, Any], name: str, out: Path, notes: Sequence[str] = ()) -> None:
    """The same as one page that opens offline, with the histograms laid over each other; `notes` stand at its top."""
    models, names = [report, *report["after"]], labels(report)
    reference = names[0] if report["after"] else None
    plots = [("all sources", histogram_plot({n: m["p_hist"] for n, m in zip(names, models)}, "all sources", reference))]
    if len(report["sources"]) > 1:
        for number, source in enumerate(report["sources"]):
            if source["tokens"]:
                histograms = {n: m["sources"][number]["p_hist"] for n, m in zip(names, models)}
                title = f"source {number + 1}: {source['path']}"
                plots.append((title, histogram_plot(histograms, title, reference)))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dft_mm.study", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("probe.html.jinja").render(
        name=name, notes=notes, report=report, plots=plots, ignored=IGNORED,
        models=[(n, m["model"], _numbers(m)) for n, m in zip(names, models)],
        kinds=[["class", "tokens", *names], *_kind_rows(models)],
        sources=[_source_row(source) for source in report["sources"]],
    )  # fmt: skip
    out.write_text(page, encoding="utf-8")
