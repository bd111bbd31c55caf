"""Dynamic Fine-Tuning of Qwen2.5-VL and text language models on DeepSpeed ZeRO-3."""

__version__ = "0.1.0"
