import contextlib
import json
import random
import string

import pytest
from parted import records, values, write

from dft_mm.data.reading.files import read, split
from dft_mm.data.records import BadRow
from dft_mm.errors import InputError

SIZES = (1, 2, 7, 1000)


def random_value(rng, depth):
    """Any JSON value; its texts are full of what a careless reader takes for brackets, quotes and line ends."""
    kind = rng.choice(["text", "text", "number", "word", "list", "object"] if depth else ["text", "number", "word"])
    if kind == "text":
        letters = '{}[],:"\\\n\t/ é\u2028\U0001f600' + string.ascii_letters
        return "".join(rng.choice(letters) for _ in range(rng.randrange(12)))
    if kind == "number":
        return rng.choice([0, -1, 10**20, 1.5, -2e-7])
    if kind == "word":
        return rng.choice([True, False, None])
    items = [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == "list":
        return items
    return {f"{random_value(rng, 0)}{number}": item for number, item in enumerate(items)}


def random_rows(seed, count=40):
    rng = random.Random(seed)
    return [{"row": number, "x": random_value(rng, rng.choice([1, 3, 14]))} for number in range(count)]


@pytest.fixture(params=range(4))
def rows(request):
    return random_rows(request.param)


def styles(value):
    """The same JSON text as different writers write it."""
    for indent in (None, 1, "\t"):
        for ascii_only in (True, False):
            yield json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    yield json.dumps(value, separators=(",", ":"))
    yield json.dumps(value, indent=2).replace("\n", "\r\n")
    yield "\ufeff\n\n " + json.dumps(value) + "\n \n"


@pytest.mark.parametrize("size", SIZES)
def test_lists_in_any_style_are_what_json_reads(tmp_path, rows, size):
    for text in styles(rows):
        assert values(write(tmp_path, text, "a.json"), tmp_path, size) == rows


def test_maps_in_any_style_are_what_json_reads(tmp_path, rows):
    for text in styles({str(number): row for number, row in enumerate(rows)}):
        for size in SIZES:
            found = values(write(tmp_path, text, "a.json"), tmp_path, size)
            assert found == [row | {"id": str(number)} for number, row in enumerate(rows)]


def test_objects_over_many_lines_follow_each_other(tmp_path, rows):
    for indent in (1, "\t"):
        text = "\n".join(json.dumps(row, indent=indent) for row in rows)
        assert values(write(tmp_path, text, "a.jsonl"), tmp_path, 3) == rows


def test_lines_are_what_json_reads(tmp_path, rows):
    for ascii_only in (True, False):
        for ending in ("\n", "\r\n", "\n\n"):
            text = ending.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
            for size in SIZES:
                assert values(write(tmp_path, text, "a.jsonl"), tmp_path, size) == rows


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a"])
def test_the_content_decides_and_not_the_name(tmp_path, name):
    texts = {
        "lines": '{"a": 1}\n{"a": 2}\n', "list": '[{"a": 1},\n {"a": 2}]', "values": '{\n"a": 1}\n{\n"a": 2}',
    }  # fmt: skip
    for kind, text in texts.items():
        path = write(tmp_path, text, name)
        assert [part.kind for part in split(path, 2, tmp_path)] == [kind]
        assert values(path, tmp_path) == [{"a": 1}, {"a": 2}]


def test_a_row_begins_on_the_line_where_its_text_does(tmp_path):
    rows = [{"name": f"<{number}>", "text": "x\n" * number, "deep": [[{"y": number}]]} for number in range(9)]
    texts = [
        json.dumps(rows), json.dumps(rows, indent=1), "\n\n" + json.dumps(rows, indent=3).replace("\n", "\r\n"),
        "\n \n".join(map(json.dumps, rows)), "\n".join(json.dumps(row, indent=1) for row in rows),
        json.dumps({row["name"] + "key": row for row in rows}, indent=1),
    ]  # fmt: skip
    for text in texts:
        lines = text.split("\n")
        for size in (1, 4, 99):
            found = records(write(tmp_path, text, "a.json"), tmp_path, size)
            assert len(found) == len(rows)
            for line, row, _ in found:
                named = next(number for number, physical in enumerate(lines, 1) if f"<{row}>" in physical)
                assert named - 1 <= line <= named, text[:50]


def test_lines_are_counted_exactly(tmp_path):
    text = '\n{"a": 1}\r\n\r\n  \n{"a": 2}\n{"a": \n{"a": "\u2028\x85"}\n{"a": 3}'
    expected = [
        (2, 0, {"a": 1}), (5, 1, {"a": 2}), (6, 2, "broken_json"), (7, 3, {"a": "\u2028\x85"}), (8, 4, {"a": 3}),
    ]  # fmt: skip
    for size in SIZES:
        assert records(write(tmp_path, text, "a.jsonl"), tmp_path, size) == expected
    text = '\n[\n\n{"a":\n1},{"a": 2}\n,\n\n{"a"\n: 3}]'
    expected = [(4, 0, {"a": 1}), (5, 1, {"a": 2}), (8, 2, {"a": 3})]
    for size in SIZES:
        assert records(write(tmp_path, text, "a.json"), tmp_path, size) == expected


def test_a_map_gives_its_key_as_id_where_the_row_has_none(tmp_path):
    text = '{"a": {"x": 1}, "b": {"id": 7}, "c": {"id": null, "y": {"id": 1}}, "\\u00e9": {"id": 0}}'
    expected = [{"x": 1, "id": "a"}, {"id": 7}, {"id": "c", "y": {"id": 1}}, {"id": 0}]
    assert values(write(tmp_path, text, "a.json"), tmp_path) == expected


@pytest.mark.parametrize("indent", [None, 1])
def test_a_single_object_is_one_row(tmp_path, indent):
    rows = (
        {"question": "{", "choices": ["]"], "size": {"w": 1}}, {"size": {"w": 1}, "question": "q"}, {},
        {"a": {}, "b": []},
    )  # fmt: skip
    for row in rows:
        assert values(write(tmp_path, json.dumps(row, indent=indent), "data.json"), tmp_path) == [row]


LINES = [
    (b'{"a": 1', "broken_json"), (b"{'a': 1}", "broken_json"), (b'{"a": 1} {"b": 2}', "broken_json"),
    (b'{"a": "\xff"}', "not_utf8"), (b'{"a": ' * 100000, "broken_json"), (b"9" * 5000, "broken_json"),
    (b"\x00\x00", "broken_json"), (b'{"a": "unfinished', "broken_json"), (b"]", "broken_json"),
]  # fmt: skip
ITEMS = [
    (b'{"a": }', "broken_json"), (b"{'a': 1}", "broken_json"), (b'{"a": 1,}', "broken_json"),
    (b'{"a" 1}', "broken_json"), (b'{"a": {"c": {"b": 1, "b": 2}}}', "broken_json"),
    (b'{"a": "\xff"}', "not_utf8"), (b'{"a": "line\nbreak"}', "broken_json"), (b'{"a": "\\x"}', "broken_json"),
    (b'{"a": ' * 3000 + b"1" + b"}" * 3000, "broken_json"), (b"[" * 100000 + b"]" * 100000, "broken_json"),
    (b'{"a": ' + b"9" * 5000 + b"}", "broken_json"), (b'{"a": 01}', "broken_json"), (b'{"a": [1}]', "broken_json"),
    (b'{"a": NaN}', "broken_json"), (b'{"a": [-Infinity]}', "broken_json"),
    (b'{"b": 1, "a": 2, "b": 1}', "broken_json"), (b"word", "broken_json"), (b"x {}", "broken_json"),
    (b"{} x", "broken_json"),
]  # fmt: skip


@pytest.mark.parametrize(("damaged", "reason"), LINES + [item for item in ITEMS if b"\n" not in item[0]])
def test_a_damaged_line_costs_itself_alone(tmp_path, damaged, reason):
    good = b'{"a": 1}'
    for place in range(3):
        content = [good, good]
        content.insert(place, damaged)
        expected = [{"a": 1}, {"a": 1}]
        expected.insert(place, reason)
        for size in (1, 2, 9):
            path = write(tmp_path, b"\n".join(content) + b"\n", "a.jsonl")
            assert values(path, tmp_path, size) == expected, place


@pytest.mark.parametrize(("damaged", "reason"), LINES[:5])
def test_a_file_of_one_damaged_line_is_one_refused_row(tmp_path, damaged, reason):
    for content in (damaged, b"\n" + damaged + b" \n\n"):
        assert values(write(tmp_path, content, "a.jsonl"), tmp_path) == [reason]


@pytest.mark.parametrize(("damaged", "reason"), ITEMS)
def test_a_damaged_item_costs_itself_alone(tmp_path, damaged, reason):
    good = b'{"a": [{"b": 1}]}'
    for place in range(3):
        content = [good, good]
        content.insert(place, damaged)
        expected = [json.loads(good), json.loads(good)]
        expected.insert(place, reason)
        for size in (1, 2, 9):
            for comma in (b",", b"\n,\n "):
                path = write(tmp_path, b"[" + comma.join(content) + b"]", "a.json")
                assert values(path, tmp_path, size) == expected


def test_a_damaged_member_of_a_map_costs_itself_alone(tmp_path):
    text = '{\n"a": {"x": 1},\n"b": {"x": },\n"c": {"x": 1, "x": 1},\n"d": {"x": 2}\n}'
    expected = [(2, 0, {"x": 1, "id": "a"}), (3, 1, "broken_json"), (4, 2, "broken_json"), (5, 3, {"x": 2, "id": "d"})]
    assert records(write(tmp_path, text, "a.json"), tmp_path) == expected


def test_a_refusal_names_what_is_wrong_and_the_physical_line(tmp_path):
    text = '[\n{"a": 1},\n{"a":\n\n 2, "b": },\n{"k": 1, "k": 2},\n{"a": NaN}\n]'
    parts = split(write(tmp_path, text, "a.json"), 2, tmp_path)
    refused = [record.value for part in parts for record in read(part) if isinstance(record.value, BadRow)]
    for bad, expected in zip(refused, ("line 5, column 10", "'k' is given twice", "NaN is no JSON value"), strict=True):
        assert expected in bad.detail


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("[]", "is empty"),
        ("[\n]", "is empty"),
        (b"\xef\xbb\xbf \n", "is empty"),
        ('[{"a": 1},\n{"a": 2}', r"\(line 2\) .*breaks off or is damaged"),
        ('[{"a": 1},\n{"a": 2},', r"\(line 2\) .*breaks off or is damaged"),
        ('[{"a": 1},\n\n{"a": [2}', r"\(line 3\) .*breaks off or is damaged"),
        ('[{"a": 1},\n{"a": "2}]', r"\(line 2\) .*breaks off or is damaged"),
        ('[{"a": 1},\n"2]', r"\(line 2\) .*a quote opens"),
        ('[\n{"a": 1}\n{"a": 2}\n]', r"\(line 3\) .*a comma is missing"),
        ('[\n{"a": 1},\n,{"a": 2}]', r"\(line 3\) .*an item is missing"),
        ('[\n{"a": 1}] x', r"\(line 2\) .*breaks off or is damaged.*text after"),
        ('[\n{"a": 1}} ', r"\(line 2\) .*expecting ',' or ']'"),
        ("[\n1,]", r"\(line 2\) .*an item is missing"),
        ('{\n"a": {"x": 1},\n"b": {"x": 2}\n', r"\(line 4\) .*breaks off or is damaged"),
        ('{\n"a": {"x": 1},\n"b": {"x": 2}},', r"\(line 3\) .*expecting another object"),
        ('{\n"a": {"x": 1},\n"b": {"x": 2},\n"a": {}\n}', r'\(line 4\) has the key "a" twice'),
        ('{\n"a": 1\n}\n{\n"a": 1\n', r"\(line 4\) .*breaks off or is damaged"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16; convert it to UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(30), "unpack it"),
    ],
)
def test_a_file_that_cannot_be_told_apart_names_itself_the_line_and_the_way_out(tmp_path, content, message):
    path = write(tmp_path, content, "a.json")
    with pytest.raises(InputError, match=message) as error:
        values(path, tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_to_a_file_it_is_rows_refused_rows_or_one_message(tmp_path, seed):
    rng = random.Random(seed)
    rows = random_rows(seed, 12)
    for text in (json.dumps(rows, indent=1), json.dumps(rows), "\n".join(map(json.dumps, rows))):
        content = bytearray(text.encode())
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(content))
            content[at : at + rng.randrange(3)] = rng.choice([b"", *(bytes([mark]) for mark in b'{}[]"\\,\n\xff')])
        path = write(tmp_path, bytes(content), "a.json")
        with contextlib.suppress(InputError):
            found = values(path, tmp_path, 5)
            assert all(row in found for row in rows) or any(value not in rows for value in found)


def test_hostile_brackets_take_linear_time(tmp_path):
    for unit in (b"[", b'{"a":', b'"\\"', b'{"', b"[{}", b'\\"'):
        content = b"[" + unit * (2_000_000 // len(unit))
        with pytest.raises(InputError, match="breaks off"):
            split(write(tmp_path, content, "a.json"), 10, tmp_path)
