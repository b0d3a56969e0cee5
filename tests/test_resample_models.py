"""`Resample`: the co-add of models against the formulas, one plane of one model at a time."""

import copy
import logging

import numpy as np
import pytest
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from reference.resample_oracle import coadd, propagated
from simulate_models import PIXEL, make_gwcs, make_model, make_wcs
from skyloom.errors import SkyloomError
from skyloom.resampling import Resample, calc_pixmap, decode_context

NAMES = ("var_rnoise", "var_flat", "var_poisson")
SHAPE, OUT = (9, 10), (13, 14)
# float32 sums of a few terms, and maps to 1e-5 pixels on noise
CLOSE = {"rtol": 2e-5, "atol": 1e-7}


def output(shape=OUT, **options):
    return {"wcs": make_wcs(shape, **options), "pixel_scale": 3600 * options.get("pixel", PIXEL)}


def dithered(n, sip=0.0, **changes):
    rng = np.random.default_rng(n)
    shifts = rng.uniform(-2, 2, (n, 2))
    return [
        make_model(SHAPE, make_wcs(SHAPE, tuple(s), angle=3.0 * k, sip=sip), k, **changes) for k, s in enumerate(shifts)
    ]


def resampled(models, output_wcs=None, **options):
    co_add = Resample(output() if output_wcs is None else output_wcs, **options)
    for model in models:
        co_add.add_model(model)
    co_add.finalize()
    return co_add.output_model


def pixmaps(models, out):
    return [calc_pixmap(m["wcs"], out, m["data"].shape, tolerance=None) for m in models]


def assert_plane(found, expected, where):
    np.testing.assert_allclose(found[where], expected[where], **CLOSE)


@pytest.mark.parametrize("weight_type", ["ivm", "ivm-sky", "exptime", None])
@pytest.mark.parametrize("pixel", [PIXEL, 0.7 * PIXEL])
def test_all_planes_are_those_of_the_formulas(weight_type, pixel):
    models = dithered(2, sip=1e-4, level=0.5)
    out = output(pixel=pixel)
    found = resampled(
        models, out, weight_type=weight_type, good_bits=4, compute_err="driz_err", propagate_dq=True, pixfrac=0.9
    )
    expected = coadd(
        models,
        pixmaps(models, out["wcs"]),
        OUT,
        weight_type,
        [pixel / PIXEL] * 2,
        names=NAMES,
        error=True,
        good_bits=4,
        pixfrac=0.9,
    )
    some = expected["wht"] > 1e-3 * expected["wht"].max()  # the edge of an edge is a matter of rounding
    for name in ("data", "wht", "err", *NAMES):
        assert_plane(found[name], expected[name], some)
    np.testing.assert_array_equal(found["dq"][some], expected["dq"][some])
    assert np.isnan(found["var_flat"][found["wht"] == 0]).all()
    assert found["wht"][~some].max() <= 2e-3 * found["wht"].max()


def test_squared_weights_are_the_propagated_noise():
    models = dithered(3)
    out = output(pixel=1.3 * PIXEL)
    found = resampled(models, out, squared_weights=True, compute_err="from_var")
    some = found["wht"] > 0.01 * found["wht"].max()
    total = np.zeros(OUT)
    for name in NAMES:
        expected = propagated(models, pixmaps(models, out["wcs"]), OUT, "ivm", name)
        assert_plane(found[name], expected, some)
        total += expected
    assert_plane(found["err"], np.sqrt(total), some)


def test_squared_weights_propagate_errors_too():
    models = dithered(2)
    for model in models:
        model["err"] = np.sqrt(model["var_flat"])
    found = resampled(models, squared_weights=True, compute_err="driz_err")
    some = found["wht"] > 0.01 * found["wht"].max()
    np.testing.assert_allclose(found["err"][some], np.sqrt(found["var_flat"][some]), rtol=1e-5)


def test_errors_from_variances_are_the_root_of_those_that_are_known():
    models = dithered(2)
    models[0]["var_flat"] = models[1]["var_flat"] = None
    found = resampled(models, compute_err="from_var")
    expected = np.sqrt(found["var_rnoise"] + found["var_poisson"])
    np.testing.assert_allclose(found["err"], expected, rtol=1e-6)
    assert np.isnan(found["var_flat"]).all()
    assert np.isfinite(found["err"][found["wht"] > 0]).all()


def test_only_some_variances_make_the_error():
    class Chosen(Resample):
        error_from_variances = ["var_flat"]  # noqa: RUF012

    co_add = Chosen(output(), compute_err="from_var")
    co_add.add_model(make_model(SHAPE))
    co_add.finalize()
    np.testing.assert_allclose(co_add.output_model["err"] ** 2, co_add.output_model["var_flat"], rtol=1e-6)


def test_names_and_types_of_variances_are_those_of_the_subclass():
    class Other(Resample):
        variance_array_names = ["var_sky", "var_other"]  # noqa: RUF012
        output_array_types = Resample.output_array_types | {"var_other": np.float64}

    other = np.random.default_rng(1).gamma(5, 1, SHAPE)
    co_add = Other(output())
    co_add.add_model(make_model(SHAPE, var_other=other))
    co_add.finalize()
    model = co_add.output_model
    assert model["var_other"].dtype == np.float64
    assert model["var_sky"].dtype == np.float32
    assert "var_rnoise" not in model
    expected = coadd(
        [make_model(SHAPE, var_other=other)],
        pixmaps([make_model(SHAPE)], output()["wcs"]),
        OUT,
        "ivm",
        [1.0],
        names=("var_sky", "var_other"),
    )
    some = expected["wht"] > 0.01 * expected["wht"].max()
    assert_plane(model["var_other"], expected["var_other"], some)
    assert_plane(model["var_sky"], expected["var_sky"], some)


def test_output_model_has_the_keys_and_numbers_of_the_original():
    out = output()
    model = resampled(dithered(2), out, compute_err="from_var", fillval="NAN")
    keys = (
        "wcs data wht con dq pixfrac kernel fillval weight_type pixelarea_steradians pixelarea_arcsecsq "
        "pixel_scale_ratio pointings exposure_time measurement_time start_time end_time duration "
        "elapsed_exposure_time level subtracted"
    )
    assert set(model) == {*keys.split(), *NAMES, "err"}
    assert model["wcs"] is out["wcs"]
    assert (model["pointings"], model["exposure_time"], model["measurement_time"]) == (2, 21.0, 19.0)
    assert (model["start_time"], model["end_time"], model["duration"]) == (0.0, 111.0, 22.0)
    assert model["elapsed_exposure_time"] == 22.0
    assert model["dq"] is None
    assert (model["level"], model["subtracted"]) == (None, False)
    assert model["pixelarea_arcsecsq"] == pytest.approx(0.06**2)
    assert model["pixelarea_steradians"] == pytest.approx(np.deg2rad(PIXEL) ** 2)
    assert model["pixel_scale_ratio"] == pytest.approx(1.0)
    assert np.isnan(model["data"][model["wht"] == 0]).all()
    assert model["data"].dtype == model["wht"].dtype == model["err"].dtype == np.float32
    assert model["con"].dtype == np.int32


def test_without_context_variances_and_errors():
    model = resampled(dithered(1), enable_ctx=False, enable_var=False)
    assert model["con"] is None
    assert not {"err", *NAMES} & set(model)


def test_models_of_one_group_count_their_time_once():
    models = dithered(3)
    models[2]["group_id"] = models[0]["group_id"]
    co_add = Resample(output())
    for model in models:
        co_add.add_model(model)
    assert co_add.group_ids == [0, 1]
    co_add.finalize()
    assert co_add.output_model["pointings"] == 2
    assert co_add.output_model["exposure_time"] == 21.0


def test_context_has_a_bit_for_each_of_forty_models():
    shape = (5, 6)
    rng = np.random.default_rng(3)
    models = [make_model(shape, make_wcs(shape, tuple(rng.uniform(-2, 2, 2))), k, good=None) for k in range(40)]
    for n_input in (None, 40):
        model = resampled(models, output((9, 10)), n_input_models=n_input, good_bits=None)
        assert model["con"].shape == (2, 9, 10)
        covered = np.zeros((40, 9, 10), bool)
        for k, m in enumerate(models):
            alone = resampled([m], output((9, 10)), good_bits=None)
            covered[k] = alone["wht"] > 0
        y, x = np.nonzero(np.ones((9, 10)))
        for pixel, images in zip(zip(y, x, strict=True), decode_context(model["con"], x, y), strict=True):
            np.testing.assert_array_equal(images, np.flatnonzero(covered[(slice(None), *pixel)]))


def test_gwcs_and_fits_wcs_give_the_same():
    a = resampled([make_model(SHAPE, make_wcs(SHAPE, (0.3, 0.2), 5.0))], {"wcs": make_wcs(OUT)}, compute_err="from_var")
    b = resampled(
        [make_model(SHAPE, make_gwcs(SHAPE, (0.3, 0.2), 5.0))], {"wcs": make_gwcs(OUT)}, compute_err="from_var"
    )
    for name in ("data", "wht", "err", *NAMES):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6)
    assert a["pixelarea_arcsecsq"] == pytest.approx(b["pixelarea_arcsecsq"], rel=1e-9)


def test_pixels_outside_the_bounding_box_count_for_nothing():
    wcs = make_gwcs(SHAPE)
    wcs.bounding_box = ((2.2, 7.7), (1.0, 6.4))
    boxed = resampled([make_model(SHAPE, wcs)], good_bits=None)
    cut = make_model(SHAPE, make_gwcs(SHAPE))
    inside = np.zeros(SHAPE, bool)
    inside[1:7, 3:8] = True
    cut["var_rnoise"] = np.where(inside, cut["var_rnoise"], np.inf)
    expected = resampled([cut], good_bits=None)
    np.testing.assert_allclose(boxed["wht"], expected["wht"], rtol=1e-5, atol=1e-6)


def test_wcs_and_models_are_not_changed():
    model, out = make_model(SHAPE, make_gwcs(SHAPE)), {"wcs": make_gwcs(OUT)}
    before, box = copy.deepcopy({k: v for k, v in model.items() if k != "wcs"}), str(model["wcs"].bounding_box)
    for plane in (v for v in model.values() if isinstance(v, np.ndarray)):
        plane.flags.writeable = False
    resampled([model], out, compute_err="driz_err", propagate_dq=True)
    for key, value in before.items():
        np.testing.assert_array_equal(model[key], value)
    assert str(model["wcs"].bounding_box) == box
    assert set(out) == {"wcs"}


def test_sparse_maps_keep_their_promise():
    shape = (200, 220)
    model = make_model(shape, make_wcs(shape, (3.1, -2.2), 20.0, sip=1e-5))
    y, x = np.indices(shape)
    model["data"] = (100 + x + 2 * y).astype(np.float64)  # a slope turns errors of position into errors of the data
    exact = resampled([model], output((240, 260)), pixmap_tolerance=0)["data"]
    for options, limit in (({}, 1e-5), ({"pixmap_stepsize": 10, "pixmap_order": 3}, 1e-3)):
        found = resampled([model], output((240, 260)), **options)["data"]
        inner = np.s_[60:180, 60:180]
        error = np.abs(found - exact)[inner].max()
        assert error <= 3 * limit + 100 * np.finfo(np.float32).eps * 8, options  # 3 = the slope along x and y; float32


class Recording(Resample):
    calls: list

    def __init__(self, *arguments, **options):
        self.calls = []
        super().__init__(*arguments, **options)

    def reset_arrays(self, n_input_models=None):
        self.calls.append("reset_arrays")
        super().reset_arrays(n_input_models=n_input_models)

    def add_model_hook(self, **arguments):
        self.calls.append("add_model_hook")
        self.arguments = arguments
        self.seen = self._driz.out_wht.copy()

    def update_time(self, model):
        self.calls.append("update_time")
        super().update_time(model)

    def resample_variance_arrays(self, **arguments):
        self.calls.append("resample_variance_arrays")
        super().resample_variance_arrays(**arguments)


def test_methods_of_subclasses_are_called_in_the_order_of_the_original():
    model = make_model(SHAPE, make_gwcs(SHAPE, (0.4, 0.1)))
    plain = resampled([model], compute_err="from_var")
    co_add = Recording(output(), compute_err="from_var")
    co_add.add_model(model)
    assert co_add.calls == ["reset_arrays", "add_model_hook", "update_time", "resample_variance_arrays"]
    assert co_add.arguments["model"] is model
    np.testing.assert_allclose(co_add.arguments["pixmap"], calc_pixmap(model["wcs"], output()["wcs"], SHAPE), atol=2e-5)
    assert [co_add.arguments[k] for k in ("xmin", "xmax", "ymin", "ymax")] == [0, 9, 0, 8]
    assert co_add.arguments["weight_map"].shape == SHAPE
    assert (co_add.seen > 0).any()  # the data had been added by then
    co_add.finalize()
    for name in ("data", "wht", "err", *NAMES):
        np.testing.assert_allclose(co_add.output_model[name], plain[name], rtol=1e-5)


@pytest.mark.parametrize("method", ["add_model_hook", "update_time", "resample_variance_arrays"])
@pytest.mark.parametrize("earlier", [0, 1])
def test_a_subclass_that_fails_leaves_no_trace(method, earlier):
    def fail(self, *_, **__):
        if self.failing:
            raise RuntimeError("raised by a subclass")
        return getattr(Resample, method)(self, *_, **__)

    failing = type("Failing", (Resample,), {method: fail, "failing": False})
    good, bad = dithered(2)
    co_add = failing(output(), compute_err="driz_err", propagate_dq=True)
    if earlier:
        co_add.add_model(good)
    co_add.failing = True
    with pytest.raises(RuntimeError, match="raised by a subclass"):
        co_add.add_model(bad)
    co_add.failing = False
    if not earlier:
        co_add.add_model(good)
    co_add.finalize()
    expected = resampled([good], compute_err="driz_err", propagate_dq=True)
    assert co_add.group_ids == [good["group_id"]]
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(co_add.output_model[name], value, rtol=1e-6, err_msg=name)
        elif name != "wcs":
            assert co_add.output_model[name] == value, name


@hypothesis_settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    weight_type=st.sampled_from(["ivm", "ivm-sky", "exptime", None]),
    missing=st.lists(st.sampled_from(NAMES), max_size=2),
    spoiled=st.booleans(),
    data=st.data(),
)
def test_any_models_give_finite_planes_where_there_is_weight(seed, weight_type, missing, spoiled, data):
    shape = (6, 7)
    rng = np.random.default_rng(seed)
    models = []
    for k in range(3):
        model = make_model(shape, make_wcs(shape, tuple(rng.uniform(-2, 2, 2)), rng.uniform(0, 360)), k)
        if spoiled:
            for name in ("data", "err", "var_sky", *NAMES):
                bad = rng.random(shape) < 0.1
                model[name][bad] = rng.choice([np.nan, np.inf, -np.inf], size=bad.sum())
        if k == data.draw(st.integers(0, 2)):
            model.update(dict.fromkeys(missing))
        models.append(model)
    options = {"weight_type": weight_type, "good_bits": 4, "fillval": 0.0}
    found = resampled(models, output((10, 11)), compute_err="driz_err", propagate_dq=True, **options)
    some = found["wht"] > 0
    assert np.isfinite(found["data"]).all()
    assert np.isfinite(found["err"]).all()
    for name in NAMES:
        assert not np.isinf(found[name]).any()
        assert (found[name][np.isfinite(found[name])] >= 0).all()
        assert np.isnan(found[name][~some]).all()
        if not spoiled and not missing:
            assert np.isfinite(found[name][some]).all()
    # one after the other or in another order: the same co-add
    other = resampled(models[::-1], output((10, 11)), compute_err="driz_err", propagate_dq=True, **options)
    for name in ("data", "wht", "err", *NAMES):
        np.testing.assert_allclose(other[name], found[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(other["dq"], found["dq"])


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    models = dithered(2)
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("SKYLOOM_NUM_THREADS", threads)
        results.append(resampled(models, compute_err="from_var", propagate_dq=True))
    for name, value in results[0].items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, results[1][name])


def test_progress_goes_to_the_log(caplog):
    with caplog.at_level(logging.INFO, logger="skyloom"):
        resampled([make_model(SHAPE)], {"wcs": make_wcs(OUT)})
    assert "Computed output pixel scale" in caplog.text
    assert "Driz parameter kernel: square" in caplog.text


def test_any_error_is_one_of_skyloom():
    with pytest.raises(SkyloomError):
        Resample({"wcs": WCS(naxis=3)})
