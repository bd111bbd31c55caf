"""What may be said on the command line: verbs, their options, the types of these, and examples."""

import argparse
import difflib
import re
from pathlib import Path
from typing import NoReturn

from dft_mm import __version__


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def seeds(text: str) -> tuple[int, ...]:
    numbers = tuple(int(word) for word in text.split(","))
    if len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text}: seeds are different numbers from 0")
    return numbers


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is no port: 1 to 65535, or 0 for any free one")
    return number


def _temperature(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no temperature from 0")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return number


def _add_overrides(verb: argparse.ArgumentParser, about: str) -> None:
    # Without a default argparse would say that they are required.
    verb.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help=about)


class _Parser(argparse.ArgumentParser):
    """Names the nearest word to one that is not known (argparse does so itself from Python 3.14 on)."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            near = difflib.get_close_matches(found[1], re.findall(r"[\w.-]+", found[2]), n=1, cutoff=0.6)
            message += f"; did you mean {near[0]!r}?" if near else ""
        super().error(message)


def parser() -> argparse.ArgumentParser:
    main = _Parser(
        prog="dft-mm", description="Fine-tune Qwen2.5-VL and text models with DFT on DeepSpeed ZeRO-3, and score them."
    )
    main.add_argument("--version", action="version", version=f"dft-mm {__version__}")
    verbs = main.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name: str, about: str, example: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error in the input too")
        return verb

    def add_recipe(verb: argparse.ArgumentParser) -> None:
        verb.add_argument("recipe", type=Path, help="recipe file (YAML)")
        _add_overrides(verb, "settings instead of the recipe's")

    def add_backend(verb: argparse.ArgumentParser) -> None:
        verb.add_argument("--backend", help="hf (default), vllm, openai or replay")
        verb.add_argument("--replay", type=Path, help="JSONL of answers made elsewhere; implies --backend replay")
        verb.add_argument("--dtype", help="hf, vllm: auto (bfloat16, on a CPU float32), float32, bfloat16 or float16")
        verb.add_argument(
            "--batch-size", type=positive, help="hf, vllm: answers generated together (default: 16 and 512)"
        )
        verb.add_argument("--tensor-parallel", type=positive, metavar="N", help="vllm: GPUs that share the model")
        verb.add_argument(
            "--url", metavar="http://HOST:PORT/v1", help="OpenAI-compatible server; implies --backend openai"
        )
        verb.add_argument(
            "--served-model", metavar="NAME", help="openai: the model's name there (default: that of --model)"
        )
        verb.add_argument(
            "--key-env", metavar="VARIABLE", help="openai: environment variable with the key (default: OPENAI_API_KEY)"
        )
        verb.add_argument("--concurrency", type=positive, help="openai: most requests at once (default: 16)")
        verb.add_argument(
            "--request-timeout", type=_seconds, metavar="S", help="openai: seconds to wait (default: 600)"
        )
        verb.add_argument("--retries", type=_count, help="openai: further attempts at an answer (default: 8)")

    verb = add(
        "train", "train a recipe, or go on where it stopped",
        "deepspeed --num_gpus 8 --module dft_mm train scripts/recipes/qwen2_5_vl_3b_wethink_dft.yaml optim.lr=1e-5",
    )  # fmt: skip
    add_recipe(verb)
    verb.add_argument(
        "--stop-after", type=positive, metavar="STEP", help="save and stop after this step, with exit code 3"
    )
    verb.add_argument(
        "--accept-changes", action="store_true",
        help="go on though the recipe is another than that of the run's checkpoints",
    )  # fmt: skip
    verb = add(
        "checkpoint", "check every checkpoint of a run against its manifest",
        "dft-mm checkpoint verify runs/tiny_vl_cpu",
    )  # fmt: skip
    verb.add_argument("action", choices=["verify"], help="verify: exit code 0 when all are whole, 1 when one is not")
    verb.add_argument("run", type=Path, help="run folder")
    verb = add(
        "prepare", "read and check all data of a recipe once",
        "dft-mm prepare scripts/recipes/tiny_vl_cpu.yaml",
    )  # fmt: skip
    add_recipe(verb)
    verb = add(
        "inspect", "show rows as the model will see them",
        "dft-mm inspect scripts/recipes/tiny_vl_cpu.yaml --rows 3",
    )  # fmt: skip
    add_recipe(verb)
    verb.add_argument("--rows", type=positive, help="how many (default: 5; 50 with --html, all with --json)")
    verb.add_argument("--row", metavar="ID", help="the one with this id")
    verb.add_argument("--json", action="store_true", help="one JSON object a line, with all ids")
    verb.add_argument("--html", type=Path, metavar="FILE", help="one page with the pictures, which opens offline")
    verb = add(
        "probe", "show what the model already gives to the data's tokens; advise SFT, DFT, or SFT first",
        "dft-mm probe scripts/recipes/tiny_vl_cpu.yaml --after runs/tiny_vl_cpu --html probe.html",
    )  # fmt: skip
    add_recipe(verb)
    verb.add_argument("--rows", type=positive, help="how many to draw from the training rows (default: 256)")
    verb.add_argument("--model", metavar="DIR", help="model or run folder to probe instead of the recipe's model.path")
    verb.add_argument(
        "--after", action="append", default=[], metavar="DIR",
        help="run or model folder to lay over it: the same rows after training; may be given several times",
    )  # fmt: skip
    verb.add_argument("--json", action="store_true", help="all figures as one JSON object")
    verb.add_argument("--html", type=Path, metavar="FILE", help="also write one page with the histograms")
    verb = add(
        "export", "write a checkpoint as a Hugging Face folder",
        "dft-mm export runs/tiny_vl_cpu --out exported",
    )  # fmt: skip
    verb.add_argument("run", type=Path, help="run folder")
    verb.add_argument("--out", type=Path, required=True, help="folder to write")
    verb.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    verb.add_argument("--merge", action="store_true", help="add a LoRA adapter to its base model")
    verb = add(
        "eval", "score a model folder on a suite, or go on where that stopped",
        "dft-mm eval math --model runs/NAME/export --out runs/NAME/eval/math",
    )  # fmt: skip
    names = "math, math_greedy, code, multimodal, games, games_pictures, smoke"
    verb.add_argument("suite", help=f"suite file, or a name: {names}")
    _add_overrides(verb, "settings instead of the suite's")
    verb.add_argument(
        "--model", required=True, help="Hugging Face folder, or builtin:tiny-vl; with --url or --replay just a name"
    )
    verb.add_argument("--out", type=Path, help="folder of the results")
    verb.add_argument(
        "--write-config", type=Path, metavar="FILE.json",
        help="only write a configuration of VLMEvalKit's own runner, and print the command that takes it",
    )  # fmt: skip
    verb.add_argument(
        "--unsafe-exec", action="store_true",
        help="where there is no sandbox, run programs that the model wrote with your files and your network",
    )  # fmt: skip
    add_backend(verb)
    verb = add(
        "sample", "sample answers to questions and keep the correct ones to learn from, or go on with that",
        "dft-mm sample RECIPE.yaml --questions questions.jsonl --n 4 --cap 2 --pairs --out runs/sampled",
    )  # fmt: skip
    add_recipe(verb)
    verb.add_argument(
        "--questions", type=Path, required=True, metavar="FILE",
        help="JSONL with problem, answer, and optionally id and images or image",
    )  # fmt: skip
    verb.add_argument("--out", type=Path, required=True, help="folder of correct.jsonl, pairs.jsonl and stats.json")
    verb.add_argument("--n", type=positive, default=4, help="answers to each question (default: 4)")
    verb.add_argument("--cap", type=positive, help="most correct answers kept, and most pairs, of one question")
    verb.add_argument("--pairs", action="store_true", help="also write pairs of a correct and a wrong answer, for DPO")
    verb.add_argument("--model", help="Hugging Face folder to ask (default: the recipe's model.path)")
    verb.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures (default: that of FILE)")
    verb.add_argument("--prompt", help="file, or a name in eval/prompts (default: qwen_math_cot)")
    verb.add_argument("--temperature", type=float, default=1.0, help="default: 1; 0 takes the likeliest token")
    verb.add_argument("--top-p", type=float, default=1.0, help="default: 1")
    verb.add_argument("--max-tokens", type=int, default=2048, help="longest answer, in tokens (default: 2048)")
    verb.add_argument("--seed", type=int, help="default: the recipe's")
    add_backend(verb)
    verb = add(
        "compare", "train arms that differ in one thing and say which is better, or compare two results",
        "dft-mm compare scripts/recipes/qwen2_5_vl_3b_wethink_dft.yaml --suite multimodal --vary loss.name=sft,dft "
        "--seeds 0,1,2 --out study\n  dft-mm compare --results runs/dft/eval/math runs/sft/eval/math --out comparison",
    )  # fmt: skip
    verb.add_argument("recipe", type=Path, nargs="?", help="recipe of all arms (YAML)")
    _add_overrides(verb, "settings instead of the recipe's")
    verb.add_argument("--suite", help="suite file, or a name, to score the arms on")
    verb.add_argument(
        "--vary", action="append", metavar="section.key=A,B",
        help="what the arms differ in; given again, all combinations are arms",
    )  # fmt: skip
    verb.add_argument(
        "--seeds", type=seeds, default=(), metavar="0,1,2", help="every arm with each (default: the recipe's)"
    )
    verb.add_argument("--ranks", type=positive, help="processes of a training run (default: one a GPU)")
    verb.add_argument(
        "--submit", metavar="COMMAND",
        help='queue the runs instead, as "sbatch --nodes 2 scripts/launch/slurm.sh"; the recipe is added',
    )  # fmt: skip
    verb.add_argument("--scoring", default="", metavar="OPTIONS", help='options of dft-mm eval, as "--backend vllm"')
    verb.add_argument(
        "--results", type=Path, nargs=2, metavar=("A", "B"), help="result folders of one suite that are there already"
    )
    verb.add_argument("--out", type=Path, required=True, help="folder of compare.json, compare.md and all runs")
    verb = add(
        "report", "write one self-contained page, or one table, from runs, results and comparisons, or serve it live",
        "dft-mm report runs/sft runs/dft --out report.html\n  dft-mm report runs/sft runs/dft --watch",
    )  # fmt: skip
    verb.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH",
        help="run folders, result folders, folders of compare (with all their runs)",
    )  # fmt: skip
    verb.add_argument("--out", type=Path, metavar="FILE", help="page (.html) or table of scores (.md) to write")
    verb.add_argument(
        "--watch", action="store_true", help="serve the page on this machine and update it while runs go on"
    )
    verb.add_argument(
        "--port", type=_port, metavar="N", help="with --watch: default 7870, or a free one where that is taken"
    )
    verb.add_argument(
        "--host", help="with --watch: address to serve on (default: 127.0.0.1, which no other machine can reach)"
    )
    verb.add_argument(
        "--published", action="append", default=[], metavar="MODEL",
        help="the paper's scores of this model as further rows, such as Qwen2.5-VL-3B",
    )  # fmt: skip
    verb = add(
        "doctor", "check versions, accelerators, collectives, sandbox, languages, disk; say what to do",
        "dft-mm doctor",
    )  # fmt: skip
    verb.add_argument("--json", action="store_true", help="all findings as one JSON object")
    verb = add(
        "plan", "predict steps, tokens, memory and time from shapes alone, and choose the setting that fits",
        "dft-mm plan scripts/recipes/qwen2_5_vl_3b_wethink_dft.yaml --gpus 8 --device H100",
    )  # fmt: skip
    add_recipe(verb)
    verb.add_argument("--gpus", type=int, default=1, metavar="N", help="GPUs, 1 to 1024 (default: 1)")
    verb.add_argument(
        "--device", default="H100",
        help="H100 (default), H200, A100, 4090, or memory_gib=48,tflops=181,intra_gb_s=32,inter_gb_s=6",
    )  # fmt: skip
    verb.add_argument("--json", action="store_true", help="everything as one JSON object")
    verb = add(
        "import-recipe", "convert a training file of LLaMA-Factory into a recipe",
        "dft-mm import-recipe qwen2_5vl_full_sft.yaml --dataset-info data/dataset_info.json --gpus 8 --out recipe.yaml",
    )  # fmt: skip
    verb.add_argument("file", type=Path, help="training file of LLaMA-Factory (YAML)")
    verb.add_argument(
        "--dataset-info", type=Path, metavar="FILE",
        help="dataset_info.json that names the data sets (default: that in the file's dataset_dir)",
    )  # fmt: skip
    verb.add_argument("--gpus", type=positive, metavar="N", help="how many GPUs the file was written for")
    verb.add_argument("--out", type=Path, required=True, metavar="RECIPE.yaml", help="recipe to write")
    verb = add(
        "demo", "the whole product in minutes on a CPU: data, SFT and DFT, scores, a page",
        "dft-mm demo --out runs/demo",
    )  # fmt: skip
    verb.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to work in (default: runs/demo)")
    verb = add(
        "chat", "talk with an exported model or adapter in the terminal, or answer one question a line from a pipe",
        "dft-mm chat --model runs/tiny_vl_cpu/export\n  > /image picture.png\n  > What is shown?",
    )  # fmt: skip
    verb.description += (
        " A line is a question; /image PATH adds a picture to the next one, /reset begins anew, /quit or Ctrl-D ends, "
        "Ctrl-C stops an answer."
    )
    verb.add_argument("--model", required=True, metavar="DIR", help="exported folder, or builtin:tiny-vl")
    verb.add_argument("--system", metavar="TEXT", help="system prompt (default: that of the chat template)")
    verb.add_argument(
        "--temperature", type=_temperature, default=0.0, help="default: 0, which takes the likeliest token"
    )
    verb.add_argument("--max-tokens", type=positive, default=1024, help="longest answer, in tokens (default: 1024)")
    verb = add(
        "completion", "print a script that completes verbs, options and files in a shell",
        'eval "$(dft-mm completion bash)"    # in ~/.bashrc; zsh: dft-mm completion zsh > FOLDER/_dft-mm',
    )  # fmt: skip
    verb.add_argument("shell", choices=["bash", "zsh"], help="of which shell")
    return main


def completion_script(shell: str) -> str:
    """A script for bash or zsh; what is a path is completed by the names of files."""
    import shtab

    command = parser()
    for verb in command._subparsers._group_actions[0].choices.values():
        for action in verb._actions:
            if action.type is Path or action.dest == "model":
                action.complete = shtab.FILE
    return shtab.complete(command, shell=shell)
