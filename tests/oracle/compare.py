"""Compares the output of `kinora forward` with a fixture, by hand: relative L2 of every tensor, worst last.

    kinora forward --model ../fixtures/transformer-small --inputs ../fixtures/transformer-small/case.safetensors \\
        --out /tmp/out.safetensors --gradients --dtype bf16
    python compare.py ../fixtures/transformer-small /tmp/out.safetensors
"""
import json
import pathlib
import sys

import safetensors.torch

folder, output = pathlib.Path(sys.argv[1]), safetensors.torch.load_file(sys.argv[2])
truth = safetensors.torch.load_file(folder / "case.safetensors")
report = json.loads((folder / "case.json").read_text())
lines = []
for name, peer in report["bf16_error"].items():
    want = truth[name].double()
    if name not in output or output[name].shape != want.shape:
        lines.append((float("inf"), f"{name}: " + ("missing" if name not in output else f"is {tuple(output[name].shape)}")))
        continue
    error = float((output[name].double() - want).norm() / want.norm())
    lines.append((error, f"{error:.2e}  diffusers: f32 {report['float32_error'][name]:.2e}, bf16 {peer:.2e}"
                         f" (ours is {error / peer:.2f}x)  {name}"))
print("\n".join(line for _, line in sorted(lines)))
