import base64
import re

import pytest

from dft_mm.config import ColumnsConfig
from dft_mm.data.formats import FORMATS, BadRow

PICTURE = b"\x89PNG bytes"
DATA_URI = "data:image/png;base64," + base64.b64encode(PICTURE).decode()


def short(conversation):
    """[("user", "~text"), …]: pictures as ~, so that expectations can be read."""
    return [
        (message["role"], "".join("~" if part["type"] == "image" else part["text"] for part in message["content"]))
        for message in conversation.messages
    ]


def convert(name, record, columns=None):
    conversation = FORMATS[name](record, columns)
    return short(conversation), list(conversation.images)


def reason(name, record, columns=None):
    with pytest.raises(BadRow) as error:
        FORMATS[name](record, columns)
    assert error.value.detail
    return error.value.reason


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


def chat(*turns, **more):
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


IMAGE_PART, IMAGE_FILE = {"type": "image"}, {"type": "image", "image": "b.png"}


def url(value):
    return {"type": "image_url", "image_url": value}


def text(value):
    return {"type": "text", "text": value}


@pytest.mark.parametrize(
    ("user", "listed", "expected", "images"),
    [
        ("hi", None, "hi", []),
        ("an <image> tag", None, "an <image> tag", []),
        ("an <image> tag", [], "an <image> tag", []),
        ("<image>who?", ["a.png"], "~who?", ["a.png"]),
        ("<image><image> a <image>", ["a", "b", "c"], "~~ a ~", ["a", "b", "c"]),
        ([IMAGE_PART, text("who?")], ["a.png"], "~who?", ["a.png"]),
        ([IMAGE_PART, text("an <image> tag")], ["a.png"], "~an <image> tag", ["a.png"]),
        ([text("who is "), IMAGE_FILE], None, "who is ~", ["b.png"]),
        ([IMAGE_PART, IMAGE_FILE, IMAGE_PART], ["a.png", "c.png"], "~~~", ["a.png", "b.png", "c.png"]),
        ([url({"url": "a.png"}), url("b.png")], None, "~~", ["a.png", "b.png"]),
        ([url({"url": DATA_URI, "detail": "low"}), text("?")], None, "~?", [PICTURE]),
        ([text("<image>"), text("?")], ["a.png"], "~?", ["a.png"]),
        ("<image>?", [{"path": "a.png", "bytes": None}], "~?", ["a.png"]),
        ("<image>?", DATA_URI, "~?", [PICTURE]),
    ],
)
def test_messages_put_pictures_in_their_places(user, listed, expected, images):
    record = chat(("user", user), ("assistant", "yes <image>"), images=listed)
    assert convert("messages", record) == ([("user", expected), ("assistant", "yes <image>")], images)


def test_messages_keep_turns_in_order_and_the_same_picture_twice():
    record = chat(
        ("system", "be brief"), ("user", "<image>who?"), ("assistant", "A."), ("user", [text("and "), text("<image>")]),
        ("assistant", [text("B"), text(".")]), images=["a.png", "a.png"],
    )  # fmt: skip
    expected = [("system", "be brief"), ("user", "~who?"), ("assistant", "A."), ("user", "and ~"), ("assistant", "B.")]
    assert convert("messages", record) == (expected, ["a.png", "a.png"])


def test_answers_of_weight_zero_are_not_learned():
    record = chat(
        ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"), ("assistant", "f")
    )
    record["messages"][1]["weight"] = 0
    record["messages"][3]["train"] = False
    record["messages"][5]["weight"] = 1
    learned = [message.get("train", True) for message in FORMATS["messages"](record, None).messages]
    assert learned == [True, False, True, False, True, True]


ANSWER = ("assistant", "x")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        (chat(("user", "<image>"), ANSWER, images=["a", "b"]), "image_count"),
        (chat(("user", "<image><image>"), ANSWER, images=["a"]), "image_count"),
        (chat(("user", "no mark"), ANSWER, images=["a"]), "image_count"),
        (chat(("user", [IMAGE_PART]), ANSWER), "image_count"),
        (chat(("user", [IMAGE_FILE]), ANSWER, images=["a"]), "image_count"),
        (chat(("user", "x"), ("assistant", "<image>"), images=["a"]), "image_count"),
        (chat(("user", [{"type": "video", "video": "a.mp4"}]), ANSWER), "part_type"),
        (chat(("user", ["x"]), ANSWER), "part_type"),
        (chat(("user", [{"type": "text", "value": "x"}]), ANSWER), "part_type"),
        (chat(("user", 3), ANSWER), "part_type"),
        (chat(("user", [url({"uri": "x"})]), ANSWER), "image_path"),
        (chat(("user", [url("data:image/png;base64,===")]), ANSWER), "data_uri"),
        (chat(("user", "x"), ANSWER, tools=[{"name": "f"}]), "tools"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "tools"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}, "weight"),
    ],
)
def test_messages_that_cannot_be_learned(record, expected):
    assert reason("messages", record) == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"problem": "p", "solution": "s", "answer": "a"}, ("p", "s")),
        ({"question": "q", "answer": "a #### 3"}, ("q", "a #### 3")),
        ({"problem": "p", "solution": "s", "messages": "ignored"}, ("p", "s")),
        ({"problem": "an <image> tag", "solution": "s", "image": "x.png"}, ("an <image> tag", "s")),
        ({"question": "q", "answer": 3}, ("q", "3")),
    ],
)
def test_problem_and_solution(record, expected):
    user, assistant = expected
    assert convert("problem_solution", record) == ([("user", user), ("assistant", assistant)], [])


@pytest.mark.parametrize("record", [{"problem": "p", "answer": "a"}, {"question": "q"}, {}])
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
    assert FORMATS["problem_solution"]({"problem": "p", "solution": "s", **record}, None).id == expected


def test_columns_take_the_id_that_the_recipe_names():
    row = {"ask": "a", "say": "b", "sys": None, "key": "k1", "id": "other"}
    assert FORMATS["columns"](row, COLUMNS).id == "k1"


def test_details_name_what_is_there():
    with pytest.raises(BadRow, match=re.escape("'say'; there are 'ask', 'sys'")):
        FORMATS["columns"]({"ask": "a", "sys": "b"}, COLUMNS)
