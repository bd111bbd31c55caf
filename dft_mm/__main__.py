"""The command line: one function a verb. What a verb needs is imported when it runs, so that --help answers at once."""

import argparse
import functools
import json
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from dft_mm.arguments import completion_script, parser
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
    if os.environ.get("RANK", "0") == "0":
        print(recipe.headline, file=sys.stderr, flush=True)  # what follows takes seconds to import
    with StopRequests() as requests:
        from dft_mm.train.run import train
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
        from dft_mm.model.processing import load_processing
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
    from dft_mm.report.exported import scores_of_export
    from dft_mm.train.export import export_checkpoint

    setup_logging()
    _make_folder(arguments.out)
    scores = functools.partial(scores_of_export, arguments.run)
    step = export_checkpoint(arguments.run, arguments.out, arguments.step, arguments.merge, scores)
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
    if arguments.watch == (arguments.out is not None):
        raise InputError("report needs either --out FILE, the page to write, or --watch, to serve it while runs go on")
    if not arguments.watch and (arguments.port is not None or arguments.host is not None):
        raise InputError("--port and --host say where --watch serves the page; add --watch")
    if arguments.out and (arguments.out.suffix not in (".html", ".htm", ".md") or arguments.out.is_dir()):
        raise InputError(f"--out {arguments.out}: a page is a file that ends in .html, a table one that ends in .md")
    from dft_mm.report.published import beside, published

    rows = published(arguments.published)

    if arguments.watch:
        try:
            from dft_mm.report.watch import HOST, LivePage, watch

            page = LivePage(arguments.paths, add=lambda table: beside(table, rows))
            watch(page, arguments.host or HOST, arguments.port)
        except KeyboardInterrupt:  # the way to end it
            print()
        return
    _make_folder(arguments.out.parent)
    if arguments.out.suffix == ".md":
        from dft_mm.report.tables import write_table as write
    else:
        from dft_mm.report.page import write_report as write
    write(arguments.paths, arguments.out, add=lambda table: beside(table, rows))
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
        from dft_mm.study.launch import accelerators

        if carry_out(study, arguments.ranks or accelerators(), arguments.submit, arguments.scoring.split()) is None:
            return
    print((arguments.out / "compare.md").read_text(encoding="utf-8"))


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


def chat(arguments: argparse.Namespace) -> None:
    from dft_mm.dist import setup_logging
    from dft_mm.study.chat import chat

    setup_logging()
    chat(arguments.model, arguments.system, arguments.temperature, arguments.max_tokens)


def completion(arguments: argparse.Namespace) -> None:
    print(completion_script(arguments.shell))


def import_recipe(arguments: argparse.Namespace) -> None:
    from dft_mm.study.import_recipe import import_recipe

    if arguments.out.exists():
        raise InputError(f"--out {arguments.out} is there already: give another, or remove it")
    text = import_recipe(arguments.file, arguments.dataset_info, arguments.gpus)
    _make_folder(arguments.out.parent)
    arguments.out.write_text(text, encoding="utf-8")
    print(f"wrote {arguments.out}; read its comments, then look at the rows: dft-mm inspect {arguments.out}")


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


_VERBS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "train": train, "checkpoint": checkpoint, "prepare": prepare, "inspect": inspect, "probe": probe, "export": export,
    "eval": evaluate, "sample": sample, "compare": compare, "report": report, "doctor": doctor, "plan": plan,
    "demo": demo, "chat": chat, "completion": completion, "import-recipe": import_recipe,
}  # fmt: skip


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
    # peft imports it where it is installed, and it then misses a kernel for CPUs that nothing here would use.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    return exit_code(lambda: _VERBS[arguments.verb](arguments), arguments.debug)


def exit_code(work: Callable[[], int | None], debug: bool = False) -> int:
    """Do the work of a command; what goes wrong is one message, and the exit code says of which kind it is."""
    # One message a node, not one a rank.
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    if not speaks or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of the libraries; ours are plain lines there
    try:
        code = work() or EXIT_DONE
        sys.stdout.flush()
        return code
    except InputError as error:
        if debug:
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
        if debug or not is_full(error):
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
