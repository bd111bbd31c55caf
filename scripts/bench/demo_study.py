"""SFT against DFT on the demo's task over several seeds, and two trials of `compare` itself: it must keep still where
there is nothing to find, and speak where there is something.

    python -m scripts.bench.demo_study --wrong 0.3 --seeds 5 --questions 500 --out runs/demo_study
    python -m scripts.bench.demo_study --wrong 0.3 --seeds 10 --questions 500 --out runs/demo_study --trials 20

Everything goes on where it was stopped. The second command takes the runs of the first.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dft_mm.report.read import Results
from scripts.bench.measure import RESULTS

ARMS = ("sft", "dft")
PLANTED = (0.05, 0.2, 0.4)
"""Shares of an arm's right answers that are made wrong, for differences of known size: how many of each are found."""


def study(out: Path, wrong: float, seeds: int, questions: int, ranks: int) -> Path:
    """Data, a model that has learned the task, and `dft-mm compare` from there; the study's folder."""
    from dft_mm.study.demo import Settings, make_inputs, train_model
    from dft_mm.study.digits import Sizes
    from dft_mm.study.launch import CPU_ENVIRONMENT, run_command

    demo = (out / "demo").resolve()
    demo.mkdir(parents=True, exist_ok=True)
    make_inputs(demo, Settings(sizes=Sizes(wrong=wrong, heldout=questions)))
    train_model(demo, "warmup")
    arms = f"loss.name={','.join(ARMS)}"
    command = ["dft-mm", "compare", "recipes/dft.yaml", "--suite", "digits.yaml", "--vary", arms]
    command += ["--seeds", ",".join(map(str, range(seeds))), "--ranks", str(ranks), "--out", "../study"]
    run_command(command, demo, out / "study.log", CPU_ENVIRONMENT)
    return out / "study"


def splits(runs: int, trials: int, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """So many ways to part the runs of one arm into two halves."""
    draw = np.random.default_rng(seed)
    for _ in range(trials):
        order = draw.permutation(runs).tolist()
        yield order[: runs // 2], order[runs // 2 : runs // 2 * 2]


def trials(folder: Path, seeds: int, count: int) -> dict[str, Any]:
    """Halves of one arm's runs against each other: as they are, and with a planted difference."""
    from dft_mm.study.compare import compare_arms, read

    results = {arm: [read(folder / "runs" / f"{arm}-s{seed}" / "eval/digits") for seed in range(seeds)] for arm in ARMS}
    told: dict[str, list[dict[str, Any]]] = {"null": [], **{_planted(share): [] for share in PLANTED}}
    for number, arm in enumerate(ARMS):
        for a, b in splits(seeds, count // len(ARMS), number):
            ours, theirs = [results[arm][seed] for seed in a], [results[arm][seed] for seed in b]
            told["null"].append(_outcome(arm, a, b, compare_arms({"a": ours, "b": theirs})))
            for share in PLANTED:
                below = folder / _planted(share)
                worse = [_worsened(each, below / f"{arm}-s{seed}", share) for each, seed in zip(theirs, b)]
                told[_planted(share)].append(_outcome(arm, a, b, compare_arms({"a": ours, "b": worse})))
    return told


def _planted(share: float) -> str:
    return f"planted_{share:g}"


def _outcome(arm: str, a: list[int], b: list[int], comparison: dict[str, Any]) -> dict[str, Any]:
    kept = ("benchmark", "metric", "difference", "ci95", "p_adjusted", "verdict")
    rows = [{key: row[key] for key in kept} for row in comparison["comparisons"]]
    return {"arm": arm, "a": a, "b": b, "comparisons": rows}


def _worsened(results: Results, folder: Path, share: float) -> Results:
    """The same results with a share of the right answers wrong, the same ones whenever it is asked."""
    from dft_mm.report.read import read_lines, read_results

    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    lines = read_lines(results.folder / "scores.jsonl")
    for line in lines:
        if line["status"] == "correct" and draw.random() < share:
            line["status"] = "wrong"
    (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "results.json").write_bytes((results.folder / "results.json").read_bytes())
    return read_results(folder, results.label)


def called(outcomes: list[dict[str, Any]], verdict: str) -> int:
    """Trials of which some comparison has this verdict."""
    return sum(any(row["verdict"] == verdict for row in each["comparisons"]) for each in outcomes)


def main() -> None:
    from dft_mm.dist import setup_logging

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wrong", type=float, default=0.3, help="share of wrong answers (default: 0.3)")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each arm (default: 5)")
    parser.add_argument("--questions", type=int, default=500, help="of each kind that are held out (default: 500)")
    parser.add_argument("--ranks", type=int, default=2, help="processes of a training (default: 2)")
    parser.add_argument("--trials", type=int, default=0, help="halves against halves (default: none)")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    setup_logging()
    folder = study(given.out, given.wrong, given.seeds, given.questions, given.ranks)
    comparison = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    setting = {name: getattr(given, name) for name in ("wrong", "seeds", "questions")}
    found = {"setting": setting, "comparison": comparison}
    print((folder / "compare.md").read_text(encoding="utf-8"))
    if given.trials:
        found["trials"] = trials(folder, given.seeds, given.trials)
        null = found["trials"]["null"]
        differ = len([each for each in null if any(row["verdict"] != "no_difference" for row in each["comparisons"])])
        print(f"one arm against itself: {len(null) - differ} of {len(null)} without a difference")
        for share in PLANTED:
            outcomes = found["trials"][_planted(share)]
            times = called(outcomes, "a_better")
            print(f"with {share:.0%} of the right answers made wrong: found in {times} of {len(outcomes)}")
    file = RESULTS / f"demo_study_{given.wrong:g}.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
