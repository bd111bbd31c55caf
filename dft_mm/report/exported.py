"""The scores of a run's export, as its model card shows them."""

import functools
import json
from pathlib import Path

from dft_mm.evaluate.answering import model_hash
from dft_mm.report.read import locate, read_results
from dft_mm.report.tables import score_table, to_markdown


def scores_of_export(run: Path, step: int) -> str:
    """A table in Markdown of what RUN/eval holds of RUN/export and RUN/merged, as far as they are the model of this
    step and were not written anew since; else empty."""
    folders = {folder.resolve() for folder in (run / "export", run / "merged") if _step_of(folder) == step}
    results = [read_results(file.parent, run.resolve().name) for file in sorted(run.glob("eval/*/results.json"))]
    hash_of = functools.cache(lambda folder: model_hash(str(folder), "hf"))
    mine = [
        result
        for result in results
        if (folder := locate(result.model, run)) in folders
        and result.manifest.get("model", {}).get("sha256") == hash_of(folder)
    ]
    return to_markdown(score_table(mine)) if mine else ""


def _step_of(folder: Path) -> int | None:
    about = folder / "dft_mm.json"
    return json.loads(about.read_text(encoding="utf-8"))["step"] if about.is_file() else None
