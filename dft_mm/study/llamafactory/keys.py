"""LLaMA-Factory's training arguments (its hparams/, at commit ff6d4d1) and what becomes of each of them here.

Every one of them stands in one of three tables: CONVERTED, what a key of our recipe is made of; REFUSED, what
would change the result and has no counterpart, unless its value switches it off; NOTED, what changes no result, or
is said elsewhere here, with the reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dft_mm.study.llamafactory import datasets, values
from dft_mm.study.llamafactory.refused import DATASET_INFO, GPUS, LEFT_OUT


@dataclass(frozen=True)
class Becomes:
    """A key of our recipe, made of theirs."""

    ours: str
    theirs: Mapping[str, Any]
    """Their keys, each with LLaMA-Factory's default."""
    value: Callable[..., Any] = lambda only: only
    """Our value for theirs, given in that order; raises Refused."""
    note: str = ""
    """What is not the same to the last bit, or worth a look."""
    matters: Callable[[Any], bool] = lambda value: True
    """Whether the note is of use where our value is this."""


_MODEL = {"model_name_or_path": None, "template": None}
_FROZEN = {"freeze_vision_tower": True, "freeze_multi_modal_projector": True, "freeze_language_model": False}
_QUANTIZED = {
    "quantization_bit": None, "quantization_method": "bnb", "quantization_type": "nf4", "double_quantization": True,
}  # fmt: skip
_ROWS = {"dataset_dir": "data", "media_dir": None, "max_samples": None}
CONVERTED = (
    Becomes("name", {"run_name": None, "output_dir": None}, values.name, "the run folder is runs/NAME (output)"),
    Becomes("seed", {"seed": 42}, note="other numbers are drawn from it: rows come in another order"),
    Becomes("deepspeed", {"deepspeed": None, "quantization_bit": None}, values.deepspeed,
            "buckets are those of our file; no ZeRO stage changes a step here"),
    Becomes("model.path", _MODEL, values.model,
            "rendered by the model's own chat template, its default system prompt included"),
    Becomes("model.dtype", {"bf16": False, "fp16": False, "pure_bf16": False}, values.dtype),
    Becomes("model.attention", {"flash_attn": "auto"}, values.one_of(values.ATTENTION, "take auto")),
    Becomes("model.freeze", _MODEL | {"finetuning_type": "lora"} | _FROZEN, values.freeze),
    Becomes("model.gradient_checkpointing", {"disable_gradient_checkpointing": False}, lambda off: not off),
    Becomes("model.lora", _MODEL | {"finetuning_type": "lora"} | _FROZEN | {"lora_rank": 8, "lora_alpha": None,
            "lora_dropout": 0.0, "lora_target": "all"} | _QUANTIZED, values.lora),
    Becomes("data.train", {"dataset": None} | _ROWS | {DATASET_INFO: None}, datasets.train,
            "a row that cannot be read is quarantined with its reason"),
    Becomes("data.heldout", {"eval_dataset": None} | _ROWS | {DATASET_INFO: None}, datasets.heldout),
    Becomes("data.heldout_fraction", {"val_size": 0.0}, values.heldout_fraction),
    Becomes("data.max_length", {"cutoff_len": 2048}),
    Becomes("data.too_long", {"cutoff_len": 2048}, lambda _: "truncate",
            "LLaMA-Factory cuts prompt and answer in proportion, here the end goes; `drop` leaves such rows out"),
    Becomes("data.min_pixels", _MODEL | {"image_min_pixels": 32 * 32},
            lambda path, template, pixels: values.pixels(path, template, max(pixels, 3136)),
            "3136 is the smallest that Qwen2.5-VL's own processor makes of any"),
    Becomes("data.max_pixels", _MODEL | {"image_max_pixels": 768 * 768}, values.pixels,
            "LLaMA-Factory resizes a larger picture twice, here it is done once: sizes can differ by a patch"),
    Becomes("data.supervise", {"mask_history": False}, lambda last: "last_answer" if last else "answers"),
    Becomes("data.pack", {"flash_attn": "auto"}, lambda attention: str(attention) != "disabled",
            "changes no result: rows of a micro-batch cannot see each other"),
    Becomes("data.workers", {"dataloader_num_workers": 0}),
    Becomes("loss", {"use_dft_loss": False, "use_eaft_loss": False, "eaft_alpha": 1.0, "use_asft_loss": False,
                     "asft_alpha": 0.1}, values.loss,
            "eaft's weight is over ln 20, in LLaMA-Factory over 3.0", lambda loss: loss["name"] == "eaft"),
    Becomes("optim.lr", {"learning_rate": 5.0e-5}, float),
    Becomes("optim.schedule", {"lr_scheduler_type": "linear"}, values.one_of(values.SCHEDULES, "take one of these"),
            "the first step has lr / warm-up steps, in LLaMA-Factory zero"),
    Becomes("optim.warmup_ratio", {"warmup_ratio": 0.0, "warmup_steps": 0, "lr_scheduler_type": "linear",
                                   "max_steps": -1}, values.warmup),
    Becomes("optim.betas", {"adam_beta1": 0.9, "adam_beta2": 0.999}, lambda *betas: [float(beta) for beta in betas]),
    Becomes("optim.eps", {"adam_epsilon": 1.0e-8}, float),
    Becomes("optim.weight_decay", {"weight_decay": 0.0}, float),
    Becomes("optim.clip", {"max_grad_norm": 1.0}, float),
    Becomes("optim.batch_size", {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, GPUS: None},
            values.batch_size,
            "the loss is divided by the answer tokens of all of them, not by those of each micro-batch"),
    Becomes("train.epochs", {"num_train_epochs": 3.0, "max_steps": -1}, values.epochs),
    Becomes("train.max_steps", {"max_steps": -1}, lambda steps: steps if steps > 0 else LEFT_OUT),
    Becomes("train.save_every", {"save_steps": 500, "save_strategy": "steps"},
            lambda steps, strategy: int(steps) if strategy == "steps" and steps >= 1 else LEFT_OUT),
    Becomes("train.keep", {"save_total_limit": None}, lambda most: 2 if most is None else max(2, most),
            "two or more newest checkpoints are kept; LLaMA-Factory keeps all unless it is told"),
    Becomes("train.heldout_every", {"eval_steps": None}, lambda steps: int(steps) if (steps or 0) >= 1 else LEFT_OUT),
    Becomes("train.micro_tokens", {"cutoff_len": 2048}, lambda length: max(8192, length),
            "memory decides it, and it changes no result; `dft-mm plan` chooses"),
    Becomes("log.trackers", {"report_to": "none", "use_swanlab": False}, values.trackers),
)  # fmt: skip


@dataclass(frozen=True)
class Off:
    """A key that is refused unless it has one of these values."""

    values: tuple[Any, ...]
    instead: str


_NO = (None, False, 0, 0.0, "", "none", "no")


def _off(instead: str, *keys: str, values: tuple[Any, ...] = _NO) -> dict[str, Off]:
    return {key: Off(values, instead) for key in keys}


_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf")
REFUSED: dict[str, Off] = {
    **_off("only stage sft is done; DPO and others: TRL, or scripts/paper/table2", "stage", values=("sft",)),
    **_off("this file does not train: `dft-mm eval` scores a model", "do_train", values=(True,)),
    **_off("a step has packs of cutoff_len tokens there and examples here: take it out, and say in "
           "per_device_train_batch_size how many examples a micro-batch has. Rows are packed here anyway, which "
           "changes nothing else", "packing", "neat_packing"),
    **_off("only answers are learned: take it out", "train_on_prompt"),
    **_off("padding is never learned: take it out", "ignore_pad_token_for_loss", values=(True,)),
    **_off("give each source a `weight` in the recipe instead (times that a row is seen in an epoch)",
           "interleave_probs"),
    **_off("rows of all sources are mixed as concat does it: take it out, and give sources a `weight`", "mix_strategy",
           values=("concat",)),
    **_off("rows are always drawn in an order of their own each epoch, by the seed: take it out", "disable_shuffling"),
    **_off("give the sources whose rows bring none of their own a `system`, and take it out", "default_system"),
    **_off("tools are written as the model's own template or the Qwen form does it: take it out", "tool_format"),
    **_off("name the data sets they were made of instead", "tokenized_path"),
    **_off("noise on embeddings is not done: take it out", "neftune_noise_alpha"),
    **_off("losses: dft_mm has `power`, `mix` and others for targets that are not certain; take it out",
           "label_smoothing_factor"),
    **_off("the optimizer is AdamW: take it out", "optim", values=(None, *_ADAMW)),
    **_off("the optimizer is AdamW: take it out", "optim_args", "optim_target_modules", "use_galore", "use_apollo",
           "use_badam", "use_adam_mini", "use_muon"),
    **_off("schedules have no arguments but warmup_ratio: take it out", "lr_scheduler_kwargs"),
    **_off("other learning rates within an adapter are not done: take it out", "loraplus_lr_ratio"),
    **_off("adapters are plain LoRA: take it out", "use_rslora", "use_dora", "pissa_init", "additional_target",
           "use_llama_pro"),
    **_off("training starts from whole weights: merge the adapter first, and name what came out as model_name_or_path",
           "adapter_name_or_path", "adapter_folder", "create_new_adapter"),
    **_off("modules apart from layers cannot be chosen: take it out", "freeze_extra_modules"),
    **_off("the vocabulary stays as it is: add tokens to the model first, and name that folder", "resize_vocab",
           "add_tokens", "add_special_tokens", "new_special_tokens_config"),
    **_off("download that revision, and name its folder as model_name_or_path", "model_revision",
           values=(None, "main")),
    **_off("the architecture stays that of config.json: change it there", "rope_scaling", "shift_attn",
           "mixture_of_depths"),
    **_off("start from weights: `builtin:tiny-vl` and `builtin:tiny-lm` are random ones", "train_from_scratch"),
    **_off("only dense models are supported", "moe_aux_loss_coef"),
    **_off("FP8 is not done: take it out", "fp8", "fp8_enable_fsdp_float8_all_gather"),
    **_off("DeepSpeed is what trains: take it out, and choose a file of ds_configs", "fsdp", "fsdp_config", "use_kt",
           "kt_config", "use_mca", "use_megatron_bridge", "megatron_bridge_args", "use_hyper_parallel",
           "hyper_parallel_args", "parallelism_config"),
    **_off("a checkpoint of LLaMA-Factory cannot be gone on from: name its weights as model_name_or_path",
           "resume_from_checkpoint", values=(None, False, True)),
    **_off("the last weights are the result; score several checkpoints by `dft-mm export --step` and `dft-mm eval`",
           "load_best_model_at_end", "early_stopping_steps"),
    **_off("nothing is left out at the end of an epoch: take it out", "dataloader_drop_last"),
    **_off("say optim.batch_size alone; memory is a matter of train.micro_tokens: take it out",
           "auto_find_batch_size"),
}  # fmt: skip


def _why(reason: str, *keys: str) -> dict[str, str]:
    return dict.fromkeys(keys, reason)


NOTED: dict[str, str] = {
    **_why("every step is in metrics.jsonl, as one line", "logging_steps", "logging_strategy", "logging_first_step",
           "logging_dir", "log_level", "log_level_replica", "log_on_each_node", "logging_nan_inf_filter",
           "disable_tqdm", "include_num_input_tokens_seen",
           "include_effective_tokens_per_second", "include_tokens_per_second", "print_param_status", "debug",
           "skip_memory_metrics"),
    **_why("`dft-mm report` draws the curves", "plot_loss"),
    **_why("what belongs to an account or a server is set as the tracker's own library wants it, in the environment",
           "swanlab_project", "swanlab_workspace", "swanlab_run_name", "swanlab_mode", "swanlab_api_key",
           "swanlab_logdir", "swanlab_lark_webhook_url", "swanlab_lark_secret", "project", "trackio_space_id",
           "trackio_bucket_id", "trackio_static_space_id"),
    **_why("a checkpoint always has all that going on needs; weights alone are in export/", "save_only_model",
           "save_on_each_node", "save_safetensors", "enable_jit_checkpoint"),
    **_why("a run folder is never overwritten: the same recipe goes on, another one needs another name",
           "overwrite_output_dir"),
    **_why("prepared rows are checked against their files, and made again when these change", "overwrite_cache",
           "data_shared_file_system"),
    **_why("`dft-mm prepare` uses all cores", "preprocessing_num_workers", "preprocessing_batch_size"),
    **_why("the index is on the disk, not in memory", "streaming", "buffer_size"),
    **_why("train.heldout_every counts steps between measurements of the held-out loss (100 unless you set it)",
           "do_eval", "eval_strategy", "evaluation_strategy", "eval_delay", "eval_on_start",
           "per_device_eval_batch_size", "eval_accumulation_steps", "eval_on_each_dataset", "eval_do_concat_batches",
           "eval_use_gather_object", "prediction_loss_only", "bf16_full_eval", "fp16_full_eval",
           "include_for_metrics", "batch_eval_metrics", "metric_for_best_model", "greater_is_better"),
    **_why("scoring is a command of its own, `dft-mm eval`", "do_predict", "predict_with_generate", "compute_accuracy",
           "eval_num_beams", "generation_max_length", "generation_num_beams", "generation_config", "do_sample",
           "temperature", "top_p", "top_k", "num_beams", "max_length", "max_new_tokens", "repetition_penalty",
           "length_penalty", "skip_special_tokens", "default_system_prompt"),
    **_why("a silent rank is named after train.hang_minutes, and the run ends", "ddp_timeout"),
    **_why("DeepSpeed does what it is for", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
           "ddp_static_graph", "ddp_backend", "local_rank", "accelerator_config", "average_tokens_across_devices"),
    **_why("supported models need no code from a hub", "trust_remote_code"),
    **_why("set HF_HOME, HF_TOKEN in the environment", "cache_dir", "hf_hub_token", "ms_hub_token", "om_hub_token",
           "hub_token"),
    **_why("nothing is sent anywhere: `dft-mm export` writes a folder", "push_to_hub", "hub_private_repo",
           "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
    **_why("speed and memory only: loss head and packing of our own take its place", "enable_liger_kernel",
           "use_liger_kernel", "liger_kernel_config", "use_unsloth", "use_unsloth_gc", "use_v1_kernels", "use_cache",
           "torch_compile", "torch_compile_backend", "torch_compile_mode", "tf32", "torch_empty_cache_steps"),
    **_why("gradient checkpointing is switched by model.gradient_checkpointing", "use_reentrant_gc",
           "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
           "activation_checkpointing_kwargs"),
    **_why("speed and memory only: micro-batches are made ahead by data.workers", "dataloader_pin_memory",
           "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
           "dataloader_in_order", "remove_unused_columns", "group_by_length", "train_sampling_strategy",
           "length_column_name", "sortish_sampler", "low_cpu_mem_usage", "label_names"),
    **_why("the loss is float32 whatever the dtype", "upcast_lmhead_output", "upcast_layernorm"),
    **_why("texts of rows never become control tokens", "split_special_tokens", "use_fast_tokenizer"),
    **_why("video and audio rows are quarantined", "video_max_pixels", "video_min_pixels", "video_fps", "video_maxlen",
           "use_audio_in_video", "audio_sampling_rate"),
    **_why("of other models than the supported ones", "image_do_pan_and_scan", "crop_to_patches", "enable_thinking",
           "preserve_thinking", "kt_cpu_activation", "kt_weight_path", "kt_non_expert_weight_path",
           "kt_expert_checkpoint_path", "kt_use_lora_experts", "kt_lora_expert_num",
           "kt_lora_expert_intermediate_size", "init_special_tokens", "hyper_parallel_cp_size", "fp8_backend"),
    **_why("of another stage or method than the one chosen", "freeze_trainable_layers", "freeze_trainable_modules",
           "module_dropout", "oft_rank", "oft_block_size", "oft_target", "pref_beta", "pref_ftx", "pref_bco_weight",
           "pref_loss", "dpo_label_smoothing", "kto_chosen_weight", "kto_rejected_weight", "simpo_gamma",
           "ppo_buffer_size", "ppo_epochs", "ppo_score_norm", "ppo_target", "ppo_whiten_rewards", "ref_model",
           "ref_model_adapters", "ref_model_quantization_bit", "reward_model", "reward_model_adapters",
           "reward_model_quantization_bit", "reward_model_type", "ld_alpha", "loraplus_lr_embedding", "pissa_iter",
           "pissa_convert", "galore_target", "galore_rank", "galore_update_interval", "galore_scale",
           "galore_proj_type", "galore_layerwise", "apollo_target", "apollo_rank", "apollo_update_interval",
           "apollo_scale", "apollo_proj", "apollo_proj_type", "apollo_scale_type", "apollo_layerwise",
           "apollo_scale_front", "badam_mode", "badam_start_block", "badam_switch_mode", "badam_switch_interval",
           "badam_update_ratio", "badam_mask_mode", "badam_verbose"),
    **_why("of serving or exporting, not of training", "infer_backend", "offload_folder", "use_kv_cache", "infer_dtype",
           "quantization_device_map", "export_dir", "export_size", "export_device", "export_quantization_bit",
           "export_quantization_dataset", "export_quantization_nsamples", "export_quantization_maxlen",
           "export_legacy_format", "export_hub_model_id", "vllm_maxlen", "vllm_gpu_util", "vllm_enforce_eager",
           "vllm_max_lora_rank", "vllm_config", "sglang_maxlen", "sglang_mem_fraction", "sglang_tp_size",
           "sglang_config", "sglang_lora_backend"),
    **_why("the launcher says where processes run: docs, several nodes", "ray_num_workers", "ray_init_kwargs",
           "ray_run_name", "ray_storage_path", "placement_strategy", "resources_per_worker", "master_addr",
           "master_port", "use_cpu", "no_cuda"),
    **_why("profile with torch's or NVIDIA's own tools", "enable_torch_profiler", "profiler_output_dir",
           "profiler_wait_steps", "profiler_warmup_steps", "profiler_active_steps", "profiler_repeat",
           "profiler_record_shapes", "profiler_profile_memory", "profiler_with_stack", "profile_modules"),
    **_why("a run goes on from its last checkpoint by itself, at the same row", "ignore_data_skip",
           "restore_callback_states_from_checkpoint", "full_determinism"),
    **_why("one seed decides all: `seed`", "data_seed"),
}  # fmt: skip
