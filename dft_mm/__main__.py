"""The command line: one function a verb. What a verb needs is imported when it runs, so that --help answers at once."""

import argparse
import json
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dft_mm import __version__
from dft_mm.atomic import is_full
from dft_mm.errors import InputError, Stopped

EXIT_DONE, EXIT_BUG, EXIT_INPUT, EXIT_STOPPED = 0, 1, 2, 3


def train(arguments: argparse.Namespace) -> int:
    from dft_mm.config import load_recipe
    from dft_mm.restart import EXIT_SAME_AGAIN, attempts, is_attempt
    from dft_mm.signals import StopRequests

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if recipe.train.restarts and not is_attempt():
        return attempts(arguments.words, recipe.train.restarts)
    with StopRequests() as requests:
        from dft_mm.train.loop import train
        from dft_mm.train.step import NonFiniteError

        try:
            train(recipe, arguments.stop_after, arguments.accept_changes, arguments.debug, requests)
        except NonFiniteError:
            if not is_attempt():
                raise
            traceback.print_exc()
            return EXIT_SAME_AGAIN
    return EXIT_DONE


def checkpoint(arguments: argparse.Namespace) -> int:
    from dft_mm.train.verify import verify_run

    found = verify_run(arguments.run)
    for folder, problem in found:
        print(f"{folder}: {'whole' if problem is None else 'damaged: ' + problem}")
    return EXIT_BUG if any(problem for _, problem in found) else EXIT_DONE


def prepare(arguments: argparse.Namespace) -> None:
    from dft_mm.config import load_recipe
    from dft_mm.data.preparing.manifest import still_holds, summary

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    manifest = still_holds(recipe.run_dir / "data", recipe.data, recipe.seed, recipe.model.path)
    if manifest is None:
        from dft_mm.dist import setup_logging
        from dft_mm.model.load import load_processing
        from dft_mm.train.feed import prepare_data

        setup_logging()
        manifest = prepare_data(recipe, load_processing(recipe.model.path))
    print(f"{recipe.name}: {summary(manifest)}; all of it is in {recipe.run_dir / 'data'}", file=sys.stderr)
    told = {key: value for key, value in manifest.items() if key not in ("parts", "inputs", "files", "model")}
    print(json.dumps(told, indent=2, ensure_ascii=False))


def inspect(arguments: argparse.Namespace) -> None:
    from dft_mm.config import load_recipe
    from dft_mm.dist import setup_logging
    from dft_mm.study.inspect import print_json, print_rows, write_html

    setup_logging()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.html:
        _make_folder(arguments.html.parent)
        write_html(recipe, arguments.html, arguments.rows, arguments.row)
        print(f"wrote {arguments.html}")
    else:
        show = print_json if arguments.json else print_rows
        show(recipe, arguments.rows, arguments.row)


def probe(arguments: argparse.Namespace) -> None:
    from dft_mm.config import load_recipe
    from dft_mm.dist import setup_logging
    from dft_mm.study.probe import ROWS, probe, to_text, write_html

    setup_logging()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.html:
        _make_folder(arguments.html.parent)
    found = probe(recipe, arguments.rows or ROWS, arguments.model, arguments.after)
    if arguments.html:
        write_html(found, recipe.name, arguments.html)
    print(json.dumps(found, ensure_ascii=False) if arguments.json else to_text(found))


def export(arguments: argparse.Namespace) -> None:
    from dft_mm.dist import setup_logging
    from dft_mm.train.export import export_checkpoint

    setup_logging()
    _make_folder(arguments.out)
    step = export_checkpoint(arguments.run, arguments.out, arguments.step, arguments.merge)
    print(f"step {step} of {arguments.run} is in {arguments.out}")


def evaluate(arguments: argparse.Namespace) -> None:
    from dft_mm.dist import setup_logging
    from dft_mm.evaluate.run import evaluate
    from dft_mm.evaluate.suite import load_suite

    setup_logging()
    suite = load_suite(arguments.suite, arguments.overrides)
    if arguments.write_config:
        from dft_mm.evaluate.vlmevalkit.config import write_config

        print(write_config(suite, str(arguments.model), arguments.write_config), end="")
        return
    if arguments.out is None:
        raise InputError("eval needs --out DIR, the folder of the results")
    results = evaluate(
        suite, arguments.model, arguments.out, unsafe_exec=arguments.unsafe_exec, **_backend_options(arguments)
    )
    if results:  # rank 0
        print((arguments.out / "results.md").read_text(encoding="utf-8"))


def sample(arguments: argparse.Namespace) -> None:
    from dft_mm.config import load_recipe
    from dft_mm.dist import setup_logging
    from dft_mm.study.sample import make_sampling, sample, to_text

    setup_logging()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    sampling = make_sampling(
        temperature=arguments.temperature, top_p=arguments.top_p, max_tokens=arguments.max_tokens, samples=arguments.n,
        seed=recipe.seed if arguments.seed is None else arguments.seed,
    )  # fmt: skip
    stats = sample(
        recipe, arguments.questions, arguments.out, sampling, cap=arguments.cap, pairs=arguments.pairs,
        model=arguments.model, images=arguments.images, prompt=arguments.prompt, **_backend_options(arguments),
    )  # fmt: skip
    if stats:  # rank 0
        print(to_text(stats))


def _backend_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said about where answers come from."""
    return {name: getattr(arguments, name) for name in _BACKEND_OPTIONS}


_BACKEND_OPTIONS = (
    "backend", "replay", "dtype", "batch_size", "tensor_parallel", "url", "served_model", "key_env", "concurrency",
    "request_timeout", "retries",
)  # fmt: skip


def report(arguments: argparse.Namespace) -> None:
    from dft_mm.report.page import write_report
    from dft_mm.report.tables import write_table

    writers = {".html": write_report, ".htm": write_report, ".md": write_table}
    if arguments.out.suffix not in writers or arguments.out.is_dir():
        raise InputError(f"--out {arguments.out}: a page is a file that ends in .html, a table one that ends in .md")
    from dft_mm.report.published import beside, published

    rows = published(arguments.published)
    _make_folder(arguments.out.parent)
    writers[arguments.out.suffix](arguments.paths, arguments.out, add=lambda table: beside(table, rows))
    print(f"wrote {arguments.out}")


def compare(arguments: argparse.Namespace) -> None:
    from dft_mm.dist import setup_logging

    if bool(arguments.results) == bool(arguments.recipe):
        raise InputError("compare takes a recipe with --suite and --vary, or two result folders with --results A B")
    _make_folder(arguments.out)
    setup_logging()
    if arguments.results:
        from dft_mm.study.compare import compare_results

        compare_results(*arguments.results, arguments.out)
    else:
        from dft_mm.study.arms import carry_out, study_of

        if not arguments.suite or not arguments.vary:
            raise InputError("compare RECIPE needs --suite, and --vary, such as --vary loss.name=sft,dft")
        study = study_of(
            arguments.recipe, arguments.overrides, arguments.suite, arguments.vary, arguments.seeds, arguments.out
        )
        if carry_out(study, arguments.ranks or _accelerators(), arguments.submit, arguments.scoring.split()) is None:
            return
    print((arguments.out / "compare.md").read_text(encoding="utf-8"))


def _accelerators() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def doctor(arguments: argparse.Namespace) -> int:
    from dft_mm.study.doctor import examine, to_text

    report = examine()
    print(json.dumps(report, indent=2, ensure_ascii=False) if arguments.json else to_text(report))
    return EXIT_DONE if report["ok"] else EXIT_BUG


def plan(arguments: argparse.Namespace) -> None:
    from dft_mm.config import load_recipe
    from dft_mm.dist import setup_logging
    from dft_mm.study.plan import plan, to_text

    setup_logging()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    found = plan(recipe, arguments.gpus, arguments.device, arguments.recipe, arguments.overrides)
    print(json.dumps(found, indent=2, ensure_ascii=False) if arguments.json else to_text(found))


def demo(arguments: argparse.Namespace) -> None:
    from dft_mm.dist import setup_logging
    from dft_mm.study.demo import demo

    setup_logging()
    demo(arguments.out)


def _make_folder(path: Path) -> None:
    """The folder of --out, made before any work is done for it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: the folder {path} cannot be made ({error}); give another") from error


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(int(word) for word in text.split(","))
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"{text}: seeds are different numbers from 0")
    return seeds


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return number


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="dft-mm", description="Fine-tune Qwen2.5-VL and text models with DFT on DeepSpeed ZeRO-3, and score them."
    )
    main.add_argument("--version", action="version", version=f"dft-mm {__version__}")
    verbs = main.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name: str, run: object, about: str, example: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error in the input too")
        verb.set_defaults(call=run)
        return verb

    def add_recipe(verb: argparse.ArgumentParser) -> None:
        verb.add_argument("recipe", type=Path, help="recipe file (YAML)")
        verb.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings instead of the recipe's")

    def add_backend(verb: argparse.ArgumentParser) -> None:
        verb.add_argument("--backend", help="hf (default), vllm, openai or replay")
        verb.add_argument("--replay", type=Path, help="JSONL of answers made elsewhere; implies --backend replay")
        verb.add_argument("--dtype", help="hf, vllm: auto (bfloat16, on a CPU float32), float32, bfloat16 or float16")
        verb.add_argument(
            "--batch-size", type=_positive, help="hf, vllm: answers generated together (default: 16 and 512)"
        )
        verb.add_argument("--tensor-parallel", type=_positive, metavar="N", help="vllm: GPUs that share the model")
        verb.add_argument(
            "--url", metavar="http://HOST:PORT/v1", help="OpenAI-compatible server; implies --backend openai"
        )
        verb.add_argument(
            "--served-model", metavar="NAME", help="openai: the model's name there (default: that of --model)"
        )
        verb.add_argument(
            "--key-env", metavar="VARIABLE", help="openai: environment variable with the key (default: OPENAI_API_KEY)"
        )
        verb.add_argument("--concurrency", type=_positive, help="openai: most requests at once (default: 16)")
        verb.add_argument(
            "--request-timeout", type=_seconds, metavar="S", help="openai: seconds to wait (default: 600)"
        )
        verb.add_argument("--retries", type=_count, help="openai: further attempts at an answer (default: 8)")

    verb = add(
        "train", train, "train a recipe, or go on where it stopped",
        "deepspeed --num_gpus 8 --module dft_mm train scripts/recipes/qwen2_5_vl_3b_wethink_dft.yaml optim.lr=1e-5",
    )  # fmt: skip
    add_recipe(verb)
    verb.add_argument(
        "--stop-after", type=_positive, metavar="STEP", help="save and stop after this step, with exit code 3"
    )
    verb.add_argument(
        "--accept-changes", action="store_true",
        help="go on though the recipe is another than that of the run's checkpoints",
    )  # fmt: skip
    verb = add(
        "checkpoint", checkpoint, "check every checkpoint of a run against its manifest",
        "dft-mm checkpoint verify runs/tiny_vl_cpu",
    )  # fmt: skip
    verb.add_argument("action", choices=["verify"], help="verify: exit code 0 when all are whole, 1 when one is not")
    verb.add_argument("run", type=Path, help="run folder")
    verb = add(
        "prepare", prepare, "read and check all data of a recipe once",
        "dft-mm prepare scripts/recipes/tiny_vl_cpu.yaml",
    )  # fmt: skip
    add_recipe(verb)
    verb = add(
        "inspect", inspect, "show rows as the model will see them",
        "dft-mm inspect scripts/recipes/tiny_vl_cpu.yaml --rows 3",
    )  # fmt: skip
    add_recipe(verb)
    verb.add_argument("--rows", type=_positive, help="how many (default: 5; 50 with --html, all with --json)")
    verb.add_argument("--row", metavar="ID", help="the one with this id")
    verb.add_argument("--json", action="store_true", help="one JSON object a line, with all ids")
    verb.add_argument("--html", type=Path, metavar="FILE", help="one page with the pictures, which opens offline")
    verb = add(
        "probe", probe, "show what the model already gives to the data's tokens; advise SFT, DFT, or SFT first",
        "dft-mm probe scripts/recipes/tiny_vl_cpu.yaml --after runs/tiny_vl_cpu --html probe.html",
    )  # fmt: skip
    add_recipe(verb)
    verb.add_argument("--rows", type=_positive, help="how many to draw from the training rows (default: 256)")
    verb.add_argument("--model", metavar="DIR", help="model or run folder to probe instead of the recipe's model.path")
    verb.add_argument(
        "--after", action="append", default=[], metavar="DIR",
        help="run or model folder to lay over it: the same rows after training; may be given several times",
    )  # fmt: skip
    verb.add_argument("--json", action="store_true", help="all figures as one JSON object")
    verb.add_argument("--html", type=Path, metavar="FILE", help="also write one page with the histograms")
    verb = add(
        "export", export, "write a checkpoint as a Hugging Face folder",
        "dft-mm export runs/tiny_vl_cpu --out exported",
    )  # fmt: skip
    verb.add_argument("run", type=Path, help="run folder")
    verb.add_argument("--out", type=Path, required=True, help="folder to write")
    verb.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    verb.add_argument("--merge", action="store_true", help="add a LoRA adapter to its base model")
    verb = add(
        "eval", evaluate, "score a model folder on a suite, or go on where that stopped",
        "dft-mm eval math --model runs/NAME/export --out runs/NAME/eval/math",
    )  # fmt: skip
    names = "math, math_greedy, code, multimodal, games, games_pictures, smoke"
    verb.add_argument("suite", help=f"suite file, or a name: {names}")
    verb.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings instead of the suite's")
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
        "sample", sample, "sample answers to questions and keep the correct ones to learn from, or go on with that",
        "dft-mm sample RECIPE.yaml --questions questions.jsonl --n 4 --cap 2 --pairs --out runs/sampled",
    )  # fmt: skip
    add_recipe(verb)
    verb.add_argument(
        "--questions", type=Path, required=True, metavar="FILE",
        help="JSONL with problem, answer, and optionally id and images or image",
    )  # fmt: skip
    verb.add_argument("--out", type=Path, required=True, help="folder of correct.jsonl, pairs.jsonl and stats.json")
    verb.add_argument("--n", type=_positive, default=4, help="answers to each question (default: 4)")
    verb.add_argument("--cap", type=_positive, help="most correct answers kept, and most pairs, of one question")
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
        "compare", compare, "train arms that differ in one thing and say which is better, or compare two results",
        "dft-mm compare scripts/recipes/qwen2_5_vl_3b_wethink_dft.yaml --suite multimodal --vary loss.name=sft,dft "
        "--seeds 0,1,2 --out study\n  dft-mm compare --results runs/dft/eval/math runs/sft/eval/math --out comparison",
    )  # fmt: skip
    verb.add_argument("recipe", type=Path, nargs="?", help="recipe of all arms (YAML)")
    verb.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings instead of the recipe's")
    verb.add_argument("--suite", help="suite file, or a name, to score the arms on")
    verb.add_argument(
        "--vary", action="append", metavar="section.key=A,B",
        help="what the arms differ in; given again, all combinations are arms",
    )  # fmt: skip
    verb.add_argument(
        "--seeds", type=_seeds, default=(), metavar="0,1,2", help="every arm with each (default: the recipe's)"
    )
    verb.add_argument("--ranks", type=_positive, help="processes of a training run (default: one a GPU)")
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
        "report", report, "write one self-contained page, or one table, from runs and results",
        "dft-mm report runs/sft runs/dft --out report.html",
    )  # fmt: skip
    verb.add_argument("paths", nargs="+", type=Path, help="run folders, result folders")
    verb.add_argument("--out", type=Path, required=True, help="page (.html) or table of scores (.md)")
    verb.add_argument(
        "--published", action="append", default=[], metavar="MODEL",
        help="the paper's scores of this model as further rows, such as Qwen2.5-VL-3B",
    )  # fmt: skip
    verb = add(
        "doctor", doctor, "check versions, accelerators, collectives, sandbox, languages, disk; say what to do",
        "dft-mm doctor",
    )  # fmt: skip
    verb.add_argument("--json", action="store_true", help="all findings as one JSON object")
    verb = add(
        "plan", plan, "predict steps, tokens, memory and time from shapes alone, and choose the setting that fits",
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
        "demo", demo, "the whole product in minutes on a CPU: data, SFT and DFT, scores, a page",
        "dft-mm demo --out runs/demo",
    )  # fmt: skip
    verb.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to work in (default: runs/demo)")
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code of DESIGN: 0 done, 1 bug, 2 wrong input, 3 stopped after a checkpoint."""
    # The deepspeed launcher puts --local_rank before our own arguments; the environment says the same.
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--local_rank=")]
    command = parser()
    arguments, rest = command.parse_known_args(words)
    # argparse gives up on section.key=value words that stand behind an option.
    options = [word for word in rest if word.startswith("-") or not hasattr(arguments, "overrides")]
    if options:
        command.error(f"unrecognized arguments: {' '.join(options)}")
    if rest:
        arguments.overrides += rest
    arguments.words = words
    # One message a node, not one a rank.
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    if not speaks or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of the libraries; ours are plain lines there
    # peft imports it where it is installed, and it then misses a kernel for CPUs that nothing here would use.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        code = arguments.call(arguments) or EXIT_DONE
        sys.stdout.flush()
        return code
    except InputError as error:
        if arguments.debug:
            traceback.print_exc()
        if speaks:
            print(f"dft-mm: {error}", file=sys.stderr)
        return EXIT_INPUT
    except Stopped as stop:
        if speaks:
            print(f"dft-mm: {stop}", file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except Exception as error:
        if arguments.debug or not is_full(error):
            traceback.print_exc()
        if not is_full(error):
            return EXIT_BUG
        print(f"dft-mm: {error.filename or 'a file'} cannot be written: {error.strerror}; make room", file=sys.stderr)
        return EXIT_INPUT


def entry() -> NoReturn:
    """`main` as a process of its own."""
    code = main()
    if code != EXIT_DONE:
        # After a failure libraries wait in their clean-up for ranks that are not there any more.
        sys.stdout.flush()
        sys.stderr.flush()
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
