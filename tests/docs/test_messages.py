"""docs/messages.md: each command that is typed there says what is written below it, in a folder with the files that
the page speaks of."""

import fnmatch
import json
import re
import shlex
import shutil

import pytest
from pages import REPO, all_blocks
from rows import write_wethink

from dft_mm.__main__ import main

HERE = "/home/you/work"
"""The folder of the page's reader."""

RECIPE = """\
name: mine
deepspeed: zero3.json
model: {path: builtin:tiny-vl, dtype: float32}
data:
  train: [{path: data/rows.jsonl, format: wethink, images: data/images}]
  max_length: 512
"""
FILES = {
    "recipe.yaml": RECIPE,
    "empty.yaml": "",
    "list.yaml": "- name: mine\n",
    "tab.yaml": "name: mine\nmodel:\n\tpath: builtin:tiny-vl\n",
    "lr.json": '{"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}}',
    "auto.json": '{"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}',
    "stage1.json": '{"zero_optimization": {"stage": 1}}',
    "comma.json": '{"zero_optimization": {"stage": 3},}',
    "gpt2/config.json": '{"model_type": "gpt2"}',
    "no_tokenizer/config.json": '{"model_type": "qwen2"}',
    "data/empty.jsonl": "",
    "data/rows.xlsx": "PK",
    "data/own.jsonl": '{"frage": "1 + 1?", "loesung": "2"}\n',
    "data/half.jsonl": '{"prompt": "1 + 1?", "response": "2"}\n{"prompt": "1 + 2?", "response"\n',
    "data/sums.json": '[{"instruction": "1 + 1?", "output": "2"}]',
    "data/dataset_info.json": '{"sums": {"file_name": "sums.json"}}',
    "data/two_pictures.jsonl": json.dumps(
        {
            "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "1"}],
            "images": ["0.png", "1.png"],
        }
    ) + "\n",
    "questions.jsonl": '{"problem": "1 + 1?"}\n',
    "theirs.yaml": "model_name_or_path: org/name\ntemplate: qwen2_vl\ndataset: sums\nlearning_rat: 1.0e-5\n",
    "suite.yaml": "name: mine\nbenchmarks: [{task: gsm8k, data: nothing.jsonl}]\n",
    "unknown_task.yaml": "name: mine\nbenchmarks: [{task: gsm9k, data: questions.jsonl}]\n",
    "no_answers.yaml": "name: mine\nbenchmarks: [{task: gsm8k, data: questions.jsonl}]\n",
}  # fmt: skip
BAD_ROWS = {
    "cut_picture": {},
    "outside": {"image_path": "../../recipe.yaml"},
    "no_picture": {"image_path": "nothing.png"},
    "no_answer": {"refined_cot": ""},
}
"""What is changed in the second row of data/NAME.jsonl."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("messages") / "work"
    rows = write_wethink(folder / "data", count=10)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copy(REPO / "ds_configs/zero3.json", folder)
    whole = rows.read_text().splitlines()
    picture = folder / "data/images/1.png"
    (folder / "data/images/cut.png").write_bytes(picture.read_bytes()[:-40])
    for name, changes in BAD_ROWS.items():
        second = json.dumps(json.loads(whole[1]) | (changes or {"image_path": "cut.png"}))
        (folder / f"data/{name}.jsonl").write_text("\n".join([whole[0], second, *whole[2:]]) + "\n")
    return folder


@pytest.fixture
def said(template, tmp_path, monkeypatch, capsys):
    """A function that types a command in such a folder and returns exit code and message."""
    folder = shutil.copytree(template, tmp_path / "work")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "120")

    def said(line):
        try:
            code = main(shlex.split(line)[1:])
        except SystemExit as stop:  # argparse
            code = stop.code
        printed = capsys.readouterr().err.replace(str(folder), HERE)
        return code, printed[re.search(r"^dft-mm[\w -]*: ", printed, re.M).start() :]

    return said


CASES = [(line, block) for block in all_blocks("console") for line in block.text.splitlines() if line.startswith("$ ")]


def test_there_are_forty_and_more():
    assert len({line for line, _ in CASES}) >= 40


@pytest.mark.docs
@pytest.mark.parametrize(("line", "block"), CASES, ids=[line[9:] for line, _ in CASES])
def test_a_wrong_input_is_answered_with_the_message_of_the_page(line, block, said):
    message = block.text.split(f"{line}\n")[1].split("\n$ ")[0].strip()
    code, printed = said(line.removeprefix("$ "))
    assert code == 2
    assert "Traceback" not in printed
    pattern = "*".join(re.sub(r"([*?[])", r"[\1]", part) for part in message.split("…"))
    assert fnmatch.fnmatchcase(printed.strip(), pattern), f"it says now:\n{printed}"
