"""Table 4 (section 4.4): Qwen2.5-VL-3B on WeThink, one epoch at 5e-5, with what LLaMA-Factory does by default:
vision tower and projector frozen. MathVerse, MathVision and WeMath through VLMEvalKit.

    python -m scripts.paper.data.wethink
    python -m scripts.paper.table4 --ranks 8 --scoring "--backend vllm"
"""

from scripts.paper.experiment import Experiment, Model, main

TABLE4 = Experiment(
    "4", "qwen2_5_vl_3b_wethink_dft.yaml", "multimodal", (Model("Qwen2.5-VL-3B", "Qwen/Qwen2.5-VL-3B-Instruct"),)
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE4, __doc__))
