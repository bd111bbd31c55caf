"""Table 5 (appendix A.5): iw-SFT (arXiv 2507.12856) beside DFT on the models and rows of Table 1, one epoch.

    python -m scripts.paper.data.numinamath
    python -m scripts.paper.table5 --models Qwen2.5-Math-1.5B --ranks 8 --scoring "--backend vllm"
"""

from dataclasses import replace

from scripts.paper.experiment import main
from scripts.paper.table1 import TABLE1

TABLE5 = replace(TABLE1, table="5", losses=("iw_sft", "dft"), base=False)

if __name__ == "__main__":
    raise SystemExit(main(TABLE5, __doc__))
