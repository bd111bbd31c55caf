"""Table 1 (section 4.1): five base models on 100,000 rows of NuminaMath-CoT by SFT and by DFT, five mathematics
benchmarks, mean of 16 answers.

    python -m scripts.paper.data.numinamath
    python -m scripts.paper.table1 --models Qwen2.5-Math-1.5B --ranks 8 --scoring "--backend vllm"
"""

from scripts.paper.experiment import Experiment, Model, main

MODELS = (
    Model("LLaMA-3.2-3B", "meta-llama/Llama-3.2-3B"),
    Model("LLaMA-3.1-8B", "meta-llama/Llama-3.1-8B", ("optim.lr=2e-5",)),
    Model("DeepSeekMath-7B", "deepseek-ai/deepseek-math-7b-base"),
    Model("Qwen2.5-Math-1.5B", "Qwen/Qwen2.5-Math-1.5B"),
    Model("Qwen2.5-Math-7B", "Qwen/Qwen2.5-Math-7B"),
)
TABLE1 = Experiment("1", "qwen2_5_math_1_5b_numinamath_dft.yaml", "math", MODELS)

if __name__ == "__main__":
    raise SystemExit(main(TABLE1, __doc__))
