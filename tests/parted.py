"""Files read part by part, for tests."""

from dft_mm.data.reading.files import read, split
from dft_mm.data.records import BadRow


def records(path, work, rows=2):
    """[(line, row, value)], refused rows by their reason; checks that the parts are all of the file, in order."""
    parts = split(path, rows, work)
    assert [part.row for part in parts] == [sum(part.rows for part in parts[:number]) for number in range(len(parts))]
    assert all(part.rows == rows for part in parts[:-1])
    assert 1 <= parts[-1].rows <= rows
    assert {part.path for part in parts} == {path}
    return [
        (record.line, record.row, record.value.reason if isinstance(record.value, BadRow) else record.value)
        for part in parts
        for record in read(part)
    ]


def values(path, work, rows=2):
    """The rows, checked to be numbered in order."""
    found = records(path, work, rows)
    assert [row for _, row, _ in found] == list(range(len(found)))
    return [value for _, _, value in found]


def numbers(part):
    """What a part says, for processes that import this module."""
    return [record.value["a"] for record in read(part)]


def write(folder, content, name):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path
