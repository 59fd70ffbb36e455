"""Fixture for the position and timestep embeddings: diffusers' values at chosen places.

    python tables.py ../fixtures

Writes ../fixtures/tables.safetensors with, for the head sizes d and embedding sizes n below:
  rope.positions [T, 3] i32 (t, y, x); rope.cos.d, rope.sin.d [T, d/2]; rope.input.d, rope.output.d [T, 2, d]
  timestep.values [R]; timestep.embedding.n [R, n] as [cos | sin]
"""
import pathlib
import sys

import safetensors.torch
import torch
from diffusers.models.embeddings import Timesteps
from diffusers.models.transformers import transformer_wan as wan

HEAD_SIZES = (128, 64, 32, 20)
EMBEDDING_SIZES = (256, 50)
POSITIONS = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 3, 5), (20, 59, 103), (7, 1023, 512), (1023, 1, 1000)]
TIMESTEPS = [0.0, 0.001, 1.0, 41.25, 500.0, 637.0, 999.0, 1000.0]


def rope(head_size, generator, fixture):
    embed = wan.WanRotaryPosEmbed(head_size, (1, 1, 1), 1024)
    widths = [embed.t_dim, embed.h_dim, embed.w_dim]
    positions = torch.tensor(POSITIONS)
    rows = lambda table: torch.cat([part[positions[:, axis]] for axis, part in enumerate(table.split(widths, dim=1))], 1)
    cos, sin = rows(embed.freqs_cos), rows(embed.freqs_sin)
    queries = torch.randn(len(POSITIONS), 2, head_size, generator=generator)

    # The rotation is a closure inside the attention processor: see what reaches the attention itself.
    attention = wan.WanAttention(2 * head_size, heads=2, dim_head=head_size)
    for name in ("to_q", "norm_q"):
        setattr(attention, name, torch.nn.Identity())
    seen = {}

    def spy(query, key, value, **_):
        seen["query"] = query
        return query

    plain, wan.dispatch_attention_fn = wan.dispatch_attention_fn, spy
    wan.WanAttnProcessor()(attention, queries.flatten(1)[None], rotary_emb=(cos[None, :, None], sin[None, :, None]))
    wan.dispatch_attention_fn = plain

    fixture[f"rope.cos.{head_size}"] = cos[:, 0::2].float().contiguous()
    fixture[f"rope.sin.{head_size}"] = sin[:, 1::2].float().contiguous()
    fixture[f"rope.input.{head_size}"] = queries
    fixture[f"rope.output.{head_size}"] = seen["query"][0].detach().contiguous()


def main(root):
    generator = torch.Generator().manual_seed(3)
    fixture = {"rope.positions": torch.tensor(POSITIONS, dtype=torch.int32), "timestep.values": torch.tensor(TIMESTEPS)}
    for head_size in HEAD_SIZES:
        rope(head_size, generator, fixture)
    for size in EMBEDDING_SIZES:
        embedding = Timesteps(num_channels=size, flip_sin_to_cos=True, downscale_freq_shift=0)
        fixture[f"timestep.embedding.{size}"] = embedding(fixture["timestep.values"]).contiguous()
    safetensors.torch.save_file(fixture, root / "tables.safetensors")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
