"""Figure 3 (appendix A.8): Qwen2.5-Math-1.5B by SFT and DFT with learning rates 2e-4, 1e-4, 5e-5 and 1e-5 in batches of
256, and with batches of 32, 64, 128 and 256 at 5e-5; all else as in Table 1, whose setting is one of both.

    python -m scripts.paper.data.numinamath
    python -m scripts.paper.figure3 --ranks 8 --scoring "--backend vllm"
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.paper.experiment import TINY_NOTE, Options, command_line, from_words, script, setting
from scripts.paper.figures import DRAWN_ONLY, Figure, Point, Sweep, curve_of, write
from scripts.paper.table2 import MODEL, RECIPE

OUT = "runs/paper/figure3"
LOSSES = ("sft", "dft")
LEARNING_RATES = ("2e-4", "1e-4", "5e-5", "1e-5")
BATCH_SIZES = (32, 64, 128, 256)


class Setting(NamedTuple):
    lr: str = "5e-5"
    batch_size: int = 256

    def arm(self, loss: str) -> str:
        return f"{loss}-lr{self.lr}-batch{self.batch_size}"


BY_LR = [Setting(lr=lr) for lr in LEARNING_RATES]
BY_BATCH = [Setting(batch_size=size) for size in BATCH_SIZES]
SETTINGS = list(dict.fromkeys([*BY_LR, *BY_BATCH]))
"""Each is trained once, though one is in both."""
NOTES = (
    DRAWN_ONLY.format("3") + "; learning rate 5e-5 in batches of 256 is Table 1's setting, whose numbers stand below.",
    "Runs with batches of another size take another number of steps for the same rows.",
)


def main(words: Sequence[str] | None = None) -> int:
    given = command_line(__doc__ or "", OUT).parse_intermixed_args(words)
    return script(lambda: figure(from_words(given, OUT)))


def figure(wanted: Options) -> str | None:
    from dft_mm.study.arms import Arm, carry_out, study_of_arms

    wanted.chosen([MODEL])
    suite, model, changes = setting("math", MODEL.path, wanted)
    if wanted.tiny:
        changes = (*changes, *tiny_rows(wanted.data))
    own = (*changes, f"model.path={model}", *wanted.overrides)
    arms = {
        (loss, each): Arm(
            each.arm(loss), (f"loss.name={loss}", f"optim.lr={each.lr}", f"optim.batch_size={each.batch_size}")
        )
        for each in SETTINGS
        for loss in LOSSES
    }
    # In one setting SFT and DFT see the same examples in the same steps; between settings nothing is compared.
    pairs = tuple((each.arm("sft"), each.arm("dft")) for each in SETTINGS)
    study = study_of_arms(Path(RECIPE), own, suite, tuple(arms.values()), wanted.seeds, wanted.out / MODEL.name, pairs)
    if carry_out(study, wanted.ranks, wanted.submit, wanted.scoring.split()) is None:
        return None

    def points(settings: Sequence[Setting], axis: str, key: str) -> list[Point]:
        found = []
        for loss in LOSSES:
            for seed in study.seeds:
                name = curve_of(loss, seed, study.seeds)
                for each in settings:
                    x = getattr(each, key)
                    folder = study.results_folder(arms[loss, each], seed)
                    found.append(Point(name, float(x), f"{name}, {axis} {x}", folder))
        return found

    sweeps = [
        Sweep(axis, points(settings, axis, key), averages_only=True, log=True)
        for axis, key, settings in (("learning rate", "lr", BY_LR), ("batch size", "batch_size", BY_BATCH))
    ]
    notes = [*([TINY_NOTE] if wanted.tiny else []), *NOTES]
    title = f"learning rates and batch sizes, {MODEL.name}"
    return write(Figure("3", title, MODEL.name, sweeps, [study.out], notes), wanted.out)


def tiny_rows(data: Path) -> tuple[str, ...]:
    """Enough real rows for two steps of 256, and short ones whose answer is a number: ten runs take 512 of them."""
    from scripts.paper.tiny import there

    rows = there(data / "train_text/aime_1983_2023.json")
    return (
        f"data.train=[{{path: {rows}, format: columns, columns: {{prompt: problem, response: answer}}}}]",
        "data.max_length=128", "train.epochs=4", "train.micro_tokens=4096",
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
