"""Arms of a study: one recipe, some of its keys varied, each with every seed; trained, scored and compared.

All arms begin from the same model and see the same examples in the same order, so that a difference between them is
what was varied. Everything lies in one folder, and the same command goes on where it was stopped.
"""

import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dft_mm.atomic import write_atomically
from dft_mm.config import Recipe, load_recipe
from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.evaluate.suite import Suite, load_suite
from dft_mm.report.page import write_report
from dft_mm.sections import to_yaml
from dft_mm.study.claim import claim
from dft_mm.study.compare import compare_arms, read, write_comparison
from dft_mm.study.launch import machine_environment, rank_command, run_verb, train_run
from dft_mm.train.run_folder import state_of


@dataclass(frozen=True)
class Arm:
    name: str
    changes: tuple[str, ...]
    """`section.key=value` beside the recipe."""


@dataclass(frozen=True)
class Study:
    """What is compared; in `study.json`, so that a folder holds one study only."""

    recipe: Recipe
    recipe_file: Path
    overrides: tuple[str, ...]
    suite: Suite
    suite_name: str
    """Its file, or its name."""
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    out: Path
    pairs: tuple[tuple[str, str], ...] = ()
    """Names of the arms that are compared, A and B; none: every two."""

    def run_folder(self, arm: Arm, seed: int) -> Path:
        return self.out / "runs" / f"{arm.name}-s{seed}"

    def results_folder(self, arm: Arm, seed: int) -> Path:
        return self.run_folder(arm, seed) / "eval" / self.suite.name

    @property
    def log_file(self) -> Path:
        """What trainings and scorings printed."""
        return self.out / "study.log"

    @property
    def runs(self) -> list[tuple[Arm, int]]:
        """Seed by seed, so that a study that is stopped has whole comparisons."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]


def study_of(
    recipe: Path,
    overrides: Sequence[str],
    suite: str,
    vary: Sequence[str],
    seeds: Sequence[int],
    out: Path,
) -> Study:
    """Check everything before the first step is trained.

    Args:
        vary: `section.key=a,b`, of which all combinations become arms; commas inside brackets do not part values.

    Raises InputError for a wrong recipe of any arm, fewer than two arms, or a folder that holds another study.
    """
    return study_of_arms(recipe, overrides, suite, arms_of(vary), seeds, out)


def study_of_arms(
    recipe: Path,
    overrides: Sequence[str],
    suite: str,
    arms: tuple[Arm, ...],
    seeds: Sequence[int],
    out: Path,
    pairs: tuple[tuple[str, str], ...] = (),
) -> Study:
    """`study_of` for arms that have names of their own, of which only some are compared: p-values are then corrected
    for the number of these comparisons."""
    base = load_recipe(recipe, overrides)
    study = Study(
        base, recipe, tuple(overrides), load_suite(suite), suite, arms, tuple(seeds) or (base.seed,), out, pairs
    )
    for arm in arms:
        load_recipe(recipe, [*overrides, *arm.changes])
    # Further seeds are welcome.
    told = {"recipe": base.model_dump(mode="json"), "suite": study.suite.model_dump(mode="json")}
    told["arms"] = {arm.name: list(arm.changes) for arm in arms}
    claim(out, "study", told, {"recipe": Recipe, "suite": Suite})
    return study


def arms_of(vary: Sequence[str]) -> tuple[Arm, ...]:
    choices = []
    for text in vary:
        key, equals, values = text.partition("=")
        found = re.findall(r"(?:[^,\[\]{}]|\[[^\]]*\]|\{[^}]*\})+", values)
        if not equals or len(found) < 2:
            raise InputError(f"--vary {text}: give a key and two values or more, such as --vary loss.name=sft,dft")
        choices.append([f"{key}={value.strip()}" for value in found])
    arms = tuple(Arm(_name(changes, len(choices) == 1), changes) for changes in itertools.product(*choices))
    names = [arm.name for arm in arms]
    if len(arms) < 2 or len(set(names)) < len(names):
        raise InputError(f"--vary {' --vary '.join(vary)}: arms need different values; these are {', '.join(names)}")
    return arms


def _name(changes: Sequence[str], alone: bool) -> str:
    parts = []
    for change in changes:
        key, _, value = change.partition("=")
        parts.append(value if alone else f"{key.rsplit('.', 1)[-1]}-{value}")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)).strip("-")


def carry_out(
    study: Study, ranks: int, submit: str | None = None, scoring: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Train and score what is not there yet, then write compare.json, compare.md and report.html.

    Args:
        ranks: processes of a training run on this machine.
        submit: a command that queues a training run instead, "sbatch scripts/launch/slurm.sh": the recipe's path is
            added.
        scoring: options for `dft-mm eval`.

    Returns:
        What stands in compare.json; None when queued runs are not finished.
    """
    waiting = []
    for number, (arm, seed) in enumerate(study.runs, 1):
        run = study.run_folder(arm, seed)
        log.info("[%d/%d] %s", number, len(study.runs), run.name)
        if state_of(run) != "finished":
            recipe = _write_recipe(study, arm, seed)
            if submit:
                waiting.append(_submitted(study, run, recipe, submit))
                continue
            command = rank_command(ranks, "train", str(recipe))
            train_run(run, command, Path.cwd(), study.log_file, machine_environment())
        if not (study.results_folder(arm, seed) / "results.json").is_file():
            model, out = _scored_model(study, arm, run), study.results_folder(arm, seed)
            run_verb(study.log_file, "eval", study.suite_name, "--model", str(model), "--out", str(out), *scoring)
    if waiting:
        log.info("queued: %s. Run the same command again when they are done", "; ".join(waiting))
        return None
    return _finish(study)


def _scored_model(study: Study, arm: Arm, run: Path) -> Path:
    """The folder of a finished run that is scored: where it trained adapters, the model with them added, which every
    backend takes."""
    if not load_recipe(study.recipe_file, [*study.overrides, *arm.changes]).model.lora:
        return run / "export"
    merged = run / "merged"
    if not merged.is_dir():
        run_verb(study.log_file, "export", str(run), "--merge", "--out", str(merged))
    return merged


def _write_recipe(study: Study, arm: Arm, seed: int) -> Path:
    run = study.run_folder(arm, seed)
    own = [f"seed={seed}", f"name={run.name}", f"output={run}"]
    recipe = load_recipe(study.recipe_file, [*study.overrides, *arm.changes, *own])
    path = study.out / "recipes" / f"{run.name}.yaml"
    write_atomically(path, to_yaml(recipe))
    return path


def _submitted(study: Study, run: Path, recipe: Path, submit: str) -> str:
    """Queue a run, unless it is queued or running; what became of it, in words."""
    path = study.out / "submitted.json"
    queued = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if run.name in queued and state_of(run) not in ("failed", "stopped"):
        return f"{run.name} ({state_of(run) or 'not begun'}: {queued[run.name]})"
    done = subprocess.run([*shlex.split(submit), str(recipe)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"--submit: {submit} {recipe} failed: {done.stderr.strip() or done.stdout.strip()}")
    queued[run.name] = done.stdout.strip()
    write_atomically(path, json.dumps(queued, indent=2) + "\n")
    return f"{run.name} ({queued[run.name]})"


def _finish(study: Study) -> dict[str, Any]:
    results = {arm.name: [read(study.results_folder(arm, seed)) for seed in study.seeds] for arm in study.arms}
    comparison = compare_arms(results, study.pairs)
    comparison["notes"] = _same_examples(study)
    named = " and ".join(arm.name for arm in study.arms) if len(study.arms) <= 3 else f"{len(study.arms)} arms"
    write_comparison(comparison, study.out)
    write_report([study.out], study.out / "report.html", f"{named} compared")
    return comparison


def _same_examples(study: Study) -> list[str]:
    """Notes where arms did not see the same examples in the same steps."""
    notes = []
    compared = study.pairs or [(arm.name, study.arms[0].name) for arm in study.arms[1:]]
    for seed in study.seeds:
        seen = {arm.name: _steps(study.run_folder(arm, seed)) for arm in study.arms}
        notes += [
            f"seed {seed}: {a} did not see the same examples in the same steps as {b}, by what was varied: its "
            "difference is not one of the loss alone"
            for a, b in compared
            if seen[a] != seen[b]
        ]
    return notes


def _steps(run: Path) -> tuple[str, list[tuple[int, int]]]:
    manifest = json.loads((run / "data" / "manifest.json").read_text(encoding="utf-8"))
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return manifest["fingerprint"], [(line["step"], line["supervised_tokens"]) for line in lines]
