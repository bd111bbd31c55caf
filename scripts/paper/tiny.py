"""`--tiny`: a table's script on small real data in minutes on a CPU, so that scripts cannot rot."""

from pathlib import Path

import yaml

from dft_mm.errors import InputError

_ROWS = {
    "math": ("train_text/numinamath_layout.jsonl", "problem_solution", None),
    "code": ("train_text/ultrafeedback_pairs.jsonl", "preference", None),
    "multimodal": ("wethink_layout/wethink_layout.jsonl", "wethink", "."),
}
"""Suite → rows to learn from below the data folder, their format, and the folder of their pictures."""
_QUESTIONS = {
    "math500": "text_math/math_oai", "minerva": "text_math/minerva_math", "olympiadbench": "text_math/olympiadbench",
    "aime24": "text_math/aime24", "amc23": "text_math/amc23", "humaneval": "humaneval/HumanEval.jsonl",
    "humaneval_plus": "humaneval_plus/HumanEvalPlus-Mini.jsonl", "mathverse": "vlmevalkit_tsv/MathVerse_SAMPLE.tsv",
    "mathvision": "vlmevalkit_tsv/MathVision_SAMPLE.tsv", "wemath": "vlmevalkit_tsv/WeMath_SAMPLE.tsv",
}  # fmt: skip
"""Task → its questions below the data folder."""
_LIMITS = {"mathverse": 5, "wemath": 4}
"""Questions of a task that are asked, where two would leave columns empty: the versions of a problem, or its parts."""


TINY_MODELS = {"math": "builtin:tiny-lm", "code": "builtin:tiny-lm", "multimodal": "builtin:tiny-vl"}
"""Suite → the model of random weights that learns."""


def tiny_changes(suite: str, data: Path) -> tuple[str, ...]:
    """What makes a recipe tiny; the model's path is put in by the table."""
    path, layout, pictures = _ROWS[suite]
    images = f", images: {data / pictures}" if pictures else ""
    return (
        "model.dtype=float32", "model.gradient_checkpointing=false",
        f"data.train=[{{path: {there(data / path)}, format: {layout}, limit: 48{images}}}]",
        "data.heldout_fraction=0", "data.max_length=768", "data.max_pixels=50176", "data.workers=0",
        "data.bad_rows=0.2", "optim.batch_size=4", "train.micro_tokens=1024", "train.epochs=1", "train.max_steps=2",
    )  # fmt: skip


def tiny_suite(suite: str, data: Path, out: Path) -> Path:
    """The suite with a question or two of each benchmark and answers of a few tokens, as OUT/SUITE.yaml."""
    from dft_mm.evaluate.benchmark import named_files

    told = yaml.safe_load(named_files("suites")[suite].read_text(encoding="utf-8"))
    for bench in told["benchmarks"]:
        languages = f"multipl_e/humaneval-{bench.get('split')}.jsonl"
        bench["data"] = str(there(data / _QUESTIONS.get(bench["task"], languages)))
        bench["limit"] = _LIMITS.get(bench["task"], 2)
    told["sampling"] |= {"max_tokens": 8}
    if "samples" in told["sampling"]:
        told["sampling"]["samples"] = 2
    path = out / f"{suite}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    return path


def there(path: Path) -> Path:
    """The path, made absolute; InputError when nothing is there."""
    if not path.exists():
        raise InputError(f"{path} is not there: --tiny learns from real sample rows; say where they are by --data DIR")
    return path.resolve()
