"""The recipe: one closed, frozen value that holds every setting of a run. Loading it has no side effects."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

from pydantic import AliasChoices, Field, field_validator, model_validator

from dft_mm.sections import Section, load_section

Part = Literal["vision", "projector", "language", "embeddings"]
Format = Literal[
    "auto", "wethink", "sharegpt", "alpaca", "messages", "prompt_completion", "qwenvl", "problem_solution",
    "question_answer", "preference", "columns",
]  # fmt: skip
LossName = Literal[
    "sft", "dft", "power", "mix", "profit", "eaft", "chord", "focal", "iw_sft", "asft", "sed", "dft_sequence"
]
LOSS_NUMBERS: dict[LossName, dict[str, Any]] = {
    "power": {"alpha": 0.5},
    "mix": {"alpha": 0.5},
    "profit": {"tau": 0.1},
    "eaft": {"alpha": 1.0, "top_k": 20},
    "focal": {"gamma": 2.0},
    "iw_sft": {"clip": (0.2, 1.8), "reference": None},
    "asft": {"kl": 0.1, "reference": None},
    "sed": {"diversity": 0.2, "tau": 0.95, "top_k": 2},
}
"""The numbers that each loss has, with their defaults; to give another one is an error."""


class LoraConfig(Section):
    rank: int = Field(default=8, ge=1)
    """Rank of the adapter matrices."""
    alpha: float = Field(default=16.0, gt=0)
    """Adapter output is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter input while training."""
    parts: list[Literal["vision", "projector", "language"]] = Field(default=["language"], min_length=1)
    """Parts that get adapters; everything else is frozen."""
    targets: str | list[str] = "all-linear"
    """`all-linear` (of these parts), or names of linear layers, such as [q_proj, v_proj]."""
    quantize: Literal["nf4"] | None = None
    """nf4: hold the language model's frozen weights in 4 bits (QLoRA, arXiv 2305.14314); needs the extra `qlora`, one
    process and ZeRO stage 0 or 2."""


class ModelConfig(Section):
    path: str
    """Hub id, local folder, or a built-in tiny model: builtin:tiny-vl, builtin:tiny-lm."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of forward and backward; master weights and gradient accumulation are float32 whatever it is."""
    attention: Literal["sdpa", "flash", "eager"] = "sdpa"
    """Attention kernel; flash needs the flash-attn package and a GPU."""
    freeze: list[Part] = Field(default=[])
    """Parts that do not learn: vision, projector, language, embeddings (input embedding and output head)."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora: LoraConfig | None = None
    """Train adapters instead of the weights."""

    @model_validator(mode="after")
    def _adapters_are_not_frozen(self) -> "ModelConfig":
        both = [part for part in self.freeze if self.lora and part in self.lora.parts]
        if both:
            raise ValueError(f"freeze and lora.parts both name {', '.join(both)}, whose adapters learn: name it in one")
        return self


class ColumnsConfig(Section):
    """Which column of any other layout plays which role."""

    prompt: str = Field(validation_alias=AliasChoices("prompt", "problem", "question", "query", "user"))
    """Column with the user's text."""
    response: str = Field(
        validation_alias=AliasChoices("response", "answer", "solution", "completion", "output", "assistant")
    )
    """Column with the text to learn."""
    system: str | None = None
    """Column with a system prompt."""
    images: str | None = Field(default=None, validation_alias=AliasChoices("images", "image", "image_path"))
    """Column with one picture path or a list of them; they stand before the text unless it holds `<image>` marks."""
    id: str | None = None
    """Column with the row's id."""


class LossConfig(Section):
    """A token's loss, and when it sets in. Papers and formulas: FORMS in dft_mm/loss/family.py."""

    name: LossName = "dft"
    """sft: -log p; dft: -sg(p) log p (arXiv 2508.05629, eq. 9); power, mix, profit, eaft, chord, focal, iw_sft: other
    weights; asft: dft held near a reference; sed: sft that keeps diversity; dft_sequence: weight of a whole answer."""
    alpha: float | None = Field(default=None, ge=0)
    """power: w = p^alpha (0 is sft, 1 is dft); mix: w = alpha p + 1 - alpha; eaft: w = entropy^alpha."""
    tau: float | None = Field(default=None, ge=0, le=1)
    """profit: learn from tokens with p above it; sed: where the top_k most probable tokens hold less than it."""
    gamma: float | None = Field(default=None, ge=0)
    """focal: w = (1 - p)^gamma."""
    kl: float | None = Field(default=None, ge=0)
    """asft: weight of KL(reference || model)."""
    clip: tuple[float, float] | None = None
    """iw_sft: smallest and largest ratio of p to the reference's p."""
    top_k: int | None = Field(default=None, ge=1)
    """eaft: tokens whose entropy is taken; sed: tokens whose probability is summed."""
    diversity: float | None = Field(default=None, ge=0)
    """sed: weight of (p - 1/2)^2."""
    reference: str | None = None
    """asft, iw_sft: model that p is compared with; default: the base model, which LoRA has without its adapters."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of sft before this loss."""
    ramp_steps: int = Field(default=0, ge=0)
    """Steps after these over which the loss goes from sft to this one, linearly."""

    @model_validator(mode="before")
    @classmethod
    def _numbers_of_the_loss(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name = values.get("name", "dft")
        own = LOSS_NUMBERS.get(name, {})
        for key in {key for numbers in LOSS_NUMBERS.values() for key in numbers} - set(own):
            if values.get(key) is not None and name in get_args(LossName):
                having = ", ".join(other for other, numbers in LOSS_NUMBERS.items() if key in numbers)
                raise ValueError(f"loss {name} has no {key}: it belongs to {having}")
        return values | {key: default for key, default in own.items() if values.get(key) is None}

    @model_validator(mode="after")
    def _alpha_of_mix_and_clip_are_in_range(self) -> "LossConfig":
        if self.name == "mix" and self.alpha is not None and self.alpha > 1:
            raise ValueError(f"alpha ({self.alpha:g}) of mix is a share, from 0 to 1")
        if self.clip is not None and not 0 <= self.clip[0] <= self.clip[1]:
            raise ValueError(f"clip ({self.clip[0]:g}, {self.clip[1]:g}) is the smallest and the largest ratio, from 0")
        return self

    def share(self, step: int) -> float:
        """How much of this loss a step (from 1) has; the rest is sft."""
        return min(max((step - self.warmup_steps) / max(self.ramp_steps, 1), 0.0), 1.0)


class SourceConfig(Section):
    path: str
    """Rows: a file (JSONL, JSON, CSV, TSV, Parquet, Arrow; the text ones also as gz, bz2, xz or zst), a folder or a
    pattern such as `data/*.parquet` of such files, a `datasets` folder, or a hub name such as org/name."""
    format: Format = "auto"
    """Layout of a row; auto: by the row's columns, or by the `dataset_info.json` beside the file."""
    dataset_info: str | None = None
    """FILE#NAME: the entry NAME of a LLaMA-Factory `dataset_info.json` says what the columns are, wherever the rows
    lie; for format `auto`. Default: the entry that names the file, in the one beside it."""
    images: str | None = None
    """Folder that the rows' picture paths are relative to, and may not leave; default: the folder of `path`, its
    `images` or the one above, where the first picture is."""
    split: str = "train"
    """Split of a `datasets` folder or hub name that has several."""
    subset: str | None = None
    """Configuration of a hub name that has several."""
    limit: int | None = Field(default=None, ge=1)
    """Use the first so many rows of the file."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """Times that each of its rows is seen in an epoch; 0.25: a quarter of them, drawn anew in each epoch."""
    loss: LossConfig | None = None
    """Loss of its rows, where it is not the recipe's: facts by sft, reasoning by dft."""
    prompts: str | None = None
    """File of instruction templates, one a line, each with `{question}`: every row's first question is put into one
    of them, drawn by seed and row."""
    system: str | None = None
    """System prompt of its rows, in the place of their own; an empty text takes theirs away."""
    columns: ColumnsConfig | None = None
    """For format `columns`: which column is which."""

    @field_validator("loss", mode="before")
    @classmethod
    def _a_name_is_a_loss(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _an_entry_is_named_and_read(self) -> "SourceConfig":
        if self.dataset_info is not None:
            file, _, name = self.dataset_info.rpartition("#")
            if not file or not name:
                raise ValueError(f"dataset_info is FILE#NAME, as data/dataset_info.json#mine, not {self.dataset_info}")
            if self.format != "auto":
                raise ValueError(f"dataset_info says how rows are read, and so does format ({self.format}): give one")
        return self

    @model_validator(mode="after")
    def _columns_belong_to_the_columns_format(self) -> "SourceConfig":
        if (self.format == "columns") != (self.columns is not None):
            raise ValueError("`columns: {prompt: …, response: …}` is given exactly when format is `columns`")
        return self


class DataConfig(Section):
    train: list[SourceConfig] = Field(min_length=1)
    """Files to learn from."""
    heldout: list[SourceConfig] = Field(default=[])
    """Files whose loss is measured, never learned from."""
    heldout_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Instead of `heldout`: this share of the training rows, chosen by seed; rows with the same question or picture
    stay on one side."""
    max_length: int = Field(default=4096, ge=8)
    """Tokens of one example, images included."""
    too_long: Literal["drop", "truncate", "error"] = "drop"
    """What happens to a longer one; every case is counted. An image is never cut."""
    min_pixels: int = Field(default=3136, ge=784)
    """A smaller picture is enlarged to this area."""
    max_pixels: int = Field(default=1003520, ge=784)
    """A larger picture is reduced to this area; 784 pixels (28 x 28) make one token."""
    supervise: Literal["answers", "last_answer"] = "answers"
    """Learn from every assistant turn, or from the last one only."""
    pack: bool = True
    """Rows of a micro-batch stand one behind the other and cannot see each other; false: they are padded to the
    longest."""
    workers: int = Field(default=2, ge=0)
    """Processes of a rank that make micro-batches ahead; 0: the training process makes them itself."""
    bad_rows: float = Field(default=0.01, ge=0, le=1)
    """Largest fraction of rows that may be quarantined before the run refuses to start, and of examples whose picture
    may be lost or changed while it trains before it stops."""
    benchmarks: list[str] = Field(default=[])
    """Files of benchmark questions; rows that share 13 words in a row with one of them are counted and listed."""

    @model_validator(mode="after")
    def _limits_fit(self) -> "DataConfig":
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels ({self.min_pixels}) is above max_pixels ({self.max_pixels})")
        if self.heldout and self.heldout_fraction:
            raise ValueError("give heldout files or heldout_fraction, not both")
        return self


class OptimConfig(Section):
    lr: float = Field(default=5.0e-5, gt=0)
    """Highest learning rate of the schedule."""
    vision_lr: float | None = Field(default=None, gt=0)
    """The same for the vision tower; default: lr."""
    projector_lr: float | None = Field(default=None, gt=0)
    """The same for the projector (Qwen2.5-VL's merger); default: lr."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up; cosine and linear end at zero."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of all steps over which the rate rises linearly from zero."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's two decay rates."""
    eps: float = Field(default=1.0e-8, gt=0)
    """AdamW's term against division by zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled decay of all matrices; norms and biases have none."""
    clip: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient; 0: no clipping."""
    batch_size: int = Field(default=256, ge=1)
    """Examples of one optimizer step over all ranks."""


class TrainConfig(Section):
    epochs: int = Field(default=1, ge=1)
    """Times that every example is seen."""
    max_steps: int | None = Field(default=None, ge=1)
    """End after so many steps instead, if that is earlier; the schedule ends there too."""
    micro_tokens: int = Field(default=8192, ge=8)
    """Tokens, padding included, of one micro-batch on one rank."""
    skip_budget: float = Field(default=0.0, ge=0, le=1.0e-3)
    """Rows of the loss head whose gradients together are certain to be at most this share of all rows' are not
    multiplied out; 0: every row is. (asft skips none.)"""
    log_entropy: bool = False
    """Also measure the mean entropy of the predictions."""
    save_every: int = Field(default=100, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep: int = Field(default=2, ge=2)
    """Newest checkpoints that are kept."""
    hang_minutes: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """A rank that is silent, or stands still in a step, for so long is named, and the run ends."""
    restarts: int = Field(default=0, ge=0)
    """Times that a run whose rank died, hung or met an unexpected error begins again from its last checkpoint, under
    the same launcher."""
    heldout_every: int = Field(default=100, ge=1)
    """Steps between measurements of the held-out loss; the last step is always measured."""


class LogConfig(Section):
    trackers: list[Literal["tensorboard", "wandb", "swanlab", "mlflow"]] = Field(default=[])
    """Where each line of metrics.jsonl is logged besides, by the tracker's own library (extra `track`). Keys, server,
    offline mode are set as that library wants, such as WANDB_MODE=offline. One that fails never stops a run."""


class Recipe(Section):
    elsewhere: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "learning_rate": "optim.lr", "lr_scheduler_type": "optim.schedule", "max_grad_norm": "optim.clip",
            "per_device_train_batch_size": "optim.batch_size", "train_batch_size": "optim.batch_size",
            "gradient_accumulation_steps": "optim.batch_size", "num_train_epochs": "train.epochs",
            "save_steps": "train.save_every", "eval_steps": "train.heldout_every",
            "save_total_limit": "train.keep", "output_dir": "output", "run_name": "name", "report_to": "log.trackers",
            "cutoff_len": "data.max_length", "max_seq_length": "data.max_length", "packing": "data.pack",
            "dataset": "data.train", "dataloader_num_workers": "data.workers",
            "model_name_or_path": "model.path", "attn_implementation": "model.attention", "torch_dtype": "model.dtype",
        }
    )  # fmt: skip
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides the order of examples, and every other draw."""
    output: str = "runs/{name}"
    """Run folder."""
    deepspeed: str = "ds_configs/zero3.json"
    """What DeepSpeed alone knows (stage, buckets, offload). All else is said here, and saying it there is an error."""
    model: ModelConfig
    data: DataConfig
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _an_example_fits_a_micro_batch(self) -> "Recipe":
        if self.data.max_length > self.train.micro_tokens:
            raise ValueError(
                f"data.max_length ({self.data.max_length}) is above train.micro_tokens ({self.train.micro_tokens}): "
                "an example would not fit a micro-batch; raise micro_tokens or lower max_length"
            )
        return self

    @model_validator(mode="after")
    def _eager_attention_is_padded(self) -> "Recipe":
        if self.data.pack and self.model.attention == "eager":
            raise ValueError(
                "model.attention: eager cannot keep packed rows apart; use sdpa or flash, or set data.pack: false"
            )
        return self

    @property
    def headline(self) -> str:
        """What is going to be trained, in one line."""
        sources = ", ".join(source.path for source in self.data.train)
        most = f", at most {self.train.max_steps} steps" if self.train.max_steps else ""
        adapters = f" (LoRA, rank {self.model.lora.rank})" if self.model.lora else ""
        return (
            f"{self.name}: {self.loss.name} of {self.model.path}{adapters} on {sources}; {self.train.epochs} x all "
            f"rows in steps of {self.optim.batch_size}{most}, {self.deepspeed}; into {self.run_dir}"
        )

    @property
    def run_dir(self) -> Path:
        return Path(self.output.replace("{name}", self.name))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; see `load_section`."""
    return load_section(Recipe, path, overrides)
