"""The whole product in minutes on a CPU: makes data and a tiny Qwen2.5-VL, trains it by SFT, then goes on from there
once by SFT and once by DFT on rows of which a share is wrong, scores all three, and writes the page.

Everything is an ordinary file in one folder, and every step is the command that a user would type in that folder.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from dft_mm import __version__
from dft_mm.config import Recipe
from dft_mm.dist import log
from dft_mm.report.comparison import in_words
from dft_mm.report.page import write_report
from dft_mm.report.read import read_results
from dft_mm.report.tables import print_table, score_table
from dft_mm.sections import to_yaml
from dft_mm.study.claim import claim
from dft_mm.study.compare import compare, read, write_comparison
from dft_mm.study.digits import Sizes, write_data
from dft_mm.study.launch import CPU_ENVIRONMENT, rank_command, run_command, train_run
from dft_mm.study.tiny_reader import write_tiny_reader
from dft_mm.train.run_folder import state_of

MODELS = ("warmup", "sft", "dft")
SUITES = {
    # The paper's way: answers drawn at temperature 1, and their average.
    "digits": {"temperature": 1.0, "samples": 4, "max_tokens": 48},
    "digits_greedy": {"max_tokens": 48},
}
_HELDOUT = ("writers", "pairs")
_RANKS = 2


@dataclass(frozen=True)
class Settings:
    """What decides the numbers. Another version or other settings need another folder."""

    seed: int = 0
    sizes: Sizes = field(default_factory=Sizes)
    batch_size: int = 64
    warmup_epochs: int = 3
    warmup_lr: float = 3e-3
    epochs: int = 3
    lr: float = 5e-4
    """Of both arms."""


def demo(out: Path, settings: Settings = Settings()) -> None:
    """Run it in the folder `out`, or go on where it was stopped; prints the table and writes `out`/report.html.

    Raises InputError when the folder is something else, Stopped when a run was asked to stop.
    """
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    claim(out, "demo", {"dft_mm": __version__} | asdict(settings))
    os.environ.update(CPU_ENVIRONMENT)
    make_inputs(out, settings)
    for number, name in enumerate(MODELS):
        for offset, (verb, work) in enumerate((("train", train_model), ("score", _score)), 1):
            stage = time.monotonic()
            log.info("\n[%d/%d] %s %s", 2 * number + offset, 2 * len(MODELS), verb, name)
            work(out, name)
            log.info("  %.0f s", time.monotonic() - stage)
    scores = [read_results(_results_folder(out, name, suite), name) for name in MODELS for suite in SUITES]
    comparison = _comparison(out)
    title = "SFT and DFT on handwritten arithmetic"
    runs = [out / "runs" / name for name in MODELS]
    write_report([*runs, out], out / "report.html", title, _intro(settings))
    print_table(score_table(scores), "Percent right (95 % interval)")
    print("\n".join(comparison))
    minutes = (time.monotonic() - start) / 60
    print(f"\n{minutes:.1f} minutes. The page with curves, histograms and pictures: {out / 'report.html'}")


def make_inputs(out: Path, settings: Settings) -> None:
    """Data, model, recipes, DeepSpeed config and suite. Folders appear whole or not at all."""
    if not (out / "data").is_dir():
        log.info("writing pictures of handwritten arithmetic to %s", out / "data")
        _write_whole(out / "data", lambda folder: write_data(folder, settings.seed, settings.sizes))
    if not (out / "model").is_dir():
        log.info("writing a tiny Qwen2.5-VL with random weights to %s", out / "model")
        _write_whole(out / "model", lambda folder: write_tiny_reader(folder, settings.seed))
    zero3 = {"zero_optimization": {"stage": 3, "overlap_comm": False, "contiguous_gradients": True}}
    (out / "zero3.json").write_text(json.dumps(zero3, indent=2) + "\n", encoding="utf-8")
    (out / "recipes").mkdir(exist_ok=True)
    for name in MODELS:
        (out / "recipes" / f"{name}.yaml").write_text(to_yaml(make_recipe(name, settings)), encoding="utf-8")
    for suite, sampling in SUITES.items():
        suffix = suite.removeprefix("digits")
        benchmarks = [{"task": "digits", "name": name + suffix, "data": f"data/{name}.jsonl"} for name in _HELDOUT]
        text = yaml.safe_dump({"name": suite, "sampling": sampling, "benchmarks": benchmarks}, sort_keys=False)
        (out / f"{suite}.yaml").write_text(text, encoding="utf-8")


def _write_whole(folder: Path, write: Callable[[Path], object]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write(partial)
    partial.rename(folder)


def make_recipe(name: str, settings: Settings) -> Recipe:
    """The recipe of one of `MODELS`; paths are relative to the demo's folder. The arms differ in loss and name only."""
    first = name == "warmup"

    def source(file: str) -> dict[str, str]:
        return {"path": f"data/{file}.jsonl", "format": "wethink", "images": "data"}

    return Recipe.model_validate(
        {
            "name": name,
            "seed": settings.seed,
            "output": f"runs/{name}",
            "deepspeed": "zero3.json",
            "model": {
                "path": "model" if first else "runs/warmup/export",
                "dtype": "float32",
                "gradient_checkpointing": False,
            },
            "data": {
                "train": [source("clean" if first else "mixed")],
                "heldout": [source("writers")],
                "max_length": 128,
                "min_pixels": 784,
                "max_pixels": 6272,
                "workers": 0,  # each rank has a core to itself, and no other is left
            },
            "loss": {"name": "dft" if name == "dft" else "sft"},
            "optim": {
                "lr": settings.warmup_lr if first else settings.lr,
                "batch_size": settings.batch_size,
            },
            "train": {
                "epochs": settings.warmup_epochs if first else settings.epochs,
                "micro_tokens": 4096,
                "save_every": 100,
                "heldout_every": 50 if first else 15,
            },
        }
    )


def train_model(out: Path, name: str) -> None:
    """Train one of `MODELS`, unless it is finished."""
    run = out / "runs" / name
    if state_of(run) == "finished":
        log.info("%s is there already", run)
        return
    if name == MODELS[0]:
        log.info("(DeepSpeed compiles a small library when it starts for the first time on a machine: about a minute)")
    train_run(run, rank_command(_RANKS, "train", f"recipes/{name}.yaml"), out, out / "demo.log", CPU_ENVIRONMENT)


def _results_folder(out: Path, name: str, suite: str) -> Path:
    return out / "runs" / name / "eval" / suite


def _score(out: Path, name: str) -> None:
    for suite in SUITES:
        if (_results_folder(out, name, suite) / "results.json").is_file():
            log.info("%s is there already", _results_folder(out, name, suite))
            continue
        model, results = f"runs/{name}/export", f"runs/{name}/eval/{suite}"
        command = ["dft-mm", "eval", f"{suite}.yaml", "--model", model, "--out", results]
        run_command(command, out, out / "demo.log", CPU_ENVIRONMENT)


def _comparison(out: Path) -> list[str]:
    """DFT against SFT, question by question; also written to compare.json and compare.md."""
    pairs = [(read(_results_folder(out, "dft", suite)), read(_results_folder(out, "sft", suite))) for suite in SUITES]
    comparison = compare(pairs)
    write_comparison(comparison, out, "DFT", "SFT")
    return [f"{in_words({'a': 'DFT', 'b': 'SFT'} | row)}." for row in comparison["comparisons"]]


def _intro(settings: Settings) -> list[str]:
    sizes = settings.sizes
    return [
        "A Qwen2.5-VL of about a million parameters learned to read pictures of handwritten arithmetic and to work "
        f"them out step by step. It began with random weights and was trained by SFT on {sizes.clean} rows with right "
        f"answers (warmup). From there it went on twice, on the same {sizes.mixed} further rows in the same order, of "
        f"which {sizes.wrong:.0%} have a wrong answer and steps that lead to it: once by SFT and once by DFT.",
        f"All three were then asked {sizes.heldout} questions in digits of sheets that were never trained on "
        f"(writers), and {sizes.heldout} in the same digits with pairs of numbers that were never trained on either "
        "(pairs). The digits are scikit-learn's: 1,797 by 13 writers, without writer ids. They stand in the order of "
        "14 filled-in sheets, and the last three sheets were held out; a writer of two sheets may be on both sides.",
        f"Answers were drawn at temperature 1, as in the paper, {SUITES['digits']['samples']} to a question; and then "
        "once more by always taking the likeliest token (greedy). What theory expects: SFT learns how often "
        "an answer is wrong, which shows when answers are drawn; DFT gives little weight to tokens it finds unlikely.",
        f"This is one seed ({settings.seed}). Intervals and p-values cover the choice of questions, not the luck of a "
        "training run: another seed, share of wrong answers or learning rate may come out otherwise.",
    ]
