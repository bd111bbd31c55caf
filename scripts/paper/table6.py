"""Table 6 (appendix A.5): iw-SFT beside DFT with Qwen2.5-Math-1.5B, on the rows of Table 1 (SFT) and on correct answers
of its own (Offline; those of Table 2, when --sampled names its folder).

    python -m scripts.paper.table6 --sampled runs/paper/table2/sampled --ranks 8 --scoring "--backend vllm"
"""

from collections.abc import Sequence
from pathlib import Path

from scripts.paper.experiment import (
    METHODS,
    TINY_NOTE,
    Findings,
    Options,
    Scored,
    command_line,
    from_words,
    script,
    setting,
    train,
    write,
)  # fmt: skip
from scripts.paper.offline import Sampled, sampled
from scripts.paper.table2 import MODEL, RECIPE

OUT = "runs/paper/table6"
LOSSES = ("iw_sft", "dft")


def main(words: Sequence[str] | None = None) -> int:
    parser = command_line(__doc__ or "", OUT)
    parser.add_argument("--sampled", type=Path, metavar="DIR", help="answers that are there (default: sampled anew)")
    given = parser.parse_intermixed_args(words)
    return script(lambda: table(from_words(given, OUT), given.sampled))


def table(wanted: Options, folder: Path | None) -> str | None:
    wanted.chosen([MODEL])
    suite, model, changes = setting("math", MODEL.path, wanted)
    recipe_changes = (*changes, f"model.path={model}", *wanted.overrides)
    answers = Sampled(folder, Path()) if folder else sampled(RECIPE, recipe_changes, wanted)
    rows, studies = [], []
    for name, source in (("SFT", ()), ("Offline", (answers.source,))):
        studies.append(wanted.out / f"{MODEL.name} {name}")
        trained = train(RECIPE, (*recipe_changes, *source), suite, LOSSES, studies[-1], wanted)
        if trained is None:
            return None
        rows += [Scored(MODEL.name, METHODS[loss], results, name) for loss, results in trained.items()]
    return write(Findings("6", rows, studies, [TINY_NOTE] if wanted.tiny else []), wanted.out)


if __name__ == "__main__":
    raise SystemExit(main())
