import gzip
import hashlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from parted import numbers, records, values, write

from dft_mm.data.reading.files import digest, read, split, stamp
from dft_mm.errors import InputError

TEXT = "".join(f'{{"a": {number}}}\n' for number in range(50))


def test_parts_travel_to_other_processes(tmp_path):
    parts = split(write(tmp_path, TEXT, "a.jsonl"), 7, tmp_path)
    assert pickle.loads(pickle.dumps(parts)) == parts
    assert len(set(parts)) == len(parts) == 8
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(numbers, parts[::-1]) == [numbers(part) for part in parts[::-1]]
    assert [value for part in parts for value in numbers(part)] == list(range(50))


def test_a_file_that_changes_after_the_look_is_refused(tmp_path):
    lines = TEXT.split()
    table = "a,b\n" + "1,2\n" * 50
    for text, name in ((TEXT, "a.jsonl"), (f"[{','.join(lines)}]", "a.json"), (table, "a.csv")):
        path = write(tmp_path, text, name)
        *_, last = split(path, 8, tmp_path)
        for content in ("", text[: last.start - 5], text[: last.stop - 1], text[: last.start] + "\n" * 100):
            path.write_text(content)
            with pytest.raises(InputError, match=rf"{name} (has changed since|breaks off)"):
                list(read(last))
        path.unlink()
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            list(read(last))


def test_digest_and_stamp_tell_files_apart(tmp_path):
    path = write(tmp_path, os.urandom(3_000_000), "a.jsonl")
    assert digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    before = stamp(path)
    assert stamp(path) == before
    hash(before)
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before[1], before[1]))
    assert stamp(path) != before  # same size and time: the inode's own time tells
    for ask in (digest, stamp):
        with pytest.raises(InputError, match="gone"):
            ask(tmp_path / "gone")


def test_a_file_that_may_not_be_opened_is_refused(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read"):
        split(tmp_path / "a.jsonl", 10, tmp_path)


MEMORY = """
import re, sys
from pathlib import Path
from dft_mm.data.reading.files import read, split
def peak():  # getrusage would tell the parent's, where that is greater
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
rows = sum(1 for part in split(Path(sys.argv[1]), 500, Path(sys.argv[2])) for _ in read(part))
print(rows, peak() - before)
"""


@pytest.mark.parametrize("form", ["list", "one line", "lines"])
def test_a_file_larger_than_the_memory_is_read_in_little(tmp_path, form):
    """200 MB; the peak of the process, with what it maps, grows by less than 100."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc that tells a process's memory")
    row = json.dumps({"id": 1, "messages": [{"role": "user", "content": "a \\frac{1}{2} ['x\"] " * 400}]})
    start, comma, end = {"list": ("[\n", ",\n", "\n]"), "one line": ("[", ", ", "]"), "lines": ("", "\n", "\n")}[form]
    count = 200_000_000 // len(row)
    with (tmp_path / "a.json").open("w") as file:
        file.write(start + row)
        file.writelines(comma + row for _ in range(count - 1))
        file.write(end)
    run = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "a.json", tmp_path], capture_output=True, check=True)
    rows, grown = run.stdout.split()
    assert int(rows) == count
    assert float(grown) < 100


REAL = {
    "train_text/gsm8k_train.jsonl": 1500, "train_text/math_solutions.jsonl": 700, "train_text/aime_1983_2023.json": 300,
    "train_text/ultrafeedback_pairs.jsonl": 400, "train_text/numinamath_cot_samples.jsonl": 3,
    "train_text/numinamath_layout.jsonl": 700, "train_tabmwp/problems.json": 350, "train_scienceqa/problems.json": 110,
    "train_vlaa_thinking/examples.jsonl": 5, "train_qwenvl_demo/single_images.json": 3,
    "train_llamafactory_demo/mllm_demo.json": 6, "train_llamafactory_demo/identity.json": 91,
    "train_llamafactory_demo/v1_multimodal_demo.jsonl": 24, "train_llamafactory_demo/v1_sft_demo.jsonl": 150,
    "train_llamafactory_demo/alpaca_en_demo.json": 200, "train_llamafactory_demo/dpo_en_demo.json": 60,
    "train_llamafactory_demo/kto_en_demo.json": 60, "train_llamafactory_demo/glaive_toolcall_en_demo.json": 40,
    "train_llamafactory_demo/reason_tool_use_demo.jsonl": 25, "train_llamafactory_demo/v1_dpo_demo.jsonl": 10,
    "wethink_layout/wethink_layout.jsonl": 465, "mathvision/testmini.jsonl": 60, "mathvision/test_special.jsonl": 21,
    "mathverse/testmini.json": 130, "mathverse/testmini_text_only.json": 300, "mathverse/visualizer_items.json": 156,
    "mathverse/output_testmini.json": 5, "wemath/data/testmini.json": 108, "text_math/math_oai/test.jsonl": 400,
    "text_math/minerva_math/test.jsonl": 222, "text_math/olympiadbench/test.jsonl": 575,
    "text_math/aime24/test.jsonl": 30, "text_math/amc23/test.jsonl": 40, "text_math/gsm8k/test.jsonl": 700,
    "humaneval/HumanEval.jsonl.gz": 164, "vlmevalkit_tsv/MathVision_SAMPLE.tsv": 20,
    "vlmevalkit_tsv/MathVerse_SAMPLE.tsv": 25, "vlmevalkit_tsv/WeMath_SAMPLE.tsv": 24,
}  # fmt: skip
"""Rows as the folders' own SOURCE.md state them (visualizer_items: 26 problems in 6 versions)."""


def expected_rows(path):
    """What Python's json and pandas read there."""
    if path.suffix == ".tsv":
        return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False).to_dict("records")
    text = (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8").read()
    if ".jsonl" in path.name:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    value = json.loads(text)
    return value if isinstance(value, list) else [row | {"id": row.get("id", key)} for key, row in value.items()]


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_whole(tmp_path, shared, name):
    path = shared / "data" / name
    found = values(path, tmp_path, 7)
    assert len(found) == REAL[name]
    assert found == expected_rows(path)
    assert values(path, tmp_path, 10_000) == found


@pytest.mark.parametrize("name", ["train_tabmwp/problems.json", "mathverse/testmini.json"])
def test_real_rows_are_on_the_lines_where_editors_show_them(tmp_path, shared, name):
    path = shared / "data" / name
    lines = path.read_text(encoding="utf-8").split("\n")
    for line, _, value in records(path, tmp_path, 9):
        key, text = next((key, text) for key, text in value.items() if key != "id")
        following = "".join(lines[line - 1 : line + 2])
        assert json.dumps(key) in following
        assert json.dumps(text, ensure_ascii=False) in following
