"""generations.jsonl with a backend that answers in any order, is cut off anywhere, and has other ranks beside it."""

import json

import pytest
from started import ended, started

from dft_mm import dist
from dft_mm.errors import InputError, Stopped
from dft_mm.evaluate.generations import generate
from dft_mm.evaluate.ranks import Ranks
from dft_mm.evaluate.requests import Generation, Request
from dft_mm.evaluate.task import Question


class Source:
    """Answers batches from the last to the first, and remembers which."""

    def __init__(self, most=None):
        self.most, self.asked = most, []

    def generate(self, batches, halted):
        for number in reversed(range(len(batches))):
            if len(self.asked) == self.most:
                return
            self.asked.append([request.question.id for request in batches[number]])
            yield number, [Generation("p", f"to {each.question.id}", "stop", 1) for each in batches[number]]


def _batches(*sizes):
    requests = [Request("b", Question(str(n), [], ""), 0, n) for n in range(sum(sizes))]
    return [[requests.pop(0) for _ in range(size)] for size in sizes]


BATCHES = _batches(2, 2, 2)


@pytest.fixture
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    generate(Source(), BATCHES, out, Ranks())
    return (out / "generations.jsonl").read_bytes()


def _again(out, whole):
    source = Source()
    lines = generate(source, BATCHES, out, Ranks())
    assert [path.name for path in out.iterdir()] == ["generations.jsonl"]
    assert (out / "generations.jsonl").read_bytes() == whole
    assert [line["id"] for line in lines] == ["0", "1", "2", "3", "4", "5"]
    return source.asked


def test_lines_come_as_they_come_and_end_in_the_planned_order(tmp_path, whole):
    file = tmp_path / "generations.jsonl"
    seen = []

    class Watched(Source):
        def generate(self, batches, halted):
            for each in super().generate(batches, halted):
                seen.append(file.read_bytes().count(b"\n"))
                yield each

    generate(Watched(), BATCHES, tmp_path, Ranks())
    assert seen == [0, 2, 4]
    assert file.read_bytes() == whole
    assert [json.loads(line)["id"] for line in whole.splitlines()] == ["0", "1", "2", "3", "4", "5"]


def test_cut_off_at_any_byte_it_goes_on_with_the_same_end(tmp_path, whole):
    lines = whole.splitlines(keepends=True)
    written = b"".join(lines[4:6] + lines[2:4] + lines[0:2])  # as Source answers
    for size in range(0, len(written) + 1, 7):
        (tmp_path / "generations.jsonl").write_bytes(written[:size])
        batches = written[:size].count(b"\n") // 2
        assert _again(tmp_path, whole) == [["4", "5"], ["2", "3"], ["0", "1"]][batches:]


def test_what_other_ranks_wrote_is_taken_in(tmp_path, whole):
    lines = whole.splitlines(keepends=True)
    (tmp_path / "generations.jsonl").write_bytes(lines[0] + lines[1])
    (tmp_path / "generations.rank-1.jsonl").write_bytes(lines[2] + lines[3] + lines[4])
    (tmp_path / "generations.rank-2.jsonl").write_bytes(lines[5][:9])
    assert _again(tmp_path, whole) == [["4", "5"]]


def test_killed_between_writing_the_whole_and_removing_the_parts(tmp_path, whole):
    lines = whole.splitlines(keepends=True)
    (tmp_path / "generations.jsonl").write_bytes(whole)
    (tmp_path / "generations.rank-1.jsonl").write_bytes(lines[2] + lines[3])
    assert _again(tmp_path, whole) == []


def test_a_line_that_is_no_answer_to_what_is_asked_is_refused(tmp_path, whole):
    lines = whole.splitlines(keepends=True)
    other_seed, other_id = lines[1].replace(b'"seed": 1', b'"seed": 7'), lines[1].replace(b'"id": "1"', b'"id": "9"')
    for content, words in [
        (lines[0] + lines[0], r":2: a second answer to b, question '0'"),
        (lines[0] + other_seed, r":2: nobody asked .* question '1', sample 0 with seed 7"),
        (lines[0] + other_id, r":2: nobody asked .* question '9'"),
        (lines[0] + b"{}\n", ":2: damaged"),
        (lines[0] + b"[1]\n", ":2: damaged"),
        (lines[0] + lines[1][:20] + b"\n" + lines[2], ":2: damaged"),
        (lines[0].replace(b'"stop"', b'"tired"'), ":1: a damaged"),
    ]:
        (tmp_path / "generations.jsonl").write_bytes(content)
        with pytest.raises(InputError, match=rf"generations\.jsonl{words}"):
            generate(Source(), BATCHES, tmp_path, Ranks())
        assert (tmp_path / "generations.jsonl").read_bytes() == content
    (tmp_path / "generations.jsonl").write_bytes(lines[2])
    (tmp_path / "generations.rank-1.jsonl").write_bytes(lines[2].replace(b"to 2", b"to two"))
    with pytest.raises(InputError, match=r"generations\.rank-1\.jsonl:1: a second"):
        generate(Source(), BATCHES, tmp_path, Ranks())


def test_a_backend_that_stops_early_has_kept_what_it_gave(tmp_path, whole):
    with pytest.raises(Stopped, match=r"stopped with 4 of 6 answers in .*same command goes on"):
        generate(Source(most=2), BATCHES, tmp_path, Ranks())
    assert (tmp_path / "generations.jsonl").read_bytes().count(b"\n") == 4
    assert _again(tmp_path, whole) == [["0", "1"]]


def test_the_count_is_that_of_all_ranks(tmp_path, monkeypatch):
    """Another one gave two answers and its share is done; this one is stopped at the first of its two batches."""
    ranks = Ranks()
    ranks.size, halted = 2, []
    monkeypatch.setattr(ranks, "halt", lambda: halted.append(True))
    monkeypatch.setattr(dist, "gather_objects", lambda own: [own, 2 if isinstance(own, int) else None])
    with pytest.raises(Stopped, match="stopped with 4 of 6 answers"):
        generate(Source(most=1), BATCHES, tmp_path, ranks)
    assert halted


def test_a_full_disk_is_named_and_leaves_no_half_line(sums, tmp_path):
    """A limit on the size of files stands in for it: what fits is written, and then the system refuses."""
    out, log = tmp_path / "out", tmp_path / "log"
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "qwen2"}')
    name = "n" * 500  # for lines that are longer than what goes to the log, which is limited, too
    (tmp_path / "suite.yaml").write_text(f"name: s\nbenchmarks: [{{task: gsm8k, data: {sums}, name: {name}}}]\n")
    answers = [{"benchmark": name, "id": str(n), "text": "x" * 1000} for n in range(1, 8)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))
    command = ["eval", tmp_path / "suite.yaml", "--model", model, "--replay", tmp_path / "a.jsonl", "--out", out]
    with started(command, log, most_bytes=5000) as child:
        assert ended(child) == 2
    assert (out / "generations.jsonl").read_bytes() == b""
    assert "generations.jsonl cannot be written (File too large)" in log.read_text()
    assert "same command goes on" in log.read_text()
    with started(command, log) as child:
        assert ended(child) == 0
    assert (out / "generations.jsonl").read_bytes().count(b"\n") == 7
    # The same while the results are written: the old ones stay whole.
    results = (out / "scores.jsonl").read_bytes()
    with started(command, tmp_path / "last", most_bytes=len(results) - 1) as child:
        assert ended(child) == 2
    assert "cannot be written (File too large)" in (tmp_path / "last").read_text()
    assert (out / "scores.jsonl").read_bytes() == results
    assert not list(out.glob(".*"))
