import math

import numpy as np
import pytest
import torch

from invreg._check import (
    require_count,
    require_finite,
    require_positive,
    require_same_precision,
    require_shape,
    require_tensor,
    unknown_name,
)


def test_a_tensor_is_asked_for_by_name() -> None:
    require_tensor("y", torch.ones(1))
    with pytest.raises(TypeError, match=r"y must be a torch.Tensor, got ndarray; use torch.as_tensor"):
        require_tensor("y", np.ones(1))


def test_entries_that_are_not_finite_are_counted() -> None:
    require_finite("y", torch.ones(3, dtype=torch.complex64))
    require_finite("y", torch.ones(3, dtype=torch.int64))
    bad = torch.tensor([1.0, math.nan, math.inf])
    with pytest.raises(ValueError, match="y must be finite, got 2 NaN or Inf of 3 entries"):
        require_finite("y", bad)
    with pytest.raises(ValueError, match="got 1 NaN or Inf of 1 entries"):
        require_finite("y", torch.tensor([complex(0.0, math.nan)]))


def test_a_positive_number_is_finite_and_above_zero() -> None:
    require_positive("sigma", 1e-300)
    require_positive("sigma", 3)
    require_positive("sigma", np.float64(0.1))
    require_positive("sigma", 0, zero_allowed=True)
    for bad in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"sigma must be finite and > 0, got {bad}"):
            require_positive("sigma", bad)
    with pytest.raises(ValueError, match="sigma must be finite and >= 0, got -1"):
        require_positive("sigma", -1, zero_allowed=True)
    for wrong in (True, "1", None):
        with pytest.raises(TypeError, match=f"sigma must be a number, got {type(wrong).__name__}"):
            require_positive("sigma", wrong)  # type: ignore[arg-type]


def test_a_count_is_an_int() -> None:
    require_count("iterations", 1)
    require_count("iterations", 0, least=0)
    with pytest.raises(ValueError, match="iterations must be >= 1, got 0"):
        require_count("iterations", 0)
    for wrong in (1.0, True):
        with pytest.raises(TypeError, match=f"iterations must be an int, got {type(wrong).__name__}"):
            require_count("iterations", wrong)  # type: ignore[arg-type]


def test_a_shape_is_said_in_numbers_and_words() -> None:
    require_shape("x", torch.ones(9, 2, 3), (2, 3), "an image")
    with pytest.raises(
        ValueError, match=r"x must be \(B, 2, 3\) = an image, got \(2, 3\); add a batch axis with x\[None\]"
    ):
        require_shape("x", torch.ones(2, 3), (2, 3), "an image")
    with pytest.raises(ValueError, match=r"x must be \(B, 2, 3\) = an image, got \(1, 3, 2\)$"):
        require_shape("x", torch.ones(1, 3, 2), (2, 3), "an image")


F32, F64, C64, C128 = torch.float32, torch.float64, torch.complex64, torch.complex128


@pytest.mark.parametrize(
    ("value", "other"), [(F32, F32), (C64, F32), (C64, C64), (F64, F64), (C128, F64), (C128, C128)]
)
def test_one_precision_is_accepted(value: torch.dtype, other: torch.dtype) -> None:
    require_same_precision("x", torch.ones(1, dtype=value), "maps", torch.ones(1, dtype=other))


@pytest.mark.parametrize(
    ("value", "other", "wanted"),
    [(F64, F32, F32), (F32, F64, F64), (C128, F32, C64), (C64, F64, C128), (F32, C64, C64), (F64, C64, C64)],
)
def test_mixed_precision_is_refused_with_both_names_and_the_cure(
    value: torch.dtype, other: torch.dtype, wanted: torch.dtype
) -> None:
    with pytest.raises(TypeError, match=rf"x is {value} but maps is {other}; use x.to\({wanted}\) or convert maps"):
        require_same_precision("x", torch.ones(1, dtype=value), "maps", torch.ones(1, dtype=other))


def test_integers_have_no_precision() -> None:
    with pytest.raises(
        TypeError, match=r"x must be floating point or complex, got torch.int64; use x.to\(torch.float32\)"
    ):
        require_same_precision("x", torch.ones(1, dtype=torch.int64), "maps", torch.ones(1))


def test_half_precision_is_refused_by_name() -> None:
    for half in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match=f"x is {half} but maps is torch.float32"):
            require_same_precision("x", torch.ones(1, dtype=half), "maps", torch.ones(1))


def test_an_unknown_name_gets_the_nearest_known_one() -> None:
    message = unknown_name("prior", "wavlet", ["tv", "wavelet", "l1"])
    assert message == "unknown prior 'wavlet'; did you mean 'wavelet'? known: l1, tv, wavelet"
    assert "did you mean" not in unknown_name("prior", "xyzzy", ["tv"])
