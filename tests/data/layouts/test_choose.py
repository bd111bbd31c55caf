"""Choosing a layout: by the recipe, by LLaMA-Factory's dataset_info.json, by the columns."""

import json
import pickle
import random
from collections import Counter

import pytest
from reading import learned, shown, sources

from dft_mm.config import SourceConfig
from dft_mm.data.layouts.choose import READERS, RULES, Layout, choose_layout
from dft_mm.data.layouts.formats import NotChosen
from dft_mm.data.layouts.rows import parse
from dft_mm.data.records import BadRow
from dft_mm.errors import InputError


def choose(folder, *rows, name="rows.json", **more):
    return choose_layout(SourceConfig(path=str(folder / name), **more), folder / name, rows)


USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
MESSAGES = {"messages": [USER, REPLY]}
SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
EXAMPLES = [
    ("wethink", {"problem": "q", "answer": "a", "refined_cot": "t", "image_path": None}),
    ("sharegpt", SHAREGPT),
    ("sharegpt", {"messages": SHAREGPT["conversations"]}),
    ("sharegpt", SHAREGPT | {"tools": "[]", "system": "s", "images": ["a.png"]}),
    ("qwenvl", SHAREGPT | {"image": "a.png"}),
    ("qwenvl", SHAREGPT | {"video": "a.mp4"}),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}),
    ("alpaca", {"instruction": "q", "output": "a", "text": "q a"}),
    ("messages", MESSAGES),
    ("messages", {"conversations": MESSAGES["messages"]}),
    ("messages", MESSAGES | {"prompt": "q", "images": ["a.png"]}),
    ("prompt_completion", {"prompt": "q", "completion": "a"}),
    ("prompt_completion", {"query": "q", "response": "a"}),
    ("problem_solution", {"problem": "q", "solution": "s"}),
    ("problem_solution", {"question": "q", "answer": "a"}),
    ("problem_solution", {"problem": "q", "answer": 27.0, "question": "q"}),
    ("question_answer", {"question": "q", "choices": ["a"], "answer": 0}),
    ("question_answer", {"question": "q", "answer": "a", "image": None}),
    ("question_answer", {"problem": "q", "solution": "s", "images": ["a"]}),
    ("question_answer", {"index": 1, "question": "q", "A": "x", "B": "y", "answer": "A", "image": "b"}),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}),
    ("preference", SHAREGPT | {"chosen": {}, "rejected": {}}),
    ("preference", {"chosen_messages": [], "rejected_messages": []}),
    ("preference", MESSAGES | {"label": True}),
    ("preference", {"prompt": "q", "completion": "a", "label": True}),
]


@pytest.mark.parametrize(("expected", "row"), EXAMPLES)
def test_a_layout_is_known_by_its_columns(tmp_path, expected, row):
    layout = choose(tmp_path, row)
    assert (layout.format, layout.entry, layout.columns) == (expected, None, None)
    assert layout.why.startswith(f"{expected}: by its columns ")


def test_every_layout_is_read_and_all_but_columns_are_known():
    assert {rule.format for rule in RULES} == READERS.keys() - {"columns"} == {name for name, _ in EXAMPLES}


def test_rows_of_two_layouts_take_the_first_and_say_so(tmp_path):
    layout = choose(tmp_path, {"problem": "q", "solution": "s"} | MESSAGES)
    assert layout.format == "problem_solution"
    assert "messages would fit, too" in layout.why
    assert "would fit" not in choose(tmp_path, SHAREGPT | {"image": "a.png"}).why


def test_a_few_odd_rows_do_not_decide(tmp_path):
    assert choose(tmp_path, {"note": "x"}, MESSAGES, MESSAGES, "no row").format == "messages"


@pytest.mark.parametrize("rows", [[{"text": "x", "lang": "en"}], [], [{"prompt": "q"}], [{"messages": "q"}]])
def test_no_layout_names_the_columns_the_layouts_and_the_way_out(tmp_path, rows):
    with pytest.raises(InputError) as error:
        choose(tmp_path, *rows)
    said = str(error.value)
    assert str(tmp_path / "rows.json") in said
    assert all(f"{rule.format}: {rule.wants}" in said for rule in RULES)
    assert all(repr(column) in said for row in rows for column in row)
    assert "format: columns, columns: {prompt:" in said


def test_what_the_recipe_says_is_taken(tmp_path):
    layout = choose(tmp_path, MESSAGES, format="alpaca")
    assert (layout.format, layout.why) == ("alpaca", "alpaca: so says the recipe")
    layout = choose(tmp_path, {"x": "q", "y": "a"}, format="columns", columns={"prompt": "x", "response": "y"})
    assert shown(parse({"x": "q", "y": "a"}, layout)) == [("user", "q"), ("assistant", "a")]


def test_a_layout_travels_between_processes(tmp_path):
    write_info(tmp_path, {"file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "dialog"}})
    for layout in (
        choose(tmp_path, MESSAGES),
        choose(tmp_path, MESSAGES, format="messages"),
        choose(tmp_path, {"x": 1}, format="columns", columns={"prompt": "x", "response": "y"}),
    ):
        assert pickle.loads(pickle.dumps(layout)) == layout


ODD = [
    None, True, 0, -1, 1.5, float("nan"), 10**400, "", " ", "[", "{}", "[[]]", "[1, 2]", "<image>", "\ud800", "data:x",
    "\0", b"", b"x", [], [None], [[]], [{}], ["a", 3], {}, {"a": 1}, {"type": "text"}, {"role": "user"}, {"from": []},
    {3: 4}, {"function": {"name": "f", "arguments": {1, 2}}}, [{"type": ["x"], "text": 3}], ({},),
    {"url": {"url": {"url": "x"}}},
]  # fmt: skip
RICH = [
    {"messages": [USER | {"weight": 1}, {"role": "assistant", "content": "a", "reasoning_content": "t", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}, {"role": "tool", "content": "r"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]}], "tools": [{"name": "f"}], "system": "s",
     "images": None, "id": 1},
    {"messages": [{"role": "user", "content": [
        {"type": "image", "image": "a.png", "min_pixels": 3136}, {"type": "image_url", "image_url": {"url": "b.png"}},
        {"type": "text", "text": "q"}]}, REPLY | {"train": True}]},
    SHAREGPT | {"image": ["a.png"]},
    {"instruction": "q", "input": "r", "output": "a", "history": [["a", "b"]], "system": "s", "images": ["a.png"]},
    {"prompt": [USER], "chosen": [REPLY], "rejected": [REPLY], "images": [{"bytes": None, "path": "a.png"}]},
    {"index": "1", "question": "q", "A": "x", "B": "y", "answer": "A", "image": "a.png", "hint": "h", "unit": "m"},
    {"id": "7", "question": "q", "choices": ["x", "y"], "answer": 1, "image": "i", "lecture": "l", "skill": "s",
     "split": "test", "solution": "z"},
]  # fmt: skip


def changed(value, rng):
    """The value with one of the values in it replaced or taken out."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        return value | {key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        number = rng.randrange(len(value))
        return [*value[:number], changed(value[number], rng), *value[number + 1 :]]
    return rng.choice(ODD)


def test_whatever_a_row_holds_it_is_read_or_refused_with_a_reason(tmp_path):
    rng = random.Random(0)
    fates = Counter()
    for _ in range(6000):
        row = rng.choice(RICH + [row for _, row in EXAMPLES])
        for _ in range(rng.randint(1, 3)):
            row = changed(row, rng)
        name = rng.choice([rule.format for rule in RULES])
        if isinstance(row, dict):
            try:
                name = choose(tmp_path, row).format if rng.random() < 0.8 else name
            except InputError:
                fates["no layout"] += 1
        try:
            parse(row, Layout(name))
            fates["read"] += 1
        except NotChosen:
            fates["not chosen"] += 1
        except BadRow as bad:
            fates["refused" if bad.reason.isidentifier() and bad.detail else "refused without a reason"] += 1
    assert min(fates["read"], fates["refused"]) > 500, fates
    assert "refused without a reason" not in fates


# Folders of pictures


@pytest.mark.parametrize(
    ("place", "expected"),
    [("data/a.png", "data"), ("data/images/a.png", "data/images"), ("a.png", "."), ("elsewhere/a.png", "data")],
)
def test_the_folder_of_pictures_is_where_the_first_picture_is(tmp_path, place, expected):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).touch()
    (tmp_path / "data").mkdir(exist_ok=True)
    rows = [SHAREGPT, SHAREGPT | {"image": "gone.png"}, SHAREGPT | {"image": "a.png"}]
    marked = [row | {"conversations": [{"from": "human", "value": "<image>"}, REPLY]} for row in rows[1:]]
    layout = choose(tmp_path / "data", rows[0], *marked)
    assert layout.images == str(tmp_path / "data" if expected == "data" else (tmp_path / expected))
    assert ("pictures are below" in layout.why) == (expected not in ("data",))


def test_the_first_folder_is_taken_where_several_have_it(tmp_path):
    (tmp_path / "data/images").mkdir(parents=True)
    for place in ("a.png", "data/a.png", "data/images/a.png"):
        (tmp_path / place).touch()
    row = {"question": "q", "answer": "a", "image": "a.png"}
    assert choose(tmp_path / "data", row).images == str(tmp_path / "data")


def test_no_folder_is_looked_for_where_the_recipe_names_it_or_a_path_leaves_it(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "a.png").touch()
    row = {"question": "q", "answer": "a", "image": "a.png"}
    assert choose(tmp_path / "data", row, images="mine").images == "mine"
    for path in ("../a.png", "../../a.png", "\0", "a" * 5000, "https://x.org/a.png"):
        assert choose(tmp_path / "data", row | {"image": path}).images == str(tmp_path / "data")


# LLaMA-Factory's dataset_info.json


def write_info(folder, entry, **more):
    (folder / "dataset_info.json").write_text(json.dumps({"mine": entry} | more))


TAGS = {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "you"}
DIALOG = [{"who": "me", "what": "q"}, {"who": "you", "what": "a"}]
QA = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("entry", "row", "name", "turns"),
    [
        ({}, {"instruction": "q", "input": "r", "output": "a"}, "alpaca", [("user", "q\nr"), QA[1]]),
        # The columns that an entry does not name are not read.
        ({"columns": {"prompt": "ask", "response": "say"}}, {"ask": "q", "say": "a", "input": "no", "system": "no"},
         "alpaca", QA),
        ({"columns": {"prompt": "ask", "response": "say", "system": "sys", "history": "past"}},
         {"ask": "q", "say": "a", "sys": "s", "past": [["x", "y"]]}, "alpaca",
         [("system", "s"), ("user", "x"), ("assistant", "y"), *QA]),
        ({"formatting": "sharegpt"}, SHAREGPT, "sharegpt", QA),
        ({"formatting": "sharegpt", "columns": {"messages": "dialog"}, "tags": TAGS}, {"dialog": DIALOG}, "sharegpt",
         QA),
        ({"formatting": "sharegpt", "columns": {"messages": "dialog", "system": "sys"},
          "tags": TAGS | {"system_tag": "god"}},
         {"dialog": [{"who": "god", "what": "s"}, *DIALOG], "sys": "t"}, "sharegpt", [("system", "s"), *QA]),
        ({"formatting": "sharegpt", "columns": {"messages": "dialog", "images": "pics"}, "tags": TAGS},
         {"dialog": [{"who": "me", "what": "q<image>"}, DIALOG[1]], "pics": ["a"], "images": ["no"]}, "sharegpt",
         [("user", "q~"), QA[1]]),
        ({"formatting": "sharegpt", "columns": {"messages": "dialog"},
          "tags": TAGS | {"function_tag": "do", "observation_tag": "see"}},
         {"dialog": [DIALOG[0], {"who": "do", "what": '{"name": "f", "arguments": {}}'}, {"who": "see", "what": "1"},
                     DIALOG[1]]}, "sharegpt",
         [QA[0], ("assistant", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'),
          ("user", "<tool_response>\n1\n</tool_response>"), QA[1]]),
        ({"formatting": "openai", "columns": {"messages": "messages"}}, MESSAGES, "messages", QA),
        ({"ranking": True, "columns": {"prompt": "ask", "chosen": "good", "rejected": "bad"}},
         {"ask": "q", "good": "a", "bad": "b"}, "preference", QA),
        ({"ranking": True, "formatting": "sharegpt", "columns": {"messages": "conversations", "chosen": "good",
                                                                 "rejected": "bad"}},
         {"conversations": [{"from": "human", "value": "q"}], "good": {"from": "gpt", "value": "a"}, "bad": {}},
         "preference", QA),
        ({"formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "good"},
          "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}},
         MESSAGES | {"good": True}, "preference", QA),
        ({"columns": {"prompt": "ask", "response": "say", "kto_tag": "good"}}, {"ask": "q", "say": "a", "good": True},
         "preference", QA),
    ],
)  # fmt: skip
def test_an_entry_says_how_its_file_is_read(tmp_path, entry, row, name, turns):
    write_info(tmp_path, {"file_name": "rows.json"} | entry, other={"file_name": "other.json", "formatting": "?"})
    layout = choose(tmp_path, row)
    assert (layout.format, layout.entry.name) == (name, "mine")
    assert "entry 'mine' of dataset_info.json" in layout.why
    assert shown(parse(row, layout)) == turns


def test_an_entry_may_be_named_wherever_the_rows_lie(tmp_path):
    write_info(tmp_path, {"file_name": "far/rows.json", "columns": {"prompt": "ask", "response": "say"}}, other={})
    (tmp_path / "far").mkdir()
    row = {"ask": "q", "say": "a", "instruction": "no", "output": "no"}
    layout = choose(tmp_path / "far", row, dataset_info=f"{tmp_path}/dataset_info.json#mine")
    assert (layout.format, layout.entry.name) == ("alpaca", "mine")
    assert shown(parse(row, layout)) == QA
    with pytest.raises(InputError, match=r"dataset_info.json has no data set 'mien'; did you mean 'mine'"):
        choose(tmp_path / "far", row, dataset_info=f"{tmp_path}/dataset_info.json#mien")


def test_entries_count_labels_and_prompts_as_the_layouts_do(tmp_path):
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    write_info(tmp_path, {"file_name": "rows.json", "formatting": "sharegpt", "tags": tags,
                          "columns": {"messages": "messages", "kto_tag": "good"}})  # fmt: skip
    layout = choose(tmp_path, MESSAGES)
    with pytest.raises(NotChosen):
        parse(MESSAGES | {"good": False}, layout)
    with pytest.raises(BadRow):
        parse(MESSAGES, layout)
    again = {"messages": [USER, REPLY, USER, REPLY | {"content": "b"}], "good": True}
    assert learned(parse(again, layout)) == ["b"]


def test_an_entrys_videos_are_refused_and_its_pictures_found(tmp_path):
    write_info(tmp_path, {"file_name": "rows.json", "columns": {"prompt": "p", "response": "r", "images": "pics",
                                                                "videos": "films"}})  # fmt: skip
    row = {"p": "q", "r": "a", "pics": ["a.png"], "films": []}
    layout = choose(tmp_path, row)
    assert sources(parse(row, layout)) == ["a.png"]
    with pytest.raises(BadRow, match="films"):
        parse(row | {"films": ["a.mp4"]}, layout)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"formating": "alpaca"}, "unknown key 'formating'; did you mean 'formatting'"),
        ({"columns": {"promt": "x"}}, "columns: unknown key 'promt'; did you mean 'prompt'"),
        ({"tags": {"user": "x"}}, "tags: unknown key 'user'"),
        ({"formatting": "sharegpt4"}, "formatting 'sharegpt4' is not known; known are alpaca, sharegpt, openai"),
        ({"ranking": "yes"}, "ranking is true or false, not 'yes'"),
        ({"columns": ["a"]}, "columns maps names to names"),
        ({"columns": {"prompt": 3}}, "columns maps names to names"),
        ({"columns": {"prompt": "text"}}, "its columns name no 'response'"),
        ({"ranking": True}, "its columns name no 'chosen'"),
        ({"formatting": "sharegpt", "columns": {"images": "i"}}, "its columns name no 'messages'"),
        ({"num_samples": 10}, "num_samples is not read; .* `limit`"),
    ],
)
def test_an_entry_that_says_what_is_not_read_is_refused(tmp_path, entry, message):
    write_info(tmp_path, {"file_name": "rows.json"} | entry)
    with pytest.raises(InputError, match=message) as error:
        choose(tmp_path, MESSAGES)
    assert "dataset_info.json: 'mine'" in str(error.value)


def test_a_limit_in_the_recipe_goes_before_an_entrys_number(tmp_path):
    write_info(tmp_path, {"file_name": "rows.json", "num_samples": 10})
    assert choose(tmp_path, MESSAGES, limit=5).format == "alpaca"


def test_the_recipe_goes_before_the_entry_and_says_so(tmp_path):
    write_info(tmp_path, {"file_name": "rows.json", "formatting": "?"})
    layout = choose(tmp_path, MESSAGES, format="messages")
    assert (layout.entry, layout.why) == (None, "messages: so says the recipe, not the dataset_info.json beside it")


def test_entries_that_disagree_are_refused_and_equal_ones_are_not(tmp_path):
    entry = {"file_name": "rows.json"}
    write_info(tmp_path, entry, again=entry)
    assert choose(tmp_path, MESSAGES).format == "alpaca"
    write_info(tmp_path, entry, again=entry | {"formatting": "sharegpt"})
    with pytest.raises(InputError, match=r"'mine', 'again' say different things of rows\.json"):
        choose(tmp_path, MESSAGES)


@pytest.mark.parametrize(
    "content",
    [
        {"features": {"file_name": {"dtype": "string"}}, "splits": {}}, {"other": {"file_name": "other.json"}},
        {"hub": {"hf_hub_url": "a/b"}}, [], {},
    ],
)  # fmt: skip
def test_another_dataset_info_is_none_of_these(tmp_path, content):
    (tmp_path / "dataset_info.json").write_text(json.dumps(content))
    assert choose(tmp_path, MESSAGES).entry is None


def test_a_broken_dataset_info_is_refused(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"dataset_info.json cannot be read.*or name the `format`"):
        choose(tmp_path, MESSAGES)
