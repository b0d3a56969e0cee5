"""Match a template to a science image and subtract it."""

from skyloom.subtraction.alard_lupton import subtract
from skyloom.subtraction.kernel import SpatialKernel
from skyloom.subtraction.options import AlardLuptonOptions
from skyloom.subtraction.result import Subtraction

__all__ = ["AlardLuptonOptions", "SpatialKernel", "Subtraction", "subtract"]
