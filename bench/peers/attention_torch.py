#!/usr/bin/env python3
"""PyTorch's scaled_dot_product_attention on the shapes of bench/bench_attention.c: the same lines, without the peak.

    attention_torch.py [--threads N] [WORD]
"""
import argparse
import time

import torch
import torch.nn.functional as F

SHAPES = [  # clips, queries, keys, heads, head size
    ("16 clips of 64, 2 x 64", 16, 64, 64, 2, 64),
    ("16 clips of 64 to 10, 2 x 64", 16, 64, 10, 2, 64),
    ("2 clips of 2048, 6 x 64", 2, 2048, 2048, 6, 64),
    ("1 clip of 8192, 6 x 64", 1, 8192, 8192, 6, 64),
    ("1 clip of 4096, 12 x 128", 1, 4096, 4096, 12, 128),
]


def best_of(run, seconds=1.0):
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("word", nargs="?", default="")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for name, clips, queries, keys, heads, size in SHAPES:
        for dtype, label in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
            if options.word not in f"{name} {label}":
                continue
            q = torch.randn(clips, queries, heads, size, dtype=dtype).transpose(1, 2).requires_grad_()
            k = torch.randn(clips, keys, heads, size, dtype=dtype).transpose(1, 2).requires_grad_()
            v = torch.randn(clips, keys, heads, size, dtype=dtype).transpose(1, 2).requires_grad_()
            out = F.scaled_dot_product_attention(q, k, v)
            grad = torch.randn_like(out)
            with torch.no_grad():
                forward = best_of(lambda: F.scaled_dot_product_attention(q, k, v))
            backward = best_of(lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True))
            work = clips * queries * keys * heads * size * 1e-9
            print(f"{name:30} {label:4} forward {1e3 * forward:9.3f} ms {4 * work / forward:7.1f} GFLOP/s"
                  f"   backward {1e3 * backward:9.3f} ms {10 * work / backward:7.1f} GFLOP/s", flush=True)


if __name__ == "__main__":
    main()
