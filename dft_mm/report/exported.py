"""The scores of a run's export, as its model card shows them."""

import json
from pathlib import Path

from dft_mm.report.read import locate, read_results
from dft_mm.report.tables import score_table, to_markdown


def scores_of_export(run: Path, step: int) -> str:
    """A table in Markdown of what RUN/eval holds of RUN/export, if that is the model of this step; else empty."""
    export = (run / "export").resolve()
    about = export / "dft_mm.json"
    if not about.is_file() or json.loads(about.read_text(encoding="utf-8"))["step"] != step:
        return ""
    results = [read_results(file.parent, run.resolve().name) for file in sorted(run.glob("eval/*/results.json"))]
    mine = [result for result in results if locate(result.model, run) == export]
    return to_markdown(score_table(mine)) if mine else ""
