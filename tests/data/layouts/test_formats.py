"""The flat layouts, and the forms in which a row carries its pictures."""

import base64
import math
import pickle
import re

import pytest
from reading import convert, read, reason

from dft_mm.config import ColumnsConfig
from dft_mm.data.layouts.formats import Picture, decoded, pictures_of
from dft_mm.data.records import BadRow

PICTURE = b"\x89PNG bytes"
DATA_URI = "data:image/png;base64," + base64.b64encode(PICTURE).decode()


def wethink(cot, answer="4", **more):
    return {"problem": "2+2?", "answer": answer, "refined_cot": cot} | more


@pytest.mark.parametrize(
    ("cot", "answer", "expected"),
    [
        ("two, two", "4", "<think>\ntwo, two\n</think>\n<answer>\n4\n</answer>"),
        ("two, two", 4, "<think>\ntwo, two\n</think>\n<answer>\n4\n</answer>"),
        ("<think>a</think>\n<answer>5</answer>", "4", "<think>a</think>\n<answer>5</answer>"),
        ("so <answer>5</answer>", None, "so <answer>5</answer>"),
        ("<think>a</think>\n4.", "4", "<think>\n<think>a</think>\n4.\n</think>\n<answer>\n4\n</answer>"),
        ("see <image> there", "4", "<think>\nsee <image> there\n</think>\n<answer>\n4\n</answer>"),
    ],
)
def test_wethink_answers_are_wrapped_unless_they_hold_an_answer(cot, answer, expected):
    assert convert("wethink", wethink(cot, answer)) == ([("user", "2+2?"), ("assistant", expected)], [])


@pytest.mark.parametrize(
    ("path", "user", "images"),
    [
        (None, "2+2?", []), ("", "2+2?", []), ([], "2+2?", []), ("a.png", "~2+2?", ["a.png"]),
        (["a.png"], "~2+2?", ["a.png"]), (["a.png", "b.png"], "~~2+2?", ["a.png", "b.png"]),
        (DATA_URI, "~2+2?", [PICTURE]),
    ],
)  # fmt: skip
def test_wethink_pictures_stand_before_the_problem(path, user, images):
    found, pictures = convert("wethink", wethink("x", image_path=path))
    assert (found[0], pictures) == (("user", user), images)


def test_wethink_marks_in_the_problem_are_text():
    record = wethink("x", image_path="a.png") | {"problem": "<image> what?"}
    assert convert("wethink", record)[0][0] == ("user", "~<image> what?")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (wethink(""), "no_answer"),
        (wethink(" \n"), "no_answer"),
        (wethink(None), "no_answer"),
        ({"problem": "x", "answer": "y"}, "no_answer"),
        ({"problem": "x", "refined_cot": "y"}, "no_answer"),
        (wethink("x", " "), "no_answer"),
        ({"answer": "x", "refined_cot": "y"}, "missing_column"),
        (wethink(["x"]), "not_text"),
        (wethink("x", True), "not_text"),
        (wethink("x", image_path=3), "image_path"),
        (wethink("x", image_path=["a.png", None]), "image_path"),
        (wethink("x", image_path="data:image/png,raw"), "data_uri"),
        (wethink("x", image_path="data:image/png;base64,@@@@"), "data_uri"),
    ],
)
def test_wethink_rows_that_cannot_be_learned(record, expected):
    assert reason("wethink", record) == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"problem": "p", "solution": "s", "answer": "a"}, ("p", "s")),
        ({"question": "q", "answer": "a #### 3"}, ("q", "a #### 3")),
        ({"problem": "p", "solution": "s", "messages": "ignored"}, ("p", "s")),
        ({"problem": "an <image> tag", "solution": "s", "image": "x.png"}, ("an <image> tag", "s")),
        ({"question": "q", "answer": 3}, ("q", "3")),
        ({"problem": "p", "answer": "a"}, ("p", "a")),
        ({"problem": "p", "solution": None, "answer": "a"}, ("p", "a")),
        ({"problem": "p", "question": "same", "answer": 27.0}, ("p", "27.0")),
        ({"question": "q", "solution": ["first", "second"], "final_answer": ["3"]}, ("q", "first")),
        ({"question": "q", "solution": [], "final_answer": ["3", "4"]}, ("q", "3, 4")),
        ({"context": "c", "question": "q", "solution": ["s"]}, ("c\n\nq", "s")),
        ({"context": None, "question": "q", "solution": ["s"]}, ("q", "s")),
        ({"problem": "p", "solution": math.nan, "answer": 3}, ("p", "3")),
    ],
)
def test_problem_and_solution(record, expected):
    user, assistant = expected
    assert convert("problem_solution", record) == ([("user", user), ("assistant", assistant)], [])


@pytest.mark.parametrize("record", [{"problem": "p", "final": "a"}, {"question": "q"}, {"answer": "a"}, {}])
def test_problem_without_solution_names_the_columns(record):
    assert reason("problem_solution", record) == "missing_column"


COLUMNS = ColumnsConfig(prompt="ask", response="say", system="sys", images="pics", id="key")


@pytest.mark.parametrize(
    ("record", "messages", "images"),
    [
        ({"ask": "a", "say": "b", "sys": "c", "pics": None}, [("system", "c"), ("user", "a"), ("assistant", "b")], []),
        ({"ask": "a", "say": "b", "sys": ""}, [("user", "a"), ("assistant", "b")], []),
        ({"ask": "a", "say": "b", "sys": None, "pics": "x"}, [("user", "~a"), ("assistant", "b")], ["x"]),
        ({"ask": "a<image>", "say": "b", "sys": None, "pics": ["x"]}, [("user", "a~"), ("assistant", "b")], ["x"]),
        ({"ask": "a<image>", "say": "b", "sys": None, "pics": []}, [("user", "a<image>"), ("assistant", "b")], []),
    ],
)
def test_columns_map_any_flat_layout(record, messages, images):
    assert convert("columns", record, COLUMNS) == (messages, images)


def test_columns_must_be_there():
    assert reason("columns", {"ask": "a", "sys": "c"}, COLUMNS) == "missing_column"
    assert reason("columns", {"say": "b", "sys": "c"}, COLUMNS) == "missing_column"
    assert reason("columns", {"ask": "a", "say": {"x": 1}, "sys": "c"}, COLUMNS) == "not_text"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"id": "a", "idx": 3}, "a"), ({"idx": 0}, "0"), ({"unique_id": "test/1.json"}, "test/1.json"), ({}, None),
        ({"id": None, "idx": 7}, "7"), ({"id": ""}, None), ({"id": True}, None), ({"id": 1.5}, None),
        ({"id": "\ud800"}, None), ({"id": "two\nlines"}, None),
    ],
)  # fmt: skip
def test_a_rows_own_id(record, expected):
    assert read("problem_solution", {"problem": "p", "solution": "s", **record}).id == expected


def test_columns_take_the_id_that_the_recipe_names():
    row = {"ask": "a", "say": "b", "sys": None, "key": "k1", "id": "other"}
    assert read("columns", row, COLUMNS).id == "k1"


def test_details_name_what_is_there():
    with pytest.raises(BadRow, match=re.escape("'say'; there are 'ask', 'sys'")):
        read("columns", {"ask": "a", "sys": "b"}, COLUMNS)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.png", [Picture("a.png")]), (["a.png", "b.png"], [Picture("a.png"), Picture("b.png")]), (None, []), ("", []),
        ([], []), (PICTURE, [Picture(PICTURE)]), (DATA_URI, [Picture(PICTURE)]),
        ({"bytes": PICTURE, "path": "a.png"}, [Picture(PICTURE)]),  # the datasets library's Image
        ({"bytes": None, "path": "a.png"}, [Picture("a.png")]), ({"url": DATA_URI}, [Picture(PICTURE)]),
        ({"image_url": {"url": "a.png", "detail": "low"}}, [Picture("a.png")]),
        ("file:///data/a b.png", [Picture("/data/a b.png")]), ("https://x.org/a.png", [Picture("https://x.org/a.png")]),
        ({"type": "image", "image": "a.png", "min_pixels": 3136, "max_pixels": 50176.0},
         [Picture("a.png", 3136, 50176)]),
        ({"image": "a.png", "max_pixels": None, "resized_height": None}, [Picture("a.png")]),
        ('["a.png", "b.png"]', [Picture("a.png"), Picture("b.png")]), ("['a.png']", [Picture("a.png")]),
    ],
)  # fmt: skip
def test_a_picture_comes_in_many_forms(value, expected):
    assert pictures_of(value, "images") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, "image_path"), ({"path": None, "bytes": None}, "image_path"), ({"name": "a.png"}, "image_path"),
        (["a.png", ""], "image_path"), (b"", "image_path"), ("data:image/png;base64,A", "data_uri"),
        ({"image": "a", "resized_height": 28, "resized_width": 28}, "resized"),
        ({"image": "a", "min_pixels": "28"}, "pixel_limits"), ({"image": "a", "max_pixels": 0}, "pixel_limits"),
        ({"image": "a", "max_pixels": 1.5}, "pixel_limits"), ({"image": "a", "max_pixels": True}, "pixel_limits"),
        ({"image": "a", "max_pixels": float("inf")}, "pixel_limits"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_a_bad_row(value, expected):
    with pytest.raises(BadRow) as error:
        pictures_of(value, "images")
    assert error.value.reason == expected


def test_an_empty_cell_of_a_table_is_no_text():
    """Tables made by pandas write nan where there is nothing."""
    assert reason("problem_solution", {"problem": "p", "solution": math.nan}) == "no_answer"
    assert reason("problem_solution", {"problem": math.nan, "solution": "s"}) == "no_question"
    assert pictures_of(math.nan, "images") == []


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("[]", []), ("['A', 'B']", ["A", "B"]), ('{"a": null}', {"a": None}), ("{'a': None}", {"a": None}),
        ("[1] is cited", "[1] is cited"), ("[os.system('x')]", "[os.system('x')]"), ("text", "text"), (3, 3),
        ("[" * 10000, "[" * 10000),
    ],
)  # fmt: skip
def test_lists_in_cells_are_read_and_never_run(cell, value):
    assert decoded(cell) == value


def test_a_bad_row_travels_between_processes():
    copy = pickle.loads(pickle.dumps(BadRow("video", "no")))
    assert (copy.reason, copy.detail, str(copy)) == ("video", "no", "video: no")
