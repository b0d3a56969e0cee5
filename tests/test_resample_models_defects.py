"""What goes wrong in stcal 1.20 with unusual models, and must not here: one test for each."""

import numpy as np
import pytest

from simulate_models import PIXEL, make_gwcs, make_model, make_wcs
from skyloom.errors import InputError, NoUsableDataError, SkyloomError, SkyloomWarning, WcsError
from skyloom.resampling import Resample

SHAPE, OUT = (8, 9), (10, 11)
NAMES = ("var_rnoise", "var_flat", "var_poisson")
MIDDLE = (5, 5)


def flat(seed=0, wcs=None, **changes):
    """A model without structure, on the pixels of the output unless it has another WCS."""
    model = make_model(OUT, make_wcs(OUT) if wcs is None else wcs, seed)
    for name, value in model.items():
        if isinstance(value, np.ndarray):
            model[name] = np.zeros_like(value) if name == "dq" else np.ones_like(value)
    for name, value in changes.items():
        shaped = isinstance(model.get(name), np.ndarray) and np.isscalar(value) and value is not None
        model[name] = np.full(OUT, value, np.float32) if shaped and name != "dq" else value
    return model


def co_added(models, **options):
    co_add = Resample({"wcs": make_wcs(OUT), "pixel_scale": 3600 * PIXEL}, **options)
    for model in models:
        co_add.add_model(model)
    co_add.finalize()
    return co_add.output_model


def test_ivm_sky_weights_variances_like_the_data():
    models = [flat(0, var_sky=1.0, var_rnoise=1.0), flat(1, var_sky=9.0, var_rnoise=9.0)]
    models[0]["var_rnoise"][:] = 9.0
    models[1]["var_rnoise"][:] = 1.0
    found = co_added(models, weight_type="ivm-sky")["var_rnoise"][MIDDLE]
    # weights 1 and 1/9, variances 9 and 1: (9 + 1/81) / (10/9)^2
    assert found == pytest.approx((9 + 1 / 81) / (10 / 9) ** 2, rel=1e-5)


def test_a_missing_variance_does_not_take_the_weight_of_the_model_before():
    models = [flat(0, var_rnoise=0.01, var_flat=0.01), flat(1, var_rnoise=None, var_flat=1.0)]
    found = co_added(models)
    assert found["wht"][MIDDLE] == pytest.approx(100 + 1, rel=1e-5)
    assert found["var_flat"][MIDDLE] == pytest.approx((100**2 * 0.01 + 1) / 101**2, rel=1e-5)
    assert found["var_rnoise"][MIDDLE] == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize(("pixel", "shift"), [(1.0, 0.5), (0.5, 0.0), (2.0, 0.0)])
def test_errors_are_those_of_the_scatter_with_squared_weights(pixel, shift):
    rng = np.random.default_rng(1)
    shape, sigma = (200, 200), 0.1
    model = make_model(shape, make_wcs(shape, (shift, shift)))
    model["data"], model["dq"][:] = rng.normal(0, sigma, shape), 0
    for name in NAMES:
        model[name][:] = sigma**2 if name == "var_rnoise" else 0
    size = int(160 / pixel)
    out = {"wcs": make_wcs((size, size), pixel=PIXEL * pixel)}
    said = {}
    for squared in (True, False):
        co_add = Resample(out, weight_type="exptime", compute_err="from_var", squared_weights=squared)
        co_add.add_model(model)
        co_add.finalize()
        data = co_add.output_model["data"]
        said[squared] = np.sqrt(np.mean(co_add.output_model["err"] ** 2))
    # four standard errors of the scatter; neighbours share pixels, so that one in four or more is independent
    assert said[True] == pytest.approx(data.std(), rel=4 / np.sqrt(2 * data.size / 4 * min(1, pixel**2)))
    assert said[False] == pytest.approx(sigma / pixel, rel=1e-4)  # as the original has it, whatever the shift


def test_drizzled_errors_of_two_equal_models_fall_by_the_root_of_two_with_squared_weights():
    models = [flat(0), flat(1)]
    assert co_added(models, compute_err="driz_err")["err"][MIDDLE] == pytest.approx(1.0)
    assert co_added(models, compute_err="driz_err", squared_weights=True)["err"][MIDDLE] == pytest.approx(0.5**0.5)


def test_mixed_pixel_scales_give_the_same_in_any_order():
    a = flat(0)
    b = flat(1, wcs=make_wcs(OUT, pixel=2 * PIXEL), pixelarea_steradians=4 * a["pixelarea_steradians"])
    first, second = co_added([a, b]), co_added([b, a])
    for name in ("data", "wht", *NAMES):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5)
    alone = co_added([b])["var_flat"][MIDDLE]  # pixels of 4 times the area: their mean is worth 4 of the output's
    assert alone == pytest.approx(4.0, rel=1e-4)
    # a variance of 1 with weight 1, one of 4 with weight 1
    assert first["var_flat"][MIDDLE] == pytest.approx((1 + 4) / 4, rel=1e-4)


def test_nan_data_without_a_flag_do_not_poison_the_co_add():
    bad = flat(0, data=7.0)
    bad["data"][MIDDLE] = np.nan
    found = co_added([bad, flat(1, data=3.0)])
    assert np.isfinite(found["data"]).all()
    assert found["data"][MIDDLE] == pytest.approx(3.0)
    assert found["data"][2, 2] == pytest.approx(5.0)


def test_negative_variances_have_no_weight():
    bad = flat(0, data=7.0)
    bad["var_rnoise"][MIDDLE] = -1
    found = co_added([bad, flat(1, data=3.0)])
    assert (found["wht"] >= 0).all()
    assert found["data"][MIDDLE] == pytest.approx(3.0)


def test_reset_arrays_starts_anew():
    co_add = Resample({"wcs": make_wcs(OUT)}, compute_err="from_var")
    co_add.add_model(flat(0))
    co_add.add_model(flat(1))
    co_add.finalize()
    for finish in (True, False):
        co_add.reset_arrays(n_input_models=1)
        assert co_add.group_ids == []
        co_add.add_model(flat(0))
        if finish:
            co_add.finalize()
    co_add.finalize()
    model = co_add.output_model
    assert (model["pointings"], model["exposure_time"]) == (1, 10.0)
    assert model["con"].max() == 1
    assert model["var_flat"][MIDDLE] == pytest.approx(1.0, rel=1e-5)


def test_results_survive_reset_arrays():
    co_add = Resample({"wcs": make_wcs(OUT)})
    co_add.add_model(flat(0, data=2.0))
    co_add.finalize()
    first = co_add.output_model
    co_add.reset_arrays()
    co_add.add_model(flat(1, data=9.0))
    assert first["data"][MIDDLE] == 2.0
    assert first is not co_add.output_model


def test_errors_from_variances_imply_variances():
    found = co_added([flat(0)], compute_err="from_var", enable_var=False)
    assert found["err"][MIDDLE] == pytest.approx(3**0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compute_err": "foo"}, "compute_err is 'foo'"),
        ({"weight_type": "foo"}, "Unexpected weight type: 'foo'"),
        ({"weight_type": "ivm-typo"}, "Unexpected weight type: 'ivm-typo'"),
        ({"pixfrac": np.nan}, "pixfrac is nan"),
        ({"pixfrac": -1}, "pixfrac is -1"),
        ({"kernel": "round"}, "Kernel 'round' is not supported"),
        ({"pixfrac": 1e9}, "pixfrac is 1000000000.0"),
        ({"n_input_models": 0}, "n_input_models is 0"),
        ({"n_input_models": 10**400}, "n_input_models is 1000"),
        ({"pixmap_stepsize": 0}, "pixmap_stepsize is 0"),
        ({"pixmap_stepsize": -3}, "pixmap_stepsize is -3"),
        ({"pixmap_stepsize": 5, "pixmap_order": 2}, "either 1 or 3"),
        ({"fillval": "many"}, "many"),
    ],
)
def test_options_without_sense_are_refused_at_once(options, words):
    with pytest.raises(ValueError, match=words) as caught:
        Resample({"wcs": make_wcs(OUT)}, **options)
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("output_wcs", "kind", "words"),
    [
        (None, WcsError, "key 'wcs' is needed"),
        ({}, WcsError, "key 'wcs' is needed"),
        ("wcs", WcsError, "found str"),
        ({"wcs": 1}, WcsError, "found int"),
        ({"wcs": make_wcs(OUT), "pixel_scale": 0}, InputError, "'pixel_scale' of the output WCS is 0"),
        ({"wcs": make_wcs(OUT), "pixel_scale": np.nan}, InputError, "'pixel_scale' of the output WCS is nan"),
        ({"wcs": make_wcs(OUT), "pixel_scale_ratio": -1}, InputError, "'pixel_scale_ratio'"),
    ],
)
def test_output_wcs_that_cannot_be_used_are_named(output_wcs, kind, words):
    with pytest.raises(kind, match=words):
        Resample(output_wcs)


def test_output_without_a_size_is_named():
    wcs = make_wcs(OUT)
    wcs.array_shape = None
    with pytest.raises(ValueError, match="Unable to infer output image size"):
        Resample({"wcs": wcs})
    boxed = make_gwcs(OUT)
    boxed.array_shape = None
    assert Resample({"wcs": boxed}).output_array_shape == OUT
    empty = make_gwcs(OUT)
    empty.array_shape = (0, 5)
    with pytest.raises(ValueError, match="Invalid output frame shape"):
        Resample({"wcs": empty})


def test_a_bare_wcs_is_as_good_as_a_dictionary():
    co_add = Resample(make_wcs(OUT))
    assert co_add.output_pixel_scale == pytest.approx(0.06)


def spoiled(key, value):
    return flat(1, **{key: value})


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        (spoiled("exposure_time", np.nan), ValueError, "'exposure_time' = nan"),
        (spoiled("exposure_time", None), ValueError, "'exposure_time' = None"),
        (spoiled("exposure_time", 0.0), ValueError, "'exposure_time' = 0.0"),
        (spoiled("exposure_time", "10"), ValueError, "'exposure_time' = '10'"),
        (spoiled("duration", "10"), ValueError, "'duration' = '10'"),
        (spoiled("duration", 10**400), ValueError, "'duration' = 1000"),
        (spoiled("group_id", np.ones(2)), TypeError, "'group_id' that is an array"),
        (spoiled("pixelarea_steradians", "1"), ValueError, "'pixelarea_steradians' = '1'"),
        (spoiled("pixelarea_steradians", []), ValueError, "'pixelarea_steradians' = \\[]"),
        (spoiled("level", 1e300), ValueError, "'level' = 1e\\+300"),
        (spoiled("measurement_time", np.nan), ValueError, "'measurement_time' = nan"),
        (spoiled("duration", "long"), ValueError, "'duration' = 'long'"),
        (spoiled("start_time", "noon"), TypeError, "'start_time' = 'noon', which cannot be compared"),
        (spoiled("end_time", np.nan), ValueError, "'end_time' = nan"),
        (spoiled("level", np.inf), ValueError, "'level' = inf"),
        (spoiled("data", np.ones((3, 3, 3))), RuntimeError, "is not a 2D image"),
        (spoiled("data", np.ones((3, 3))), ValueError, r"shape \(3, 3\), and its 'wcs' .* \(10, 11\)"),
        (spoiled("data", np.ones(OUT, complex)), TypeError, "real numbers"),
        (spoiled("data", None), TypeError, "'data' = None"),
        (spoiled("dq", np.zeros((3, 3), int)), ValueError, r"'dq' of shape \(3, 3\); that of 'data'"),
        (spoiled("dq", None), TypeError, "'dq' = None"),
        (spoiled("dq", np.zeros(OUT)), TypeError, "unsigned integer"),
        (spoiled("err", None), TypeError, "'err' = None"),
        (spoiled("err", np.ones((2, 2))), ValueError, r"'err' of shape \(2, 2\)"),
        (spoiled("var_flat", np.full(OUT, "x")), TypeError, "'var_flat' is of type"),
    ],
)
@pytest.mark.parametrize("earlier", [0, 1])
def test_models_that_cannot_be_used_are_named_and_leave_no_trace(model, kind, words, earlier):
    options = {"weight_type": "ivm", "compute_err": "driz_err", "propagate_dq": True}
    co_add = Resample({"wcs": make_wcs(OUT), "pixel_scale": 3600 * PIXEL}, **options)
    good = flat(0)
    if earlier or model["start_time"] == "noon":
        co_add.add_model(good)
    with pytest.raises(kind, match=words) as caught:
        co_add.add_model(model)
    assert isinstance(caught.value, SkyloomError)
    assert "exposure1.fits" in str(caught.value)
    if not (earlier or model["start_time"] == "noon"):
        assert co_add.pixel_scale_ratio is None
        co_add.add_model(good)
    co_add.finalize()
    expected = co_added([good], **options)
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(co_add.output_model[name], value)
        elif name != "wcs":
            assert co_add.output_model[name] == value


@pytest.mark.parametrize(
    "key", ["wcs", "data", "dq", "filename", "group_id", "exposure_time", "level", "subtracted", "var_flat", "err"]
)
def test_every_missing_key_has_the_same_text(key):
    co_add = Resample({"wcs": make_wcs(OUT)}, compute_err="driz_err")
    model = {k: v for k, v in flat(0).items() if k != key}
    with pytest.raises(KeyError, match=f"Attempt to access non-existent key '{key}' in a data model"):
        co_add.add_model(model)


def test_a_model_that_is_no_dictionary_is_named():
    with pytest.raises(TypeError, match="A model is a list"):
        Resample({"wcs": make_wcs(OUT)}).add_model([])


def test_no_weight_type_means_equal_weights():
    found = co_added([flat(0, data=2.0, var_rnoise=4.0), flat(1, data=4.0, var_rnoise=1.0)], weight_type=None)
    assert found["weight_type"] is None
    assert found["data"][MIDDLE] == pytest.approx(3.0)
    assert found["var_rnoise"][MIDDLE] == pytest.approx(5 / 4, rel=1e-5)


@pytest.mark.parametrize("variance", [None, np.ones((2, 2), np.float32)])
def test_ivm_without_read_noise_means_equal_weights(variance, caplog):
    found = co_added([flat(0, data=2.0, var_rnoise=variance, var_flat=2.0)])
    assert found["wht"][MIDDLE] == pytest.approx(1.0)
    assert found["var_flat"][MIDDLE] == pytest.approx(2.0, rel=1e-5)
    assert np.isnan(found["var_rnoise"]).all()
    assert "'var_rnoise' array not available" in caplog.text


def test_finalize_without_models_is_refused_and_changes_nothing():
    co_add = Resample({"wcs": make_wcs(OUT)})
    with pytest.raises(NoUsableDataError, match="No model has been added"):
        co_add.finalize()
    assert not co_add.is_finalized()
    co_add.add_model(flat(0))
    co_add.finalize()
    co_add.finalize()  # no more than once
    with pytest.raises(RuntimeError, match="has been finalized"):
        co_add.add_model(flat(1))


def test_a_model_without_overlap_is_left_out_with_a_warning():
    co_add = Resample({"wcs": make_wcs(OUT), "pixel_scale": 3600 * PIXEL}, compute_err="from_var")
    away = flat(5, wcs=make_wcs(OUT, (5000.0, 0.0)))
    with pytest.warns(SkyloomWarning, match="'exposure5.fits' does not overlap"):
        co_add.add_model(away)
    with pytest.raises(NoUsableDataError, match="1 did not overlap"):
        co_add.finalize()
    co_add.add_model(flat(0))
    co_add.finalize()
    assert co_add.n_skipped == 1
    assert (co_add.group_ids, co_add.output_model["pointings"]) == ([0], 1)
    assert co_add.output_model["exposure_time"] == 10.0
    assert co_add.output_model["con"].max() == 2  # the second model that was offered
    np.testing.assert_array_equal(co_add.output_model["var_flat"], co_added([flat(0)])["var_flat"])


def test_unknown_times_are_none_and_no_error():
    found = co_added([flat(0, start_time=None, duration=None), flat(1)])
    assert (found["start_time"], found["end_time"], found["duration"]) == (None, 111.0, 11.0)


def test_mixed_measurement_times_are_told(caplog):
    found = co_added([flat(0), flat(1, measurement_time=None)], weight_type="exptime")
    assert "weights mix measurement and exposure times" in caplog.text
    assert found["measurement_time"] is None
    assert found["wht"][MIDDLE] == pytest.approx(9 + 11)


def test_an_area_of_pixels_that_is_nan_is_measured_instead():
    found = co_added([flat(0, pixelarea_steradians=np.nan)])
    assert found["pixel_scale_ratio"] == pytest.approx(1.0, rel=1e-6)


def test_astropy_wcs_serve_as_input_and_output():
    assert (co_added([flat(0)])["data"] == 1).all()


def test_wide_bits_mask_but_do_not_fit_the_output():
    model = flat(0, data=2.0)
    model["dq"] = np.zeros(OUT, np.int64)
    model["dq"][MIDDLE] = 1 << 40
    assert co_added([model])["wht"][MIDDLE] < 1e-6  # its neighbours end at its border, to the rounding of positions
    with pytest.raises(TypeError, match="4 bytes or less"):
        co_added([model], propagate_dq=True)


def test_an_error_that_is_not_known_takes_no_weight_from_the_data():
    bad = flat(0)
    bad["err"][MIDDLE] = np.nan
    bad["var_flat"][MIDDLE] = np.nan
    found = co_added([bad, flat(1, err=3.0)], compute_err="driz_err")
    assert found["wht"][MIDDLE] == pytest.approx(2.0)
    assert found["err"][MIDDLE] == pytest.approx(3.0)
    assert found["err"][2, 2] == pytest.approx(2.0)
    assert found["var_flat"][MIDDLE] == pytest.approx(1.0, rel=1e-5)
    assert found["var_flat"][2, 2] == pytest.approx(0.5, rel=1e-5)


def test_values_that_the_output_cannot_hold_are_missing():
    huge = flat(0)
    huge["data"] = huge["data"].astype(np.float64)
    huge["data"][MIDDLE] = 1e300
    found = co_added([huge, flat(1, data=3.0)])
    assert found["data"][MIDDLE] == pytest.approx(3.0)
    assert found["wht"][MIDDLE] == pytest.approx(1.0)
