"""Shell commands that cannot be run here, checked as far as that goes: our own by our argument parser, recipes loaded
with what stands behind them, files that must be there, options of scripts, targets of make, extras of pip.
"""

import contextlib
import importlib.util
import io
import re
import shlex
import tomllib
from pathlib import Path

from pages import REPO

from dft_mm.arguments import parser
from dft_mm.config import load_recipe
from dft_mm.evaluate.suite import load_suite

LAUNCHERS = {"one_node.sh", "hostfile.sh", "slurm.sh"}
NOTHING_TO_CHECK = {"source", "cd", "git", "export", "mkdir"}
PLACEHOLDER = "RECIPE.yaml"


def commands(text):
    """The words of each command of a block; lines behind `>` are typed into a command."""
    found, words = [], []
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.lstrip().startswith(">")]
    for word in (word for line in lines for word in [*_words(line), "\n"]):
        if word in ("\n", "&&", "||", ";", "|"):
            found += [words] * bool(words)
            words = []
        else:
            words.append(word)
    return found


def _words(line):
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split, lexer.commenters = True, "#"
    return list(lexer)


def check(words, folder, recipe):
    """Raise AssertionError where a command would fail.

    folder: where the page's files are; recipe: what RECIPE.yaml stands for.
    """
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    name = Path(words[0]).name
    for word in words:
        if re.match(r"(scripts|ds_configs|eval)/", word):
            assert (REPO / word).exists(), f"there is no {word}"
    if name == "dft-mm":
        _check_ours(words[1:], folder, recipe)
    elif name == "eval":
        for inner in commands(words[1].removeprefix("$(").removesuffix(")")):
            check(inner, folder, recipe)
    elif "dft_mm" in words and name in ("deepspeed", "python"):
        place = words.index("dft_mm")
        assert words[place - 1] in ("--module", "-m")
        _check_ours(words[place + 1 :], folder, recipe)
    elif name in LAUNCHERS:
        _check_ours(["train", *words[1:]], folder, recipe)
    elif name == "sbatch":
        place = next(number for number, word in enumerate(words) if word.endswith(".sh"))
        assert Path(words[place]).name in LAUNCHERS
        _check_ours(["train", *words[place + 1 :]], folder, recipe)
    elif words[1:2] == ["-m"] and words[2].startswith("scripts."):
        _check_script(words[2], words[3:])
    elif name == "make":
        targets = re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.M)
        assert set(words[1:]) <= set(targets), f"make has no {words[1:]}"
    elif name == "pip" or words[1:3] == ["-m", "venv"]:
        _check_pip(words)
    else:
        assert name in NOTHING_TO_CHECK, f"how to check {name!r} is not known"


def _check_ours(words, folder, recipe):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            arguments, rest = parser().parse_known_args(words)
        except SystemExit:
            raise AssertionError(f"{words}: {errors.getvalue()}") from None
    overrides = [*getattr(arguments, "overrides", []), *rest]
    assert not [word for word in rest if word.startswith("-")], f"{words}: unknown {rest}"
    if arguments.verb == "eval":
        file = folder / arguments.suite
        load_suite(file if file.is_file() else arguments.suite, overrides)
    elif getattr(arguments, "recipe", None) is not None:
        path = arguments.recipe
        here = recipe if str(path) == PLACEHOLDER else next(
            (file for file in (folder / path, REPO / path) if file.is_file()), None
        )  # fmt: skip
        assert here, f"there is no {path}"
        load_recipe(here, overrides)
    if getattr(arguments, "suite", None) and arguments.verb == "compare":
        load_suite(arguments.suite)


def _check_script(module, options):
    assert importlib.util.find_spec(module), f"there is no {module}"
    said = "".join(_sources(module, {}).values())
    for option in options:
        assert not option.startswith("--") or f'"{option}"' in said, f"{module} has no {option}"


def _sources(module, found):
    """Of a script and of all scripts that it imports at its head, by name: options may be named in any of them."""
    found[module] = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
    for imported in re.findall(r"^from (scripts\.[\w.]+) import", found[module], re.M):
        if imported not in found:
            _sources(imported, found)
    return found


def _check_pip(words):
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        for extra in re.findall(r"\[(.*)\]", word):
            assert set(extra.split(",")) <= set(extras), f"no extra {extra}"
    if "--constraint" in words:
        assert (REPO / words[words.index("--constraint") + 1]).is_file()
