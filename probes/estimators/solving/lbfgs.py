"""Many small smooth minimisations at once: L-BFGS with a line search of its own for each problem.

For the probes that have no closed form and no cheap Hessian. The problems of a batch (layers, restarts) never influence
one another, every step is deterministic, and what comes back is the best point seen, copied when it was seen, never
simply the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

HISTORY = 20
HALVINGS = 30
ENOUGH = 1e-4
"""Share of the slope's promise that a step must keep (Armijo)."""

Losses = Callable[[Float[Tensor, "problem p"]], Float[Tensor, "problem"]]


@dataclass(frozen=True)
class Minimum:
    """The best points seen."""

    point: Float[Tensor, "problem p"]
    loss: Float[Tensor, "problem"]
    converged: Tensor
    """Which problems met the tolerance before the steps ran out."""
    steps: int


def minimise(
    losses: Losses, start: Float[Tensor, "problem p"], *, tolerance: float = 1e-6, max_steps: int = 500
) -> Minimum:
    """Minimise every problem from its start until no gradient entry exceeds `tolerance` × max(1, loss).

    `losses` maps all points to all losses; the loss of a problem may depend on its own point alone.
    """
    point = start.clone()
    loss, slope = _evaluate(losses, point)
    best_point, best = point.clone(), loss.clone()
    moves: list[tuple[Tensor, Tensor, Tensor]] = []
    done = slope.abs().amax(dim=1) <= tolerance * loss.abs().clamp_min(1)
    step = 0
    while step < max_steps and not bool(done.all()):
        step += 1
        direction = -_inverse_hessian_times(slope, moves)
        if not moves:
            direction = direction / slope.norm(dim=1, keepdim=True).clamp_min(1)
        downhill = (direction * slope).sum(dim=1)
        wrong = downhill >= 0
        direction, downhill = (
            torch.where(wrong[:, None], -slope, direction),
            torch.where(wrong, -slope.square().sum(dim=1), downhill),
        )
        length = _lengths(losses, point, direction, loss, downhill, done)
        moved = length[:, None] * direction
        new_loss, new_slope = _evaluate(losses, point + moved)
        turned = new_slope - slope
        curved = (moved * turned).sum(dim=1)
        usable = curved > 1e-12 * moved.norm(dim=1) * turned.norm(dim=1)
        inverse = torch.where(usable, 1 / curved.where(usable, torch.ones_like(curved)), torch.zeros_like(curved))
        moves = [*moves[-HISTORY + 1 :], (moved, turned, inverse)]
        point, loss, slope = point + moved, new_loss, new_slope
        better = loss < best
        best_point = torch.where(better[:, None], point, best_point)
        best = torch.where(better, loss, best)
        small = slope.abs().amax(dim=1) <= tolerance * loss.abs().clamp_min(1)
        done = done | small | (length == 0)
    return Minimum(best_point, best, done, step)


def _evaluate(losses: Losses, point: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = point.detach().requires_grad_(True)
        loss = losses(leaf)
        (slope,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), slope


def _inverse_hessian_times(slope: Tensor, moves: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion (Nocedal and Wright 2006, algorithm 7.4), each problem by itself."""
    direction, kept = slope, []
    for moved, turned, inverse in reversed(moves):
        share = inverse * (moved * direction).sum(dim=1)
        direction = direction - share[:, None] * turned
        kept.append(share)
    if moves:
        moved, turned, inverse = moves[-1]
        scale = (moved * turned).sum(dim=1) / turned.square().sum(dim=1).clamp_min(1e-300)
        direction = direction * torch.where(inverse > 0, scale, torch.ones_like(scale))[:, None]
    for (moved, turned, inverse), share in zip(moves, reversed(kept), strict=True):
        back = inverse * (turned * direction).sum(dim=1)
        direction = direction + (share - back)[:, None] * moved
    return direction


@torch.no_grad()
def _lengths(
    losses: Losses, point: Tensor, direction: Tensor, loss: Tensor, downhill: Tensor, done: Tensor
) -> Float[Tensor, "problem"]:
    """The largest of 1, ½, ¼, … that falls by enough; 0 for problems that are done or find none."""
    length = torch.where(done, torch.zeros_like(loss), torch.ones_like(loss))
    for _ in range(HALVINGS):
        there = losses(point + length[:, None] * direction)
        enough = (there <= loss + ENOUGH * length * downhill) | (length == 0)
        if bool(enough.all()):
            return length
        length = torch.where(enough, length, length / 2)
    return torch.where(enough, length, torch.zeros_like(length))
