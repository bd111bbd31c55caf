"""VLMEvalKit on its own, in a process of its own: predictions in, its table out. Shares no line with the package.

A JSON request on standard input: {"tsv", "kind", "predictions": {index: text}, and either "right": {index: bool} for
verdicts made elsewhere, or "judge": {"url"}, or neither for exact matching}. The result is written to "result".
"""

import importlib
import importlib.util
import json
import multiprocessing
import os
import sys
import types
from pathlib import Path

ROOT = next(iter(importlib.util.find_spec("vlmeval").submodule_search_locations))


def light(name, **names):
    module = types.ModuleType(name)
    module.__path__ = [str(Path(ROOT, *name.split(".")[1:]))]
    vars(module).update(names)
    sys.modules[name] = module


def main():
    asked = json.load(sys.stdin)
    os.environ.update(PRED_FORMAT="tsv", LMUData=str(Path.cwd()))
    multiprocessing.set_start_method("fork")
    for name in ("vlmeval", "vlmeval.dataset", "vlmeval.api"):
        light(name)
    gpt = importlib.import_module("vlmeval.api.gpt")
    api = sys.modules["vlmeval.api"]
    api.OpenAIWrapper, api.HFChatModel, api.SiliconFlowAPI = gpt.OpenAIWrapper, None, None
    vqa = importlib.import_module("vlmeval.dataset.image_vqa")
    mcq = importlib.import_module("vlmeval.dataset.image_mcq")
    cls = {"mathvision": vqa.MathVision, "mathverse": vqa.MathVerse, "wemath": mcq.WeMath}[asked["kind"]]
    name = {"mathvision": "MathVision", "mathverse": "MathVerse_MINI", "wemath": "WeMath"}[asked["kind"]]
    cls.DATASET_MD5 = {}  # else it would fetch the official table
    Path(f"{name}.tsv").symlink_to(asked["tsv"])
    data = cls(name)
    frame = data.data.drop(columns=["image"])
    keys = [str(index) for index in frame["index"]]
    frame["prediction"] = [asked["predictions"][key] for key in keys]
    frame.to_csv("m.tsv", sep="\t", index=False)
    more = {"model": "exact_matching"}
    if "right" in asked:
        right = [asked["right"][key] for key in keys]
        if asked["kind"] == "mathvision":
            frame["res"] = [gold if hit else "Z" for gold, hit in zip(frame["answer"], right)]
            frame["log"] = "mine"
            frame.to_csv("m_mine.tsv", sep="\t", index=False)
        elif asked["kind"] == "mathverse":
            frame["extract"], frame["log_extract"] = "mine", "mine"
            frame.to_csv("m_mine_extract.tsv", sep="\t", index=False)
            frame["score"], frame["log_score"] = right, "mine"
            frame.to_csv("m_mine_score.tsv", sep="\t", index=False)
        else:
            frame["hit"], frame["log"] = [int(hit) for hit in right], "mine"
            frame.to_csv("m_exact_matching.tsv", sep="\t", index=False)
        more = {"model": "exact_matching" if asked["kind"] == "wemath" else "mine"}
    elif "judge" in asked:
        url = asked["judge"]["url"] + "/chat/completions"
        more = {"model": "mine", "api_base": url, "key": "k", "retry": 2, "nproc": 16, "verbose": False}
    table = data.evaluate("m.tsv", **more)
    scored = importlib.import_module("vlmeval.smp").load("m_mine_score.tsv") if asked["kind"] == "mathverse" else {}
    result = {
        "table": json.loads(json.dumps(table.to_dict("records"), default=float)),
        "score": list(map(int, scored.get("score", []))),
    }
    Path(asked["result"]).write_text(json.dumps(result))


main()
