"""A suite as a configuration of VLMEvalKit's own runner, for those who want generation done by it as well."""

import json
import shlex
from pathlib import Path
from typing import Any

from dft_mm.atomic import write_atomically
from dft_mm.data.images import ImageSettings
from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import BenchmarkConfig, EndpointJudge
from dft_mm.evaluate.suite import Suite
from dft_mm.evaluate.vlmevalkit.splits import CLASSES, SPLITS, split_of
from dft_mm.model.folder import read_family, resolve
from dft_mm.sections import read_json

_LMU_DATA = '"${LMUData:-$HOME/LMUData}"'
_INSTALLATION = (
    "# {file} is written. `python -m vlmeval.run` needs VLMEvalKit's full installation, which this project's light\n"
    '# one is not: pip install ms-vlmeval "pandas<3"'
)


def write_config(suite: Suite, model: str, file: Path) -> str:
    """Write the JSON for `python -m vlmeval.run --config`; returns the lines to run it, as a shell takes them.

    Raises InputError when the suite has none of VLMEvalKit's tasks, or the folder holds no Qwen2.5-VL.
    """
    benchmarks = [bench for bench in suite.benchmarks if bench.task in SPLITS]
    if not benchmarks:
        raise InputError(
            f"suite {suite.name}: has no task of VLMEvalKit ({', '.join(SPLITS)}), so there is none to write"
        )
    folder = resolve(model).absolute()  # its runner would look a hub's name up elsewhere
    if not read_family(folder).has_vision:
        raise InputError(f"{folder}: is a text model; VLMEvalKit's class Qwen2VLChat takes a Qwen2.5-VL")
    sampling = suite.sampling
    settings: dict[str, Any] = {
        "class": "Qwen2VLChat",
        "model_path": str(folder),
        **_pixel_limits(folder),
        "use_custom_prompt": False,  # as its registry has the published models
        "max_new_tokens": sampling.max_tokens,
    }
    if sampling.temperature > 0:  # its defaults come to greedy decoding
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    lines, data = [], {}
    for number, bench in enumerate(benchmarks, 1):
        name, copies = _dataset(bench, number)
        data[name] = {"class": CLASSES[bench.task], "dataset": name}
        lines += copies
    if any(line.startswith("cp ") for line in lines):
        lines.insert(0, f"mkdir -p {_LMU_DATA}")
    config = {"model": {_name(folder): settings}, "data": data}
    write_atomically(file, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    if any(bench.limit for bench in benchmarks) or sampling.samples > 1:
        lines.append("# VLMEvalKit asks every question once: `limit` and `samples` have no place there")
    judge = benchmarks[0].judge
    if any(bench.judge != judge for bench in benchmarks):
        lines.append(f"# VLMEvalKit has one judge for all: this is that of {benchmarks[0].key}")
    return "\n".join([_INSTALLATION.format(file=file), *lines, _command(file, judge)]) + "\n"


def _name(folder: Path) -> str:
    """VLMEvalKit's files bear it: `NAME` of runs/NAME/export."""
    return folder.parent.name if folder.name == "export" and folder.parent.name else folder.name


def _pixel_limits(folder: Path) -> dict[str, int]:
    """Those of training where the folder tells them, else the processor's."""
    about, processor = (_json(folder / name) for name in ("dft_mm.json", "preprocessor_config.json"))
    limits = ImageSettings.of(processor, about.get("min_pixels"), about.get("max_pixels"))
    return {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, path.name) if path.is_file() else {}


def _dataset(bench: BenchmarkConfig, number: int) -> tuple[str, list[str]]:
    """VLMEvalKit's name of a benchmark, and what to do first for a file of one's own."""
    split = split_of(bench)
    if bench.data is None and split.published is None:
        return split.dataset, []
    # No official name: it would be compared with a checksum and overwritten. Letters `cot` in it decide the prompt.
    base, cot, _ = split.dataset.partition("_cot" if bench.task == "mathverse" else "_COT")
    name = f"{base}_local{number}{cot}"
    source = shlex.quote(bench.data) if bench.data else f"{_LMU_DATA}/{split.table}.tsv"
    lines = [f"cp {source} {_LMU_DATA}/{name}.tsv"]
    if bench.task == "mathverse":
        lines.append(f"# {name}.tsv needs a text in every cell of `question`: VLMEvalKit stops at an empty one")
    return name, lines


def _command(file: Path, judge: str | EndpointJudge) -> str:
    words = ["python", "-m", "vlmeval.run", "--config", shlex.quote(str(file)), "--work-dir", "vlmevalkit_results"]
    if isinstance(judge, EndpointJudge):
        words += ["--judge", shlex.quote(judge.model), "--judge-base-url", shlex.quote(judge.url)]
        words += ["--judge-key", f'"${judge.key_env}"'] if judge.key_env else []
    elif judge == "exact":
        words += ["--judge", "exact_matching"]
    else:
        words += ["--mode", "infer"]  # our rules are no judge of its own; its default one is a paid service
    return " ".join(["PRED_FORMAT=tsv", *words])
