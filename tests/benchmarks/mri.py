"""SENSE normal operator, conjugate gradients and ESPIRiT beside deepinv, sigpy and BART, on the CPU or a GPU's host.

    python tests/benchmarks/mri.py [--quick] [--threads 1] [--repeats 7]

Peers that are not installed are left out and say so. Complex single precision throughout.
"""

import argparse
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import Job, Row, machine, measure, missing, peak_memory, peer, race, table, use_threads
from torch import Tensor

from invreg.linalg import cg
from invreg.mri import espirit
from invreg.operators import Sense, centred_fft

SHIFT = 1e-3  # of the normal equations, so that 50 iterations of CG solve one and the same problem everywhere


def object_and_maps(coils: int, size: int) -> tuple[Tensor, Tensor]:
    """An object of a few ellipses, (size, size), and smooth maps of norm 1 over the coils, (coils, size, size)."""
    axis = (torch.arange(size) - size // 2) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    image = torch.zeros(size, size)
    for density, cx, cy, a, b in (
        (1.0, 0.0, 0.0, 0.38, 0.45),
        (-0.5, 0.1, 0.1, 0.1, 0.2),
        (0.6, -0.15, -0.1, 0.08, 0.05),
    ):
        image += density * (((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 <= 1)
    maps = []
    for c in range(coils):
        angle = 2 * math.pi * c / coils
        distance = (x - 0.6 * math.cos(angle)) ** 2 + (y - 0.6 * math.sin(angle)) ** 2
        maps.append(torch.polar(1 / (distance + 0.1), 3 * (x * math.sin(angle) + y * math.cos(angle)) + angle))
    stack = torch.stack(maps)
    return image.to(torch.complex64), stack / stack.abs().square().sum(0).sqrt()


def sampling(size: int, acceleration: int = 4, calibration: int = 24) -> Tensor:
    """Every fourth line and the centre, (size, size), bool."""
    lines = torch.arange(size) % acceleration == 0
    lines[size // 2 - calibration // 2 : size // 2 + calibration // 2] = True
    return lines[:, None].expand(size, size).contiguous()


def real_view(z: Tensor) -> Tensor:
    """Complex (B, ...) as deepinv's real (B, 2, ...)."""
    return torch.view_as_real(z).movedim(-1, 1).contiguous()


# --- the normal operator and CG: each build_* returns the job, and `result` the image that it computes


def build_invreg(coils: int, size: int, iterations: int) -> Job:
    image, maps = object_and_maps(coils, size)
    operator = Sense(maps[None], sampling(size))
    x = image[None]
    if not iterations:
        return lambda: operator.normal(x)
    b = operator.normal(x)
    return lambda: (
        cg(lambda v: operator.normal(v) + SHIFT * v, b, rtol=0, iterations=iterations, check_every=iterations).x
    )


def build_deepinv(coils: int, size: int, iterations: int) -> Job:
    deepinv = peer("deepinv")
    assert deepinv is not None
    from deepinv.optim.linear import conjugate_gradient

    image, maps = object_and_maps(coils, size)
    mask = sampling(size).float()[None, None].expand(1, 2, size, size).contiguous()
    physics = deepinv.physics.MultiCoilMRI(mask=mask, coil_maps=maps[None])
    x = real_view(image[None])
    if not iterations:
        return lambda: physics.A_adjoint_A(x)
    b = physics.A_adjoint_A(x)
    return lambda: conjugate_gradient(lambda v: physics.A_adjoint_A(v) + SHIFT * v, b, max_iter=iterations, tol=0.0)


def build_sigpy(coils: int, size: int, iterations: int) -> Job:
    sigpy = peer("sigpy")
    assert sigpy is not None
    import sigpy.mri as sigpy_mri

    image, maps = (t.numpy() for t in object_and_maps(coils, size))
    operator = sigpy_mri.linop.Sense(maps, weights=sampling(size).numpy().astype("float32"))
    if not iterations:
        return lambda: operator.N * image
    b = operator.N * image

    def solve() -> Any:
        x = 0 * b
        algorithm = sigpy.alg.ConjugateGradient(lambda v: operator.N * v + SHIFT * v, b, x, max_iter=iterations, tol=0)
        while not algorithm.done():
            algorithm.update()
        return x

    return solve


BUILDERS: dict[str, Callable[[int, int, int], Job]] = {
    "invreg": build_invreg,
    "deepinv": build_deepinv,
    "sigpy": build_sigpy,
}


def as_complex(result: Any) -> Tensor:
    """Any library's image as complex (y, x)."""
    tensor = torch.as_tensor(result)
    if not tensor.is_complex():
        tensor = torch.view_as_complex(tensor.movedim(1, -1).contiguous())
    return tensor.reshape(tensor.shape[-2:])


def sense_rows(coils: int, size: int, iterations: int, repeats: int, memory: bool) -> list[Row]:
    name = f"{iterations} CG iterations" if iterations else "A^H A"
    case = f"SENSE {name}, {coils} x {size} x {size}"
    jobs = {one: build(coils, size, iterations) for one, build in BUILDERS.items() if one == "invreg" or peer(one)}
    with torch.no_grad():
        reference = as_complex(jobs["invreg"]())
        gaps = {one: float((as_complex(job()) - reference).norm() / reference.norm()) for one, job in jobs.items()}
        seconds = race(jobs, repeats)
    rows = []
    for one, build in BUILDERS.items():
        if one not in jobs:
            rows.append(missing(case, one))
            continue
        peak = peak_memory(partial(build, coils, size, iterations)) if memory else None
        rows.append(Row(case, one, seconds[one], peak, "" if one == "invreg" else f"differs by {gaps[one]:.1e}"))
    return rows


# --- ESPIRiT


def calibration_scan(coils: int, size: int) -> Tensor:
    """Noisy multi-coil k-space, (coil, size, size), fully sampled."""
    image, maps = object_and_maps(coils, size)
    kspace = centred_fft(maps * image, 2)
    noise = torch.randn(*kspace.shape, 2, generator=torch.Generator().manual_seed(0))
    return kspace + 1e-3 * kspace.abs().max() * torch.view_as_complex(noise)


def build_espirit_invreg(coils: int, size: int) -> Job:
    kspace = calibration_scan(coils, size)[None]
    return lambda: espirit(kspace).maps[0]


def build_espirit_sigpy(coils: int, size: int) -> Job:
    sigpy = peer("sigpy")
    assert sigpy is not None
    import sigpy.mri as sigpy_mri

    kspace = calibration_scan(coils, size).numpy()
    return lambda: torch.as_tensor(sigpy_mri.app.EspiritCalib(kspace, calib_width=24, show_pbar=False).run())


def build_espirit_bart(coils: int, size: int) -> Job:
    kspace = calibration_scan(coils, size)
    folder = tempfile.TemporaryDirectory()
    scan, maps = Path(folder.name, "scan"), Path(folder.name, "maps")
    shape = f"1 {size} {size} {coils}"  # BART: first axis fastest, readout first; here y and x are the phase axes
    scan.with_suffix(".hdr").write_text(f"# Dimensions\n{shape} 1 1 1 1 1 1 1 1 1 1 1 1\n")
    scan.with_suffix(".cfl").write_bytes(kspace.contiguous().numpy().tobytes())

    def run() -> Tensor:
        command = ["bart", "ecalib", "-m1", "-r24", "-c0.95", str(scan), str(maps)]
        subprocess.run(command, check=True, capture_output=True, env=os.environ)
        found = torch.frombuffer(bytearray(Path(folder.name, "maps.cfl").read_bytes()), dtype=torch.complex64)
        return found.reshape(coils, size, size)

    return run


def correlation(found: Tensor, coils: int, size: int) -> float:
    """Mean |<found, true>| over the pixels of the object where the library gives maps."""
    image, maps = object_and_maps(coils, size)
    norm = found.abs().square().sum(0).sqrt()
    inside = (image.abs() > 0.1) & (norm > 0)
    return float(((found.conj() * maps).sum(0).abs() / norm.clamp_min(1e-12))[inside].mean())


def espirit_rows(coils: int, size: int, repeats: int, memory: bool) -> list[Row]:
    case = f"ESPIRiT maps, {coils} x {size} x {size}"
    builders = {"invreg": build_espirit_invreg, "sigpy": build_espirit_sigpy, "bart": build_espirit_bart}
    here = {"invreg": True, "sigpy": peer("sigpy") is not None, "bart": shutil.which("bart") is not None}
    rows = []
    for one, build in builders.items():
        if not here[one]:
            rows.append(missing(case, one))
            continue
        job = build(coils, size)
        with torch.no_grad():
            found = job()
            seconds = measure(job, 2 if one == "sigpy" else repeats, warmup=0)
        assert isinstance(found, Tensor)
        # BART is a process of its own: what it holds is not seen from here
        peak = peak_memory(partial(build, coils, size)) if memory and one != "bart" else None
        rows.append(Row(case, one, seconds, peak, f"correlation with the truth {correlation(found, coils, size):.5f}"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="for torch, OpenMP and numba alike")
    parser.add_argument("--repeats", type=int, default=7, help="the median of so many is shown")
    options = parser.parse_args()
    use_threads(options.threads)
    coils, size, iterations, repeats = (4, 48, 5, 2) if options.quick else (16, 320, 50, options.repeats)
    memory = not options.quick
    print(machine())
    rows = sense_rows(coils, size, 0, repeats, memory) + sense_rows(coils, size, iterations, repeats, memory)
    rows += espirit_rows(*((4, 48) if options.quick else (8, 128)), repeats, memory)
    print(table(rows))


if __name__ == "__main__":
    main()
