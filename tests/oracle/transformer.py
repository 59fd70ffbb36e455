"""Fixtures for the whole transformer: random weights, one case each, its outputs and gradients by diffusers.

    python transformer.py ../fixtures

Writes, for every configuration below, ../fixtures/transformer-NAME/ with a model directory in diffusers' own layout and
case.safetensors (inputs, target, sample, loss, a gradient for every parameter and for hidden_states) and
case.json (where it comes from, and the relative L2 errors that diffusers itself makes in float32 and in bfloat16).

The truth is diffusers' own code run in float64. Its casts to float32 (`.float()`) become casts to float64 for that, but
for one: the angles of the timestep embedding are float32 in diffusers and are taken as part of the definition.
"""
import contextlib
import json
import pathlib
import shutil
import sys

import diffusers
import safetensors.torch
import torch
from diffusers import WanTransformer3DModel

CONFIGURATIONS = {
    # Wan's own patch and channels, small.
    "small": dict(
        seed=11, store=torch.float32, shard="5GB", grid=(3, 4, 5), text_length=9, timestep=637.0,
        config=dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=32, in_channels=16, out_channels=16,
                    text_dim=24, freq_dim=64, ffn_dim=160, num_layers=3)),
    # Nothing is a multiple of anything; no affine norm before cross-attention; another eps; several files.
    "odd": dict(
        seed=12, store=torch.float32, shard="300KB", grid=(3, 5, 7), text_length=7, timestep=41.25,
        config=dict(patch_size=(2, 3, 5), num_attention_heads=3, attention_head_dim=20, in_channels=5, out_channels=5,
                    text_dim=24, freq_dim=50, ffn_dim=100, num_layers=2, cross_attn_norm=False, eps=1e-5)),
    # The published head size; weights stored in bfloat16.
    "wide-head": dict(
        seed=13, store=torch.bfloat16, shard="5GB", grid=(2, 6, 6), text_length=12, timestep=999.0,
        config=dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=128, in_channels=8, out_channels=8,
                    text_dim=16, freq_dim=32, ffn_dim=96, num_layers=1)),
}


def randomize(model, generator):
    """Every parameter matters: no zero biases, no unit norms, gates and shifts of order one."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "scale_shift_table" in name:
            value = 0.5 * noise
        elif ".norm" in name and name.endswith("weight"):
            value = 1 + 0.25 * noise
        elif name.endswith("bias"):
            value = 0.25 * noise
        else:
            value = noise / parameter[0].numel() ** 0.5
        parameter.data.copy_(value)


@contextlib.contextmanager
def float_means_double(model):
    """Inside, `.float()` keeps float64, but for the timestep embedding's angles."""
    plain_float, plain_embedding = torch.Tensor.float, model.condition_embedder.timesteps_proj.forward

    def embedding(timesteps):
        torch.Tensor.float = plain_float
        try:
            return plain_embedding(timesteps)
        finally:
            torch.Tensor.float = torch.Tensor.double

    model.condition_embedder.timesteps_proj.forward = embedding
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.Tensor.float = plain_float
        model.condition_embedder.timesteps_proj.forward = plain_embedding


def run(model, case, dtype, autocast=False):
    """One forward and backward; returns {name: float64 tensor}."""
    hidden = case["hidden_states"].to(dtype, copy=True).requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        sample = model(hidden_states=hidden[None], timestep=case["timestep"],
                       encoder_hidden_states=case["encoder_hidden_states"].to(dtype)[None], return_dict=False)[0][0]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    loss = ((sample.to(wide) - case["target"].to(wide)) ** 2).mean()
    model.zero_grad(set_to_none=True)
    loss.backward()
    result = {"sample": sample.detach(), "loss": loss.detach(), "grad.hidden_states": hidden.grad}
    for name, parameter in model.named_parameters():
        result["grad." + name] = parameter.grad
    return {name: tensor.double().clone() for name, tensor in result.items()}


def errors(result, truth):
    return {name: float((result[name] - truth[name]).norm() / truth[name].norm()) for name in truth}


def make(name, options, root):
    folder = root / f"transformer-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(options["seed"])
    model = WanTransformer3DModel(**options["config"])
    randomize(model, generator)
    model.to(options["store"]).save_pretrained(folder, max_shard_size=options["shard"])

    patch, channels = options["config"]["patch_size"], options["config"]["in_channels"]
    shape = (channels, *(g * p for g, p in zip(options["grid"], patch)))
    # Inputs are bfloat16 numbers, so that the bfloat16 runs begin with the same ones.
    draw = lambda *size: torch.randn(size, generator=generator).bfloat16().float()
    case = {"hidden_states": draw(*shape), "timestep": torch.tensor([options["timestep"]]),
            "encoder_hidden_states": draw(options["text_length"], options["config"]["text_dim"]), "target": draw(*shape)}

    load = lambda dtype: WanTransformer3DModel.from_pretrained(folder, torch_dtype=dtype)
    exact = load(torch.float32).double()
    with float_means_double(exact):
        truth = run(exact, case, torch.float64)
    report = dict(
        made_with=f"diffusers {diffusers.__version__}, torch {torch.__version__}",
        float32_error=errors(run(load(torch.float32), case, torch.float32), truth),
        bf16_error=errors(run(load(torch.bfloat16), case, torch.bfloat16), truth),
        bf16_autocast_error=errors(run(load(torch.float32), case, torch.float32, autocast=True), truth))

    stored = {key: value.contiguous() for key, value in case.items()}
    stored |= {key: value.float().contiguous() for key, value in truth.items()}
    safetensors.torch.save_file(stored, folder / "case.safetensors")
    (folder / "case.json").write_text(json.dumps(report, indent=1) + "\n")
    for key in ("float32_error", "bf16_error", "bf16_autocast_error"):
        worst = max(report[key], key=report[key].get)
        print(f"{name:10s} {key:20s} sample {report[key]['sample']:.2e}  worst {report[key][worst]:.2e} ({worst})")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for name, options in CONFIGURATIONS.items():
        make(name, options, pathlib.Path(sys.argv[1]))
