"""`resample`: photometry, noise, masks, and the things that must not happen."""

import numpy as np
import pytest
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from skyloom.errors import InputError, NoOverlapError, ShapeError
from skyloom.exposure import Exposure, MaskBit
from skyloom.resampling import resample

N = 400


def rotation(angle=23.0, scale=1.0, shift=(0.3, 0.1), centre=(N / 2, N / 2)):
    """Map and inverse: rotate about the centre, scale (input pixels per output pixel) and shift."""
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    matrix = scale * np.array([[c, -s], [s, c]])
    out_to_in = lambda xy: (xy - centre) @ matrix.T + centre + shift  # noqa: E731
    in_to_out = lambda xy: (xy - centre - np.asarray(shift)) @ np.linalg.inv(matrix).T + centre  # noqa: E731
    return out_to_in, in_to_out


def pixel_profile(x, n, sigma):
    edges = np.arange(n + 1) - 0.5
    return np.diff(0.5 * (1 + erf((edges - x) / (sigma * np.sqrt(2)))))


def star_field(fwhm, seed=0, spacing=45, flux=1e5):
    rng = np.random.default_rng(seed)
    grid = np.arange(40, N - 40, spacing)
    xy = np.array([(x, y) for x in grid for y in grid]) + rng.uniform(-0.5, 0.5, (len(grid) ** 2, 2))
    image = sum(flux * np.outer(pixel_profile(y, N, fwhm / 2.3548), pixel_profile(x, N, fwhm / 2.3548)) for x, y in xy)
    return image, xy


def aperture_flux(image, xy, radius):
    """Sum in circles, with the border of each resolved to a tenth of a pixel."""
    fine = (np.arange(-0.45, 0.5, 0.1)).tolist()
    fluxes = []
    half = int(radius) + 2
    for x, y in xy:
        x0, y0 = round(x), round(y)
        cut = image[y0 - half : y0 + half + 1, x0 - half : x0 + half + 1].astype(float)
        j, i = np.mgrid[-half : half + 1, -half : half + 1]
        share = np.mean([np.hypot(i + x0 + a - x, j + y0 + b - y) < radius for a in fine for b in fine], axis=0)
        fluxes.append((cut * share).sum())
    return np.array(fluxes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize(
    ("method", "bias", "scatter"),
    [("lanczos3", 1e-4, 2e-4), ("lanczos4", 1e-4, 1e-4), ("spline3", 1e-4, 2e-4), ("spline5", 1e-4, 1e-4)],
)
def test_photometry_of_rotated_stars(method, bias, scatter, scale, dtype):
    image, xy = star_field(2.5)
    out_to_in, in_to_out = rotation(scale=scale)
    result = resample(Exposure(image.astype(dtype)), out_to_in, (N, N), method=method)
    there = in_to_out(xy)
    there = there[((there > 30) & (there < N - 30)).all(axis=1)]
    ratio = aperture_flux(result.data, there, 7.5 / scale) / 1e5 - 1
    assert len(ratio) > 20
    assert abs(ratio.mean()) < bias
    assert ratio.std() < scatter


@pytest.mark.parametrize("scale", [0.7, 1.05])
def test_flux_or_surface_brightness(scale):
    image, xy = star_field(4.0)
    sky = 50.0
    out_to_in, in_to_out = rotation(scale=scale)
    exposure = Exposure(image + sky, variance=np.ones((N, N)), zeropoint=25.0)
    there = in_to_out(xy)
    there = there[((there > 30) & (there < N - 30)).all(axis=1)]
    sums = {}
    for conserve in ("flux", "surface brightness"):
        result = resample(exposure, out_to_in, (N, N), conserve=conserve)
        level = sky * (scale**2 if conserve == "flux" else 1)
        sums[conserve] = aperture_flux(result.data - level, there, 12 / scale)
        magnitude = result.zeropoint - 2.5 * np.log10(sums[conserve])
        np.testing.assert_allclose(magnitude, 25 - 2.5 * np.log10(1e5), atol=1e-3)
        # data and variance are scaled alike: the ratio of a pixel to its noise does not depend on the choice
        gain = result.variance[N // 2, N // 2] / level**2
        assert gain == pytest.approx(sums.setdefault("gain", gain), rel=1e-6)
    np.testing.assert_allclose(sums["flux"] / 1e5, 1, atol=1e-3)
    np.testing.assert_allclose(sums["surface brightness"] * scale**2 / 1e5, 1, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "angle", "scale"),
    [
        ("lanczos3", 23, 1),
        ("lanczos4", 11, 1),
        ("spline3", 23, 1),
        ("cubic", 40, 0.8),
        ("bilinear", 23, 1),
        ("lanczos3", 30, 0.5),
    ],
)
def test_noise_is_what_is_said(method, angle, scale):
    rng = np.random.default_rng(8)
    out_to_in, _ = rotation(angle, scale)
    pixel, block, said = [], [], []
    for _ in range(8):
        noise = rng.normal(0, 3, (N, N)).astype(np.float32)
        exposure = Exposure(noise, variance=np.full((N, N), 9, np.float32))
        result = resample(exposure, out_to_in, (N, N), method=method)
        inner = result.data[80:320, 80:320].astype(float)
        pixel.append(np.mean(inner**2))
        said.append(np.mean(result.variance[80:320, 80:320]))
        block.append(np.mean((inner.reshape(8, 30, 8, 30).mean(axis=(1, 3))) ** 2) * 30**2)
        assert result.usable[80:320, 80:320].all()
    # 8 * 240^2 pixels, of which scale^2 / correlation are independent
    assert np.mean(pixel) == pytest.approx(np.mean(said), rel=0.03)
    # 512 block means: their variance is known to sqrt(2 / 512) = 6 %, times 3; blocks of 30 pixels miss some 2 %
    assert np.mean(block) == pytest.approx(result.correlation * np.mean(said), rel=0.2)


@pytest.mark.parametrize(("scale", "angle"), [(2.0, 23), (1.3, -50), (3.0, 0.3)])
def test_area_overlap_of_large_pixels(scale, angle):
    """What 'auto' does when output pixels are larger: exact flux, white-noise variance, and its correlation."""
    n = 120
    rng = np.random.default_rng(5)
    image, xy = star_field(4.0)
    out_to_in, in_to_out = rotation(angle, scale, centre=(60, 60), shift=(140.3, 140.1))
    mask = np.zeros((N, N), np.uint32)
    mask[200, 200] = MaskBit.SATURATED
    result = resample(Exposure(image + 50, np.ones((N, N)), mask), out_to_in, (n, n))
    there = in_to_out(xy)
    there = there[((there > 20) & (there < n - 20)).all(axis=1)]
    flux = aperture_flux(np.where(result.usable, result.data, 50 * scale**2) - 50 * scale**2, there, 16 / scale)
    # float32 sums over some hundred pixels
    np.testing.assert_allclose(flux[np.hypot(*(there - in_to_out(np.array([[200, 200]]))).T) > 12], 1e5, rtol=1e-5)
    x, y = np.floor(in_to_out(np.array([[200, 200]]))[0] + 0.5).astype(int)
    assert result.mask[y, x] & int(MaskBit.SATURATED | MaskBit.SPREAD)
    pixel, block = [], []
    for _ in range(6):
        noise = resample(Exposure(rng.normal(0, 1, (N, N)), np.ones((N, N))), out_to_in, (n, n), method="area")
        cut = noise.data[30:90, 30:90]
        pixel.append(np.mean(cut**2) / noise.variance[30:90, 30:90].mean())
        block.append(
            np.mean(cut.reshape(6, 10, 6, 10).mean(axis=(1, 3)) ** 2) * 100 / noise.variance[30:90, 30:90].mean()
        )
    # 6 * 60^2 pixels, some of them alike: 1.5 %; 216 blocks: 10 %, and edges of blocks of 10 pixels lose 5 %
    assert np.mean(pixel) == pytest.approx(1, abs=0.05)
    assert np.mean(block) == pytest.approx(noise.correlation, rel=0.3)


def test_area_overlap_keeps_all_flux_of_curved_maps_and_elongated_pixels():
    rng = np.random.default_rng(6)
    image = Exposure(rng.uniform(0, 100, (90, 100)), np.ones((90, 100)))

    def curved(xy):
        u = (xy - 40) / 40
        return 1.3 * xy + 3 * np.column_stack([u[:, 1] ** 2, u[:, 0] * u[:, 1]]) - 10

    # 1e-9: float64 sums; the frame is larger than the image
    out = resample(image, curved, (110, 110), method="area", max_lost=0.999)
    inside = out.usable & (out.mask == 0)
    assert inside.sum() > 2500
    spread = np.zeros((90, 100))
    spread[20:-20, 20:-20] = image.data[20:-20, 20:-20]  # away from the edges of the image, nothing is lost
    total = resample(Exposure(spread, np.ones((90, 100))), curved, (110, 110), method="area").data.sum()
    assert total == pytest.approx(spread.sum(), rel=1e-9)
    rows = Exposure(np.ones((1000, 10)), np.ones((1000, 10)))
    high = resample(rows, lambda xy: xy * [1, 10] + [0, 4.5], (100, 10), method="area")
    np.testing.assert_allclose(high.data, 10, rtol=1e-6)


def test_gain_and_zeropoint_are_those_of_the_sums_over_stars():
    exposure = Exposure(np.ones((60, 60)), gain=2.0, zeropoint=25.0)
    flux, brightness = (
        resample(exposure, lambda xy: 2 * xy + 0.5, (30, 30), conserve=c) for c in ("flux", "surface brightness")
    )
    assert (flux.gain, flux.zeropoint) == (2.0, 25.0)
    assert brightness.gain == pytest.approx(8.0)  # a star of 4 counts has the sum 1
    assert brightness.zeropoint == pytest.approx(25 - 2.5 * np.log10(4))


def test_area_and_interpolation_agree_on_levels_and_edges():
    exposure = Exposure(np.full((60, 60), 7.0), np.ones((60, 60)))
    out_to_in, _ = rotation(30, 1.0, centre=(40, 40), shift=(-10, -10))
    area, lanczos = (resample(exposure, out_to_in, (80, 80), method=m) for m in ("area", "lanczos3"))
    # pixels that the edge of the image cuts by less than 1e-3 hold the flux that is there
    np.testing.assert_allclose(area.data[area.usable], 7, rtol=1e-3)
    np.testing.assert_allclose(area.data[lanczos.mask == 0], 7, rtol=1e-5)
    # both end where the image ends, a pixel or two apart
    assert abs(int(area.usable.sum()) - int(lanczos.usable.sum())) < 4 * 60
    inside = lanczos.mask == 0
    assert area.usable[inside].mean() > 0.999
    assert set(np.unique(area.mask)) <= {0, 32, int(MaskBit.NO_DATA), int(MaskBit.EDGE)}


@pytest.mark.parametrize("shift", [0.0, 1e-5, 0.3])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_area_knows_nothing_where_no_usable_pixel_overlaps(scale, shift):
    """Inside a masked block as outside of the image: NO_DATA, with the reasons; a sliver of an overlap is none."""
    mask = np.zeros((60, 60), np.uint32)
    mask[20:32, 20:32] = MaskBit.SATURATED
    exposure = Exposure(np.ones((60, 60)), np.ones((60, 60)), mask)
    n = int(70 / scale)  # the output reaches beyond the image
    result = resample(exposure, lambda xy: scale * xy + (scale - 1) / 2 + shift, (n, n), method="area")
    edges = scale * np.arange(n + 1) - 0.5 + shift

    def overlap(low, high):
        return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) / scale

    image, block = overlap(-0.5, 59.5), overlap(19.5, 31.5)
    covered = np.outer(image, image) - np.outer(block, block)
    no_data = (result.mask & np.uint32(MaskBit.NO_DATA)) > 0
    np.testing.assert_array_equal(no_data, covered < 1e-3)  # what counts as rounding there
    assert not result.data[no_data].any()
    assert not result.coverage[covered == 0].any()
    inside = np.outer(block, block) == 1
    assert (no_data[inside] & (result.mask[inside] & np.uint32(MaskBit.SATURATED) > 0)).all()


def test_area_without_overlap():
    for map_ in (lambda xy: xy + 500, lambda xy: 2 * xy - 500, lambda xy: xy * np.nan):
        with pytest.raises(NoOverlapError):
            resample(Exposure(np.ones((40, 40))), map_, (50, 50), method="area")


def test_correlation_of_raw_pixels_stays_after_a_whole_shift():
    exposure = Exposure(np.ones((50, 60)), correlation=1.7)
    result = resample(exposure, lambda xy: xy + 5, (40, 40))
    assert result.correlation == pytest.approx(1.7)


def test_whole_pixel_shifts_are_exact():
    rng = np.random.default_rng(2)
    mask = np.where(rng.random((50, 60)) < 0.05, 2, 0).astype(np.uint32)
    exposure = Exposure(rng.normal(size=(50, 60)), rng.uniform(1, 2, (50, 60)), mask)
    result = resample(exposure, lambda xy: xy + np.array([7.0, 3.0]), (40, 50))
    cut = (slice(3, 43), slice(7, 57))
    # the coordinates come from an interpolated grid, right to about 1e-13 pixel
    usable = exposure.usable[cut]
    np.testing.assert_allclose(result.data[usable], exposure.data[cut][usable], atol=1e-10)
    np.testing.assert_allclose(result.variance[usable], exposure.variance[cut][usable], atol=1e-10)
    np.testing.assert_array_equal(result.mask, exposure.mask[cut])


def test_reasons_stay_and_nan_does_not_spread():
    data = np.full((60, 60), 10.0)
    data[30, 30] = np.nan
    mask = np.zeros((60, 60), np.uint32)
    mask[10:14, 10:14] = MaskBit.SATURATED
    result = resample(Exposure(data, mask=mask), lambda xy: xy + 0.5, (59, 59), method="lanczos3")
    np.testing.assert_allclose(result.data[result.usable], 10, rtol=1e-6)
    assert result.mask[11, 11] == MaskBit.SATURATED
    assert result.mask[30, 30] == result.mask[29, 29] == MaskBit.NO_DATA
    y, x = np.nonzero(result.mask[5:55, 5:55])
    near_nan = (np.abs(x + 5 - 29.5) < 3) & (np.abs(y + 5 - 29.5) < 3)
    near_star = (x + 5 < 17) & (y + 5 < 17)
    assert (near_nan | near_star).all()
    assert not (result.data[~result.usable] != 0).any()


def test_edge_and_outside():
    result = resample(Exposure(np.ones((40, 40))), lambda xy: xy - 9.5, (60, 60))
    assert result.mask[30, 5] == MaskBit.NO_DATA
    assert result.mask[30, 10] & MaskBit.EDGE
    assert result.usable[30, 13:47].all()


def test_no_overlap():
    with pytest.raises(NoOverlapError, match="image"):
        resample(Exposure(np.ones((40, 40))), lambda xy: xy + 1000, (60, 60))
    with pytest.raises(NoOverlapError):
        resample(Exposure(np.ones((40, 40))), lambda xy: xy * np.nan, (60, 60))
    with pytest.raises(NoOverlapError):
        resample(Exposure(np.ones((40, 40)), mask=np.ones((40, 40), bool)), lambda xy: xy, (40, 40))


def test_bad_options():
    exposure, same = Exposure(np.ones((40, 40))), lambda xy: xy
    with pytest.raises(InputError, match="lanczos3"):
        resample(exposure, same, (40, 40), method="lanzcos")
    with pytest.raises(InputError, match="surface brightness"):
        resample(exposure, same, (40, 40), conserve="counts")
    with pytest.raises(InputError, match="max_lost"):
        resample(exposure, same, (40, 40), max_lost=1.5)
    with pytest.raises(InputError, match="shape"):
        resample(exposure, same, (40, 0))
    with pytest.raises(ShapeError, match="coordinate map"):
        resample(exposure, lambda xy: xy[:1], (40, 40))


def test_what_belongs_to_the_result():
    wcs = WCS(naxis=2)
    exposure = Exposure(
        np.ones((40, 40)), psf="a psf", saturation=5e4, exptime=30.0, gain=2.0, header={"A": 1}, name="n.fits"
    )
    result = resample(exposure, lambda xy: xy + 0.2, (40, 40), wcs=wcs)
    assert result.wcs is wcs
    assert result.psf is None
    assert result.saturation is None
    assert (result.exptime, result.gain, result.name, result.header) == (30.0, 2.0, "n.fits", {"A": 1})
    assert result.variance is None


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    rng = np.random.default_rng(4)
    mask = rng.random((300, 310)) < 0.01
    exposure = Exposure(rng.normal(size=(300, 310)).astype(np.float32), np.ones((300, 310)), mask)
    results = []
    for threads in ("1", "3", "8"):
        monkeypatch.setenv("SKYLOOM_NUM_THREADS", threads)
        results.append(resample(exposure, rotation()[0], (290, 330)))
    for other in results[1:]:
        for plane in ("data", "variance", "mask", "coverage"):
            np.testing.assert_array_equal(getattr(other, plane), getattr(results[0], plane))
        assert other.correlation == results[0].correlation


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 2)])
def test_tiny_outputs(shape):
    y, x = np.mgrid[:40, :40]
    exposure = Exposure((2.0 * x + 3 * y).astype(float))
    result = resample(exposure, lambda xy: xy * 0.5 + 10.25, shape, method="cubic")
    v, u = np.mgrid[: shape[0], : shape[1]]
    expected = 0.25 * (2 * (u * 0.5 + 10.25) + 3 * (v * 0.5 + 10.25))
    np.testing.assert_allclose(result.data, expected, rtol=1e-9)


def test_tiny_inputs():
    result = resample(Exposure(np.full((1, 1), 5.0)), lambda xy: xy - 2.0, (5, 5))
    assert result.data[2, 2] == 5
    assert result.usable.sum() == 1


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    method=st.sampled_from(["lanczos3", "lanczos4", "cubic", "bilinear", "spline3", "spline5", "area"]),
    scale=st.floats(0.2, 3),
    angle=st.floats(-180, 180),
)
def test_nothing_bad_ever_comes_out(seed, method, scale, angle):
    rng = np.random.default_rng(seed)
    data = rng.normal(0, 1, (40, 50)).astype(np.float32)
    data[rng.random(data.shape) < 0.05] = rng.choice([np.nan, np.inf, -np.inf, 3e38])
    variance = rng.choice([1.0, 2.0, 0.0, np.nan, -1.0], data.shape, p=[0.6, 0.3, 0.04, 0.03, 0.03])
    exposure = Exposure(data, variance, saturation=1e30)
    before = exposure.data.copy()
    out_to_in, _ = rotation(angle, scale, centre=(22, 18))
    result = resample(exposure, out_to_in, (35, 45), method=method)
    assert np.isfinite(result.data).all()
    assert np.abs(result.data).max() < 1e3 * max(scale**2, 1)
    assert (result.variance[result.usable] > 0).all()
    assert ((result.coverage >= 0) & (result.coverage <= 1)).all()
    assert (result.coverage[result.usable] >= 0.9 - 1e-5).all()  # max_lost, float32
    assert (result.coverage[result.mask == 0] >= 1 - 2e-3).all()  # the kernel's rounding; of 'area' 1e-3 of a pixel
    np.testing.assert_array_equal(exposure.data, before)


def test_what_is_no_exposure_and_maps_without_area():
    with pytest.raises(InputError, match="exposure is a ndarray"):
        resample(np.ones((20, 30)), lambda xy: xy, (20, 30))
    for flat in (lambda xy: xy * 0 + 3, lambda xy: xy[:, :1] * [1, 1]):
        for conserve in ("flux", "surface brightness"):
            with pytest.raises(InputError, match="no area"):
                resample(Exposure(np.ones((20, 30))), flat, (20, 30), conserve=conserve)
