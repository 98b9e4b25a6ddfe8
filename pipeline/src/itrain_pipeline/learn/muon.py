"""Muon in fp32: momentum whose matrices are orthogonalised by a Newton-Schulz iteration (Jordan et al., 2024).

torch's own Muon iterates in bfloat16, which processors without it emulate at a tenth of the speed. Matrices of one
shape are iterated together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration; they maximise the slope at zero, so singular values end near 1 within five steps."""


def orthogonalise(matrices_NIJ: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Matrices with the same singular vectors and singular values of about 1 (between 0.7 and 1.2)."""
    tall = matrices_NIJ.shape[-2] > matrices_NIJ.shape[-1]
    x = matrices_NIJ.mT if tall else matrices_NIJ
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum; the update's root mean square is AdamW's (0.2), so one learning rate serves both."""

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[param.shape].append((param, param.grad))
            for shape, pairs in by_shape.items():
                directions = []
                for param, gradient in pairs:
                    momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
                    momentum.lerp_(gradient, 1 - group["momentum"])
                    directions.append(gradient.lerp(momentum, group["momentum"]))
                updates = orthogonalise(torch.stack(directions))
                scale = 0.2 * max(shape) ** 0.5
                for (param, _), update in zip(pairs, updates, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(update, alpha=-group["lr"] * scale)
        return loss
