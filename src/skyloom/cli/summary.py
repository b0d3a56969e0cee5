"""The short summary that ``skyloom difference`` and ``skyloom demo`` print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyloom.errors import SkyloomError
    from skyloom.pipeline import Difference
    from skyloom.pipeline.products import Products
    from skyloom.registration import Registration


def registration_row(
    path: str, registration: Registration | None, error: SkyloomError | None = None, output: object = None
) -> dict[str, Any]:
    """Return what is told of the registration of a file; without one and without an error, it is the reference."""
    row: dict[str, Any] = {"source": path, "output": None if output is None or error is not None else str(output)}
    if registration is None:
        status = "reference" if error is None else "failed"
        return row | {"status": status, "error": error and type(error).__name__, "message": error and str(error)}
    names = ("n_matched", "rms", "scale", "rotation", "parity", "order", "flux_ratio", "chance_probability")
    values = {name: getattr(registration, name) for name in names}
    x, y = registration.rms_xy
    return row | {"status": "registered", **values, "rms_x": x, "rms_y": y, "kind": registration.transform.kind}


def print_summary(difference: Difference, candidates: Any, products: Products, seconds: str, n_best: int = 8) -> None:
    """Print how well it went and in which time, the best candidates, and where the files are."""
    numbers = difference.diagnostics
    print(f"{difference.science.name} minus {difference.template.name}: {seconds}")
    if difference.registration is not None:
        registration = difference.registration
        print(f"  registration   {registration.n_matched} stars, rms {registration.rms:.3f} pixel")
    print(f"  method         {difference.method}: {difference.reason}")
    print(
        f"  matching       {numbers['convolved']} convolved, {numbers['n_stamps']} stamps, "
        f"kernel sum {numbers['kernel_sum']:.4f}"
    )
    print(
        f"  noise          difference/sigma: mean {numbers['noise_mean']:+.3f}, std {numbers['noise_std']:.3f}; "
        f"score std {numbers['score_std']:.3f}"
    )
    real = candidates[candidates["real"]]
    print(f"  candidates     {len(real)} (and {len(candidates) - len(real)} flagged as artefacts)")
    for row in real[:n_best]:
        place = f"x={row['x']:7.2f} y={row['y']:7.2f}"
        if difference.wcs is not None:
            place += f"  ra={row['ra']:.5f} dec={row['dec']:+.5f}"
        print(
            f"    #{row['id']:<4d} {place}  flux={row['flux']:+10.1f} +- {row['flux_err']:.1f}  S/N={row['snr']:+.1f}"
        )
    if len(real) > n_best:
        print(f"    ... and {len(real) - n_best} more")
    for what, path in products.written():
        print(f"  {what:<14} {path}")
