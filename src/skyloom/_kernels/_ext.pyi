from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from skyloom.exposure import FloatArray

def simd_level() -> str: ...

# drizzle
DRIZZLE_KERNELS: tuple[str, ...]

class MapGrid:
    def __init__(
        self,
        nodes: npt.NDArray[np.float64],
        first_x: npt.NDArray[np.int32],
        weight_x: npt.NDArray[np.float64],
        first_y: npt.NDArray[np.int32],
        weight_y: npt.NDArray[np.float64],
        exact_index: npt.NDArray[np.int64],
        exact_xy: npt.NDArray[np.float64],
    ) -> None: ...

class DrizzleFootprint:
    def __init__(
        self,
        pixmap: npt.NDArray[np.float64] | MapGrid,
        window: Sequence[int],
        frame: Sequence[int],
        *,
        half: float,
        margin: float,
        unit: float,
    ) -> None: ...
    def find(self, queue: npt.NDArray[np.int64]) -> None: ...
    def whole(self) -> tuple[int, int, int, int] | None: ...

class DrizzleInput:
    def __init__(
        self,
        data: FloatArray,
        weight: FloatArray | None,
        squares: Sequence[FloatArray | None],
        dq: npt.NDArray[np.uint32] | None,
        *,
        data_scale: float,
        square_scale: float,
        weight_scale: float,
        errors: Sequence[FloatArray | None] = (),
        roots: Sequence[FloatArray | None] = (),
        error_scale: float = 1.0,
        root_scale: float = 1.0,
        data_offset: float = 0.0,
        inverse_weight: bool = False,
        mask: npt.NDArray[np.uint32] | None = None,
        rejected: int = 0,
    ) -> None: ...

class DrizzleOutput:
    def __init__(
        self,
        mean: FloatArray,
        weight: FloatArray,
        squares: Sequence[FloatArray | None],
        square_weights: Sequence[FloatArray | None],
        dq: npt.NDArray[np.uint32] | None,
        context: npt.NDArray[np.int32] | None,
        *,
        context_bit: int,
        fill: float | None,
        fill_squares: float | None,
        fresh: bool = False,
        filled: bool = False,
    ) -> None: ...
    def set_errors(self, planes: Sequence[FloatArray | None], weights: Sequence[FloatArray | None]) -> None: ...
    def set_roots(
        self,
        planes: Sequence[FloatArray | None],
        weights: Sequence[FloatArray | None],
        common_weight: FloatArray | None,
        *,
        reference: int,
        own_weight: float,
        variance_scale: float,
    ) -> None: ...

class DrizzleKernel:
    reach: float
    def __init__(self, name: str, *, pixfrac: float, scale_ratio: float, normalised: bool) -> None: ...

def drizzle_separable(
    kernel: DrizzleKernel,
    footprint: DrizzleFootprint,
    image: DrizzleInput,
    output: DrizzleOutput,
    tile_edge: int,
    row_hits: npt.NDArray[np.int32],
    queue: npt.NDArray[np.int64],
    part: int,
) -> None: ...
def drizzle_square(
    footprint: DrizzleFootprint,
    image: DrizzleInput,
    output: DrizzleOutput,
    tile_edge: int,
    row_hits: npt.NDArray[np.int32],
    queue: npt.NDArray[np.int64],
    part: int,
) -> None: ...

# covariance of drizzled pixels
SPREAD_SPANS: int
SPREAD_BATCH: int

class SpreadImage:
    def __init__(
        self,
        pixmap: npt.NDArray[np.float64],
        window: Sequence[int],
        data: FloatArray | None,
        weight: FloatArray | None,
        variance: FloatArray | None,
        *,
        kernel: int,
        pixfrac: float,
        ratio: float,
        normalised: bool,
        weight_scale: float,
    ) -> None: ...
    def rows_reached(
        self,
        low: npt.NDArray[np.int32],
        high: npt.NDArray[np.int32],
        spans: npt.NDArray[np.int64],
        first: int,
        stop: int,
    ) -> None: ...
    def sum_products(
        self,
        low: npt.NDArray[np.int32],
        high: npt.NDArray[np.int32],
        frame: tuple[int, int],
        every: int,
        step: int,
        rows: tuple[int, int],
        sums: npt.NDArray[np.float64],
    ) -> None: ...

# convolve
def convolve_varying(
    data: Any,
    variance: Any,
    usable: Any,
    kernel: Any,
    order: int,
    centre: tuple[float, float],
    scale: tuple[float, float],
    out: Any,
    out_variance: Any,
    out_lost: Any,
    out_kept: Any,
    columns: int,
    rows: tuple[int, int],
    linear: bool = False,
    constant_square: bool = False,
    square_margin: int = 0,
) -> None: ...

# delta
def delta_gram(
    padded: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    kernel: tuple[int, int],
    order: int,
    centre: tuple[float, float],
    scale: tuple[float, float],
    cell: int,
    rows: tuple[int, int],
    out: npt.NDArray[np.float64],
) -> None: ...
def delta_project(
    padded: FloatArray,
    image: FloatArray,
    weight: npt.NDArray[np.float32],
    kernel: tuple[int, int],
    order: int,
    centre: tuple[float, float],
    scale: tuple[float, float],
    rows: tuple[int, int],
    out: npt.NDArray[np.float64],
    flat: npt.NDArray[np.float64],
) -> float: ...
def delta_apply(
    padded: FloatArray,
    coefficients: npt.NDArray[np.float64],
    flat: npt.NDArray[np.float64],
    kernel: tuple[int, int],
    order: int,
    centre: tuple[float, float],
    scale: tuple[float, float],
    rows: tuple[int, int],
    out: FloatArray,
) -> None: ...

# interpolate
def interpolate(
    data: FloatArray,
    variance: FloatArray | None,
    mask: npt.NDArray[np.uint32] | None,
    clean: npt.NDArray[np.uint8] | None,
    xy: npt.NDArray[np.float64],
    coefficients: npt.NDArray[np.float64],
    unusable: int,
    no_data: int,
    edge: int,
    spread: int,
    max_lost: float,
    out_data: FloatArray,
    out_variance: FloatArray | None,
    out_mask: npt.NDArray[np.uint32],
    factor: npt.NDArray[np.float64] | None = None,
    columns: int = 0,
    coverage: npt.NDArray[np.float32] | None = None,
    spline: FloatArray | None = None,
    spline_degree: int = 0,
) -> None: ...
def blot(
    data: FloatArray,
    pixmap: npt.NDArray[np.float64],
    coefficients: npt.NDArray[np.float64] | None,
    odd_border: bool,
    scale: float,
    fill: float,
    out: FloatArray,
) -> None: ...
def clean_windows(
    mask: npt.NDArray[np.uint32], taps: int, row_start: int, row_stop: int, clean: npt.NDArray[np.uint8]
) -> None: ...
def expand_grid(
    nodes: npt.NDArray[np.float64],
    first_x: npt.NDArray[np.int32],
    weight_x: npt.NDArray[np.float64],
    first_y: npt.NDArray[np.int32],
    weight_y: npt.NDArray[np.float64],
    out: npt.NDArray[np.float64],
) -> None: ...
def pixel_area_ratio(
    pixmap: npt.NDArray[np.float64], row_start: int, row_stop: int, area: npt.NDArray[np.float64]
) -> None: ...

# correlate
SPECTRUM_BYTES: int

def tile_spectrum(plane: FloatArray, nx: int, out: FloatArray) -> None: ...
def filter_tile(
    filters: FloatArray,
    spectra: list[FloatArray],
    mixture: FloatArray,
    weights: FloatArray,
    nx: int,
    first: int,
    out: FloatArray,
) -> None: ...

# noise
def local_signal(
    data: FloatArray,
    mask: npt.NDArray[np.uint32],
    unusable: int,
    level: float,
    sky: float,
    per_photon: float,
    floor: float,
    row_start: int,
    row_stop: int,
    signal: FloatArray,
) -> None: ...

# stamps
def filter_stamp(
    stamp: FloatArray,
    along_x: FloatArray,
    along_y: FloatArray,
    first: npt.NDArray[np.int64],
    out: FloatArray,
) -> None: ...
def find_substamps(
    data: npt.NDArray[np.float32],
    good: npt.NDArray[np.bool_],
    cell: tuple[int, int, int, int],
    middles: tuple[int, int, int, int],
    halves: tuple[int, int],
    levels: tuple[float, float, float],
    least_good: float,
    given: npt.NDArray[np.int64] | None,
    found: npt.NDArray[np.float64],
    count: int,
) -> int: ...
def sky_statistics(pixels: npt.NDArray[np.float32], clip: float) -> tuple[float, float]: ...
def stamp_sums(
    planes: npt.NDArray[np.float32],
    target_variance: npt.NDArray[np.float32],
    convolved_variance: npt.NDArray[np.float32],
    good: npt.NDArray[np.bool_],
    signal: npt.NDArray[np.float32],
    eps: float,
    step: int,
    rows: npt.NDArray[np.int64],
    grams: npt.NDArray[np.float64],
    moments: npt.NDArray[np.float64],
    noise: npt.NDArray[np.float64],
) -> None: ...
def stamp_residuals(
    planes: npt.NDArray[np.float32],
    local: npt.NDArray[np.float32],
    n_signal: int,
    rows: npt.NDArray[np.int64],
    signal: npt.NDArray[np.float32],
    residual: npt.NDArray[np.float32],
) -> None: ...
def stamp_merits(
    residual: npt.NDArray[np.float32],
    signal: npt.NDArray[np.float32],
    target_variance: npt.NDArray[np.float32],
    convolved_variance: npt.NDArray[np.float32],
    good: npt.NDArray[np.bool_],
    eps: float,
    most: float,
    rows: npt.NDArray[np.int64],
    merits: npt.NDArray[np.float64],
) -> None: ...
