"""The official `bfcl evaluate` on a folder of results, in a process of its own; prints right and total by category.

`python -m itrain_testing.officialbfcl FOLDER [CATEGORY]`, with FOLDER/result inside; `--partial` if it lacks answers.
What runs is bfcl_eval's own runner, checker and the handler of the entry under which results are exported, decoder
included. What is not installed and what judging never uses are empty modules; the list of all models, which imports
every vendor's client, is that one entry.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

from itrain_pipeline.evals.bfclresults import ENTRY

UNUSED = ("tenacity", "tree_sitter", "tree_sitter_java", "tree_sitter_javascript", "tabulate", "overrides")


def judge(root: Path, category: str = "single_turn", *, partial: bool = False) -> dict[str, tuple[int, int]]:
    os.environ["BFCL_PROJECT_ROOT"] = str(root)
    for name in UNUSED:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = empty_module(name)
    config = types.ModuleType("bfcl_eval.constants.model_config")
    sys.modules[config.__name__] = config
    config.__dict__["MODEL_CONFIG_MAPPING"] = {}
    handler = importlib.import_module("bfcl_eval.model_handler.local_inference.arch").ArchHandler
    said = dict.fromkeys(("display_name", "url", "org", "license"), "")
    config.__dict__["MODEL_CONFIG_MAPPING"][ENTRY] = types.SimpleNamespace(
        model_name=ENTRY,
        model_handler=handler,
        is_fc_model=True,
        underscore_to_dot=False,
        input_price=None,
        output_price=None,
        **said,
    )
    runner = importlib.import_module("bfcl_eval.eval_checker.eval_runner")
    runner.main([ENTRY], [category], "result", "score", partial_eval=partial)
    scores = {}
    for file in (root / "score").rglob("BFCL_v4_*_score.json"):
        head = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
        name = file.name.removeprefix("BFCL_v4_").removesuffix("_score.json")
        scores[name] = (head["correct_count"], head["total_count"])
    return scores


def empty_module(name: str) -> types.ModuleType:
    module = MagicMock(name=name)
    module.final = module.override = lambda function: function
    module.EnforceOverrides = type("EnforceOverrides", (), {})
    return module


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--partial"]
    found = judge(Path(words[0]), *words[1:], partial=len(words) < len(sys.argv) - 1)
    sys.stdout.write("\n" + json.dumps(found) + "\n")
