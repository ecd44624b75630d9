"""Muon (Jordan et al. 2024) for the matrices of the blocks, AdamW for the rest, as one optimiser.

In float32: torch.optim.Muon orthogonalises in bfloat16, four times slower on processors without AMX.
"""

import re
from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

BLOCK = re.compile(r"(^|\.)layers?\.\d+\.\w+\.")  # parts of a numbered block; numbered maps of a head have none


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
    """Nesterov momentum, orthogonalised and scaled to the root mean square of an AdamW update; AdamW elsewhere."""

    def __init__(self, module: nn.Module, lr: float, momentum: float = 0.95):
        """
        Args:
            module: Module whose trainable parameters are updated; weights of linear maps in numbered blocks go to Muon
                (`layers.3.`, `layer.3.`).
            lr: Peak learning rate of both.
            momentum: Momentum of Muon.
        """
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        linear = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Linear)}
        inner = [p for name, p in named if name in linear and BLOCK.search(name)]
        known = {id(p) for p in inner}
        groups = [
            {"params": inner, "orthogonal": True, "weight_decay": 0.05},
            {"params": [p for _, p in named if id(p) not in known], "orthogonal": False, "weight_decay": 0.01},
        ]
        super().__init__([g for g in groups if g["params"]], {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            (self._orthogonal if group["orthogonal"] else self._adam)(params, group)
        return loss

    def _orthogonal(self, params: list[Tensor], group: dict) -> None:
        shapes = defaultdict(list)
        for p in params:
            shapes[p.shape].append(p)
        for shape, alike in shapes.items():
            velocities = [self.state[p].setdefault("velocity", torch.zeros_like(p)) for p in alike]
            grads = [p.grad for p in alike]
            torch._foreach_lerp_(velocities, grads, 1 - group["momentum"])
            ahead = torch._foreach_lerp(grads, velocities, group["momentum"])
            moves = orthogonalise(torch.stack(ahead)).unbind()
            torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(alike, moves, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def _adam(self, params: list[Tensor], group: dict) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] = {
                    "mean": torch.zeros_like(p),
                    "square": torch.zeros_like(p),
                    "step": torch.zeros((), device=p.device),
                }
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params],
            [s["mean"] for s in states],
            [s["square"] for s in states],
            [],
            [s["step"] for s in states],
            foreach=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.98,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )
