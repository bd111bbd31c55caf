"""Questions with pictures, choices and worked solutions."""

import base64

import pytest
from reading import read, reason, shown, sources

PICTURE = b"\xff\xd8\xff" + bytes(range(200))
BASE64 = base64.b64encode(PICTURE).decode()


def asked(record):
    """(question, answer, pictures)"""
    conversation = read("question_answer", record)
    (_, question), (_, answer) = shown(conversation)
    return question, answer, sources(conversation)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "q", "answer": "4", "image": "a.png"}, ("~q", "4", ["a.png"])),
        ({"problem": "q", "answer": 4, "images": ["a", "b"]}, ("~~q", "4", ["a", "b"])),
        ({"problem": "see <image>:", "answer": "x", "images": ["a"]}, ("see ~:", "x", ["a"])),
        ({"question": "<image1>?", "answer": "x", "image": "a"}, ("~<image1>?", "x", ["a"])),
        ({"question": "", "answer": "x", "image": "a"}, ("~", "x", ["a"])),
        ({"question": "q", "answer": "x", "image": ""}, ("q", "x", [])),
        ({"question": "an <image>", "answer": "x", "image": None}, ("an <image>", "x", [])),
        ({"question": "q", "answer": "x", "image_file": "f", "image": "orig/f"}, ("~q", "x", ["f"])),
        ({"question": "q", "answer": "10", "unit": "pounds", "choices": None}, ("q (Unit: pounds)", "10", [])),
        ({"question": "q", "answer": "x", "hint": "h", "unit": None}, ("h\n\nq", "x", [])),
        ({"question": "q", "answer": "x", "solution": "s"}, ("q", "s\n\nAnswer: x", [])),
        ({"question": "q", "answer": "x", "solution": None}, ("q", "x", [])),
        ({"question": "q", "answer": "x", "detailed_solution": " "}, ("q", "x", [])),
        ({"question": "q", "solution": ["s", "t"], "final_answer": ["1", "2"]}, ("q", "s\n\nAnswer: 1, 2", [])),
        ({"question": "q", "solution": "s", "choices": ["a", "b"]}, ("q\n(A) a\n(B) b", "s", [])),
        ({"question": "q", "gt": 3, "ds_answer": "<think>t</think> 3", "image": "a"},
         ("~q", "<think>t</think> 3", ["a"])),
    ],
)  # fmt: skip
def test_question_and_answer(record, expected):
    assert asked(record) == expected


AB = "q\n(A) no\n(B) yes"
LETTERS = ["A", "B", "C"]


@pytest.mark.parametrize(
    ("choices", "answer", "expected"),
    [
        ({"choices": ["no", "yes"]}, 1, (AB, "(B) yes")),
        ({"choices": ["no", "yes"]}, "B", (AB, "(B) yes")),
        ({"choices": ["no", "yes"]}, "(B)", (AB, "(B) yes")),
        ({"choices": ["no", "yes"]}, "yes", (AB, "(B) yes")),
        ({"choices": ["no", "yes"]}, " Yes", (AB, "(B) yes")),
        ({"choices": ["no", "yes"]}, "1", (AB, "(B) yes")),
        ({"choices": ["no", "yes"]}, "A\nB", (AB, "(A) no; (B) yes")),
        ({"choices": ["no", "yes"]}, ["A", "B"], (AB, "(A) no; (B) yes")),
        ({"options": "['no', 'yes']"}, "B", (AB, "(B) yes")),
        ({"option": "A. no;B. yes"}, "B", (AB, "(B) yes")),
        ({"options": {"A": "no", "B": "yes"}}, "A", (AB, "(A) no")),
        ({"choices": ["A:no", "B:yes"]}, "B", (AB, "(B) yes")),
        ({"A": "no", "B": "yes", "C": "", "D": None}, "B", (AB, "(B) yes")),
        ({"choices": ["3", "1"]}, "3", ("q\n(A) 3\n(B) 1", "(A) 3")),
        ({"choices": ["3", "1"]}, 0, ("q\n(A) 3\n(B) 1", "(A) 3")),
        ({"choices": [3, 1]}, "A", ("q\n(A) 3\n(B) 1", "(A) 3")),
        ({"choices": LETTERS}, "B", ("q", "B")),  # drawn in the picture
        ({"choices": "[]"}, "6", ("q", "6")),
        ({"choices": []}, "6", ("q", "6")),
        ({"option": "A. B;B. A"}, "B", ("q\n(A) B\n(B) A", "(B) A")),  # letters given, so letters meant
    ],
)
def test_choices_and_the_answers_that_name_one(choices, answer, expected):
    assert asked({"question": "q", "answer": answer, **choices})[:2] == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"choices": ["no", "yes"], "answer": 2}, "choice"), ({"choices": ["no", "yes"], "answer": -1}, "choice"),
        ({"choices": ["no", "yes"], "answer": "C"}, "choice"), ({"choices": ["no", "yes"], "answer": "no!"}, "choice"),
        ({"choices": ["no", "yes"], "answer": True}, "not_text"), ({"choices": "no or yes", "answer": "A"}, "choice"),
        ({"choices": ["B", "A"], "answer": "A"}, "choice"), ({"choices": ["no", None], "answer": 0}, "choice"),
        ({"A": "no", "B": "", "C": "yes", "answer": "C"}, "choice"), ({"answer": ""}, "no_answer"),
        ({"choices": ["no", "yes"], "answer": None}, "no_answer"), ({"image": "a"}, "missing_column"),
        ({"answer": "x", "video": "a.mp4"}, "video"), ({"answer": "x", "question": None}, "no_question"),
        ({"problem": "x", "question": ["q"], "answer": "x"}, "not_text"),
        ({"answer": "x", "question": "<image><image>", "image": "a"}, "image_count"),
    ],
)  # fmt: skip
def test_questions_that_cannot_be_learned(record, expected):
    assert reason("question_answer", {"question": "q"} | record) == expected


TABMWP = {"id": "7", "question": "q", "answer": "1", "table_for_pd": {}, "ques_type": "free_text", "choices": None}
SCIENCEQA = {
    "id": "7", "question": "q", "choices": ["no", "yes"], "answer": 1, "image": "image.png", "lecture": "l",
    "skill": "s", "split": "test", "solution": "",
}  # fmt: skip
ICONQA = {"question": "q", "answer": 0, "ques_type": "choose_txt", "label": "A1", "grade": "grade1"}
GEOMETRY3K = {"problem_text": "q", "choices": ["1", "2"], "answer": "B", "id": 3, "problem_type_graph": ["Circle"]}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (TABMWP, ("~q", "1", ["tables/7.png"])), (TABMWP | {"image": "own.png"}, ("~q", "1", ["own.png"])),
        (SCIENCEQA, (f"~{AB}", "(B) yes", ["images/test/7/image.png"])),
        (SCIENCEQA | {"image": None}, (AB, "(B) yes", [])),
        (SCIENCEQA | {"image": {"bytes": PICTURE, "path": "image.png"}}, (f"~{AB}", "(B) yes", [PICTURE])),
        (ICONQA | {"choices": ["no", "yes"]}, (f"~{AB}", "(A) no", ["image.png"])),
        (ICONQA | {"ques_type": "choose_img", "choices": ["choice_0.png", "choice_1.png"]},
         ("~q\n(A) ~\n(B) ~", "A", ["image.png", "choice_0.png", "choice_1.png"])),
        (ICONQA | {"ques_type": "fill_in_blank", "answer": "2"}, ("~q", "2", ["image.png"])),
        (GEOMETRY3K, ("~q\n(A) 1\n(B) 2", "(B) 2", ["img_diagram.png"])),
    ],
)  # fmt: skip
def test_pictures_that_a_data_set_keeps_without_saying_where(record, expected):
    assert asked(record) == expected


def test_a_picture_cannot_be_found_without_what_names_it():
    assert reason("question_answer", {key: value for key, value in TABMWP.items() if key != "id"}) == "image_path"


@pytest.mark.parametrize(
    ("image", "pictures"),
    [
        (BASE64, [PICTURE]), (f"['{BASE64}', '{BASE64}']", [PICTURE, PICTURE]),
        (BASE64[:80] + "\n" + BASE64[80:], [PICTURE]),
        ("pictures/a.png", ["pictures/a.png"]), (BASE64 + "x.png", [BASE64 + "x.png"]),
    ],
)  # fmt: skip
def test_vlmevalkits_tables_hold_pictures_as_base64(image, pictures):
    record = {"index": "4", "question": "q", "image": image, "choices": "[]", "answer": "6"}
    assert asked(record)[2] == pictures
    assert read("question_answer", record).id == "4"


def test_base64_is_read_in_those_tables_only():
    assert asked({"question": "q", "image": BASE64, "answer": "6"})[2] == [BASE64]
    damaged = {"index": "4", "question": "q", "image": BASE64[:-1], "answer": "6"}
    assert reason("question_answer", damaged) == "base64"
