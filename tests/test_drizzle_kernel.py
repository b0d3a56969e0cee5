"""The square kernel against polygon clipping, and the properties that no oracle is needed for."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import drizzle_cases, drizzle_oracle
from reference.drizzle_cases import affine_map, image_planes, results_of_instruction_sets, rotation
from skyloom.resampling import Drizzle

drizzled = partial(drizzle_cases.drizzled, "square")


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(-180, 180),
    st.floats(0.3, 7.0),
    st.floats(0.05, 1.0),
    st.booleans(),
    st.floats(-3, 3),
    st.floats(-3, 3),
    st.floats(-0.02, 0.02),
)
def test_agrees_with_polygon_clipping(  # noqa: PLR0917  hypothesis gives them by position
    ny, nx, degrees, scale, pixfrac, mirror, dx, dy, curvature
):
    ny, nx = max(ny, 2), max(nx, 2)
    matrix = np.array(rotation(degrees, scale)) * ([-1, 1] if mirror else [1, 1])
    assert_agrees_with_polygon_clipping(
        affine_map((ny, nx), matrix, (9 + dx, 8 + dy), curvature), (17, 19), pixfrac, scale
    )


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([0, 90, 180, 270]),
    st.floats(-5, 5) | st.just(0.0),
    st.floats(-0.04, 0.04) | st.just(0.0),
    st.floats(0.3, 3.5) | st.sampled_from([0.5, 1.0, 2.0]),
    st.floats(0.3, 1.0) | st.just(1.0),
    st.booleans(),
    st.floats(-1, 1) | st.just(0.0),
    st.floats(-1e-4, 1e-4),
)
def test_upright_drops_agree_with_polygon_clipping(  # noqa: PLR0917  as above
    quarter, degrees, shear, scale, pixfrac, mirror, shift, curvature
):
    # one whole batch of 64 drops that has neighbours on all sides
    ny, nx = 3, 130
    matrix = np.array(rotation(quarter, 1.0)) @ rotation(degrees, scale) @ [[1, shear], [0, 1]]
    matrix = np.where(np.abs(matrix) < 1e-12, 0, matrix) * ([-1, 1] if mirror else [1, 1])
    size = int(nx * scale * 1.1) + 20
    pixmap = affine_map((ny, nx), matrix, (size / 2 + shift, size / 2 - shift), curvature)
    low, high = np.floor(pixmap.min(axis=(0, 1))) - 3, np.ceil(pixmap.max(axis=(0, 1))) + 4
    shape = (int(high[1] - low[1]), int(high[0] - low[0]))
    assert_agrees_with_polygon_clipping(pixmap - low, shape, pixfrac, scale, used=np.s_[1, 64:128])


def assert_agrees_with_polygon_clipping(pixmap, shape, pixfrac, scale, used=np.s_[:]):
    ny, nx = pixmap.shape[:2]
    data, given_weight, variance = image_planes((ny, nx))
    weight = np.zeros_like(given_weight)
    weight[used] = given_weight[used]
    dq = (np.arange(ny * nx).reshape(ny, nx) % 5 == 0).astype(np.uint32) << (np.arange(nx) % 32).astype(np.uint32)
    wd, w, (wwv,), bits, hits = drizzle_oracle.drizzle_square(
        data, weight, pixmap, shape, squares=[variance], dq=dq, pixfrac=pixfrac
    )
    found, (nmiss, nskip) = drizzled(data, weight, pixmap, shape, data2=variance, dq=dq, pixfrac=pixfrac)
    # areas are sums of terms up to (the drop's span)^2 with a rounding of 2e-16 each, weights are shares of the drop
    drop = (pixfrac * scale) ** 2
    error = 1e-13 * max(1.0, (scale + 1) ** 2 / drop)
    np.testing.assert_allclose(found.out_wht, w, rtol=0, atol=2 * error)
    solid = w > 1e4 * error
    np.testing.assert_allclose(found.out_img[solid], (wd / np.where(w > 0, w, 1))[solid], rtol=1e-3)
    np.testing.assert_allclose(found.out_img * found.out_wht, wd, rtol=0, atol=400 * error)
    np.testing.assert_allclose(found.out_img2[0] * found.out_wht**2, wwv, rtol=0, atol=40 * error)
    np.testing.assert_array_equal(found.out_dq[solid] & ~bits[solid], 0)
    np.testing.assert_array_equal((found.out_ctx[0] == 1), found.out_wht > 0)
    assert nmiss == ny * nx - hits.sum()
    assert nskip == np.count_nonzero(hits == 0)


@settings(max_examples=25, deadline=None)
@given(st.floats(-180, 180), st.floats(0.4, 3.0), st.floats(0.1, 1.0), st.floats(-1e-3, 1e-3), st.integers(1, 150))
def test_weight_and_flux_are_conserved(degrees, scale, pixfrac, curvature, nx):
    data, weight, _ = image_planes((70, nx))
    size = int(1.5 * scale * (150 + 20)) + 10
    pixmap = affine_map(data.shape, rotation(degrees, scale), (size / 2 + 0.3, size / 2 - 0.2), curvature)
    found, counts = drizzled(data, weight, pixmap, (size, size), pixfrac=pixfrac)
    assert counts == (0, 0)
    # 1e-10: rounding of areas relative to the smallest drop (0.04 x 0.04 pixels)
    assert found.out_wht.sum() == pytest.approx(weight.sum(), rel=1e-10)
    assert (found.out_wht * found.out_img).sum() == pytest.approx((weight * data).sum(), rel=1e-10)


@pytest.mark.parametrize("degrees", [0.0, 3.0, 45.0, 90.0, 133.0])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 9.0])
def test_constant_stays_constant(degrees, scale):
    data = np.full((40, 70), 7.25)
    weight = image_planes(data.shape)[1]
    size = int(85 * scale) + 8
    found, _ = drizzled(
        data, weight, affine_map(data.shape, rotation(degrees, scale), (size / 2, size / 2)), (size, size)
    )
    reached = found.out_wht > 0
    np.testing.assert_allclose(found.out_img[reached], 7.25, rtol=1e-12)
    assert reached.sum() > 0.9 * 40 * 70 * scale**2


def test_integer_shifts_flips_and_transposes_move_pixels_exactly():
    data, weight, variance = image_planes((50, 90))
    y, x = np.mgrid[:50, :90].astype(float)
    cases = {
        "shift": (np.dstack([x + 5, y + 3]), lambda a: a),
        "flip": (np.dstack([94 - x, y + 3]), lambda a: a[:, ::-1]),
        "half turn": (np.dstack([94 - x, 52 - y]), lambda a: a[::-1, ::-1]),
        "transpose": (np.dstack([y + 3, x + 5]), lambda a: a.T),
    }
    for name, (pixmap, moved) in cases.items():
        shape = (60, 100) if name != "transpose" else (100, 60)
        found, _ = drizzled(data, weight, pixmap, shape, data2=variance)
        place = (slice(3, 53), slice(5, 95)) if name != "transpose" else (slice(5, 95), slice(3, 53))
        # the weight is w * area / area; the mean is (w d) / w: two roundings each
        np.testing.assert_allclose(found.out_wht[place], moved(weight), rtol=1e-15, err_msg=name)
        np.testing.assert_allclose(found.out_img[place], moved(data), rtol=1e-15, err_msg=name)
        np.testing.assert_allclose(found.out_img2[0][place], moved(variance), rtol=1e-15, err_msg=name)
        outside = np.ones(shape, bool)
        outside[place] = False
        assert not found.out_wht[outside].any()
        assert not found.out_ctx[0][outside].any()


@settings(max_examples=25, deadline=None)
@given(st.floats(-180, 180), st.floats(0.5, 2.5), st.integers(-60, 60), st.integers(-60, 60), st.floats(-1e-3, 1e-3))
def test_frames_that_cut_the_image_lose_nothing(degrees, scale, cut_x, cut_y, curvature):
    data, weight, _ = image_planes((60, 80))
    size = int(110 * scale) + 90
    pixmap = affine_map(data.shape, rotation(degrees, scale), (size / 2, size / 2), curvature)
    whole, _ = drizzled(data, weight, pixmap, (size, size))
    cut = (size // 2 + cut_y, size // 2 + cut_x)
    for rows in (slice(0, cut[0]), slice(cut[0], size)):
        for columns in (slice(0, cut[1]), slice(cut[1], size)):
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            part, _ = drizzled(data, weight, pixmap - [columns.start, rows.start], shape)
            # another origin rounds positions differently: 1e-13 pixels at 500
            np.testing.assert_allclose(part.out_wht, whole.out_wht[rows, columns], rtol=0, atol=1e-11)
            sums = part.out_wht * part.out_img, (whole.out_wht * whole.out_img)[rows, columns]
            np.testing.assert_allclose(*sums, rtol=0, atol=1e-9)


def test_counts_are_of_pixels_and_rows_that_reach_the_frame():
    data = np.ones((20, 30))
    y, x = np.mgrid[:20, :30].astype(float)
    weight = np.ones(data.shape)
    weight[4] = 0
    _, counts = drizzled(data, weight, np.dstack([x - 10.25, y - 2.5]), (100, 100))
    # columns 0-9 lie left of -0.5 with all of their area (column 10 is cut), rows 0 and 1 below, row 4 has no weight
    assert counts == (20 * 30 - 20 * 17, 3)


def test_a_drop_whose_bounding_box_alone_meets_the_frame_is_missed():
    y, x = np.mgrid[:2, :2].astype(float)
    pixmap = np.dstack([x - y, x + y])  # a diamond, 45 degrees
    shifted = pixmap - [1.7, 1.7] + [0.0, 0.0]
    wd, w, _, _, hits = drizzle_oracle.drizzle_square(np.ones((2, 2)), np.ones((2, 2)), shifted, (4, 4))
    found, (nmiss, _) = drizzled(np.ones((2, 2)), np.ones((2, 2)), shifted, (4, 4))
    np.testing.assert_allclose(found.out_wht, w, atol=1e-14)
    assert nmiss == 4 - hits.sum() > 0
    assert wd.sum() > 0


@pytest.mark.parametrize("n_squares", [0, 1, 3, 6])
def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch, n_squares):
    data, weight, variance = image_planes((300, 333))
    dq = np.random.default_rng(2).integers(0, 1 << 32, data.shape, dtype=np.uint32)
    pixmap = affine_map(data.shape, rotation(33), (230, 240), 1e-5)
    results = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("SKYLOOM_NUM_THREADS", threads)
        found, counts = drizzled(data, weight, pixmap, (470, 480), data2=[variance] * n_squares or None, dq=dq)
        planes = [found.out_img, found.out_wht, found.out_ctx, found.out_dq, *(found.out_img2 or [])]
        results.append((counts, [p.tobytes() for p in planes]))
    assert results[0] == results[1] == results[2]


PROGRAM = """
import sys, numpy as np
from skyloom._kernels import simd_level
from skyloom.resampling import Drizzle
y, x = np.mgrid[:130, :150].astype(float)
rng = np.random.default_rng(5)
data, variance = rng.normal(size=(2, 130, 150))
found = {}
for case, (scale, turn) in enumerate(((1.0, 0.05), (1.0, 0.8), (0.4, 1.6), (2.2, 0.3), (3.3, 2.0), (8.0, 0.1))):
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    pixmap = np.dstack([c * (x - 70) - s * (y - 60) + 80, s * (x - 70) + c * (y - 60) + 70])
    pixmap[40:44, 50] = np.nan
    d = Drizzle(out_img=np.zeros((150, 160)), fillval=0, fillval2=0)
    counts = d.add_image(data, 1.0, pixmap, data2=[variance**2] * 3, weight_map=variance**2, pixfrac=0.9)
    found |= {f"count{case}": counts, f"weight{case}": d.out_wht, f"sum{case}": d.out_img * d.out_wht}
    found |= {f"square{plane}.{case}": v * d.out_wht**2 for plane, v in enumerate(d.out_img2)}
np.savez(sys.argv[1], **found)
print(simd_level())
"""


def test_instruction_sets_agree(tmp_path):
    found = results_of_instruction_sets(PROGRAM, tmp_path)
    needed = found.pop("baseline")
    assert needed["weight0"].sum() > 1000
    for planes in found.values():
        assert sorted(planes) == sorted(needed)
        for name, plane in needed.items():
            # fused multiply-adds round once where the baseline rounds twice: shares of a drop of 0.36 x 0.36 cells
            # differ by up to 1e-13 / 0.13, and so do the sums in units of the largest one; counts are whole numbers
            atol = 0 if name.startswith("count") else 1e-12 * np.abs(plane).max()
            np.testing.assert_allclose(planes[name], plane, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_weigh_nothing(dtype, bad):
    data, weight, variance = (p.astype(dtype) for p in image_planes((30, 40)))
    pixmap = affine_map(data.shape, rotation(10), (25, 25))
    for index in range(3):
        if index == 1 and bad < 0:
            continue  # a negative weight is an error
        planes = [p.copy() for p in (data, weight, variance)]
        planes[index][10:12, 20:23] = bad
        found, _ = drizzled(planes[0], planes[1], pixmap, (60, 60), data2=planes[2])
        masked = weight.copy()
        masked[10:12, 20:23] = 0
        needed, _ = drizzled(data, masked, pixmap, (60, 60), data2=variance)
        for name in ("out_img", "out_wht", "out_ctx"):
            np.testing.assert_array_equal(getattr(found, name), getattr(needed, name))
        np.testing.assert_array_equal(found.out_img2[0], needed.out_img2[0])
        assert np.isfinite(found.out_img).all()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 33, 64])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_gap_in_the_map_loses_the_gap_alone(size, value):
    shape = (100, 160)
    y, x = np.mgrid[:100, :160].astype(float)
    pixmap = affine_map(shape, rotation(21), (95, 95), 1e-5)
    gap = np.zeros(shape, bool)
    gap[20 : 20 + size, 70 : 70 + size] = True
    gap[90, 3] = gap[0, 0] = gap[99, 159] = True
    broken = np.where(gap[..., None], value, pixmap)
    broken[90, 3] = [5.0, value]  # one coordinate is enough
    plane = x + 2 * y  # a smooth image: means differ by where the corners are, which is by the map's curvature
    found, (nmiss, _) = drizzled(plane, np.ones(shape), broken, (200, 200))
    needed, _ = drizzled(plane, (~gap).astype(float), pixmap, (200, 200))
    assert nmiss == gap.sum()
    assert found.out_wht.sum() == pytest.approx((~gap).sum(), rel=1e-12)
    # second differences of this map are 2e-5 pixels: corners next to the gap may move by a fraction of that
    np.testing.assert_allclose(found.out_wht, needed.out_wht, atol=2e-4)
    np.testing.assert_allclose(found.out_img * found.out_wht, needed.out_img * needed.out_wht, atol=0.1)


def test_scattered_gaps_leave_every_other_pixel():
    shape = (60, 70)
    pixmap = affine_map(shape, rotation(5), (40, 40))
    for fraction in (0.3, 0.8, 0.97):
        gap = np.random.default_rng(3).random(shape) < fraction
        found, (nmiss, _) = drizzled(np.ones(shape), np.ones(shape), np.where(gap[..., None], np.nan, pixmap), (90, 90))
        assert nmiss == gap.sum()
        # an affine map is continued exactly, so the drops are where they would be without gaps
        needed, _ = drizzled(np.ones(shape), (~gap).astype(float), pixmap, (90, 90))
        np.testing.assert_allclose(found.out_wht, needed.out_wht, atol=1e-11)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (1, 200), (2, 2)])
@pytest.mark.parametrize("degrees", [0, 30])
def test_images_of_one_row_or_column(shape, degrees):
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    (a, b), (c, d) = rotation(degrees)
    pixmap = np.dstack([a * x + b * y + 160, c * x + d * y + 5])
    found, counts = drizzled(np.full(shape, 3.0), np.ones(shape), pixmap, (220, 400))
    assert counts == (0, 0)
    assert found.out_wht.sum() == pytest.approx(shape[0] * shape[1], rel=1e-12)
    np.testing.assert_allclose(found.out_img[found.out_wht > 0], 3.0, rtol=1e-12)


@pytest.mark.parametrize(
    "pixmap",
    [
        np.full((5, 6, 2), 4.0),
        np.dstack(np.mgrid[:5, :6].astype(float)) * [1, 0],
        np.dstack(np.mgrid[:5, :6].astype(float)) + 1e9,
        np.dstack(np.mgrid[:5, :6].astype(float)) - 1e5,
    ],
    ids=["point", "line", "far", "outside"],
)
def test_maps_without_area_or_overlap_add_nothing(pixmap):
    options = {"out_shape": (10, 10)}
    drizzle = Drizzle(**options)
    if np.abs(pixmap).max() > 1e8:  # beyond any frame: such positions count as undefined
        drizzle.add_image(np.ones((5, 6)), 1.0, pixmap)
        assert not drizzle.out_wht.any()
        return
    assert drizzle.add_image(np.ones((5, 6)), 1.0, pixmap) == (30, 5)
    assert not drizzle.out_wht.any()
    assert np.isnan(drizzle.out_img).all()


def test_folded_and_shuffled_maps_stay_finite():
    rng = np.random.default_rng(8)
    y, x = np.mgrid[:30, :40].astype(float)
    folded = np.dstack([np.abs(x - 20.3) + 3, y + 2])
    shuffled = rng.permutation(np.dstack([x, y]).reshape(-1, 2)).reshape(30, 40, 2)
    for pixmap in (folded, shuffled):
        found, _ = drizzled(np.ones((30, 40)), np.ones((30, 40)), pixmap, (50, 50))
        assert np.isfinite(found.out_img).all()
        assert (found.out_wht >= 0).all()
        np.testing.assert_allclose(found.out_img[found.out_wht > 0], 1.0, rtol=1e-9)
    found, _ = drizzled(np.ones((30, 40)), np.ones((30, 40)), folded, (50, 50))
    # only the column on the fold has no inside
    assert found.out_wht.sum() >= 30 * 39 - 1e-9
