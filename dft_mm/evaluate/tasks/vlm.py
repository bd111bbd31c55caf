"""Visual mathematics through VLMEvalKit: MathVision, MathVerse and WeMath."""

from functools import partial

from dft_mm.evaluate import vlmevalkit
from dft_mm.evaluate.task import Task

_VERSIONS = ("ms-vlmeval", "pandas", "math-verify", "latex2sympy2-extended", "sympy", "pillow")

VISUAL_MATHEMATICS = {
    kind: Task(
        partial(vlmevalkit.load, kind),
        partial(vlmevalkit.score, kind),
        judges=("rule", "exact", "endpoint") if kind == "wemath" else ("rule", "endpoint"),
        splits=tuple(vlmevalkit.SPLITS[kind]),
        takes=frozenset(),  # prompts are VLMEvalKit's own
        versions=_VERSIONS,
    )
    for kind in vlmevalkit.SPLITS
}
