"""What runs were made of: their state and settings, where they differ, and the data that they learned from."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml

from dft_mm.report.read import Results, Run

REFUSED = 20
"""Quarantined rows that are shown."""
_DETAIL = 300


def about_run(run: Run) -> dict[str, Any]:
    """What the page says of a run; None for what is not known."""
    recipe, environment = run.recipe, run.environment
    last = run.metrics[-1] if run.metrics else {}
    return {
        "name": run.name,
        "folder": str(run.folder),
        "loss": recipe["loss"]["name"],
        "model": recipe["model"]["path"],
        "data": ", ".join(source["path"] for source in recipe["data"]["train"]),
        "state": run.status.get("state", "no status yet"),
        "step": last.get("step", run.status.get("step")),
        "done": _done(recipe["train"], last),
        "seen": _last_sign(run),
        "batch_size": recipe["optim"]["batch_size"],
        "lr": recipe["optim"]["lr"],
        "seed": recipe.get("seed"),
        "minutes": sum(line.get("time_s", 0) for line in run.metrics) / 60 if run.metrics else None,
        "ce": last.get("ce"),
        "p_mean": last.get("p_mean"),
        "heldout_ce": next((line["heldout_ce"] for line in reversed(run.metrics) if "heldout_ce" in line), None),
        "command": " ".join(environment.get("command", [])),
        "commit": environment.get("commit"),
        "versions": ", ".join(_versions(environment)),
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
    }


def _done(train: Mapping[str, Any], last: Mapping[str, Any]) -> float | None:
    """Share of the steps that are done. A run ends at the first of its bounds."""
    bounds = (("step", "max_steps"), ("epoch", "epochs"))
    shares = [last[key] / train[bound] for key, bound in bounds if train.get(bound) and key in last]
    return min(1.0, max(shares)) if shares else None


def _last_sign(run: Run) -> str | None:
    """When the newest step was written."""
    path = run.folder / "metrics.jsonl"
    if not run.metrics or not path.is_file():
        return None
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _versions(environment: Mapping[str, Any]) -> Iterator[str]:
    for name in ("dft_mm", "python"):
        if environment.get(name):
            yield f"{name} {environment[name]}"
    for name, version in environment.get("packages", {}).items():
        yield f"{name} {version}"


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Keys of the recipes in which runs differ, beside their names, and each run's value."""
    flat = [dict(_flat(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each if key not in ("name", "output"))
    rows = ((key, ["" if each.get(key) is None else str(each[key]) for each in flat]) for key in keys)
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            for number, entry in enumerate(value):
                yield from _flat({str(number): entry}, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def about_results(result: Results) -> dict[str, Any]:
    manifest = result.manifest
    return {
        "label": result.label,
        "suite": result.suite,
        "model": result.model,
        "status": [
            (name, ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in entry["status"].items()))
            for name, entry in result.benchmarks.items()
        ],
        "manifest": json.dumps(manifest, indent=2, ensure_ascii=False) if manifest else "",
    }


@dataclass(frozen=True)
class Data:
    """One set of prepared data and the runs that learned from it."""

    runs: tuple[str, ...]
    manifest: dict[str, Any]
    reasons: tuple[tuple[str, int], ...]
    """Why rows were refused, the most frequent first."""
    refused: tuple[dict[str, str], ...]
    """The first of them: `place`, `reason`, `detail`."""


def data_of(runs: Sequence[Run]) -> list[Data]:
    """What the runs' data folders say, each set of data once."""
    found: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        manifest = _manifest(run)
        if manifest:
            found.setdefault(manifest.get("fingerprint", run.name), []).append((run, manifest))
    return [_data(group) for group in found.values()]


def _manifest(run: Run) -> dict[str, Any] | None:
    try:
        manifest = json.loads((run.folder / "data" / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not prepared yet, or not by this version; the rest of the page stands
        return None
    return manifest if isinstance(manifest, dict) and "sources" in manifest and "examples" in manifest else None


def _data(group: Sequence[tuple[Run, dict[str, Any]]]) -> Data:
    run, manifest = group[0]
    reasons = sum((Counter(source["quarantined"]) for source in manifest["sources"]), Counter())
    path, refused = run.folder / "data" / "quarantine.jsonl", ()
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            refused = tuple(_refused(json.loads(line)) for line in itertools.islice(lines, REFUSED))
    return Data(tuple(each.name for each, _ in group), manifest, tuple(reasons.most_common()), refused)


def _refused(row: Mapping[str, Any]) -> dict[str, str]:
    place = f"{row['file']}:{row['line']}" if row.get("line") else f"{row['file']}, row {row['row']}"
    return {"place": place, "reason": row["reason"], "detail": row["detail"][:_DETAIL]}
