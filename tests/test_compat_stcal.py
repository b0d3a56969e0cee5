"""`skyloom.compat.stcal`: the surface of `stcal.resample` 1.20, and programs that were written for it."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from astropy.wcs import WCS

from skyloom.compat.stcal import resample as package
from skyloom.compat.stcal.resample import resample, utils

EMPTY = inspect.Parameter.empty
HOOK = dict.fromkeys(
    ["self", "model", "pixmap", "pixel_scale_ratio", "iscale", "weight_map", "xmin", "xmax", "ymin", "ymax"], EMPTY
)

# name -> default, in order, as the documentation of stcal 1.20 has them
SIGNATURES = {
    "Resample": {
        "output_wcs": EMPTY,
        "n_input_models": None,
        "pixfrac": 1.0,
        "kernel": "square",
        "fillval": 0.0,
        "weight_type": "ivm",
        "good_bits": 0,
        "enable_ctx": True,
        "enable_var": True,
        "compute_err": None,
        "propagate_dq": False,
        "pixmap_stepsize": 1,
        "pixmap_order": 1,
    },
    "Resample.add_model": {"self": EMPTY, "model": EMPTY},
    "Resample.add_model_hook": HOOK,
    "Resample.resample_variance_arrays": HOOK,
    "Resample.check_output_wcs": {"self": EMPTY, "output_wcs": EMPTY, "estimate_output_shape": True},
    "Resample.create_output_model": {"self": EMPTY},
    "Resample.finalize": {"self": EMPTY},
    "Resample.finalize_resample_variance": {"self": EMPTY, "output_model": EMPTY},
    "Resample.finalize_time_info": {"self": EMPTY},
    "Resample.get_input_model_pixel_area": {"self": EMPTY, "model": EMPTY, "prefer_mean": True},
    "Resample.get_output_model_pixel_area": {"self": EMPTY, "model": EMPTY},
    "Resample.init_time_counters": {"self": EMPTY},
    "Resample.init_variance_arrays": {"self": EMPTY},
    "Resample.is_finalized": {"self": EMPTY},
    "Resample.reset_arrays": {"self": EMPTY, "n_input_models": None},
    "Resample.update_time": {"self": EMPTY, "model": EMPTY},
    "Resample.validate_input_model": {"self": EMPTY, "model": EMPTY},
    "calc_pixmap": {
        "wcs_from": EMPTY,
        "wcs_to": EMPTY,
        "shape": None,
        "disable_bbox": "to",
        "stepsize": 1,
        "order": 1,
    },
    "build_driz_weight": {"model": EMPTY, "weight_type": None, "good_bits": None, "flag_name_map": None},
    "build_mask": {"dqarr": EMPTY, "good_bits": EMPTY, "flag_name_map": None},
    "compute_mean_pixel_area": {"wcs": EMPTY, "shape": None},
    "get_tmeasure": {"model": EMPTY},
    "is_flux_density": {"bunit": EMPTY},
    "is_imaging_wcs": {"wcs": EMPTY},
    "resample_range": {"data_shape": EMPTY, "bbox": None},
}
PROPERTIES = (
    *("compute_err", "enable_ctx", "enable_var", "group_ids", "output_array_shape", "output_model"),
    *("output_pixel_scale", "output_wcs", "pixel_scale_ratio", "propagate_dq"),
)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_the_published_one(name):
    """All its arguments, by position too; what is added can be given by keyword only."""
    owner = resample if name.startswith("Resample") else utils
    function = owner
    for part in name.split("."):
        function = getattr(function, part)
    parameters = inspect.signature(function).parameters.values()
    published = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert {p.name: p.default for p in published} == SIGNATURES[name]
    assert list(SIGNATURES[name]) == [p.name for p in published]
    assert all(p.default is not EMPTY for p in parameters if p.kind is p.KEYWORD_ONLY)
    assert inspect.getdoc(function)


def test_names_of_the_modules():
    assert sorted(package.__all__) == ["Resample", "UnsupportedWCSError", "compute_mean_pixel_area"]
    for name in package.__all__:
        assert getattr(package, name) is getattr(resample, name)
    assert set(utils.__all__) == {name for name in SIGNATURES if not name.startswith("Resample")}
    assert issubclass(package.UnsupportedWCSError, RuntimeError)
    for name in PROPERTIES:
        attribute = inspect.getattr_static(package.Resample, name)
        assert isinstance(attribute, property)
        assert attribute.fset is None
    assert package.Resample.variance_array_names == ["var_rnoise", "var_flat", "var_poisson"]
    assert package.Resample.dq_flag_name_map is None
    assert package.Resample.error_from_variances is None
    types = package.Resample.output_array_types
    assert types["con"] is np.int32
    assert {types[name] for name in ("data", "wht", "err", "var_flat", "anything")} == {np.float32}


def tan(shape, shift=0.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = (150.0, 2.0)
    wcs.wcs.crpix = (20 + shift, 20)
    wcs.wcs.cdelt = (-1e-5, 1e-5)
    wcs.wcs.set()
    wcs.array_shape = shape
    return wcs


def model(number, group=None):
    shape = (30, 32)
    return {
        "data": np.full(shape, number + 1.0, np.float32),
        "dq": np.zeros(shape, np.uint32),
        "err": np.ones(shape, np.float32),
        "var_rnoise": np.full(shape, 0.5, np.float32),
        "var_poisson": np.full(shape, 0.25, np.float32),
        "var_flat": None,
        "filename": f"{number}.fits",
        "group_id": number if group is None else group,
        "wcs": tan(shape, 2 * number),
        "exposure_time": 10.0 * (number + 1),
        "measurement_time": None,
        "start_time": float(number),
        "end_time": number + 0.5,
        "duration": None,
        "pixelarea_steradians": None,
        "level": None,
        "subtracted": False,
        "effective_exposure_time": 10.0,
    }


class Derived(package.Resample):
    """A class as pipelines derive them: a hook, another intensity scale, and state that `__init__` resets."""

    dq_flag_name_map = {"DO_NOT_USE": 1}  # noqa: RUF012  as pipelines have it
    resets = 0

    def __init__(self, output_wcs, **options):
        self.variance_array_names = ["var_rnoise", "var_poisson"]
        super().__init__(output_wcs, **options)

    def reset_arrays(self, n_input_models=None):
        super().reset_arrays(n_input_models)
        self.seen = []
        self.resets += 1

    def _get_intensity_scale(self, model):
        return 1

    def add_model_hook(  # noqa: PLR0917
        self, model, pixmap, pixel_scale_ratio, iscale, weight_map, xmin, xmax, ymin, ymax
    ):
        self.seen.append((model["filename"], pixmap.shape, iscale, float(weight_map[0, 0]), xmin, xmax, ymin, ymax))


def test_class_that_is_derived_from_it():
    output = {"wcs": tan((40, 44)), "pixel_scale": 0.036, "pixel_scale_ratio": 1.0}
    derived = Derived(output, n_input_models=2, weight_type="ivm", good_bits="~DO_NOT_USE", compute_err="from_var")
    assert derived.resets == 1
    for number in range(2):
        derived.add_model(model(number))
    derived.finalize()
    assert derived.seen == [(f"{number}.fits", (30, 32, 2), 1, 2.0, 0, 31, 0, 29) for number in range(2)]
    result = derived.output_model
    assert "var_flat" not in result
    # two images of weights 2 and values 1 and 2, variances 0.5 + 0.25 each, shifted by whole pixels
    assert result["data"][10, 10] == pytest.approx(1.5, rel=1e-6)
    assert result["wht"][10, 10] == pytest.approx(4.0, rel=1e-6)
    assert result["err"][10, 10] == pytest.approx(np.sqrt(0.75 / 2), rel=1e-6)
    assert result["con"][0, 10, 10] == 3
    assert (result["pointings"], result["exposure_time"]) == (2, 30.0)
    with pytest.raises(RuntimeError, match="finalized"):
        derived.add_model(model(0))
    derived.reset_arrays(1)
    derived.add_model(model(0))
    derived.finalize()
    assert (derived.output_model["pointings"], derived.output_model["exposure_time"]) == (1, 10.0)


class Lazy:
    """An array as asdf has them: loaded when numpy asks for it, with a mask of its own that is not there."""

    _mask = None

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype=dtype, copy=copy)


def test_planes_may_be_loaded_late():
    results = []
    for wrap in (np.asarray, Lazy):
        resampled = package.Resample({"wcs": tan((40, 44))}, compute_err="driz_err")
        planes = {name: wrap(plane) for name, plane in model(0).items() if isinstance(plane, np.ndarray)}
        resampled.add_model(model(0) | planes)
        resampled.finalize()
        results.append(resampled.output_model)
    for name in ("data", "wht", "con", "err", "var_rnoise", "var_flat"):
        np.testing.assert_array_equal(results[1][name], results[0][name])


# --- beside the other modules of an original --------------------------------------------------------------------------


@pytest.fixture
def original(tmp_path):
    """Make a stand-in for an installed stcal, with modules that import the replaced ones; return where it lies."""
    files = {
        "__init__.py": "__version__ = '1.20.0'\n",
        "resample/__init__.py": "raise ImportError('of the original')\n",
        "resample/resample.py": "raise ImportError('of the original')\n",
        "resample/utils.py": "raise ImportError('of the original')\n",
        "resample/tests.py": "who = 'original'\n",
        "alignment/__init__.py": "who = 'original'\n",
        "outlier_detection/__init__.py": "",
        "outlier_detection/utils.py": (
            "from drizzle.resample import blot_image\nfrom stcal.resample.utils import calc_pixmap\n"
        ),
    }
    for name, text in files.items():
        path = tmp_path / "stcal" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return tmp_path


FIRST = ["stcal.outlier_detection.utils", "stcal.alignment", "stcal.resample", "stcal.resample.utils", "stcal"]


@pytest.mark.parametrize("first", FIRST)
def test_import_in_any_order(original, first):
    program = (
        "import importlib, sys\n"
        f"importlib.import_module({first!r})\n"
        "import stcal, stcal.alignment, stcal.resample.tests\n"
        "from stcal.outlier_detection.utils import blot_image, calc_pixmap\n"
        "from stcal.resample import Resample\n"
        "import stcal.resample.utils as utils, stcal.resample.resample as resample\n"
        "assert resample.Resample is Resample\n"
        "assert utils.calc_pixmap is calc_pixmap\n"
        "assert stcal.resample.utils is utils\n"
        "print(stcal.__version__, stcal.alignment.who, stcal.resample.tests.who)\n"
        "print(Resample.__module__, calc_pixmap.__module__, blot_image.__module__)\n"
    )
    (original / "program.py").write_text(program)
    result = subprocess.run(
        [sys.executable, "-m", "skyloom.compat", "stcal,drizzle", str(original / "program.py")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.stderr == ""
    assert result.stdout.split("\n")[:2] == [
        "1.20.0 original original",
        "skyloom.resampling.resample_models skyloom.resampling.pipeline_utils skyloom.resampling.blot",
    ]
