"""An operator of your own: a camera that moves while its shutter is open, checked and inverted."""

import torch
from torch import Tensor

from invreg.algorithms import PDHG
from invreg.interfaces import LinearOperator
from invreg.metrics import psnr
from invreg.noise import Gaussian
from invreg.problem import Problem
from invreg.regularizers import TotalVariation
from invreg.testing import adjoint_gap


class Shake(LinearOperator):
    """The mean of several shifted copies, as circular shifts: (B, y, x) -> (B, y, x)."""

    def __init__(self, shape: tuple[int, int], shifts: list[tuple[int, int]]) -> None:
        super().__init__(shape, shape)
        self.shifts = shifts

    def forward(self, x: Tensor) -> Tensor:
        self.check_signal(x)
        return torch.stack([x.roll(s, (1, 2)) for s in self.shifts]).mean(0)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_measurement(y)
        return torch.stack([y.roll((-s[0], -s[1]), (1, 2)) for s in self.shifts]).mean(0)


def main(quick: bool = False) -> dict[str, float]:
    """Returns the adjoint gap, and the PSNR in dB before and after."""
    n = 48 if quick else 128
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n),) * 2, indexing="ij")
    truth = (((x.abs() < 0.5) & (y.abs() < 0.3)).float() + (x.square() + y.square() < 0.05).float())[None]
    operator = Shake((n, n), [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4)])
    measured = Gaussian(0.02).sample(operator(truth), torch.Generator().manual_seed(0))

    gap = adjoint_gap(operator, truth, measured)
    result = PDHG(iterations=100 if quick else 400).solve(Problem(operator, measured), TotalVariation(weight=0.01))
    scores = {"adjoint gap": gap, "measured": float(psnr(measured, truth)), "TV": float(psnr(result.x, truth))}
    print(result)
    print({name: f"{value:.3g}" for name, value in scores.items()})
    return scores


if __name__ == "__main__":
    main()
