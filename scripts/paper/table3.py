"""Table 3 (section 4.3): code. Three models on 10,000 prompts of UltraFeedback, each with its best-rated response; one
epoch at 5e-5, warm-up ratio 0.05, batches of 16; HumanEval, HumanEval+ and MultiPL-E in eight languages.

    python -m scripts.paper.data.ultrafeedback
    python -m scripts.paper.table3 --ranks 8 --scoring "--backend vllm"
"""

from scripts.paper.experiment import Experiment, Model, main

MODELS = (
    Model("Qwen2.5-3B", "Qwen/Qwen2.5-3B"),
    Model("Qwen2.5-Coder-3B", "Qwen/Qwen2.5-Coder-3B"),
    Model("Qwen2.5-Coder-7B", "Qwen/Qwen2.5-Coder-7B"),
)
TABLE3 = Experiment("3", "qwen2_5_coder_3b_ultrafeedback_dft.yaml", "code", MODELS)

if __name__ == "__main__":
    raise SystemExit(main(TABLE3, __doc__))
