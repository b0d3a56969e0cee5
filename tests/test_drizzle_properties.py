"""What holds for every drizzle kernel, whatever the image and its map: tiles, mirrors and threads change nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.drizzle_cases import QUIET, VARIANTS, affine_map, drizzled, image_planes, rotation

EVERY_KERNEL = pytest.mark.parametrize(("kernel", "conserving"), [("square", False), *VARIANTS])

pytestmark = pytest.mark.filterwarnings(QUIET, "ignore:In lanczos kernel")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Starting threads takes longer than these images."""
    monkeypatch.setenv("SKYLOOM_NUM_THREADS", "1")


@st.composite
def maps(draw, shape, middle):
    """A pixel map, and the ratio of scales that a kernel is given."""
    degrees, zoom = draw(st.floats(-180, 180)), draw(st.floats(0.4, 2.5))
    pixmap = affine_map(shape, rotation(degrees, zoom), middle, draw(st.floats(-1e-2, 1e-2)) * 8 / max(shape))
    return pixmap, draw(st.sampled_from([1.0, 0.5, 1 / zoom]))


@EVERY_KERNEL
@settings(max_examples=200)
@given(drawn=st.data())
def test_tiles_put_together_are_the_whole(kernel, conserving, drawn):
    data, weight, _ = image_planes((4, 5))
    pixmap, scale = drawn.draw(maps(data.shape, (10, 10)))
    # a dyadic grid of positions, so that another origin does not round them differently
    pixmap = np.round(pixmap * 2**20) / 2**20
    if drawn.draw(st.booleans()) and kernel != "square":
        pixmap = np.round(pixmap * 2) / 2  # onto the borders of cells
    options = {"conserving": conserving, "scale": scale}
    whole, _ = drizzled(kernel, data, weight, pixmap, (20, 20), **options)
    cut = drawn.draw(st.integers(1, 19)), drawn.draw(st.integers(1, 19))
    for rows in (slice(0, cut[0]), slice(cut[0], 20)):
        for columns in (slice(0, cut[1]), slice(cut[1], 20)):
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            part, _ = drizzled(kernel, data, weight, pixmap - [columns.start, rows.start], shape, **options)
            np.testing.assert_array_equal(part.out_wht != 0, whole.out_wht[rows, columns] != 0)
            np.testing.assert_array_equal(part.out_ctx[0], whole.out_ctx[0][rows, columns])
            # the origin does not move drops, but boxes start elsewhere: sums in the same order, rounded alike
            np.testing.assert_allclose(part.out_wht, whole.out_wht[rows, columns], rtol=1e-12, atol=1e-13)
            sums = part.out_wht * part.out_img, (whole.out_wht * whole.out_img)[rows, columns]
            np.testing.assert_allclose(*sums, rtol=1e-12, atol=1e-11)


@EVERY_KERNEL
@settings(max_examples=200)
@given(drawn=st.data())
def test_mirrors_and_transposes_move_the_result(kernel, conserving, drawn):
    data, weight, variance = image_planes((4, 5))
    pixmap, scale = drawn.draw(maps(data.shape, (10, 10)))
    pixmap = (np.floor(pixmap * 2**20) + 0.5) / 2**20  # no drop is centred on a border, where halves are rounded up
    x, y = pixmap[..., 0], pixmap[..., 1]
    mirrored, moved = drawn.draw(
        st.sampled_from(
            [
                (np.dstack([19 - x, y]), lambda a: a[:, ::-1]),
                (np.dstack([x, 19 - y]), lambda a: a[::-1]),
                (np.dstack([19 - x, 19 - y]), lambda a: a[::-1, ::-1]),
                (np.dstack([y, x]), lambda a: a.T),
            ]
        )
    )
    options = {"conserving": conserving, "scale": scale, "data2": variance}
    found, counts = drizzled(kernel, data, weight, mirrored, (20, 20), **options)
    needed, needed_counts = drizzled(kernel, data, weight, pixmap, (20, 20), **options)
    assert counts == needed_counts
    # shares are rounded to 1e-14; Lanczos shares are cut at 1e-12 along each axis
    np.testing.assert_allclose(found.out_wht, moved(needed.out_wht), rtol=0, atol=1e-11)
    sums = [d.out_wht * d.out_img for d in (found, needed)]
    np.testing.assert_allclose(sums[0], moved(sums[1]), rtol=0, atol=1e-9)
    sums = [d.out_wht**2 * d.out_img2[0] for d in (found, needed)]
    np.testing.assert_allclose(sums[0], moved(sums[1]), rtol=0, atol=1e-10)


@EVERY_KERNEL
@settings(max_examples=200)
@given(drawn=st.data())
def test_bits_do_not_depend_on_threads(kernel, conserving, drawn):
    """On a frame of several tiles, across whose borders batches and runs of drops lie."""
    data, weight, variance = image_planes((9, 140))
    pixmap, scale = drawn.draw(maps(data.shape, (65, 70)))
    options = {"conserving": conserving, "scale": scale, "data2": variance}
    results = []
    for threads in ("1", "3"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SKYLOOM_NUM_THREADS", threads)
            found, counts = drizzled(kernel, data, weight, pixmap, (140, 130), **options)
        planes = [found.out_img, found.out_wht, found.out_ctx, *found.out_img2]
        results.append((counts, [p.tobytes() for p in planes]))
    assert results[0] == results[1]
