"""Write a tied teacher with uneven weights in its last norm, which a rotation of a tied model cannot fold.

    python scripts/uneven_teacher.py --name tied --spread 0.6
    python scripts/repair_study.py --names tied:uneven-0.6 --ratios 0.5 --seeds 1 --rescaled 0 --output uneven.md ...

Each channel of the residual stream draws a scale exp(spread * normal). The last norm's weight is multiplied by it, all
other norms' weights by its root, and the embedding and the matrices that write to the stream are divided by its root.
The function stays nearly the same, because only the RMS of each norm weighs channels differently. Writes a Llama
checkpoint to runs/NAME/uneven-SPREAD.
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minitron_cli.artifacts.workspace import Workspace

WRITERS = ("o_proj.weight", "down_proj.weight")


def uneven(weights: dict[str, Tensor], spread: float) -> dict[str, Tensor]:
    """Tensors of a tied Llama with a random scale per channel moved from the residual stream into the norms."""
    hidden = len(weights["model.norm.weight"])
    root_D = (spread / 2 * torch.randn(hidden, generator=torch.Generator().manual_seed(0))).exp().double()

    def moved(name: str, tensor: Tensor) -> Tensor:
        if name == "model.embed_tokens.weight":
            return tensor / root_D
        if name.endswith(WRITERS):
            return tensor / root_D[:, None]
        if name.endswith("layernorm.weight"):
            return tensor * root_D
        return tensor * root_D**2 if name == "model.norm.weight" else tensor

    return {name: moved(name, tensor.double()).to(tensor.dtype).contiguous() for name, tensor in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--name", default="tied", help="name of a workspace with a tied teacher")
    parser.add_argument("--spread", type=float, default=0.6, help="standard deviation of the scale's logarithm")
    args = parser.parse_args()
    workspace = Workspace(args.runs_dir / args.name)
    teacher = workspace.require("teacher", f"python scripts/bench_teacher.py --name {args.name} --tied").path
    out = workspace.root / f"uneven-{args.spread:g}"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(teacher, out, ignore=shutil.ignore_patterns("manifest.json", "run.json", "*.jsonl"))
    weights = uneven(load_file(teacher / "model.safetensors"), args.spread)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    norm = weights["model.norm.weight"]
    print(out, f"weights of the last norm: {norm.min():.2f} to {norm.max():.2f}")


if __name__ == "__main__":
    main()
