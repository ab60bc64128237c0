"""`python -m tests.clients.write_for_tools DIRECTORY`: children whose sizes quantizers take, as tests/clients/write.py.

Hidden size 128 and 256 neurons: blocks of 128 along a matrix's input, as GPTQ and AWQ have them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import PruneConfig
from minitron_cli.stages import importance, prune
from tests.clients.write import OPTIONS, expected
from tests.unit.stages.place import context, data, write_place

FAMILIES = ("gemma3_text", "llama", "qwen3")
PARENT = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32, "max_position_embeddings": 512}
SIZES = {"hidden": 128, "ffn": 256}


def main(root: Path) -> None:
    torch.set_num_threads(1)
    cases = [_case(root / model_type, model_type) for model_type in FAMILIES]
    (root / "cases.json").write_text(json.dumps(cases, indent=2))
    print(f"wrote {len(cases)} children to {root}")


def _case(root: Path, model_type: str) -> dict[str, Any]:
    own = {k: v for k, v in OPTIONS.get(model_type, {}).items() if k != "query_pre_attn_scalar"}
    write_place(root, model_type, **(PARENT | own))
    parent, here = open_source_model(root / "model"), context(root / "runs")
    scores = importance.run(here, parent, data(root), ImportanceConfig(samples=4, batch_size=4, layer_removal=False))
    child = prune.run(here, parent, PruneConfig(shape=SIZES), scores=scores)
    save_file(expected(child.path), root / "expected.safetensors")
    return {
        "model_type": model_type,
        "child": str(child.path.relative_to(root.parent)),
        "expected": f"{model_type}/expected.safetensors",
        "text": f"{model_type}/text",
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
