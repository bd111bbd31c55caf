"""Figure 1 (section 4.1): accuracy by training step, Qwen2.5-Math-1.5B in the setting of Table 1. Every checkpoint is
written as a model, scored and, unless --keep-exports, removed again; checkpoints stay, and with optimizer states are
some 20 GB each: train.save_every=50 train.keep=8 makes fewer.

    python -m scripts.paper.data.numinamath
    python -m scripts.paper.figure1 --ranks 8 --scoring "--backend vllm"
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from scripts.paper.experiment import TINY_NOTE, Options, command_line, from_words, score, script, setting, train
from scripts.paper.figures import DRAWN_ONLY, Figure, Point, Sweep, curve_of, write
from scripts.paper.table2 import MODEL, RECIPE

OUT = "runs/paper/figure1"
CHECKPOINTS = ("train.save_every=20", "train.keep=1000")
"""About 20 of them in 100,000 rows, in batches of 256; all are kept."""
TINY_CHECKPOINTS = ("train.save_every=2", "train.keep=1000", "train.max_steps=4")
NOTE = DRAWN_ONLY.format("1") + "; its last step is Table 1's, whose numbers stand below ours."


def main(words: Sequence[str] | None = None) -> int:
    parser = command_line(__doc__ or "", OUT)
    parser.add_argument("--keep-exports", action="store_true", help="keep the model of each step after scoring")
    given = parser.parse_intermixed_args(words)
    return script(lambda: figure(from_words(given, OUT), given.keep_exports))


def figure(wanted: Options, keep_exports: bool) -> str | None:
    wanted.chosen([MODEL])
    suite, model, changes = setting("math", MODEL.path, wanted)
    checkpoints = TINY_CHECKPOINTS if wanted.tiny else CHECKPOINTS
    base = score(model, wanted.out / "base" / MODEL.name, suite, wanted)
    study = wanted.out / MODEL.name
    own = (*changes, *checkpoints, f"model.path={model}", *wanted.overrides)
    trained = train(RECIPE, own, suite, ("sft", "dft"), study, wanted)
    if trained is None:
        return None
    points = []
    for loss, results in trained.items():
        for seed, last in zip(wanted.seeds, results, strict=True):
            name = curve_of(loss, seed, wanted.seeds)
            points.append(Point(name, 0, "base", base))
            scored = by_step(last, suite, wanted, keep_exports)
            points += [Point(name, step, f"{name}, step {step}", folder) for step, folder in scored.items()]
    notes = [*([TINY_NOTE] if wanted.tiny else []), NOTE]
    title = f"accuracy by training step, {MODEL.name}"
    return write(Figure("1", title, MODEL.name, [Sweep("step", points)], [study], notes), wanted.out)


def by_step(last: Path, suite: str, wanted: Options, keep_exports: bool) -> dict[int, Path]:
    """Result folders of all checkpoints of a run, by their step; `last` is that of its last, which is scored."""
    from dft_mm.train.verify import steps

    run = last.parents[1]
    *earlier, final = steps(run / "checkpoints")
    return {step: score_step(run, step, suite, wanted, keep_exports) for step in earlier} | {final: last}


def score_step(run: Path, step: int, suite: str, wanted: Options, keep_export: bool) -> Path:
    from dft_mm.evaluate.suite import load_suite
    from dft_mm.study.launch import run_verb
    from dft_mm.train.verify import checkpoint_name

    folder = wanted.out / "steps" / run.name / checkpoint_name(step)
    export, results = folder / "export", folder / "eval" / load_suite(suite).name
    scored = (results / "results.json").is_file()
    if not export.is_dir() and (keep_export or not scored):
        folder.mkdir(parents=True, exist_ok=True)
        run_verb(folder / "export.log", "export", str(run), "--step", str(step), "--out", str(export))
    if not scored:
        score(str(export), folder, suite, wanted)
    if export.is_dir() and not keep_export:
        shutil.rmtree(export)
    return results


if __name__ == "__main__":
    raise SystemExit(main())
