"""Muon (Jordan et al. 2024) in float32: torch.optim.Muon orthogonalises in bfloat16, four times slower without AMX."""

from collections import defaultdict

import torch
from torch import Tensor


def orthogonalise(x: Tensor) -> Tensor:
    """Push the singular values of each matrix of [n, rows, cols] towards 1 by five Newton-Schulz steps."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled to the root mean square of an AdamW update."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """Update all matrices; those of one shape are orthogonalised together."""
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, params in shapes.items():
                velocities = [self.state[p].setdefault("velocity", torch.zeros_like(p)) for p in params]
                grads = [p.grad for p in params]
                torch._foreach_lerp_(velocities, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, velocities, group["momentum"])
                moves = orthogonalise(torch.stack(ahead)).unbind()
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, moves, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)
