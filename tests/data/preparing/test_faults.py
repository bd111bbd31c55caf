"""Sixty kinds of bad data: each in quarantine with file, row and reason, the good rows around it untouched."""

import base64
import io
import json
import os
import zlib

import pytest
from PIL import Image
from prepared import quarantine, run

from dft_mm.data.dataset import Dataset

GOOD = {"messages": [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]}


def chat(*turns, **more):
    """(role, content) turns."""
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def pictured(*images, text="<image>What is it?", **more):
    return chat(("user", text), ("assistant", "A square."), images=list(images), **more)


def png(width=60, height=60, mode="RGB"):
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, "PNG")
    return out.getvalue()


def uri(data, kind="image/png"):
    return f"data:{kind};base64," + (base64.b64encode(data).decode() if isinstance(data, bytes) else data)


def claims(width, height):
    """A PNG of a few bytes that claims a size."""

    def chunk(kind, data):
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


U, A = ("user", "What?"), ("assistant", "That.")
FAULTS = {
    # the line
    "broken JSON": ('{"messages": [{"role": "user"\n', "broken_json"),
    "cut off within a text": ('{"messages": [{"role": "user", "content": "abc\n', "broken_json"),
    "single quotes": ("{'messages': []}\n", "broken_json"),
    "a trailing comma": ('{"messages": [],}\n', "broken_json"),
    "two objects on a line": (json.dumps(GOOD) + json.dumps(GOOD) + "\n", "broken_json"),
    "NaN, which is not JSON": ('{"messages": NaN}\n', "broken_json"),
    "a key given twice": ('{"messages": [], "messages": []}\n', "broken_json"),
    "a number of 5,000 digits": ('{"messages": ' + "9" * 5000 + "}\n", "broken_json"),
    "brackets 5,000 deep": ("[" * 5000 + "]" * 5000 + "\n", "broken_json"),
    "no UTF-8": (b'{"messages": "\xff\xfe"}\n', "not_utf8"),
    "NUL bytes": (b"\x00\x00\x00\x00\n", "broken_json"),
    "plain text": ("hello\n", "broken_json"),
    "a list": ([1, 2], "not_object"),
    "a number": (7, "not_object"),
    "a text": ("just text", "not_object"),
    "null": (None, "not_object"),
    # the conversation
    "no messages": ({"text": "hello"}, "messages"),
    "messages as a text": ({"messages": "hello"}, "messages"),
    "messages as an object": ({"messages": {"role": "user"}}, "no_question"),
    "no message at all": ({"messages": []}, "no_answer"),
    "a message that is a text": ({"messages": ["hello", "world"]}, "messages"),
    "an unknown role": (chat(U, ("narrator", "x"), A), "unknown_role"),
    "no role": ({"messages": [{"content": "x"}, {"role": "assistant", "content": "y"}]}, "unknown_role"),
    "content as a number": (chat(("user", 5), A), "part_type"),
    "content as an object": (chat(("user", {"text": "x"}), A), "part_type"),
    "an unknown part": (chat(("user", [{"type": "audio", "audio": "a.wav"}]), A), "audio"),
    "a part of a kind that nobody knows": (chat(("user", [{"type": "smell", "smell": "x"}]), A), "part_type"),
    "a part without a type": (chat(("user", [{"txt": "x"}]), A), "part_type"),
    "a text part without a text": (chat(("user", [{"type": "text"}]), A), "part_type"),
    "the user has the last word": (chat(U, A, U), "no_answer"),
    "no answer": (chat(U), "no_answer"),
    "an empty answer": (chat(U, ("assistant", "")), "no_answer"),
    "an answer of spaces": (chat(U, ("assistant", " \n\t")), "no_answer"),
    "an answer that is null": (chat(U, ("assistant", None)), "no_answer"),
    "an empty answer in the middle": (chat(U, ("assistant", ""), U, A), "no_answer"),
    "an empty question": (chat(("user", ""), A), "no_question"),
    "no question": (chat(A), "no_question"),
    "a system prompt alone before the answer": (chat(("system", "x"), A), "no_question"),
    "a late system prompt": (chat(U, ("system", "x"), A), "late_system"),
    "half a surrogate pair": ('{"messages": [{"role": "user", "content": "\\ud83d"}, '
                              '{"role": "assistant", "content": "x"}]}\n', "lone_surrogate"),
    "an answer that is not to be learned": ({"messages": [{"role": "user", "content": "x"},
                                             {"role": "assistant", "content": "y", "train": False}]}, "no_answer"),
    "a weight that is neither 0 nor 1": ({"messages": [{"role": "user", "content": "x"},
                                          {"role": "assistant", "content": "y", "weight": 0.5}]}, "weight"),
    "a video": (chat(("user", [{"type": "video", "video": "v.mp4"}, {"type": "text", "text": "x"}]), A), "video"),
    # the pictures
    "a picture that is not there": (pictured("gone.png"), "missing_image"),
    "a picture outside": (pictured("../outside.png"), "outside"),
    "an absolute path": (pictured("/etc/hostname"), "outside"),
    "a link to outside": (pictured("link.png"), "outside"),
    "a folder": (pictured("folder"), "not_a_file"),
    "a named pipe": (pictured("pipe"), "not_a_file"),
    "an address": (pictured("https://example.org/a.png"), "url"),
    "an empty file": (pictured("empty.png"), "broken_image"),
    "no picture": (pictured("text.png"), "broken_image"),
    "a damaged picture": (pictured("cut.png"), "broken_image"),
    "a picture that claims billions of pixels": (pictured("bomb.png"), "too_many_pixels"),
    "a picture 201 times as wide as high": (pictured("wide.png"), "aspect_ratio"),
    "brightness of unknown scale": (pictured("float.tif"), "brightness"),
    "fewer pictures than marks": (pictured("good.png", text="<image><image>What?"), "image_count"),
    "more pictures than marks": (pictured("good.png", "good.png"), "image_count"),
    "a path that is a number": (pictured(5), "image_path"),
    "a path with a NUL": (pictured("a\0b.png"), "unreadable"),
    "an endless loop of links": (pictured("loop.png"), "unreadable"),
    "damaged base64": (pictured(uri("@@@@")), "data_uri"),
    "base64 of no picture": (pictured(uri(b"no picture at all")), "broken_image"),
    "pixel limits the wrong way round": (chat(("user", [
        {"type": "image", "image": "good.png", "min_pixels": 90000, "max_pixels": 4000}, {"type": "text", "text": "x"},
    ]), A), "pixel_limits"),
    "a forced size": (chat(("user", [
        {"type": "image", "image": "good.png", "resized_height": 280, "resized_width": 280},
        {"type": "text", "text": "x"},
    ]), A), "resized"),
    "a picture in an answer": (chat(U, ("assistant", [{"type": "image", "image": "good.png"},
                                                      {"type": "text", "text": "x"}])), "answer_image"),
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """All faults in one file, each between two good rows."""
    folder = tmp_path_factory.mktemp("faults")
    images = folder / "images"
    (images / "folder").mkdir(parents=True)
    (images / "good.png").write_bytes(png())
    (folder / "outside.png").write_bytes(png())
    (images / "link.png").symlink_to(folder / "outside.png")
    (images / "loop.png").symlink_to(images / "loop.png")
    os.mkfifo(images / "pipe")
    (images / "empty.png").write_bytes(b"")
    (images / "text.png").write_bytes(b"this is a text")
    noise = os.urandom(3 * 64 * 64)
    out = io.BytesIO()
    Image.frombytes("RGB", (64, 64), noise).save(out, "PNG")
    (images / "cut.png").write_bytes(out.getvalue()[: len(out.getvalue()) // 2])
    (images / "bomb.png").write_bytes(claims(65535, 65535))
    (images / "wide.png").write_bytes(png(2010, 10))
    Image.new("F", (60, 60), 0.5).save(images / "float.tif")
    lines = [json.dumps(pictured("good.png")) + "\n"]
    for value, _ in FAULTS.values():
        raw = isinstance(value, bytes) or (isinstance(value, str) and value.endswith("\n"))
        line = value if raw else json.dumps(value) + "\n"
        lines += [line, json.dumps(GOOD) + "\n"]
    path = folder / "rows.jsonl"
    path.write_bytes(b"".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    manifest = run(folder / "data", {"path": str(path), "format": "messages", "images": str(images)})
    return path, manifest, quarantine(folder / "data"), Dataset(folder / "data", "train", None)


def test_there_are_sixty_kinds(prepared):
    assert len(FAULTS) >= 60
    assert prepared[1]["sources"][0]["rows"] == 2 * len(FAULTS) + 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_quarantined_with_file_row_and_reason(prepared, fault):
    path, _, refused, _ = prepared
    row = 1 + 2 * list(FAULTS).index(fault)
    found = [entry for entry in refused if entry["row"] == row]
    assert [entry["reason"] for entry in found] == [FAULTS[fault][1]]
    assert (found[0]["file"], found[0]["line"]) == (str(path), row + 1)
    assert len(found[0]["detail"]) > 10


def test_the_good_rows_around_are_untouched(prepared):
    _path, manifest, refused, dataset = prepared
    assert len(refused) == len(FAULTS)
    assert manifest["sources"][0]["kept"] == len(dataset) == len(FAULTS) + 1
    assert [dataset.meta(n)["row"] for n in range(len(dataset))] == list(range(0, 2 * len(FAULTS) + 1, 2))
    texts = {(tuple(ids), tuple(mask)) for ids, mask in (dataset.tokens(n) for n in range(1, len(dataset)))}
    assert len(texts) == 1  # the same good row each time
    reasons = manifest["sources"][0]["quarantined"]
    assert sum(reasons.values()) == len(FAULTS)
