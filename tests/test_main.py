"""The command line: help with an example for every verb, and one clear message with exit 2 for wrong input."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from rows import write_wethink

from dft_mm.__main__ import _VERBS, exit_code, main, parser
from dft_mm.errors import InputError, Stopped


@pytest.fixture
def recipe(tmp_path, repo):
    """A recipe of ten good rows; a function runs a verb on it with changes, and returns exit code and message."""
    rows = write_wethink(tmp_path / "data", count=10)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
name: t
output: {tmp_path}/run
deepspeed: {repo}/ds_configs/zero3.json
model: {{path: builtin:tiny-vl, dtype: float32}}
data:
  train: [{{path: {rows}, format: wethink, images: {tmp_path}/data/images}}]
  max_length: 512
"""
    )
    return path


@pytest.fixture
def run(recipe, capsys):
    def run(verb, *words):
        code = main([verb, str(recipe), *words])
        return code, capsys.readouterr()

    return run


def change_row(recipe, number, **values):
    path = recipe.parent / "data/rows.jsonl"
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | values)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("verb", _VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args([verb, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "example:" in shown
    assert verb in shown.split("example:")[1]


def test_prepare_reports_what_is_there(run):
    code, output = run("prepare")
    assert code == 0
    manifest = json.loads(output.out)
    assert manifest["examples"] == {"train": 10, "heldout": 0}


def test_inspect_gives_one_object_a_row_in_file_order(run):
    code, output = run("inspect", "--json", "--local_rank=0", "data.max_pixels=12544")
    assert code == 0
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert [row["row"] for row in rows] == list(range(10))
    for row in rows:
        assert {"id", "source", "file", "row", "ids", "supervised", "images", "loss"} <= set(row)
        assert len(row["ids"]) == len(row["supervised"])
        assert set(row["supervised"]) == {0, 1}
        merged = sum(t * h * w // 4 for t, h, w in (image["grid"] for image in row["images"]))
        assert row["ids"].count(151655) == merged
    assert run("inspect", "--rows", "2", "--json")[1].out.count("\n") == 2
    assert "row-0" in run("inspect", "--rows", "1")[1].out


WRONG_RECIPES = {
    "unknown key": (["optim.learning_rate=1"], ["optim.learning_rate", "did you mean 'optim.lr'?"]),
    "key in the wrong section": (["batch_size=8"], ["did you mean 'optim.batch_size'"]),
    "unknown format": (["data.train=[{path: x.jsonl, format: wethinc}]"], ["wethinc", "'wethink'"]),
    "missing data file": (["data.train=[{path: no/rows.jsonl, format: wethink}]"], ["no/rows.jsonl"]),
    "unknown model": (["model.path=./nothing"], ["./nothing", "builtin:tiny-vl", "config.json"][:1]),
    "wrong type": (["optim.lr=fast"], ["optim.lr", "'fast'"]),
    "no override": (["lr"], ["section.key=value"]),
}


@pytest.mark.parametrize("kind", WRONG_RECIPES)
def test_a_wrong_recipe_is_one_message_and_exit_2(run, kind):
    words, named = WRONG_RECIPES[kind]
    code, output = run("prepare", *words)
    assert code == 2
    assert output.err.startswith("dft-mm: ")
    assert "Traceback" not in output.err
    for text in named:
        assert text in output.err


def test_a_misspelt_verb_names_the_nearest_one(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["trian"])
    assert stop.value.code == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["zzz"])
    assert "did you mean" not in capsys.readouterr().err


def test_a_missing_recipe_is_exit_2(capsys):
    assert main(["train", "no/recipe.yaml"]) == 2
    assert "no/recipe.yaml" in capsys.readouterr().err


def test_lr_in_the_deepspeed_json_is_exit_2(run, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}))
    code, output = run("train", f"deepspeed={path}")
    assert code == 2
    assert "optimizer.params.lr" in output.err
    assert "optim.lr" in output.err
    assert str(path) in output.err


def _truncate_picture(recipe):
    path = recipe.parent / "data/images/1.png"
    path.write_bytes(path.read_bytes()[:-40])


BAD_ROWS = {
    "broken_image": _truncate_picture,
    "outside": lambda recipe: change_row(recipe, 1, image_path="../../recipe.yaml"),
    "missing_image": lambda recipe: change_row(recipe, 1, image_path="nothing.png"),
    "no_answer": lambda recipe: change_row(recipe, 1, refined_cot=""),
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_bad_row_is_named_with_file_line_and_reason(run, recipe, reason):
    BAD_ROWS[reason](recipe)
    code, output = run("prepare")
    assert code == 2
    assert f"{recipe.parent}/data/rows.jsonl:2: {reason}" in output.err
    assert "1 of 10 rows" in output.err
    assert "data.bad_rows" in output.err
    quarantined = [json.loads(x) for x in (recipe.parent / "run/data/quarantine.jsonl").read_text().splitlines()]
    assert [(bad["line"], bad["row"], bad["reason"]) for bad in quarantined] == [(2, 1, reason)]
    assert run("prepare", "data.bad_rows=0.1")[0] == 0


def test_more_pictures_than_placeholders_is_named(run, recipe):
    turns = [{"role": "user", "content": "<image> how many?"}, {"role": "assistant", "content": "1"}]
    rows = recipe.parent / "data/messages.jsonl"
    rows.write_text(json.dumps({"messages": turns, "images": ["0.png", "1.png"]}) + "\n")
    code, output = run(
        "prepare", f"data.train=[{{path: {rows}, format: messages, images: {recipe.parent}/data/images}}]"
    )
    assert code == 2
    assert f"{rows}:1: image_count" in output.err


def test_debug_shows_where_an_error_of_the_input_was_found(capsys):
    assert main(["prepare", "no/recipe.yaml", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "recipe.yaml", "--fast"])
    assert stop.value.code == 2
    assert "--fast" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (InputError("mend it"), 2, "dft-mm: mend it"),
        (Stopped("stopped"), 3, "dft-mm: stopped"),
        (KeyError("x"), 1, "Traceback"),
    ],
)
def test_a_failure_is_told_and_its_kind_is_the_exit_code(capsys, error, code, told):
    def work():
        raise error

    assert exit_code(work) == code
    assert capsys.readouterr().err.startswith(told)


def completed(*words):
    """What bash offers for the last of these words."""
    script = subprocess.run(
        [sys.executable, "-m", "dft_mm", "completion", "bash"], capture_output=True, text=True, check=True
    ).stdout
    typed = " ".join(words)
    ask = f'COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _shtab_dft_mm; printf "%s\\n" "${{COMPREPLY[@]}}"'
    bash = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
    return bash.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [(("dft-mm", "pre"), ["prepare"]), (("dft-mm", "train", "--acc"), ["--accept-changes"])],
)
def test_bash_completes_verbs_and_options(words, offered):
    assert completed(*words) == offered


def test_bash_completes_files_where_a_path_is_meant(tmp_path, monkeypatch):
    (tmp_path / "recipe_of_mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert "recipe_of_mine.yaml" in completed("dft-mm", "train", "recipe_of")


def test_completion_is_there_for_zsh(capsys):
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef dft-mm")


def test_help_imports_nothing_heavy():
    code = (
        "import sys, dft_mm.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'numpy', 'transformers', 'yaml', 'pydantic', 'rich', 'shtab'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_train_says_what_it_is_about_to_do_before_anything_heavy_is_imported(recipe):
    code = (
        "import sys, dft_mm.__main__ as m\nsys.modules['dft_mm.train.run'] = None\n"
        f"m.main(['train', {str(recipe)!r}, 'train.max_steps=5'])\nprint({{'torch', 'numpy'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert done.stderr.startswith("t: dft of builtin:tiny-vl on ")
    assert "at most 5 steps" in done.stderr.splitlines()[0]


def test_train_tells_its_plan_before_what_only_learning_needs_is_imported(recipe):
    """Of the seconds that a start takes, half."""
    code = (
        "import sys, dft_mm.__main__ as m\nsys.modules['dft_mm.train.loop'] = None\n"
        f"m.main(['train', {str(recipe)!r}, 'train.max_steps=5', 'optim.batch_size=2'])\n"
        "print({'transformers.modeling_utils', 'torch._dynamo'} & set(sys.modules))"
    )
    env = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "t: 10 rows: 10 to learn from; 5 steps (train.max_steps; train.epochs 1)" in done.stderr
    assert "import of dft_mm.train.loop halted" in done.stderr
    assert done.stdout.endswith("set()\n")
