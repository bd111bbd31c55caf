"""Each data set's script, on files in its published layout, and `dft-mm prepare` on what it makes."""

import io
import json
import random
import zipfile
from dataclasses import replace

import pytest

from dft_mm.__main__ import main as dft_mm
from dft_mm.evaluate.grade_math import grade
from scripts.paper.data import numinamath, openr1, questions, ultrafeedback, wethink
from scripts.paper.data.derive import main
from scripts.paper.data.sources import Hub
from scripts.paper.table7 import TABLE7


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Recipes and scripts find their data below the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def prepared(here, repo, read):
    """`dft-mm prepare` of a recipe, its model a tiny one: the manifest, and the rows that were quarantined."""

    def prepared(recipe, model, *changes):
        words = [
            f"model.path=builtin:{model}", f"deepspeed={repo}/ds_configs/zero3.json", "output=run", "data.workers=0",
            "data.max_pixels=50176", "data.heldout_fraction=0", *changes,
        ]  # fmt: skip
        assert dft_mm(["prepare", str(repo / "scripts/recipes" / recipe), *words]) == 0
        return json.loads((here / "run/data/manifest.json").read_text()), read(here / "run/data/quarantine.jsonl")

    return prepared


# ---- NuminaMath-CoT: three real rows, and real rows of its sources in its columns -----------------------------------


def test_numinamath_keeps_rows_as_they_are(here, place, read, numina):
    folder = place(numinamath.NUMINAMATH.source.files, numina)
    assert main(numinamath.NUMINAMATH, "", ["--files", str(folder), "--rows", "600"]) == 0
    made = read(here / "data/numinamath/train_100k.jsonl")
    assert len(made) == 600
    known = iter(numina)
    assert all(row in known for row in made)  # each of them, in their order, nothing changed
    assert made != numina[:600]


def test_numinamath_draws_the_same_rows_of_other_shards(here, place, read, numina):
    def made(files):
        derived = replace(numinamath.NUMINAMATH, source=Hub("org/name", files))
        assert main(derived, "", ["--files", str(place(files, numina)), "--rows", "300"]) == 0
        return read(here / "data/numinamath/train_100k.jsonl")

    assert made(("a.parquet",)) == made(("x/0.parquet", "x/1.parquet", "x/2.parquet"))


def test_numinamath_leaves_out_what_cannot_be_learned():
    row = {"source": "math", "problem": "1 + 1?", "solution": "2", "messages": []}
    assert numinamath.learnable(row) is row
    assert numinamath.learnable({**row, "problem": None}) == "no problem"
    assert numinamath.learnable({**row, "solution": " \n"}) == "no solution"


def test_numinamath_is_prepared_whole(place, numina, prepared):
    folder = place(numinamath.NUMINAMATH.source.files, numina)
    main(numinamath.NUMINAMATH, "", ["--files", str(folder), "--rows", "100"])
    manifest, refused = prepared("qwen2_5_math_1_5b_numinamath_dft.yaml", "tiny-lm")
    assert refused == []
    assert manifest["examples"]["train"] == 100


# ---- questions -------------------------------------------------------------------------------------------------------


def test_questions_have_the_final_answers_of_the_solutions(here, place, read, numina):
    proof = {"source": "olympiads", "problem": "Prove it.", "solution": "Assume not. Then yes.\nQED", "messages": []}
    rows = [*numina[:3], proof, *numina[3:60]]
    main(numinamath.NUMINAMATH, "", ["--files", str(place(numinamath.NUMINAMATH.source.files, rows)), "--rows", "61"])
    assert main(questions.QUESTIONS, "", []) == 0
    asked = read(here / "data/numinamath/questions_100k.jsonl")
    assert asked[0] == {"id": "1", "problem": numina[0]["problem"], "answer": r"\frac{13}{6}"}
    assert [row["id"] for row in asked] == [str(number) for number in range(1, 62) if number != 4]
    manifest = json.loads((here / "data/numinamath/questions.json").read_text())
    assert manifest["rows"]["dropped"] == {"no final answer": 1}
    assert all(grade(rows[int(row["id"]) - 1]["solution"], row["answer"]).status == "correct" for row in asked[:10])


def test_questions_are_taken_by_sampling(here, place, numina):
    from dft_mm.evaluate.benchmark import BenchmarkConfig
    from dft_mm.study.questions import load_questions

    main(numinamath.NUMINAMATH, "", ["--files", str(place(numinamath.NUMINAMATH.source.files, numina)), "--rows", "50"])
    main(questions.QUESTIONS, "", [])
    bench = BenchmarkConfig(task="gsm8k", data=str(here / "data/numinamath/questions_100k.jsonl"))
    asked, ungradable = load_questions(bench, None)
    assert (len(asked), ungradable) == (50, [])


def test_questions_need_the_rows_of_table_1(here, capsys):
    assert main(questions.QUESTIONS, "", []) == 2
    said = capsys.readouterr().err
    assert "not found: data/numinamath/train_100k.jsonl" in said
    assert "python -m scripts.paper.data.numinamath" in said


# ---- UltraFeedback: real prompts and responses, put into the published layout by hand --------------------------------


@pytest.fixture
def feedback(shared, read):
    """Of each real pair a row with four completions, as the data set has them; the scores are made up."""

    def completion(model, response, score):
        aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
        return {
            "model": model, "principle": "helpfulness", "custom_system_prompt": "Help.", "response": response,
            "critique": "Good.", "overall_score": 10 - score, "fine-grained_score": score,
            "annotations": {aspect: {"Rating": "4", "Rationale": "It is."} for aspect in aspects},
        }  # fmt: skip

    rows = []
    for number, pair in enumerate(read(shared / "data/train_text/ultrafeedback_pairs.jsonl")[:240]):
        completions = [
            completion("alpaca-7b", "Worse.", 2.25), completion("gpt-4", pair["chosen"], 4.75),
            completion("bard", pair["rejected"], 3.0), completion("starchat", "As good.", 4.75),
        ]  # fmt: skip
        rows.append(
            {
                "source": "sharegpt", "instruction": pair["prompt"], "models": [each["model"] for each in completions],
                "completions": completions[number % 4 :] + completions[: number % 4], "correct_answers": ["None"],
                "incorrect_answers": ["None"],
            }
        )  # fmt: skip
    return rows


def test_ultrafeedback_takes_the_response_with_the_highest_average(feedback):
    for number, row in enumerate(feedback[:4]):
        made = ultrafeedback.best(row)
        first = "starchat" if number in (2, 3) else "gpt-4"  # the one of the two equals that stands first
        assert made["prompt"] == row["instruction"]
        assert (made["model"], made["score"]) == (first, 4.75)
        assert made["completion"] == next(each["response"] for each in row["completions"] if each["model"] == first)


def test_ultrafeedback_leaves_out_what_has_no_rated_response(feedback):
    row = feedback[0]
    unrated = [{**each, "fine-grained_score": None} for each in row["completions"]]
    assert ultrafeedback.best({**row, "completions": []}) == "no response with a fine-grained_score"
    assert ultrafeedback.best({**row, "completions": unrated}) == "no response with a fine-grained_score"
    assert ultrafeedback.best({**row, "instruction": ""}) == "no instruction"
    silent = [{**each, "response": " "} if each["fine-grained_score"] > 4 else each for each in row["completions"]]
    assert ultrafeedback.best({**row, "completions": silent})["model"] == "bard"


def test_ultrafeedback_is_prepared_whole(place, feedback, prepared):
    folder = place(ultrafeedback.ULTRAFEEDBACK.source.files, feedback)
    assert main(ultrafeedback.ULTRAFEEDBACK, "", ["--files", str(folder), "--rows", "60"]) == 0
    manifest, refused = prepared("qwen2_5_coder_3b_ultrafeedback_dft.yaml", "tiny-lm", "data.max_length=8192")
    assert refused == []
    assert manifest["examples"]["train"] == 60


# ---- OpenR1-Math-220k: no real rows are here; written by hand in the published columns -------------------------------


def r1(number, *generations):
    """A row whose traces are (text, right, complete)."""
    texts, right, complete = zip(*generations)
    return {
        "problem": f"What is {number} + {number}?", "solution": "By hand.", "answer": str(2 * number),
        "problem_type": "Algebra", "question_type": "math-word-problem", "source": "cn_contest", "uuid": f"id-{number}",
        "is_reasoning_complete": list(complete), "generations": list(texts), "correctness_math_verify": list(right),
        "correctness_llama": None, "finish_reasons": None, "correctness_count": sum(right),
        "messages": [{"content": f"What is {number} + {number}?", "role": "user"}],
    }  # fmt: skip


def trace(answer, words=3):
    return "<think>\n" + "so " * words + r"</think>" + f"\nIt is $\\boxed{{{answer}}}$."


LONG = 9000  # tokens, at least
R1 = [
    r1(0, (trace(0), True, True), (trace(0, 5), True, True)),
    r1(1, (trace(3), False, True), (trace(2), True, True)),
    r1(2, (trace(4), True, False), (trace(4, 7), True, True)),
    r1(3, (trace(6, LONG), True, True), (trace(6), True, True)),
    r1(4, (trace(8, LONG), True, True), (trace(9), False, True)),
    r1(5, (trace(9), False, True), (trace(10), True, False)),
    r1(6, (trace(99), True, True), (trace(12, 4), True, True)),  # the data set calls a wrong trace right
    r1(7, (trace(99), True, True)),
]
LUFFY = {0: trace(0), 1: trace(2), 2: trace(4, 7), 3: trace(6), 6: trace(99), 7: trace(99)}


def made_of_r1(place, read, here, *words):
    folder = place(openr1.OPENR1.source.files, R1)
    assert openr1.main(["--files", str(folder), *words]) == 0
    dropped = json.loads((here / "data/openr1/openr1.json").read_text())["rows"]["dropped"]
    return read(here / "data/openr1/train.jsonl"), dropped


def test_openr1_is_filtered_as_luffy_does(here, place, read):
    made, dropped = made_of_r1(place, read, here)
    assert {int(row["id"].removeprefix("id-")): row["solution"] for row in made} == LUFFY
    assert made[1] == {
        "id": "id-1", "source": "cn_contest", "problem": "What is 1 + 1?", "solution": trace(2), "answer": "2",
    }  # fmt: skip
    assert dropped == {
        "no right trace of at most 8192 tokens": 1, "no complete trace that math-verify found right": 1,
    }  # fmt: skip


def test_openr1_can_be_graded_once_more(here, place, read):
    made, dropped = made_of_r1(place, read, here, "--regrade")
    expected = {**{number: text for number, text in LUFFY.items() if number < 6}, 6: trace(12, 4)}
    assert {int(row["id"].removeprefix("id-")): row["solution"] for row in made} == expected
    assert dropped["no trace that our grader finds right"] == 1


def test_openr1_counts_tokens_to_the_last(here):
    def lengths(words):
        row = r1(1, ("so" + " so" * (words - 1), True, True))  # a token a word
        return next(iter(openr1.filtered([row], None)))

    assert isinstance(lengths(8192), dict)
    assert lengths(8193) == "no right trace of at most 8192 tokens"


def test_openr1_is_prepared_whole(here, place, read, prepared):
    made_of_r1(place, read, here)
    manifest, refused = prepared("qwen2_5_math_1_5b_numinamath_dft.yaml", "tiny-lm", *TABLE7.changes)
    assert refused == []
    assert manifest["examples"]["train"] == len(LUFFY)


# ---- WeThink: real rows of other data sets under its field names -----------------------------------------------------


@pytest.fixture
def rows(shared, read):
    """A few of each source; some have nothing to learn."""
    found = read(shared / "data/wethink_layout/wethink_layout.jsonl")
    return found[:20] + found[350:430:2] + found[-5:]


@pytest.fixture
def published(shared, tmp_path, rows):
    """The published files: rows, and the pictures in an archive of 16 parts; `top` is a folder around all of them."""

    def published(top="", without=()):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.mkdir(top or "empty")
            for name in sorted({row["image_path"] for row in rows} - set(without)):
                file.write(shared / "data" / name, top + name)
        content, folder = archive.getvalue(), tmp_path / "files"
        folder.mkdir()
        cuts = sorted(random.Random(0).sample(range(len(content)), 15))
        for name, start, stop in zip(wethink.PICTURES.files, [0, *cuts], [*cuts, len(content)], strict=True):
            (folder / name).write_bytes(content[start:stop])
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / wethink.ROWS.files[0]).write_text(text)
        return folder

    return published


def thoughtful(rows):
    return [row for row in rows if row["refined_cot"].strip()]


def test_wethink_is_prepared_whole(here, published, rows, read, prepared):
    assert main(wethink.WETHINK, "", ["--files", str(published())]) == 0
    made = read(here / "data/wethink/wethink.jsonl")
    assert made == thoughtful(rows)
    assert 40 < len(made) < len(rows)
    manifest, refused = prepared("qwen2_5_vl_3b_wethink_dft.yaml", "tiny-vl")
    assert refused == []
    assert manifest["examples"]["train"] == len(made)
    assert manifest["images"] == len(made)


@pytest.mark.parametrize("top", ["", "images/"])
def test_wethink_finds_pictures_by_the_paths_of_the_rows(here, shared, published, read, top):
    assert main(wethink.WETHINK, "", ["--files", str(published(top))]) == 0
    for row in read(here / "data/wethink/wethink.jsonl"):
        theirs = (shared / "data" / row["image_path"]).read_bytes()
        assert (here / "data/wethink/images" / row["image_path"]).read_bytes() == theirs


def test_wethink_leaves_out_rows_whose_picture_is_not_there(here, published, rows, read):
    gone = rows[3]["image_path"]
    main(wethink.WETHINK, "", ["--files", str(published(without=[gone]))])
    assert read(here / "data/wethink/wethink.jsonl") == [row for row in thoughtful(rows) if row["image_path"] != gone]
    assert json.loads((here / "data/wethink/wethink.json").read_text())["rows"]["dropped"] == {
        "refined_cot is empty": len(rows) - len(thoughtful(rows)), "its picture is not in the archive": 1,
    }  # fmt: skip


@pytest.mark.parametrize("path", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_wethink_writes_no_picture_outside_its_folder(path):
    row = {"problem": "?", "answer": "!", "refined_cot": "so", "image_path": path}
    assert wethink.unlearnable(row) == "its picture's path leads out of the folder"


def test_wethink_goes_on_where_it_was_and_mends_damage(here, published, rows, capsys):
    words = ["--files", str(published())]
    main(wethink.WETHINK, "", words)
    images = here / "data/wethink/images"
    first, second = (images / row["image_path"] for row in rows[:2])
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + b"x")
    before = second.stat().st_mtime_ns
    capsys.readouterr()
    assert main(wethink.WETHINK, "", [*words, "--check"]) == 1
    assert capsys.readouterr().out == f"{first.relative_to(here)}: damaged, its SHA-256 is another\n"
    assert main(wethink.WETHINK, "", words) == 0
    assert main(wethink.WETHINK, "", [*words, "--check"]) == 0
    assert first.read_bytes() == whole
    assert second.stat().st_mtime_ns == before


def test_wethink_names_a_damaged_archive(here, published, rows, capsys):
    folder = published()
    part = folder / wethink.PICTURES.files[7]
    content = bytearray(part.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    part.write_bytes(content)
    assert main(wethink.WETHINK, "", ["--files", str(folder)]) == 2
    assert "is damaged" in capsys.readouterr().err
    (folder / wethink.PICTURES.files[-1]).write_bytes(b"")
    assert main(wethink.WETHINK, "", ["--files", str(folder)]) == 2
    assert "are no zip archive together" in capsys.readouterr().err


def test_parts_read_like_the_whole(tmp_path):
    content = random.Random(0).randbytes(10_000)
    cuts = [0, 1, 1, 4000, 9999, 10_000]
    paths = [tmp_path / str(number) for number in range(5)]
    for path, start, stop in zip(paths, cuts, cuts[1:]):
        path.write_bytes(content[start:stop])
    whole = io.BytesIO(content)
    with io.BufferedReader(wethink.Joined(paths), 64) as joined:
        for _ in range(500):
            where, much = random.randrange(10_100), random.randrange(3000)
            assert joined.seek(where) == whole.seek(where)
            assert joined.read(much) == whole.read(much)
            assert joined.tell() == whole.tell() or where > 10_000
        assert joined.seek(-5, io.SEEK_END) == 9995
        assert joined.read() == content[-5:]
