"""Table 2 (section 4.2), offline RL with Qwen2.5-Math-1.5B: four answers of its own to each of 100,000 questions, the
correct ones learned by SFT (which is RFT) and by DFT, pairs of a correct and a wrong one by DPO; and online GRPO and
RLOO on the same questions, through TRL. PPO is written out for verl, which the paper used, and its row appears when the
script is run again after that training; GRPO and RLOO can be trained so too.

    pip install -e ".[rl]"
    python -m scripts.paper.data.numinamath && python -m scripts.paper.data.questions
    python -m scripts.paper.table2 --ranks 8 --scoring "--backend vllm"
    sh runs/paper/table2/ppo/run.sh        # in verl's environment: see scripts/paper/verl.py
    python -m scripts.paper.table2 --ranks 8 --scoring "--backend vllm"
"""

from collections.abc import Sequence
from pathlib import Path

from dft_mm.errors import InputError
from scripts.paper.experiment import (
    METHODS,
    REPO,
    TINY_NOTE,
    Findings,
    Model,
    Options,
    Scored,
    command_line,
    from_words,
    score,
    script,
    setting,
    train,
    write,
)  # fmt: skip
from scripts.paper.offline import Sampled, sampled

MODEL = Model("Qwen2.5-Math-1.5B", "Qwen/Qwen2.5-Math-1.5B")
RECIPE = str(REPO / "scripts/recipes/qwen2_5_math_1_5b_numinamath_dft.yaml")
OUT = "runs/paper/table2"
BASELINES = {"dpo": "Offline", "ppo": "Online", "grpo": "Online", "rloo": "Online"}
"""Method → the table's part in which it stands."""
VERL = "ppo"
"""Not trained by this script."""
RFT = METHODS | {"sft": "RFT"}
"""SFT on answers of one's own that are correct is rejection sampling fine-tuning."""


def main(words: Sequence[str] | None = None) -> int:
    parser = command_line(__doc__ or "", OUT)
    every = ",".join(BASELINES)
    parser.add_argument("--baselines", default=every, help=f"which are wanted (default: {every})")
    given = parser.parse_intermixed_args(words)
    baselines = [method for method in given.baselines.split(",") if method]
    return script(lambda: table(from_words(given, OUT), baselines))


def table(wanted: Options, baselines: Sequence[str]) -> str | None:
    wanted.chosen([MODEL])
    if unknown := [method for method in baselines if method not in BASELINES]:
        raise InputError(f"--baselines {unknown[0]}: this table has {', '.join(BASELINES)}")
    suite, model, changes = setting("math", MODEL.path, wanted)
    recipe_changes = (*changes, f"model.path={model}", *wanted.overrides)
    answers = sampled(RECIPE, recipe_changes, wanted)
    rows = [Scored(MODEL.name, "base", (score(model, wanted.out / "base" / MODEL.name, suite, wanted),))]
    notes = []
    for method in baselines:
        if method == VERL and not (wanted.out / method / "export").is_dir():
            notes.append(write_verl(recipe_changes, answers, wanted))
            continue
        export = train_baseline(method, recipe_changes, answers, wanted)
        results = score(str(export), export.parent, suite, wanted)
        rows.append(Scored(MODEL.name, method.upper(), (results,), BASELINES[method]))
    study = wanted.out / MODEL.name
    trained = train(RECIPE, (*recipe_changes, answers.source), suite, ("sft", "dft"), study, wanted)
    if trained is None:
        return None
    rows += [Scored(MODEL.name, RFT[loss], results, "Offline") for loss, results in trained.items()]
    kept = len((answers.folder / "correct.jsonl").read_text(encoding="utf-8").splitlines())
    notes.append(f"{kept} correct answers were learned from (sft is RFT); the paper had about 140,000.")
    return write(Findings("2", rows, [study], [*([TINY_NOTE] if wanted.tiny else []), *notes]), wanted.out)


def write_verl(changes: Sequence[str], answers: Sampled, wanted: Options) -> str:
    """Files of the method that verl trains; returns what to do with them."""
    from dft_mm.config import load_recipe
    from scripts.paper.verl import export

    return "Not trained here: " + export(VERL, load_recipe(Path(RECIPE), changes), answers.questions, wanted.out / VERL)


def train_baseline(method: str, changes: Sequence[str], answers: Sampled, wanted: Options) -> Path:
    """The model folder of a baseline, trained if it is not there."""
    from dft_mm.study.launch import machine_environment, rank_command, run_command

    out = wanted.out / method
    if not (out / "export").is_dir():
        data = answers.pairs if method == "dpo" else answers.questions
        words = [method, RECIPE, *changes, "--data", str(data), "--out", str(out)]
        if wanted.tiny:
            words += ["--steps", "2", "--batch", "4", "--max-tokens", "8"]
        out.mkdir(parents=True, exist_ok=True)
        command = rank_command(wanted.ranks, *words, module="scripts.paper.baselines")
        run_command(command, Path.cwd(), out / "train.log", machine_environment())
    return out / "export"


if __name__ == "__main__":
    raise SystemExit(main())
