"""Measurements without phase, the first non-linear operator."""

from torch import Tensor

from invreg.interfaces import LinearOperator, Operator


class PhaseRetrieval(Operator):
    """y = |B x|^2, entry by entry, of a linear operator B: intensities, real.

    Args:
        linear: B, such as a Fourier transform, a random matrix, or a `Stack` of masked transforms.

    x and exp(i phi) x give the same y; so do x and -x for real signals.

    Raises:
        TypeError: linear is not a LinearOperator.

    Source: Candes, Li and Soltanolkotabi 2015, "Phase retrieval via Wirtinger flow", eq. 1.1.
    """

    def __init__(self, linear: LinearOperator) -> None:
        if not isinstance(linear, LinearOperator):
            raise TypeError(f"linear must be a LinearOperator, got {type(linear).__name__}")
        super().__init__(linear.signal_shape, linear.measurement_shape)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        return z.real.square() + z.imag.square() if z.is_complex() else z.square()

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """J(x)^H v = 2 B^H (v * B x), its real part for a real x; v is real."""
        self.check_measurement(v)
        gradient = 2 * self.linear.adjoint(v * self.linear(x))
        return gradient.real if gradient.is_complex() and not x.is_complex() else gradient

    def sampled(self) -> Tensor | None:
        return self.linear.sampled()
