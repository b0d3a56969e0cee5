"""Match a template to a science image and subtract it."""

from skyloom.subtraction.al_hotpants.inputs import HotpantsBit
from skyloom.subtraction.al_hotpants.kernel import HotpantsKernel
from skyloom.subtraction.al_hotpants.native import HotpantsResult, hotpants
from skyloom.subtraction.al_hotpants.options import HotpantsOptions
from skyloom.subtraction.al_hotpants.wrapper import run_hotpants
from skyloom.subtraction.alard_lupton import subtract
from skyloom.subtraction.decorrelate import Decorrelation, decorrelate
from skyloom.subtraction.error_map import build_error_map
from skyloom.subtraction.kernel import SpatialKernel
from skyloom.subtraction.options import AlardLuptonOptions
from skyloom.subtraction.result import Subtraction
from skyloom.subtraction.sfft import SfftOptions, run_sfft
from skyloom.subtraction.zogy import ZogyOptions, ZogyResult, subtract_zogy
from skyloom.subtraction.zogy.dropin import run_zogy

__all__ = [
    "AlardLuptonOptions",
    "Decorrelation",
    "HotpantsBit",
    "HotpantsKernel",
    "HotpantsOptions",
    "HotpantsResult",
    "SfftOptions",
    "SpatialKernel",
    "Subtraction",
    "ZogyOptions",
    "ZogyResult",
    "build_error_map",
    "decorrelate",
    "hotpants",
    "run_hotpants",
    "run_sfft",
    "run_zogy",
    "subtract",
    "subtract_zogy",
]
