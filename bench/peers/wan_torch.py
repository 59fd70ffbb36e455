"""The peer: the same transformer in PyTorch (diffusers' WanTransformer3DModel), timed for one kind of step.

    python wan_torch.py --mode train --dtype bf16 --tokens 2048 --batch 2

A training step is forward, backward, clipping and AdamW (fused), with float32 weights, under autocast for bf16. A
denoising step is one forward without gradients, for bf16 with all weights in bf16. Prints one JSON line in the terms of
`kinora bench step --json`. Versions: see README.md.
"""
import argparse
import json
import statistics
import time

import diffusers
import torch

CHANNELS, PATCH, TEXT_DIM, FREQ_DIM = 16, (1, 2, 2), 256, 256
GRID = 16  # patches along height and width; the rest of the tokens is time


def arguments():
    parser = argparse.ArgumentParser()
    for name, default in dict(hidden=384, layers=8, heads=6, ffn=1536, tokens=2048, batch=2, text=64, threads=2,
                              warmup=2, steps=5).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--mode", choices=["train", "sample"], default="train")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    chosen = parser.parse_args()
    if chosen.tokens % GRID**2 or chosen.hidden % chosen.heads:
        parser.error(f"--tokens must be a multiple of {GRID**2} and --hidden of --heads")
    return chosen


def forward_flop(a):
    """Two for each multiply-add of the block's matrix products and attentions; everything else is small change."""
    stream = a.tokens * a.batch
    self_attention = 4 * a.hidden**2 + 2 * a.tokens * a.hidden
    cross_attention = 2 * a.hidden**2 + 2 * a.text * a.hidden
    text = a.batch * a.text * 2 * a.hidden**2
    return 2 * a.layers * (stream * (self_attention + cross_attention + 2 * a.hidden * a.ffn) + text)


def training_step(model, call, inputs, bf16):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    clean, timestep, text = inputs
    noise = torch.randn_like(clean)
    sigma = (timestep / 1000).view(-1, 1, 1, 1, 1)

    def step():
        with torch.autocast(clean.device.type, dtype=torch.bfloat16, enabled=bf16):
            velocity = call((1 - sigma) * clean + sigma * noise, timestep, text, return_dict=False)[0]
        torch.nn.functional.mse_loss(velocity.float(), noise - clean).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def denoising_step(model, call, inputs, bf16):
    if bf16:
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    latents, timestep, text = (tensor.bfloat16() if bf16 and tensor.ndim > 1 else tensor for tensor in inputs)

    @torch.no_grad()
    def step():
        call(latents, timestep, text, return_dict=False)

    return step


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        patch_size=PATCH, num_attention_heads=a.heads, attention_head_dim=a.hidden // a.heads, in_channels=CHANNELS,
        out_channels=CHANNELS, text_dim=TEXT_DIM, freq_dim=FREQ_DIM, ffn_dim=a.ffn, num_layers=a.layers).to(a.device)
    frames = a.tokens // GRID**2 * PATCH[0]
    inputs = [tensor.to(a.device) for tensor in (
        torch.randn(a.batch, CHANNELS, frames, GRID * PATCH[1], GRID * PATCH[2]), torch.rand(a.batch) * 1000,
        torch.randn(a.batch, a.text, TEXT_DIM))]
    make = training_step if a.mode == "train" else denoising_step
    step = make(model, torch.compile(model) if a.compile else model, inputs, a.dtype == "bf16")

    seconds = []
    for i in range(a.warmup + a.steps):
        start = time.perf_counter()
        step()
        if a.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[a.warmup:])
    flop = forward_flop(a) * (3 if a.mode == "train" else 1)
    print(json.dumps(dict(
        program=f"diffusers {diffusers.__version__}, torch {torch.__version__}" + (", compiled" if a.compile else ""),
        mode=a.mode, dtype=a.dtype, parameters=sum(p.numel() for p in model.parameters()), tokens=a.tokens,
        batch=a.batch, threads=a.threads, seconds=round(median, 4),
        tokens_per_second=round(a.tokens * a.batch / median, 1), gflop_per_second=round(flop / median * 1e-9, 1))))


if __name__ == "__main__":
    main()
