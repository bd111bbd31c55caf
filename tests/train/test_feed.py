"""The same examples in the same steps on 1, 2 and 4 ranks and after restarts, from rows in files to micro-batches."""

import atexit
import contextlib
import itertools
import json
import multiprocessing
import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from prepared import processing
from rows import write_wethink

from dft_mm import dist
from dft_mm.config import Recipe
from dft_mm.train import feed
from dft_mm.train.feed import copied_ahead, heldout_batches, load_data, train_batches

BATCH, EPOCHS = 7, 3
IMAGE, VISION_START = 151655, 151652
TENSORS = (
    "input_ids", "attention_mask", "labels", "position_ids", "cu_seqlens", "policy", "patches", "image_grid_thw",
)  # fmt: skip


class Ranks:
    """What each rank of a run is given; every rank loads the data anew, as after a start."""

    def __init__(self, folder, patch):
        self.folder, self.patch, self.runs = folder, patch, 0
        write_wethink(folder / "pictures", count=22)
        rows = [{"problem": f"Say {n} twice.", "solution": f"{n} {n} " * (n % 9 + 1)} for n in range(15)]
        (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "prompts.txt").write_text("{question}\nThink first. {question}\n{question}\\nAnswer briefly.\n")

    def recipe(self, output, workers=0, pack=False):
        pictured = {"path": str(self.folder / "pictures/rows.jsonl"), "images": str(self.folder / "pictures/images")}
        text = {"path": str(self.folder / "text.jsonl"), "weight": 1.5, "loss": "sft"}
        return Recipe.model_validate({
            "name": "feed", "seed": 3, "output": str(output), "model": {"path": "builtin:tiny-vl"},
            "data": {
                "train": [source | {"prompts": str(self.folder / "prompts.txt")} for source in (pictured, text)],
                "heldout_fraction": 0.2, "max_length": 160, "workers": workers, "pack": pack,
            },
            "optim": {"batch_size": BATCH}, "train": {"epochs": EPOCHS, "micro_tokens": 320},
        })  # fmt: skip

    def start(self, world, output=None, first_step=1, workers=0, pack=False):
        """[rank] → (data, its batches of each step from `first_step`, its held-out batches); prepared for this run."""
        self.runs += 1
        recipe = self.recipe(output or self.folder / f"run{self.runs}", workers, pack)
        self.patch.setattr(dist, "world_size", lambda: world)
        self.patch.setattr(dist, "on_main", lambda work: work())
        made = []
        for rank in range(world):
            self.patch.setattr(dist, "rank", lambda rank=rank: rank)
            data = load_data(recipe, processing())
            batches = train_batches(data, recipe, first_step)
            steps = [
                [next(batches) for _ in data.plan.micro_batches(step)[rank]]
                for step in range(first_step, data.plan.steps + 1)
            ]
            assert next(batches, None) is None
            made.append((data, steps, list(heldout_batches(data, recipe)) if data.heldout else []))
        return made


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield Ranks(tmp_path_factory.mktemp("feed"), patch)


@pytest.fixture(scope="module")
def alone(ranks):
    ((data, steps, heldout),) = ranks.start(1)
    return data, steps, heldout


def rows_of(batches):
    """Counter of (id, tokens, what is learned, by which loss): all but how they are arranged."""
    found = Counter()
    for batch in batches:
        if batch.cu_seqlens is None:
            of_row = [(row, real == 1) for row, real in enumerate(batch.attention_mask)]
        else:
            of_row = [(0, slice(*ends)) for ends in itertools.pairwise(batch.cu_seqlens.tolist())]
        for number, (name, where) in enumerate(zip(batch.example_ids, of_row)):
            ids, labels = batch.input_ids[where], batch.labels[where]
            if VISION_START not in ids:  # then an image token is that of a blank picture
                ids, labels = ids[ids != IMAGE], labels[ids != IMAGE]
            policy = 0 if batch.policy is None else int(batch.policy[batch.sequences == number][0])
            found[name, tuple(ids.tolist()), tuple(labels.tolist()), policy] += 1
    return found


def flat(ranks_of_step):
    return [batch for batches in ranks_of_step for batch in batches]


def test_an_epoch_has_each_row_as_often_as_its_source_weighs(alone):
    data, steps, heldout = alone
    seen = Counter(name for step in steps for batch in step for name in batch.example_ids)
    kept = [data.train.id(index) for index in range(len(data.train))]
    measured = {name for batch in heldout for name in batch.example_ids}
    assert set(seen) == set(kept)
    assert measured
    assert not measured & set(kept)
    assert len(kept) + len(measured) == 22 + 15
    text = [name for name in kept if name.startswith("text:")]
    assert all(seen[name] == EPOCHS for name in kept if name not in text)
    assert {seen[name] for name in text} <= {4, 5}  # half of them a second time in each of three epochs
    assert sum(seen[name] for name in text) == EPOCHS * round(1.5 * len(text))


@pytest.mark.parametrize(("world", "pack"), [(2, True), (4, False)], ids=["2-packed", "4-padded"])
def test_a_step_learns_the_same_tokens_of_the_same_rows_on_any_number_of_ranks(ranks, alone, world, pack):
    data, expected, heldout = alone
    made = ranks.start(world, pack=pack)
    assert pack == (made[0][1][0][0].attention_mask is None)
    assert {of_rank[0].plan.steps for of_rank in made} == {len(expected)}
    for number, theirs in enumerate(expected):
        mine = [steps[number] for _, steps, _ in made]
        assert len({len(batches) for batches in mine}) == 1  # every rank takes part in every collective
        assert rows_of(flat(mine)) == rows_of(theirs)
        supervised = sum(batch.supervised_tokens for batch in flat(mine))
        assert supervised == sum(batch.supervised_tokens for batch in theirs)
        assert supervised == data.train.supervised[data.plan.examples(number + 1)].sum()
    assert rows_of(flat(batches for _, _, batches in made)) == rows_of(heldout)
    arranged = [[batch.example_ids for batch in step] for step in made[0][1]]
    assert arranged != [[batch.example_ids for batch in step] for step in expected]  # or nothing was shown


def test_metrics_count_the_same_examples_and_tokens_on_any_number_of_ranks(ranks, alone):
    """The loop writes the number of plan.examples, and sums the batches' own tokens."""
    data, expected, _ = alone
    made = ranks.start(2)
    epoch = sum(data.train.sources == 0) + round(1.5 * sum(data.train.sources == 1))
    for step, theirs in enumerate(expected, start=1):
        plan, mine = made[1][0].plan, flat(steps[step - 1] for _, steps, _ in made)
        seen = min(step * BATCH, EPOCHS * epoch)
        assert len(plan.examples(step)) == seen - (step - 1) * BATCH
        assert len(plan.examples(step)) == sum(len(batch.example_ids) for batch in mine)
        assert sum(batch.tokens for batch in mine) == sum(batch.tokens for batch in theirs)
        assert plan.epochs_done(step) == data.plan.epochs_done(step) == seen / epoch


@pytest.mark.parametrize(("world", "workers", "pack"), [(1, 2, True), (2, 0, False)])
def test_a_run_that_goes_on_is_given_what_it_would_have_come_to(ranks, alone, world, workers, pack):
    whole = ranks.start(world, ranks.folder / f"restarted{world}", pack=pack)
    for first in (2, 5, len(alone[1])):
        again = ranks.start(world, ranks.folder / f"restarted{world}", first, workers, pack)
        for (_, steps, _), (_, rest, _) in zip(whole, again, strict=True):
            assert len(rest) == len(steps) - first + 1
            for mine, theirs in zip(flat(rest), flat(steps[first - 1 :]), strict=True):
                assert mine.example_ids == theirs.example_ids
                for name in TENSORS:
                    a, b = getattr(mine, name), getattr(theirs, name)
                    assert (a is None and b is None) or torch.equal(a, b), name


BUSY = threading.Lock()


def collate_under_a_lock(examples):
    assert BUSY.acquire(timeout=20)
    return SimpleNamespace(lost=[], ids=[example.id for example in examples])


def test_locks_that_threads_of_the_run_hold_do_not_stop_its_workers(ranks, alone):
    """The watch and torch have threads; what is forked while one of them holds a lock waits for it for ever."""
    data = replace(alone[0], collate=collate_under_a_lock)
    ranks.patch.setattr(dist, "rank", lambda: 0)
    with BUSY:
        batch = next(train_batches(data, ranks.recipe(ranks.folder / "locked", workers=1), 1))
    assert batch.ids == [*flat(alone[1])[0].example_ids]


class NotesTheEndOfPython:
    """In the process that it is sent to."""

    def __init__(self, note):
        self.note = note

    def __setstate__(self, state):
        self.__dict__ = state
        atexit.register(self.note.touch)

    def __call__(self, examples):
        return SimpleNamespace(lost=[])


def test_workers_end_without_taking_python_down_which_can_abort_them(ranks, alone, tmp_path):
    data = replace(alone[0], collate=NotesTheEndOfPython(tmp_path / "note"))
    batches = train_batches(data, ranks.recipe(ranks.folder / "noted", workers=1), 1)
    workers = multiprocessing.active_children()
    assert sum(1 for _ in batches) > 0
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0]
    assert not (tmp_path / "note").exists()


def test_a_run_that_goes_on_with_other_ranks_keeps_the_order_of_examples(ranks, alone):
    ranks.start(1, ranks.folder / "elastic")
    made = ranks.start(4, ranks.folder / "elastic", first_step=4)
    for number, theirs in enumerate(alone[1][3:]):
        assert rows_of(flat(steps[number] for _, steps, _ in made)) == rows_of(theirs)


def test_the_next_batch_is_on_its_way_to_the_gpu_before_one_is_handed_over(monkeypatch):
    """With stand-ins for CUDA's streams: what is asked of them, in order."""
    told, on_stream = [], []

    class Stream:
        def __init__(self, device=None, name="copies"):
            self.name = name

        def record_event(self):
            return told[-1].removeprefix("copy ")

        def wait_event(self, event):
            told.append(f"wait {event}")

    @contextlib.contextmanager
    def stream(stream):
        on_stream.append(stream.name)
        yield
        on_stream.pop()

    class Made(SimpleNamespace):
        def to(self, device):
            assert on_stream == ["copies"]
            told.append(f"copy {self.number}")
            return self

        def record_stream(self, stream):
            told.append(f"keep {self.number} for {stream.name}")

    batches = (Made(number=number, input_ids=torch.zeros(1)) for number in range(3))
    cuda = {"Stream": Stream, "stream": stream, "current_stream": lambda device: Stream(name="compute")}
    for name, stand_in in cuda.items():
        monkeypatch.setattr(feed.torch.cuda, name, stand_in)
    for batch in copied_ahead(batches, torch.device("cuda")):
        told.append(f"compute {batch.number}")
    assert told == [
        "copy 0", "copy 1", "wait 0", "keep 0 for compute", "compute 0",
        "copy 2", "wait 1", "keep 1 for compute", "compute 1",
        "wait 2", "keep 2 for compute", "compute 2",
    ]  # fmt: skip
    assert list(copied_ahead(iter([]), torch.device("cuda"))) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_batches_are_the_same_and_in_the_same_order(ranks, alone):
    data, expected, _ = alone
    device = torch.device("cuda", 0)
    ranks.patch.setattr(dist, "rank", lambda: 0)
    batches = train_batches(data, ranks.recipe(ranks.folder / "gpu", workers=2), 1, device)
    for theirs in flat(expected):
        mine = next(batches)
        assert mine.example_ids == theirs.example_ids
        for name in TENSORS:
            a, b = getattr(mine, name), getattr(theirs, name)
            assert (a is None and b is None) or (a.device == device and torch.equal(a.cpu(), b)), name
    assert next(batches, None) is None
