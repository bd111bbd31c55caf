import json

import pytest
from reading import reason, sources

from dft_mm.config import SourceConfig
from dft_mm.data.formats import BadRow
from dft_mm.data.layouts import Layout
from dft_mm.data.rows import parse, read_records
from dft_mm.errors import InputError

GOOD = {"problem": "p", "solution": "s"}


def source(path, **more):
    return SourceConfig(**{"path": str(path), "format": "problem_solution"} | more)


def read(path, **more):
    """[(line, row, value)], refused lines by their reason."""
    return [
        (record.line, record.row, record.value.reason if isinstance(record.value, BadRow) else record.value)
        for record in read_records(source(path, **more))
    ]


def write(folder, content, name="a.jsonl"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lines_count_physically_and_rows_among_rows(tmp_path):
    path = write(tmp_path, '\n{"a": 1}\r\n\r\n  \n{"a": 2}\n{"a": \n{"a": "\u2028\x85"}\n{"a": 3}')
    assert read(path) == [
        (2, 0, {"a": 1}), (5, 1, {"a": 2}), (6, 2, "broken_json"), (7, 3, {"a": "\u2028\x85"}), (8, 4, {"a": 3}),
    ]  # fmt: skip


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    assert read(write(tmp_path, b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n')) == [(1, 0, {"a": 1}), (2, 1, {"a": 2})]
    assert read(write(tmp_path, b'\xef\xbb\xbf[\n{"a": 1}]\n', "b.json")) == [(2, 0, {"a": 1})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "broken_json"), (b"{'a': 1}", "broken_json"), (b'{"a": 1} {"b": 2}', "broken_json"),
        (b'{"a": "\xff"}', "not_utf8"), (b'{"a": ' * 100000, "broken_json"), (b"9" * 5000, "broken_json"),
        (b"\x00\x00", "broken_json"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_a_broken_line_is_refused_and_the_next_is_read(tmp_path, line, reason, first):
    good = b'{"a": 1}'
    path = write(tmp_path, b"\n".join([line, good, good] if first else [good, line, good]) + b"\n")
    expected = [{"a": 1}, {"a": 1}]
    expected.insert(0 if first else 1, reason)
    assert [value for _, _, value in read(path)] == expected


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_json_list_is_read_whatever_its_name(tmp_path, indent, name):
    rows = [{"a": 1}, {"b": [1, {"c": "]"}]}, {"d": None}]
    path = write(tmp_path, json.dumps(rows, indent=indent), name)
    assert [(row, value) for _, row, value in read(path)] == list(enumerate(rows))
    lines = path.read_text().splitlines()
    for (line, _, value), key in zip(read(path), "abd"):
        begins = next(number for number, text in enumerate(lines, 1) if f'"{key}"' in text)
        assert line == (begins - 1 if indent else 1), value


def test_lines_under_the_name_json_are_read(tmp_path):
    assert [value for *_, value in read(write(tmp_path, '{"a": 1}\n{"a": 2}\n', "a.json"))] == [{"a": 1}, {"a": 2}]
    assert [value for *_, value in read(write(tmp_path, '{"a": \n{"a": 2}\n', "a.json"))] == ["broken_json", {"a": 2}]


def test_limit_takes_the_first_rows(tmp_path):
    path = write(tmp_path, '\n{"a": 1}\n{broken\n{"a": 3}\n')
    assert read(path, limit=2) == [(2, 0, {"a": 1}), (3, 1, "broken_json")]
    assert len(read(path, limit=99)) == 3
    assert len(read(write(tmp_path, "[1,\n2, 3]", "b.json"), limit=2)) == 2


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("", "a.jsonl", "is empty"),
        (" \n\n", "a.jsonl", "is empty"),
        ("[]", "a.json", "is empty"),
        ("[\n]", "a.json", "is empty"),
        ('{\n"a": [1, 2]}', "a.json", "one JSON object"),
        (b'\xef\xbb\xbf{\n"a": 1}', "a.json", "one JSON object"),
        ('[{"a": 1},\n{"a": 2}', "a.json", "breaks off or is damaged"),
        ('[{"a": 1},\n{"a": }]', "a.json", "breaks off or is damaged.*line 2"),
        ('[\n{"a": 1}\n{"a": 2}]', "a.json", "breaks off or is damaged"),
        ('[\n{"a": 1}] x', "a.json", "breaks off or is damaged"),
        ("[\n1,]", "a.json", "breaks off or is damaged"),
        (b'[\n{"a": "\xff"}]', "a.json", "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "a.jsonl", "UTF-16"),
        ("a,b", "a.csv", "convert it to JSONL"),
        ("x", "a.jsonl.gz", "convert it to JSONL"),
    ],
)
def test_a_file_that_is_no_rows_names_itself_and_the_way_out(tmp_path, content, name, message):
    path = write(tmp_path, content, name)
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


def test_a_folder_or_nothing_at_all_is_no_file(tmp_path):
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "gone.jsonl", "not found")):
        with pytest.raises(InputError, match=message):
            read(path)


def refusal(messages, images=()):
    return reason("messages", {"messages": messages, "images": list(images)})


def said(*turns):
    return [{"role": role, "content": content} for role, content in turns]


Q, A = ("user", "q"), ("assistant", "a")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (said(Q, A), None),
        (said(("system", "s"), Q, A, Q, A), None),
        (said(("system", ""), Q, A), None),
        ([], "no_answer"),
        (said(Q), "no_answer"),
        (said(Q, A, Q), "no_answer"),
        (said(Q, ("assistant", "")), "no_answer"),
        (said(Q, ("assistant", None)), "no_answer"),
        (said(Q, ("assistant", " \n"), Q, A), "no_answer"),
        (said(A), "no_question"),
        (said(("system", "s"), A), "no_question"),
        (said(("user", " "), A), "no_question"),
        (said(("human", "q"), ("gpt", "a")), "unknown_role"),
        (said(Q, ("critic", "x"), A), "unknown_role"),
        (said((None, "q"), A), "unknown_role"),
        (said(Q, ("system", "s"), A), "late_system"),
        (said(("system", "s"), ("system", "t"), Q, A), "late_system"),
        (said(("user", "half \ud83d"), A), "lone_surrogate"),
        (said(Q, ("assistant", "\udc00")), "lone_surrogate"),
        (said(("user", "whole \U0001f600"), A), None),
    ],
)
def test_what_every_conversation_must_be(messages, expected):
    assert refusal(messages) == expected


def test_a_picture_alone_is_a_question():
    assert refusal(said(("user", "<image>"), A), ["a.png"]) is None
    assert refusal(said(("user", "<image>"), A), ["\ud800.png"]) == "image_path"


@pytest.mark.parametrize("value", [[], "x", 3, None])
def test_a_row_is_an_object(value):
    with pytest.raises(BadRow) as error:
        parse(value, Layout("messages"))
    assert error.value.reason == "not_object"


def test_real_files_are_read_whole(shared):
    """Counts as the folder's own SOURCE.md states them."""
    expected = {
        "train_text/gsm8k_train.jsonl": 1500, "train_text/math_solutions.jsonl": 700,
        "train_text/aime_1983_2023.json": 300, "train_text/numinamath_cot_samples.jsonl": 3,
        "train_text/numinamath_layout.jsonl": 700,
    }  # fmt: skip
    for name, count in expected.items():
        where = source(shared / "data" / name)
        layout = Layout("problem_solution")
        assert sum(bool(parse(record.value, layout).messages) for record in read_records(where)) == count
        path = shared / "data" / name
        if path.suffix == ".json":
            assert [record.value for record in read_records(where)] == json.loads(path.read_text())


def test_the_marks_of_llamafactorys_demo_meet_their_pictures(shared):
    where = SourceConfig(path=str(shared / "data/train_llamafactory_demo/mllm_demo.json"), format="messages")
    rows = json.loads((shared / "data/train_llamafactory_demo/mllm_demo.json").read_text())
    for record, row in zip(read_records(where), rows, strict=True):
        conversation = parse(record.value, Layout("messages"))
        assert sources(conversation) == row["images"]
        assert [m["role"] for m in conversation.messages] == [m["role"] for m in row["messages"]]
        shown = [
            "".join(part.get("text", "<image>") for part in message["content"]) for message in conversation.messages
        ]
        assert shown == [m["content"] for m in row["messages"]]
