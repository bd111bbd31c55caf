"""Layouts made of messages."""

import base64

import pytest
from reading import convert, learned, read, reason, shown, sources

from dft_mm.data.layouts.formats import NotChosen, Picture

PICTURE = b"\x89PNG bytes"
DATA_URI = "data:image/png;base64," + base64.b64encode(PICTURE).decode()


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
    assert learned(read("messages", record)) == ["f"]


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
        (chat(("user", [{"type": "video", "video": "a.mp4"}]), ANSWER), "video"),
        (chat(("user", [{"type": "input_audio", "input_audio": {}}]), ANSWER), "audio"),
        (chat(("user", "<video>"), ANSWER, videos=["a.mp4"]), "video"),
        (chat(("user", "x"), ANSWER, audio="a.wav"), "audio"),
        (chat(("user", "x"), ANSWER, videos=[]), None),
        (chat(("user", "the <video> tag"), ANSWER), None),
        (chat(("user", ["x"]), ANSWER), "part_type"),
        (chat(("user", [{"type": "text", "body": "x"}]), ANSWER), "part_type"),
        (chat(("user", [{"type": "image", "image": "a", "resized_width": 56}]), ANSWER), "resized"),
        (chat(("user", 3), ANSWER), "part_type"),
        (chat(("user", [url({"uri": "x"})]), ANSWER), "image_path"),
        (chat(("user", [url("data:image/png;base64,===")]), ANSWER), "data_uri"),
        (chat(("user", "x"), ANSWER, tools="none"), "tools"),
        (chat(("user", "x"), ANSWER, tools=["f"]), "tools"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "tool_call"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}, "weight"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 1, "train": False}]}, "weight"),
        (chat(("user", "x"), ANSWER, system=["s"]), "not_text"),
    ],
)
def test_messages_that_cannot_be_learned(record, expected):
    assert reason("messages", record) == expected


@pytest.mark.parametrize("key", ["train", "loss", "loss_mask", "loss_weight", "weight"])
@pytest.mark.parametrize(("values", "expected"), [((0, False, 0.0), ["b"]), ((1, True, 1.0, None), ["a", "b"])])
def test_every_name_for_what_is_learned(key, values, expected):
    record = chat(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
    for value in values:
        record["messages"][1][key] = value
        assert learned(read("messages", record)) == expected


def test_a_user_is_never_learned():
    record = chat(("user", "q"), ("assistant", "a"))
    record["messages"][0]["loss_weight"] = 1.0
    assert [message.get("train") for message in read("messages", record).messages] == [None, None]


def test_llamafactory_v1_parts_have_values_and_paths_from_above_its_folder():
    parts = [{"type": "image_url", "value": "data/pics/1.jpg"}, {"type": "text", "value": "who?"}]
    answer = [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "A."}]
    conversation = read("messages", chat(("user", parts), ("assistant", answer)))
    assert shown(conversation) == [("user", "~who?"), ("assistant", "<think>\nhm\n</think>\n\nA.")]
    assert sources(conversation) == ["pics/1.jpg"]


def test_parts_of_a_table_have_every_key():
    """Arrow gives each struct all fields of its type."""
    blank = {"type": None, "text": None, "image": None, "min_pixels": None, "resized_height": None}
    parts = [blank | {"type": "image", "image": "a.png"}, blank | {"type": "text", "text": "who?"}]
    record = chat(("user", parts), ("assistant", [blank | {"type": "text", "text": "A."}]), images=None, tools=None)
    record["messages"] = [{"weight": None, "tool_calls": None} | message for message in record["messages"]]
    assert convert("messages", record) == ([("user", "~who?"), ("assistant", "A.")], ["a.png"])


def test_a_pictures_own_limits():
    limits = {"min_pixels": 3136, "max_pixels": 50176}
    named = chat(("user", [{"type": "image", "image": "a.png", **limits}, text("?")]), ANSWER)
    listed = chat(("user", [{"type": "image", **limits}, text("?")]), ANSWER, images=["a.png"])
    for record in (named, listed):
        assert list(read("messages", record).images) == [Picture("a.png", 3136, 50176)]


def sharegpt(*turns, **more):
    return {"conversations": [{"from": role, "value": value} for role, value in turns], **more}


@pytest.mark.parametrize("name", ["sharegpt", "qwenvl"])
def test_sharegpt_and_qwenvl(name):
    record = sharegpt(
        ("system", "s"), ("human", "what?\n<image>"), ("gpt", "a <image>"), ("user", "and?"), ("assistant", "b"),
        image="a.png", id="x",
    )  # fmt: skip
    conversation = read(name, record)
    assert shown(conversation) == [
        ("system", "s"), ("user", "what?\n~"), ("assistant", "a <image>"), ("user", "and?"), ("assistant", "b"),
    ]  # fmt: skip
    assert (sources(conversation), conversation.id) == (["a.png"], "x")
    assert reason(name, record | {"image": ["a.png", "b.png"]}) == "image_count"
    assert reason(name, record | {"image": None}) is None  # then the mark is text
    assert reason(name, record | {"video": "a.mp4"}) == "video"
    assert reason(name, sharegpt(("human", "q"), ("ape", "a"))) == "unknown_role"


def test_a_system_turn_goes_before_a_system_column():
    assert shown(read("sharegpt", sharegpt(("human", "q"), ("gpt", "a"), system="s")))[0] == ("system", "s")
    both = sharegpt(("system", "t"), ("human", "q"), ("gpt", "a"), system="s")
    assert [role for role, _ in shown(read("sharegpt", both))] == ["system", "user", "assistant"]
    assert shown(read("sharegpt", both))[0] == ("system", "t")


def test_messages_in_a_cell_of_text():
    record = {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'}
    assert shown(read("messages", record)) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"instruction": "i", "input": "", "output": "o"}, [("user", "i"), ("assistant", "o")]),
        ({"instruction": "i", "input": "j", "output": "o"}, [("user", "i\nj"), ("assistant", "o")]),
        ({"instruction": "", "input": "j", "output": "o"}, [("user", "j"), ("assistant", "o")]),
        ({"instruction": "i", "output": "o", "system": "s"}, [("system", "s"), ("user", "i"), ("assistant", "o")]),
        ({"instruction": "i", "output": "o", "history": [["a", "b"], ["c", "d"]], "system": None},
         [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "i"), ("assistant", "o")]),
        ({"instruction": "i", "output": "o", "images": ["p"]}, [("user", "~i"), ("assistant", "o")]),
        ({"instruction": "i<image>", "output": "o", "images": ["p"]}, [("user", "i~"), ("assistant", "o")]),
    ],
)  # fmt: skip
def test_alpaca(record, turns):
    conversation = read("alpaca", record)
    assert shown(conversation) == turns
    assert learned(conversation) == [said for role, said in turns if role == "assistant"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "i"}, "no_answer"), ({"output": "o"}, "missing_column"),
        ({"instruction": "i", "output": ""}, "no_answer"), ({"instruction": "", "output": "o"}, "no_question"),
        ({"instruction": "i", "output": "o", "history": "x"}, "history"),
        ({"instruction": "i", "output": "o", "history": [["a"]]}, "history"),
        ({"instruction": "i", "output": 3.5}, None), ({"instruction": ["i"], "output": "o"}, "not_text"),
    ],
)  # fmt: skip
def test_alpaca_rows_that_cannot_be_learned(record, expected):
    assert reason("alpaca", record) == expected


@pytest.mark.parametrize("answer", ['{"role": "user", "content": "x"}', "[1, 2]", '[{"from": "gpt", "value": "x"}]'])
def test_an_answer_in_json_is_text(answer):
    assert learned(read("alpaca", {"instruction": "i", "output": answer})) == [answer]
    assert learned(read("prompt_completion", {"prompt": "p", "completion": answer})) == [answer]
    assert learned(read("preference", {"prompt": answer, "chosen": answer, "rejected": "x"})) == [answer]


USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
NEXT, LAST = {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}
QA = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("record", "turns", "answers"),
    [
        ({"prompt": "q", "completion": "a"}, QA, ["a"]),
        ({"prompt": [USER], "completion": [REPLY]}, QA, ["a"]),
        ({"prompt": [USER], "completion": REPLY}, QA, ["a"]),
        ({"prompt": "q", "completion": [REPLY]}, QA, ["a"]),
        ({"query": "q", "response": "a", "history": [["x", "y"]]}, [("user", "x"), ("assistant", "y"), *QA],
         ["y", "a"]),
        ({"prompt": [USER, REPLY, NEXT], "completion": [LAST]}, [*QA, ("user", "r"), ("assistant", "b")], ["b"]),
        ({"prompt": [USER], "completion": [REPLY, NEXT, LAST]}, [*QA, ("user", "r"), ("assistant", "b")], ["a", "b"]),
        ({"prompt": "q", "completion": "a", "images": ["p"]}, [("user", "~q"), ("assistant", "a")], ["a"]),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}, text("q")]}], "completion": [REPLY],
          "images": ["p"]}, [("user", "~q"), ("assistant", "a")], ["a"]),
    ],
)  # fmt: skip
def test_prompt_and_completion(record, turns, answers):
    conversation = read("prompt_completion", record)
    assert (shown(conversation), learned(conversation)) == (turns, answers)


SAID = [*QA, ("user", "r"), ("assistant", "b")]
BAD = {"role": "assistant", "content": "bad"}


@pytest.mark.parametrize(
    ("record", "turns", "answers"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "bad"}, QA, ["a"]),
        ({"question": "q", "chosen": "a", "rejected": "bad", "image": "p"}, [("user", "~q"), QA[1]], ["a"]),
        ({"instruction": "q", "input": "r", "chosen": "a", "rejected": "x"}, [("user", "q\nr"), QA[1]], ["a"]),
        ({"system": "s", "question": "q", "chosen": "a", "rejected": "x"}, [("system", "s"), *QA], ["a"]),
        ({"prompt": [USER], "chosen": [REPLY], "rejected": [BAD]}, QA, ["a"]),
        ({"prompt": [USER, REPLY, NEXT], "chosen": [LAST], "rejected": [BAD]}, SAID, ["b"]),
        ({"prompt": "q", "chosen": [USER, REPLY], "rejected": [USER, BAD]}, QA, ["a"]),
        ({"chosen": [USER, REPLY, NEXT, LAST], "rejected": [USER, REPLY, NEXT, BAD]}, SAID, ["b"]),
        ({"chosen": [USER, REPLY, NEXT, LAST], "rejected": [USER, BAD]}, SAID, ["a", "b"]),
        ({"chosen_messages": [USER, REPLY], "rejected_messages": [USER, BAD]}, QA, ["a"]),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
          "rejected": {"from": "gpt", "value": "x"}}, QA, ["a"]),
        ({"messages": [USER, REPLY, NEXT, LAST], "label": True}, SAID, ["b"]),
        ({"prompt": "q", "completion": "a", "label": 1}, QA, ["a"]),
        ({"prompt": [USER], "completion": [REPLY], "label": "True"}, QA, ["a"]),
    ],
)  # fmt: skip
def test_the_chosen_side_is_learned_and_what_was_asked_is_not(record, turns, answers):
    conversation = read("preference", record)
    assert (shown(conversation), learned(conversation)) == (turns, answers)


def test_weights_of_the_rows_own_go_before_what_is_asked():
    weighed = [USER, REPLY | {"loss_weight": 1.0}, NEXT, LAST | {"loss_weight": 1.0}]
    row = {"chosen_messages": weighed, "rejected_messages": [*weighed[:3], BAD]}
    assert learned(read("preference", row)) == ["a", "b"]


@pytest.mark.parametrize("label", [False, 0, "false"])
def test_a_row_that_was_not_chosen_is_no_bad_row(label):
    with pytest.raises(NotChosen):
        read("preference", {"messages": [USER, REPLY], "label": label})


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [USER, REPLY], "label": None}, "label"), ({"messages": [USER, REPLY], "label": 2}, "label"),
        ({"messages": [USER, REPLY]}, "label"), ({"chosen": "a", "rejected": "b"}, "missing_column"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "no_answer"), ({"label": True}, "messages"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "no_answer"),
        ({"messages": [USER, REPLY], "label": []}, "label"),
    ],
)  # fmt: skip
def test_preferences_that_cannot_be_learned(record, expected):
    assert reason("preference", record) == expected


@pytest.mark.parametrize(
    ("system", "expected"), [(None, [("system", "own")]), ("", []), ("the recipe's", [("system", "the recipe's")])]
)
@pytest.mark.parametrize("turn", [True, False])
def test_the_recipes_system_prompt_takes_the_place_of_the_rows(system, expected, turn):
    record = chat(("system", "own"), *QA) if turn else chat(*QA, system="own")
    assert shown(read("messages", record, system=system)) == [*expected, *QA]
    assert shown(read("messages", chat(*QA), system=system)) == [*(expected if system else []), *QA]
