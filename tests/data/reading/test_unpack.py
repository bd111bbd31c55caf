import bz2
import gzip
import json
import lzma
import shutil
import subprocess

import pyarrow as pa
import pytest
from parted import records, values, write

from dft_mm.data.reading.files import split
from dft_mm.errors import InputError

ROWS = [{"row": number, "text": f"{number ** 9} \n" * (number % 40)} for number in range(400)]
TEXT = "\n".join(map(json.dumps, ROWS)).encode()


def zst(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


@pytest.fixture(params=PACKERS)
def suffix(request):
    return request.param


def test_packed_rows_are_the_rows_under_the_packed_name(tmp_path, suffix):
    work = tmp_path / "work"
    path = write(tmp_path, PACKERS[suffix](TEXT), f"a.jsonl{suffix}")
    plain = write(tmp_path, TEXT, "a.jsonl")
    assert values(path, work, 30) == ROWS
    assert records(path, work, 30) == records(plain, work, 30)
    assert [kept.read_bytes() for kept in work.iterdir()] == [TEXT]


def test_the_content_says_that_it_is_packed(tmp_path, suffix):
    assert values(write(tmp_path, PACKERS[suffix](TEXT), "a.jsonl"), tmp_path, 500) == ROWS
    table = b"x,y\n1,2\n"
    assert values(write(tmp_path, PACKERS[suffix](table), f"a.CSV{suffix.upper()}"), tmp_path) == [{"x": "1", "y": "2"}]


def test_a_file_packed_in_pieces_is_read_whole(tmp_path, suffix):
    middle = len(TEXT) // 2
    pieces = PACKERS[suffix](TEXT[:middle]) + PACKERS[suffix](TEXT[middle:])
    assert values(write(tmp_path, pieces, f"a.jsonl{suffix}"), tmp_path, 500) == ROWS


def test_it_is_unpacked_once(tmp_path, suffix):
    work = tmp_path / "work"
    path = write(tmp_path, PACKERS[suffix](TEXT), f"a.jsonl{suffix}")
    first = split(path, 10, work)
    before = [kept.stat() for kept in work.iterdir()]
    assert split(path, 10, work) == first
    assert [kept.stat() for kept in work.iterdir()] == before
    other = split(write(tmp_path, PACKERS[suffix](TEXT[:100]), f"a.jsonl{suffix}"), 10, work)
    assert other[0].real != first[0].real


def test_what_breaks_off_or_is_damaged_is_refused_and_leaves_nothing(tmp_path, suffix):
    packed = PACKERS[suffix](TEXT)
    middle = len(packed) // 2
    for content in (
        packed[:-1], packed[:middle], packed[:10], packed + b"rubbish", packed + packed[:middle],
        packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :],
    ):  # fmt: skip
        path = write(tmp_path, content, f"a.jsonl{suffix}")
        with pytest.raises(InputError, match="breaks off, is damaged") as error:
            split(path, 10, tmp_path / "work")
        assert str(path) in str(error.value)
        assert not list((tmp_path / "work").glob("*"))


def test_padded_xz_is_whole(tmp_path):
    path = write(tmp_path, lzma.compress(TEXT) + bytes(8), "a.jsonl.xz")
    assert values(path, tmp_path, 500) == ROWS


def test_an_archive_is_no_rows(tmp_path):
    write(tmp_path, TEXT, "a.jsonl")
    shutil.make_archive(str(tmp_path / "b"), "gztar", tmp_path, "a.jsonl")
    with pytest.raises(InputError, match=r"b\.tar\.gz is no file of rows"):
        split(tmp_path / "b.tar.gz", 10, tmp_path / "work")


@pytest.mark.parametrize(("tool", "suffix"), [("gzip", ".gz"), ("bzip2", ".bz2"), ("xz", ".xz"), ("zstd", ".zst")])
def test_what_the_usual_tools_pack_is_read(tmp_path, tool, suffix):
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool}")
    path = write(tmp_path, TEXT, "a.jsonl")
    packed = subprocess.run([tool, "-c", path], capture_output=True, check=True).stdout
    assert values(write(tmp_path, packed, f"b.jsonl{suffix}"), tmp_path, 500) == ROWS
