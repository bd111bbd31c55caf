"""Visual mathematics through VLMEvalKit: MathVision, MathVerse and WeMath."""

from functools import partial

from dft_mm.evaluate.task import Task
from dft_mm.evaluate.vlmevalkit.questions import load, local
from dft_mm.evaluate.vlmevalkit.scoring import score
from dft_mm.evaluate.vlmevalkit.splits import SPLITS

_VERSIONS = ("ms-vlmeval", "pandas", "math-verify", "latex2sympy2-extended", "sympy", "pillow")

VISUAL_MATHEMATICS = {
    kind: Task(
        partial(load, kind),
        partial(score, kind),
        judges=("rule", "exact", "endpoint") if kind == "wemath" else ("rule", "endpoint"),
        splits=tuple(SPLITS[kind]),
        takes=frozenset(),  # prompts are VLMEvalKit's own
        versions=_VERSIONS,
        local=local,
    )
    for kind in SPLITS
}
