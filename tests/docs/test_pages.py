"""What README.md and docs/ say, checked: every block is of a known kind, and holds; files and links are there."""

import json
import re
from pathlib import Path

import pytest
import yaml
from commands import check, commands
from pages import KNOWN, NOT_RUN, PAGES, REPO, all_blocks, blocks

from dft_mm.arguments import parser
from dft_mm.config import Recipe, SourceConfig
from dft_mm.data.layouts.choose import choose_layout
from dft_mm.data.layouts.rows import parse
from dft_mm.evaluate.suite import Suite
from dft_mm.study.import_recipe import import_recipe
from dft_mm.study.llamafactory.keys import NOTED

BASE = {"name": "base", "model": {"path": "org/name"}, "data": {"train": [{"path": "rows.jsonl"}]}}


def merged(below, above):
    if isinstance(below, dict) and isinstance(above, dict):
        return {key: merged(below.get(key), above.get(key, below.get(key))) for key in below | above}
    return above


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_known(page):
    for block in blocks(page):
        assert block.language in KNOWN, block
        assert block.marks.keys() <= KNOWN[block.language], block


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_yaml_is_a_recipe_or_a_part_of_one(block, tmp_path):
    values = yaml.safe_load(block.text)
    if "suite" in block.marks:
        Suite.model_validate(values)
    elif "llamafactory" in block.marks:
        (tmp_path / "theirs.yaml").write_text(block.text)
        (tmp_path / "dataset_info.json").write_text(json.dumps({values["dataset"]: {"file_name": "rows.json"}}))
        assert import_recipe(tmp_path / "theirs.yaml", tmp_path / "dataset_info.json", gpus=8)
    else:
        Recipe.model_validate(merged(BASE, values))


@pytest.mark.parametrize("block", all_blocks("json"), ids=str)
def test_json_is_one_object_or_one_a_line(block):
    if "layout" not in block.marks:
        json.loads(block.text)
        return
    for line in block.text.splitlines():
        row = json.loads(line)
        layout = choose_layout(SourceConfig(path="rows.jsonl"), Path("rows.jsonl"), [row])
        assert layout.format == block.marks["layout"]
        assert parse(row, layout).messages[-1]["role"] == "assistant"


def test_every_layout_has_a_row_to_show():
    from dft_mm.data.layouts.choose import RULES

    shown = {block.marks.get("layout") for block in all_blocks("json")}
    assert {rule.format for rule in RULES} <= shown


@pytest.mark.parametrize("block", all_blocks("python"), ids=str)
def test_python_compiles(block):
    compile(block.text, str(block), "exec")


@pytest.fixture
def check_block(tmp_path):
    """A function that checks all commands of a block, with the files that its page tells to save."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(BASE))

    def check_block(block):
        for other in blocks(block.page):
            if "file" in other.marks:
                (tmp_path / other.marks["file"]).write_text(other.text)
        found = commands(block.text)
        assert found
        for words in found:
            check(words, tmp_path, recipe)

    return check_block


@pytest.mark.parametrize("block", [b for b in all_blocks("bash") if b.marks.keys() & NOT_RUN], ids=str)
def test_commands_that_are_not_run_here_would_be_taken(block, check_block):
    check_block(block)


def test_examples_of_help_would_be_taken(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(BASE))
    verbs = next(action for action in parser()._actions if action.dest == "verb").choices
    for verb in verbs.values():
        for words in commands(verb.epilog.removeprefix("example:\n")):
            check(words, tmp_path, tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    "line",
    [
        "dft-mm trian RECIPE.yaml", "dft-mm train RECIPE.yaml --fast", "dft-mm train RECIPE.yaml optim.lrr=1",
        "dft-mm train nothing.yaml", "deepspeed --num_gpus 2 --module dft_mm train RECIPE.yaml train.epochs=0",
        "dft-mm eval nothing --model a --out b", "dft-mm eval smoke --model a --out b sampling.top=1",
        "scripts/launch/no_node.sh RECIPE.yaml", "python -m scripts.paper.table99",
        "python -m scripts.paper.table1 --fast",
        "python -m scripts.paper.table1 --wrong 0.2", "make tset", 'pip install ".[evil]"', "frobnicate",
    ],
)  # fmt: skip
def test_a_command_that_would_fail_is_seen(line, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(BASE))
    (words,) = commands(line)
    with pytest.raises((AssertionError, ValueError)):
        check(words, tmp_path, tmp_path / "recipe.yaml")


def text_of(page):
    return (REPO / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_that_are_named_are_there(page):
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
        if "://" not in target:
            assert ((REPO / page).parent / target).exists(), target
    for name in re.findall(r"`((?:dft_mm|scripts|eval|ds_configs|tests|examples)/[\w./-]*\w)`", prose):
        assert any(REPO.glob(name)) or any(REPO.glob(f"{name}.*")), name


def test_the_first_page_leads_to_all_others():
    listed = set(re.findall(r"^(\w+)$", text_of("docs/index.md"), re.M))
    assert listed == {Path(page).stem for page in PAGES[1:]} - {"index"}


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 150


def test_every_reason_of_quarantine_is_explained():
    sources = [path.read_text(encoding="utf-8") for path in (REPO / "dft_mm").rglob("*.py")]
    pattern = r"(?:BadRow|ImageError|RenderError)\(\s*\"([a-z0-9_]+)\""
    reasons = {reason for source in sources for reason in re.findall(pattern, source)}
    told = set(re.findall(r"`([a-z0-9_]+)`", text_of("docs/formats.md").split("## Reasons")[1]))
    assert len(reasons) > 30
    assert reasons <= told, reasons - told


def test_messages_that_are_explained_are_those_of_the_code():
    sources = "".join(path.read_text(encoding="utf-8") for path in (REPO / "dft_mm").rglob("*.py"))
    said = re.sub(r"\"\s*\n\s*f?\"", "", sources)  # texts that go on in the next line
    rows = [line.split(" | ")[0] for line in text_of("docs/trouble.md").splitlines() if line.startswith("| `")]
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 30
    for message in messages:
        for part in re.split("…|: ", message):
            assert part.strip(" '?;:") in said, message


def test_recipe_keys_that_are_named_exist():
    keys = {
        f"{name}.{key}" for name in ("model", "data", "loss", "optim", "train", "log")
        for key in Recipe.model_fields[name].annotation.model_fields
    }  # fmt: skip
    for page in PAGES:
        for section, key in re.findall(r"`(model|data|loss|optim|train|log)\.([a-z_]+)(?:[:=\[.`])", text_of(page)):
            assert f"{section}.{key}" in keys, f"{page}: {section}.{key}"
    for reason in NOTED.values():
        for section, key in re.findall(r"(model|data|loss|optim|train|log)\.([a-z_]+)", reason):
            assert f"{section}.{key}" in keys, reason


def test_a_table_of_a_page_that_did_not_change_follows_the_code(tmp_path, monkeypatch):
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    from sphinx.application import Sphinx

    monkeypatch.syspath_prepend(REPO / "docs/_ext")
    import tables

    (tmp_path / "conf.py").write_text("extensions = ['generated']")
    (tmp_path / "index.rst").write_text("Page\n====\n\n.. generated:: commands\n")
    for words in ("as it was", "as it is"):
        monkeypatch.setitem(tables.TABLES, "commands", lambda words=words: words)
        Sphinx(tmp_path, tmp_path, tmp_path / "out", tmp_path / "known", "text", status=None, warning=None).build()
        assert words in (tmp_path / "out/index.txt").read_text()
