"""Figure 2 (section 4.5): the probabilities that Qwen2.5-Math-1.5B gives to the tokens of the training set, before
training and after SFT and DFT; and after whatever --after names, such as Table 2's runs of DPO and GRPO.

    python -m scripts.paper.data.numinamath
    python -m scripts.paper.figure2 --study runs/paper/table1/Qwen2.5-Math-1.5B --rows 2000 \\
        --after runs/paper/table2/dpo/export --after runs/paper/table2/grpo/export
"""

import json
from collections.abc import Sequence
from pathlib import Path

from dft_mm.atomic import write_atomically
from scripts.paper.experiment import TINY_NOTE, Options, command_line, from_words, script, setting, train
from scripts.paper.figures import DRAWN_ONLY
from scripts.paper.table2 import MODEL, RECIPE

OUT = "runs/paper/figure2"
NOTE = DRAWN_ONLY.format("2") + "."


def main(words: Sequence[str] | None = None) -> int:
    parser = command_line(__doc__ or "", OUT)
    parser.add_argument("--study", type=Path, metavar="DIR", help="Table 1's runs, gone on with (default: its own)")
    parser.add_argument("--after", action="append", default=[], metavar="DIR", help="another trained model; repeatable")
    parser.add_argument("--rows", type=int, metavar="N", help="training rows to draw (default: 256)")
    given = parser.parse_intermixed_args(words)
    return script(lambda: figure(from_words(given, OUT), given.study, given.after, given.rows))


def figure(wanted: Options, study: Path | None, after: Sequence[str], rows: int | None) -> str | None:
    from dft_mm.config import load_recipe
    from dft_mm.study.probe import ROWS, probe, to_text, write_html

    wanted.chosen([MODEL])
    suite, model, changes = setting("math", MODEL.path, wanted)
    own = (*changes, f"model.path={model}", *wanted.overrides)
    trained = train(RECIPE, own, suite, ("sft", "dft"), study or wanted.out / MODEL.name, wanted)
    if trained is None:
        return None
    runs = [results.parents[1] for of_loss in trained.values() for results in of_loss]
    found = probe(load_recipe(runs[0] / "recipe.yaml"), rows or ROWS, after=[*map(str, runs), *after])
    notes = [*([TINY_NOTE] if wanted.tiny else []), NOTE]
    title = f"Figure 2, {MODEL.name}"
    wanted.out.mkdir(parents=True, exist_ok=True)
    write_html(found, title, wanted.out / "figure.html", notes)
    write_atomically(wanted.out / "figure.json", json.dumps(found, ensure_ascii=False) + "\n")
    text = "\n\n".join([f"# {title}", *notes, f"```\n{to_text(found)}\n```"]) + "\n"
    write_atomically(wanted.out / "figure.md", text)
    return text


if __name__ == "__main__":
    raise SystemExit(main())
