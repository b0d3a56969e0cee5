"""The point, turbo, gaussian and Lanczos kernels against plain loops, and what needs no oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import drizzle_oracle
from reference.drizzle_cases import CONSERVING, QUIET, VARIANTS, affine_map, drizzled, image_planes, rotation

# the reference's warnings about kernels that do not conserve flux are tested elsewhere
pytestmark = pytest.mark.filterwarnings(QUIET, "ignore:In lanczos kernel")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Starting threads takes longer than these images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKYLOOM_NUM_THREADS", "1")
        yield


@pytest.mark.parametrize(("kernel", "conserving"), VARIANTS)
@settings(max_examples=200)
@given(drawn=st.data())
def test_agrees_with_plain_loops(kernel, conserving, drawn):
    draw = drawn.draw
    ny, nx = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    degrees, zoom = draw(st.floats(-180, 180)), draw(st.floats(0.1, 4.0))
    # mostly the scale that belongs to the map, but any other will do
    scale = draw(st.one_of(st.just(1 / zoom), st.floats(0.15, 5)))
    pixfrac = draw(st.floats(0.05, 1.5))
    shift = draw(st.floats(-4, 16)), draw(st.floats(-4, 14))
    data, weight, variance = image_planes((ny, nx))
    weight[0, 0] = draw(st.sampled_from([1.0, 0.0]))
    dq = (np.arange(ny * nx, dtype=np.uint32).reshape(ny, nx) % 3) << np.uint32(draw(st.integers(0, 30)))
    pixmap = affine_map((ny, nx), rotation(degrees, zoom), shift, draw(st.floats(-0.02, 0.02)))
    pixmap[draw(st.integers(0, ny - 1)), draw(st.integers(0, nx - 1)), 1] = draw(st.sampled_from([3.5, np.nan, 1e30]))
    if not np.isfinite(pixmap).all(axis=2).any():
        pixmap[0, 0] = shift
    shape = (11, 13)
    wd, w, (wwv,), bits, positive, hits = drizzle_oracle.drizzle_shares(
        kernel, data, weight, pixmap, shape,
        squares=[variance], dq=dq, pixfrac=pixfrac, scale=scale, conserving=conserving,
    )  # fmt: skip
    options = {"conserving": conserving, "scale": scale, "pixfrac": pixfrac, "data2": variance, "dq": dq}
    found, (nmiss, nskip) = drizzled(kernel, data, weight, pixmap, shape, **options)
    # shares have rounding errors of some 1e-15 of their peak, which is (2.3548 / pixfrac)^2 scale^2 / 2 pi if Gaussian;
    # those of turbo are overlaps of cells relative to the drop; Lanczos factors are within 3e-12 and cut at 1e-12
    # along each of the two axes (8e-12 for their product); 20 drops with a weight of up to 2
    peak = max(1.0, 0.9 * (scale / pixfrac) ** 2) if kernel == "gaussian" and not conserving else 1.0
    peak = max(1.0, scale / pixfrac) if kernel == "turbo" else peak
    error = 20 * 2 * peak * (8e-12 if "lanczos" in kernel else 1e-14)
    np.testing.assert_allclose(found.out_wht, w, rtol=0, atol=error)
    solid = np.abs(w) > 1e3 * error
    np.testing.assert_allclose(found.out_img[solid], wd[solid] / w[solid], rtol=0, atol=1e3 * 200 * error / 1e-4)
    np.testing.assert_allclose(found.out_img * found.out_wht, wd, rtol=0, atol=400 * error)
    np.testing.assert_allclose(found.out_img2[0] * found.out_wht**2, wwv, rtol=0, atol=20 * peak * error)
    np.testing.assert_array_equal(found.out_dq[solid] & ~bits[solid], 0)
    quiet = (w < 1e-300) if kernel == "gaussian" else ~positive & (w == 0)  # weights near 1e-308 have few digits
    np.testing.assert_array_equal(found.out_wht[quiet], 0)
    np.testing.assert_array_equal(found.out_ctx[0][solid] == 1, positive[solid])
    assert not np.any(found.out_img[found.out_wht == 0])
    if kernel != "gaussian":  # whose far cells may be too small to count
        assert ny * nx - hits.sum() == nmiss
        assert nskip == np.count_nonzero(hits == 0)


@pytest.mark.parametrize("kernel", ["gaussian", "lanczos2", "lanczos3"])
def test_shares_are_exact(kernel):
    """One drop at a time, at many offsets: also beyond the width that is worked on in vectors."""
    for scale in (1.0, 0.5, 0.31, 0.17, 2.0):
        for offset in np.linspace(-0.5, 0.5, 21):
            x, y = 41.0 + offset, 38.0 - offset / 3
            found, _ = drizzled(kernel, np.ones((1, 1)), np.ones((1, 1)), np.array([[[x, y]]]), (80, 80), scale=scale)
            columns, rows, share = drizzle_oracle.shares(kernel, x, y, scale=scale)
            needed = np.zeros((80, 80))
            needed[np.ix_(rows.astype(int), columns.astype(int))] = share
            # rounding; polynomials with an error of 3e-12 and a cut at 1e-12 along each axis
            atol = 2e-14 * max(1, scale**2) if kernel == "gaussian" else 8e-12
            np.testing.assert_allclose(found.out_wht, needed, rtol=0, atol=atol)
    found, _ = drizzled(kernel, np.ones((1, 1)), np.ones((1, 1)), np.full((1, 1, 2), 5.0), (11, 11))
    if kernel != "gaussian":  # sinc is 0 at whole numbers, exactly
        assert found.out_wht[5, 5] == 1
        assert np.count_nonzero(found.out_wht) == 1


@pytest.mark.parametrize(("kernel", "conserving"), CONSERVING)
@settings(max_examples=200)
@given(drawn=st.data())
def test_weight_and_flux_are_conserved(kernel, conserving, drawn):
    degrees, zoom = drawn.draw(st.floats(-180, 180)), drawn.draw(st.floats(0.2, 3.0))
    pixfrac, curvature = drawn.draw(st.floats(0.1, 1.0)), drawn.draw(st.floats(-1e-3, 1e-3))
    data, weight, _ = image_planes((9, drawn.draw(st.integers(1, 70))))
    size = int(zoom * 90) + 40
    pixmap = affine_map(data.shape, rotation(degrees, zoom), (size / 2, size / 2), curvature)
    options = {"pixfrac": pixfrac, "conserving": conserving, "scale": 1 / zoom}
    found, counts = drizzled(kernel, data, weight, pixmap, (size, size), **options)
    assert counts == (0, 0)
    # rounding of areas and overlaps relative to the smallest drop, 0.02 x 0.02 pixels: 1e-13 / 4e-4
    assert found.out_wht.sum() == pytest.approx(weight.sum(), rel=1e-9)
    assert (found.out_wht * found.out_img).sum() == pytest.approx((weight * data).sum(), rel=1e-9)


def test_normalised_kernels_go_beyond_the_frame():
    """What the frame cuts off is lost to the frame, not moved into it: tiles stay seamless."""
    for kernel in ("gaussian", "lanczos2", "lanczos3"):
        for scale in (0.4, 1.0, 1.9, 6.0):
            pixmap = np.array([[[0.28125, 4.125]]])  # exact with any origin
            whole, _ = drizzled(
                kernel, np.ones((1, 1)), np.ones((1, 1)), pixmap + 40, (90, 90), scale=scale, conserving=True
            )
            cut, _ = drizzled(kernel, np.ones((1, 1)), np.ones((1, 1)), pixmap, (50, 50), scale=scale, conserving=True)
            assert whole.out_wht.sum() == pytest.approx(1, rel=1e-13)
            np.testing.assert_allclose(cut.out_wht, whole.out_wht[40:, 40:], rtol=0, atol=1e-11)


@pytest.mark.parametrize(("kernel", "conserving"), VARIANTS)
@pytest.mark.parametrize("zoom", [0.5, 1.0, 2.0, 9.0])
def test_constant_stays_constant(kernel, conserving, zoom):
    data, weight = np.full((40, 70), 7.25), image_planes((40, 70))[1]
    size = int(85 * zoom) + 8
    for degrees in (0.0, 3.0, 90.0, 133.0):
        pixmap = affine_map(data.shape, rotation(degrees, zoom), (size / 2, size / 2))
        options = {"conserving": conserving, "scale": 1 / zoom}
        found, _ = drizzled(kernel, data, weight, pixmap, (size, size), **options)
        # sums of up to 36 terms; where Lanczos weights all but cancel their rounding shows
        solid = np.abs(found.out_wht) > 1e-9
        np.testing.assert_allclose(found.out_img[solid], 7.25, rtol=1e-4)
        np.testing.assert_allclose(found.out_img * found.out_wht, 7.25 * found.out_wht, rtol=0, atol=1e-12)
        # points leave gaps and share cells, more so the nearer their grid is to that of the cells
        reached = data.size * (0.8 * min(zoom, 1) ** 2 if kernel == "point" else 0.9 * zoom**2)
        assert np.count_nonzero(found.out_wht) > reached


@pytest.mark.parametrize(("kernel", "conserving"), VARIANTS)
def test_shifts_flips_and_transposes_move_the_result(kernel, conserving):
    data, weight, variance = image_planes((50, 90))
    base = affine_map(data.shape, rotation(17, 0.9), (60.2, 50.9), 1e-4)
    options = {"conserving": conserving, "scale": 1.1, "data2": variance}
    needed, _ = drizzled(kernel, data, weight, base, (100, 120), **options)
    x, y = base[..., 0], base[..., 1]
    cases = {
        "shift": (np.dstack([x + 5, y + 3]), (slice(3, 103), slice(5, 125)), lambda a: a),
        "flip": (np.dstack([119 - x, y]), (slice(100), slice(120)), lambda a: a[:, ::-1]),
        "half turn": (np.dstack([119 - x, 99 - y]), (slice(100), slice(120)), lambda a: a[::-1, ::-1]),
        "transpose": (np.dstack([y, x]), (slice(120), slice(100)), lambda a: a.T),
    }
    for name, (pixmap, place, moved) in cases.items():
        found, _ = drizzled(kernel, data, weight, pixmap, (120, 130), **options)
        # positions near 100 are rounded to 1e-14
        np.testing.assert_allclose(found.out_wht[place], moved(needed.out_wht), rtol=0, atol=1e-11, err_msg=name)
        sums = [d.out_wht * d.out_img for d in (found, needed)]
        np.testing.assert_allclose(sums[0][place], moved(sums[1]), rtol=0, atol=1e-9, err_msg=name)
        sums = [d.out_wht**2 * d.out_img2[0] for d in (found, needed)]
        np.testing.assert_allclose(sums[0][place], moved(sums[1]), rtol=0, atol=1e-10, err_msg=name)
