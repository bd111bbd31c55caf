"""Experiment trackers, each through its own library: a class here, an entry of TRACKERS, a name in `log.trackers`.

They live in processes of their own (tracking.py): what a library does with threads, signals, exits or a network that is
gone is nothing to the training. Keys and environment variables are the library's own, as is where its server is.
"""

import itertools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

End = Literal["finished", "stopped", "failed"]
PROJECT = "dft_mm"
"""Project or experiment of the runs, where the library's own environment variable names no other."""
_SEND_MOST_S = 600.0


@dataclass(frozen=True)
class TrackedRun:
    folder: Path
    id: str
    """The same each time that the run goes on, so that the tracker goes on with its own, too."""
    recipe: Mapping[str, Any]
    last: int
    """Steps up to this one are logged already."""

    @property
    def name(self) -> str:
        return self.recipe["name"]


class Tracker(Protocol):
    """Made when a run begins or goes on; whatever it raises ends the tracking, and not the run."""

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, each step once and in order."""

    def close(self, end: End) -> None: ...


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}


def _histograms(line: Mapping[str, Any]) -> dict[str, tuple[list[int], list[float]]]:
    """Counts, and one edge more, of what is spread over 0 to 1."""
    found = {key: counts for key, counts in line.items() if isinstance(counts, list)}
    return {key: (counts, [edge / len(counts) for edge in range(len(counts) + 1)]) for key, counts in found.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`section.key` → value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class TensorBoard:
    """Event files in RUN/tensorboard. torch.utils.tensorboard would bring torch into the process: seconds, 300 MiB."""

    def __init__(self, run: TrackedRun) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2
        from tensorboard.plugins.text.plugin_data_pb2 import TextPluginData
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events, self._summaries = event_pb2, summary_pb2
        self._writer = EventFileWriter(str(run.folder / "tensorboard"))
        start = run.last + 1  # what another process logged from there on is purged
        self._add(start, file_version="brain.Event:2")
        self._add(start, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
        markdown = "```yaml\n" + yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True) + "```"
        plugin = summary_pb2.SummaryMetadata.PluginData(
            plugin_name="text", content=TextPluginData(version=0).SerializeToString()
        )
        shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
        text = tensor_pb2.TensorProto(dtype="DT_STRING", string_val=[markdown.encode()], tensor_shape=shape)
        metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
        self._add(start, summary=self._summary([{"tag": "recipe", "metadata": metadata, "tensor": text}]))

    def log(self, line: Mapping[str, Any]) -> None:
        values: list[dict[str, Any]] = [{"tag": key, "simple_value": value} for key, value in _numbers(line).items()]
        for key, (counts, edges) in _histograms(line).items():
            middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
            histogram = self._summaries.HistogramProto(
                min=0, max=1, num=sum(counts), sum=sum(n * p for n, p in zip(counts, middles)),
                sum_squares=sum(n * p**2 for n, p in zip(counts, middles)), bucket_limit=edges[1:], bucket=counts,
            )  # fmt: skip
            values.append({"tag": key, "histo": histogram})
        self._add(line["step"], summary=self._summary(values))
        self._writer.flush()

    def close(self, end: End) -> None:
        self._writer.close()

    def _summary(self, values: list[dict[str, Any]]) -> Any:
        return self._summaries.Summary(value=[self._summaries.Summary.Value(**value) for value in values])

    def _add(self, step: int, **content: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=step, **content))


class WandB:
    """Weights & Biases: WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE=offline; its files are in RUN/wandb."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.name, id=run.id, resume="allow",
            dir=str(run.folder), config=dict(run.recipe), allow_val_change=True,
            settings=wandb.Settings(console="off", finish_timeout=_SEND_MOST_S),
        )  # fmt: skip

    def log(self, line: Mapping[str, Any]) -> None:
        spread = {key: self._wandb.Histogram(np_histogram=spread) for key, spread in _histograms(line).items()}
        self._run.log(_numbers(line) | spread, step=line["step"])

    def close(self, end: End) -> None:
        self._run.finish(exit_code=0 if end == "finished" else 1)
        self._wandb.teardown()  # waits for W&B's own process, without which the last steps may not be in the file


class SwanLab:
    """SwanLab: SWANLAB_API_KEY, SWANLAB_PROJECT_NAME, SWANLAB_MODE=offline or local; its files are in RUN/swanlog."""

    def __init__(self, run: TrackedRun) -> None:
        import swanlab

        self._run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT_NAME", PROJECT), name=run.name, id=run.id, resume="allow",
            log_dir=str(run.folder / "swanlog"), config=dict(run.recipe),
        )  # fmt: skip

    def log(self, line: Mapping[str, Any]) -> None:
        self._run.log(_numbers(line), step=line["step"])

    def close(self, end: End) -> None:
        self._run.finish(state={"finished": "success", "stopped": "aborted", "failed": "crashed"}[end])


class MLflow:
    """MLflow: MLFLOW_TRACKING_URI (without it, MLflow's own default in the working folder), MLFLOW_EXPERIMENT_NAME."""

    _TAG = "dft_mm.run"
    _PARAMS = 100
    """Most of one request."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        into = experiment.experiment_id if experiment else self._client.create_experiment(name)
        begun = self._client.search_runs([into], filter_string=f"tags.`{self._TAG}` = '{run.id}'")
        if begun:
            self._id = begun[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(into, run_name=run.name, tags={self._TAG: run.id}).info.run_id
        params = [Param(key, str(value)) for key, value in _flat(run.recipe).items()]  # they are written once
        for start in range(0, len(params), self._PARAMS):
            self._client.log_batch(self._id, params=params[start : start + self._PARAMS])

    def log(self, line: Mapping[str, Any]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(key, value, now, line["step"]) for key, value in _numbers(line).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, end: End) -> None:
        self._client.set_terminated(self._id, {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[end])


@dataclass(frozen=True)
class Entry:
    module: str
    """What has to be installed."""
    make: Callable[[TrackedRun], Tracker]
    replaces: bool = False
    """Steps that are done again take the place of those that it has; others keep what they have."""


TRACKERS: dict[str, Entry] = {
    "tensorboard": Entry("tensorboard", TensorBoard, replaces=True),
    "wandb": Entry("wandb", WandB),
    "swanlab": Entry("swanlab", SwanLab),
    "mlflow": Entry("mlflow", MLflow),
}
