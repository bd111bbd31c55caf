"""Published files made of rows, and scripts run on them."""

import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest


@pytest.fixture
def place(tmp_path):
    """Rows as the published files of a data set, below a folder that --files is given."""

    def place(files, rows, folder=tmp_path / "files"):
        each = -(-len(rows) // len(files))
        for number, name in enumerate(files):
            part = rows[number * each : (number + 1) * each]
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".parquet"):
                table = pa.Table.from_pylist(part, schema=pa.Table.from_pylist(rows).schema)
                parquet.write_table(table, folder / name, row_group_size=50)
            else:
                (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part))
        return folder

    return place


@pytest.fixture
def read():
    """The rows of a JSONL file."""
    return lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def numina(shared, read):
    """The 700 rows in NuminaMath-CoT's columns, and the three real ones."""
    folder = shared / "data/train_text"
    return read(folder / "numinamath_cot_samples.jsonl") + read(folder / "numinamath_layout.jsonl")
