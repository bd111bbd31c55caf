"""Table 8 (appendix A.7): LoRA of rank 8 and alpha 16 on two models, all else as in Table 1.

    python -m scripts.paper.data.numinamath
    python -m scripts.paper.table8 --ranks 8 --scoring "--backend vllm"
"""

from dataclasses import replace

from scripts.paper.experiment import main
from scripts.paper.table1 import MODELS, TABLE1

TABLE8 = replace(
    TABLE1,
    table="8",
    models=tuple(model for model in MODELS if model.name in ("LLaMA-3.2-3B", "Qwen2.5-Math-1.5B")),
    changes=("model.lora={rank: 8, alpha: 16}",),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE8, __doc__))
