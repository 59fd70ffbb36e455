"""Fixture for the solvers: trajectories of diffusers' schedulers on a velocity field that can be written in one line.

    python solvers.py ../fixtures                     # with the pinned diffusers
    PYTHONPATH=DIR python solvers.py --check-wan      # with diffusers 0.36.0 in DIR: is our "wan" spacing that one's?

Writes ../fixtures/solvers.safetensors: start [32]; and for every case SOLVER.SPACING.sS.nN (shift S, N steps)
CASE.sigmas [N + 1] and CASE.path [evaluations, 32], x after each evaluation has been taken.

The schedulers keep their sigmas in float32, which loses the logarithm of 1 - sigma near 1 (at sigma = 1 - 1e-6 a whole
percent of it), and they cast their steps to float32. Here the very same formulas run on float64 sigmas and states.
"""
import pathlib
import sys

import diffusers
import numpy
import safetensors.torch
import torch
from diffusers import (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler)

SIZE = 32
STEPS = (1, 2, 3, 4, 5, 10, 24)
SHIFTS = (1.0, 3.0, 5.0)
SPACINGS = ("wan", "linspace")


def velocity(x, sigma):
    k = torch.arange(SIZE, dtype=torch.float64)
    return x * torch.cos(torch.tensor(3 * sigma, dtype=torch.float64)) - torch.tanh(2 * x + sigma * k / 8)


def shifted(sigmas, shift):
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def schedule(spacing, steps, shift):
    """Wan's own code and diffusers up to 0.36 ("wan"), diffusers from 0.37 ("linspace"); float64, with the final 0."""
    first, last = (0.999, 0.0) if spacing == "wan" else (1.0, 0.001)
    sigmas = numpy.minimum(shifted(numpy.linspace(first, last, steps + 1)[:-1], shift), 1 - 1e-6)
    return numpy.append(sigmas, 0.0)


def flow_unipc(shift):
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift,
                                   solver_order=2, solver_type="bh2", predict_x0=True, lower_order_final=True)


def make_scheduler(name, sigmas, shift):
    steps = len(sigmas) - 1
    sigmas = torch.from_numpy(sigmas)
    if name == "unipc":
        scheduler = flow_unipc(shift)
        scheduler.set_timesteps(steps)
    elif name == "euler":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(steps)
    else:
        scheduler = FlowMatchHeunDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(steps)
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    assert len(scheduler.sigmas) == len(sigmas)
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(0)
    return scheduler


class Float64States:
    """Inside, `tensor.to(torch.float32)` keeps float64: the schedulers round their states with it."""

    def __enter__(self):
        self.plain = plain = torch.Tensor.to
        torch.Tensor.to = lambda tensor, *args, **kw: tensor if args == (torch.float32,) else plain(tensor, *args, **kw)

    def __exit__(self, *_):
        torch.Tensor.to = self.plain


def path(name, sigmas, shift, start):
    scheduler = make_scheduler(name, sigmas, shift)
    evaluation_sigmas = list(sigmas[:-1])
    if name == "heun":  # at the start of the first step, then at the end and at the start again of each later one
        evaluation_sigmas = evaluation_sigmas[:1] + [s for s in evaluation_sigmas[1:] for _ in range(2)]
    x, states = start.double()[None], []
    with Float64States():
        for sigma in evaluation_sigmas:
            x = scheduler.step(velocity(x, sigma), torch.tensor(0.0), x, return_dict=False)[0]
            assert x.dtype == torch.float64
            states.append(x[0])
    return torch.stack(states)


def main(root):
    start = torch.randn(SIZE, generator=torch.Generator().manual_seed(5))
    fixture = {"start": start}
    for spacing in SPACINGS:
        for shift in SHIFTS:
            for steps in STEPS:
                sigmas = schedule(spacing, steps, shift)
                if spacing == "linspace":
                    scheduler = flow_unipc(shift)
                    scheduler.set_timesteps(steps)
                    assert numpy.abs(scheduler.sigmas.numpy() - sigmas).max() < 1e-6, (shift, steps)
                for name in ("euler", "heun", "unipc"):
                    case = f"{name}.{spacing}.s{shift:g}.n{steps}"
                    fixture[case + ".sigmas"] = torch.from_numpy(sigmas).float()
                    fixture[case + ".path"] = path(name, sigmas, shift, start).float()
    safetensors.torch.save_file(fixture, root / "solvers.safetensors")


def check_wan():
    for shift in SHIFTS:
        for steps in STEPS:
            scheduler = flow_unipc(shift)
            scheduler.set_timesteps(steps)
            difference = numpy.abs(scheduler.sigmas.numpy() - schedule("wan", steps, shift)).max()
            print(f"diffusers {diffusers.__version__}, shift {shift:g}, {steps} steps: largest difference {difference:.1e}")
            assert difference < 1e-6


if __name__ == "__main__":
    check_wan() if sys.argv[1] == "--check-wan" else main(pathlib.Path(sys.argv[1]))
