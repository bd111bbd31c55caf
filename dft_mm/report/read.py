"""Run folders and result folders → plain values for tables and plots."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dft_mm.config import read_text
from dft_mm.errors import InputError


@dataclass(frozen=True)
class Run:
    """What a training run left behind; what it did not is empty."""

    name: str
    folder: Path
    recipe: dict[str, Any]
    status: dict[str, Any]
    metrics: list[dict[str, Any]]
    """Lines of metrics.jsonl."""
    environment: dict[str, Any]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a key, where it was measured."""
        lines = [line for line in self.metrics if key in line]
        return [line["step"] for line in lines], [line[key] for line in lines]


@dataclass(frozen=True)
class Results:
    """One model's scores."""

    label: str
    folder: Path
    suite: str
    model: str
    benchmarks: dict[str, dict[str, Any]]
    manifest: dict[str, Any] = field(default_factory=dict)
    averages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Means of several benchmarks."""


def read_paths(paths: Sequence[Path]) -> tuple[list[Run], list[Results]]:
    """Everything in run folders (with their `eval/*`) and result folders, in the order given.

    Raises InputError for a path that is neither.
    """
    runs: list[Run] = []
    results: list[Results] = []
    for path in paths:
        if (path / "results.json").is_file():
            results.append(read_results(path, _label(path.resolve())))
        elif (path / "recipe.yaml").is_file():
            run = read_run(path)
            runs.append(run)
            results += [read_results(file.parent, run.name) for file in sorted(path.glob("eval/*/results.json"))]
        elif found := sorted(path.glob("eval/*/results.json")):  # scores of a model that was not trained here
            results += [read_results(file.parent, path.resolve().name) for file in found]
        else:
            raise InputError(
                f"{path}: neither a run folder (it would hold recipe.yaml), nor a result folder (results.json), nor a "
                "model's folder of such (eval/SUITE/results.json)"
            )
    return runs, results


def _label(folder: Path) -> str:
    """What a table calls a result folder: its run, where it lies in one."""
    return folder.parents[1].name if folder.parent.name == "eval" else folder.name


def read_run(folder: Path) -> Run:
    """One run folder, whatever its state; raises InputError for a damaged file."""
    recipe = yaml.safe_load(read_text(folder / "recipe.yaml", "recipe"))
    status = _json(folder / "STATUS.json") if (folder / "STATUS.json").is_file() else {}
    environment = _json(folder / "environment.json") if (folder / "environment.json").is_file() else {}
    metrics = list(_lines(folder / "metrics.jsonl", status.get("state") == "running"))
    return Run(recipe["name"], folder, recipe, status, metrics, environment)


def read_results(folder: Path, label: str) -> Results:
    """One result folder; raises InputError for a damaged file."""
    results = _json(folder / "results.json")
    manifest = _json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}
    return Results(
        label, folder, results["suite"], results["model"], results["benchmarks"], manifest, results.get("averages", {})
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All objects of a JSONL file, none when it is absent; raises InputError naming a broken line."""
    return list(_lines(path, being_written=False))


def locate(path: str, near: Path) -> Path | None:
    """A path that was relative to the folder a command ran in: looked for there, and above `near`."""
    candidates = (base / path for base in (Path.cwd(), *near.resolve().parents))
    return next((found.resolve() for found in candidates if found.exists()), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(read_text(path, "file"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error


def _lines(path: Path, being_written: bool) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    lines = read_text(path, "file").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if being_written and number == len(lines):
                return
            raise InputError(f"{path}:{number}: not valid JSON: {error}") from error
