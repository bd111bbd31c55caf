"""Run folders, result folders and comparisons → plain values for tables and plots."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from dft_mm.errors import InputError
from dft_mm.sections import read_text


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

    def series(self, key: str) -> tuple[list[int], list[Any]]:
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

    @property
    def owner(self) -> Path:
        """The folder of the model: its run's, where the results lie in one."""
        folder = self.folder.resolve()
        return folder.parents[1] if folder.parent.name == "eval" else folder


@dataclass(frozen=True)
class Comparison:
    """What a compare.json says."""

    rows: list[dict[str, Any]]
    """With `a` and `b`, what the two are called, in each."""
    not_compared: list[str]
    notes: list[str]


@dataclass(frozen=True)
class Found:
    """Everything in some folders, each thing once, in the order given. Runs have different names; so have models."""

    runs: list[Run] = field(default_factory=list)
    results: list[Results] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    waiting: list[Path] = field(default_factory=list)
    """Folders that hold nothing yet."""


def read_paths(paths: Sequence[Path], wait: bool = False) -> Found:
    """Everything in run folders (with their `eval/*`), result folders, and folders of comparisons (with their runs, or
    the results that were compared).

    `wait`: a folder that is none of these may become one. Raises InputError for a path that is none.
    """
    found = Found()
    for path in paths:
        if not (_read_path(path, found) or (wait and path.is_dir())):
            raise InputError(
                f"{path}: neither a run folder (it would hold recipe.yaml), nor a result folder (results.json), nor a "
                "comparison or study (compare.json, runs/NAME/recipe.yaml), nor a model's folder of results "
                "(eval/SUITE/results.json)"
            )
    return _apart(found)


def stamps(paths: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Time and size of every file that `read_paths` would read: where they are equal, so is what it returns."""
    own = ("recipe.yaml", "STATUS.json", "metrics.jsonl", "environment.json", "data/manifest.json", "eval/*/*.json")
    names = [*own, *(f"runs/*/{name}" for name in own), "results.json", "manifest.json", "compare.json", "study.json"]
    folders = (folder for path in paths for folder in (path, *_compared(path)))
    files = (file for folder in folders for name in names for file in sorted(folder.glob(name)))
    return {str(file): stamp for file in files if (stamp := _stamp(file))}


def _compared(path: Path) -> list[Path]:
    """Folders that a comparison names, where it is one. What is wrong with its file, reading it says."""
    try:
        told = _json(path / "compare.json")
        found = [locate(told[side], path) for side in ("a", "b") if side in told]
    except (InputError, TypeError):
        return []
    return [folder for folder in found if folder]


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        about = file.stat()
    except OSError:  # it was there a moment ago
        return None
    return about.st_mtime_ns, about.st_size


def _read_path(path: Path, found: Found) -> bool:
    """Add what a path holds; False when that is nothing."""
    if (path / "results.json").is_file():
        _add_results(path, found)
    elif (path / "recipe.yaml").is_file():
        _add_run(path, found)
    elif (path / "compare.json").is_file() or any(path.glob("runs/*/recipe.yaml")):
        for run in _runs_of(path):
            _add_run(run, found)
        if (path / "compare.json").is_file():
            _add_comparison(path, found)
    elif files := sorted(path.glob("eval/*/results.json")):  # scores of a model that was not trained here
        for file in files:
            _add_results(file.parent, found)
    else:
        found.waiting.append(path)
        return False
    return True


def _runs_of(study: Path) -> list[Path]:
    """A study's run folders, in the order of its arms."""
    path = study / "study.json"
    arms = list(_json(path).get("arms", {})) if path.is_file() else []
    runs = [file.parent for file in sorted(study.glob("runs/*/recipe.yaml"))]
    places = {run: next((n for n, arm in enumerate(arms) if run.name.startswith(f"{arm}-s")), 0) for run in runs}
    return sorted(runs, key=lambda run: places[run])


def _add_run(folder: Path, found: Found) -> None:
    if all(folder.resolve() != known.folder.resolve() for known in found.runs):
        found.runs.append(read_run(folder))
        for file in sorted(folder.glob("eval/*/results.json")):
            _add_results(file.parent, found)


def _add_results(folder: Path, found: Found) -> None:
    if all(folder.resolve() != known.folder.resolve() for known in found.results):
        found.results.append(read_results(folder, _label(folder.resolve())))


def _add_comparison(folder: Path, found: Found) -> None:
    path = folder / "compare.json"
    told = _json(path)
    _need(told, ("comparisons",), path, "dft-mm compare")
    sides = [told.get("a", "A"), told.get("b", "B")]
    folders = [_results_at(side, folder) for side in sides]
    for side in filter(None, folders):
        _add_results(side, found)
    labels = [_label(side) if side else name for side, name in zip(folders, sides)]
    names = labels if labels[0] != labels[1] else sides
    rows = [{"a": names[0], "b": names[1]} | row for row in told["comparisons"]]
    found.comparisons.append(Comparison(rows, told.get("not_compared", []), told.get("notes", [])))


def _results_at(path: str, near: Path) -> Path | None:
    folder = locate(path, near)
    return folder if folder and (folder / "results.json").is_file() else None


def _apart(found: Found) -> Found:
    """The same, with folders for names where two runs, or two models, have one name."""
    owners = {each.folder.resolve(): each.name for each in found.runs}
    owners = {each.owner: each.label for each in found.results} | owners
    often = Counter(owners.values())
    names = {owner: name if often[name] == 1 else str(_short(owner)) for owner, name in owners.items()}
    return replace(
        found,
        runs=[replace(run, name=names[run.folder.resolve()]) for run in found.runs],
        results=[replace(result, label=names[result.owner]) for result in found.results],
    )


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _label(folder: Path) -> str:
    """What a table calls a result folder: its run, where it lies in one."""
    return folder.parents[1].name if folder.parent.name == "eval" else folder.name


def read_run(folder: Path) -> Run:
    """One run folder, whatever its state; raises InputError for a damaged file."""
    path = folder / "recipe.yaml"
    try:
        recipe = yaml.safe_load(read_text(path, "recipe"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    _need(recipe, ("name", "model", "data", "loss", "optim", "train"), path, "dft-mm train")
    status = _json(folder / "STATUS.json") if (folder / "STATUS.json").is_file() else {}
    environment = _json(folder / "environment.json") if (folder / "environment.json").is_file() else {}
    metrics = list(_lines(folder / "metrics.jsonl", status.get("state") != "finished"))
    return Run(recipe["name"], folder, recipe, status, metrics, environment)


def read_results(folder: Path, label: str) -> Results:
    """One result folder; raises InputError for a damaged file."""
    results = _json(folder / "results.json")
    _need(results, ("suite", "model", "benchmarks"), folder / "results.json", "dft-mm eval")
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


def _need(values: Any, keys: Sequence[str], path: Path, writer: str) -> None:
    missing = [key for key in keys if not isinstance(values, dict) or key not in values]
    if missing:
        raise InputError(f"{path}: {', '.join(missing)} is missing, so it is not what {writer} writes")


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(read_text(path, "file"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error


def _lines(path: Path, being_written: bool) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    lines = read_text(path, "file").removesuffix("\n").split("\n")  # texts may hold other ends of lines
    for number, line in enumerate(lines, 1):
        try:
            if line:
                yield json.loads(line)
        except json.JSONDecodeError as error:
            if being_written and number == len(lines):
                return
            raise InputError(f"{path}:{number}: not valid JSON: {error}") from error
