"""The recurrence of a state space model: h[t] = decay[t] * h[t - 1] + inputs[t], where nothing precedes h[0].

`scan_sequential` says what is computed, and the tests compare with it. `scan` has a gradient of its own instead of a
graph of L steps: the gradient is the same recurrence, backwards in time.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def scan_sequential(decay: Tensor, inputs: Tensor) -> Tensor:
    """The recurrence through autograd; see `scan`."""
    state, states = torch.zeros_like(inputs[0]), []
    for a, b in zip(decay.unbind(), inputs.unbind(), strict=True):
        state = a * state + b
        states.append(state)
    return torch.stack(states)


def scan(decay: Tensor, inputs: Tensor) -> Tensor:
    """The recurrence; it can be differentiated once.

    Args:
        decay: [L, ...] factors of the state.
        inputs: [L, ...] what is added to it.

    Returns:
        [L, ...] states.
    """
    return _Scan.apply(decay, inputs)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, decay: Tensor, inputs: Tensor) -> Tensor:
        states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        rows = states.unbind()
        rows[0].copy_(inputs[0])
        for t in range(1, len(rows)):
            torch.addcmul(inputs[t], decay[t], rows[t - 1], out=rows[t])
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        flow = grad.clone(memory_format=torch.contiguous_format)  # dL/dh[t], all later steps included
        rows = flow.unbind()
        for t in range(len(rows) - 2, -1, -1):
            rows[t].addcmul_(decay[t + 1], rows[t + 1])
        to_decay = torch.zeros_like(decay)
        torch.mul(flow[1:], states[:-1], out=to_decay[1:])
        return to_decay, flow
