"""Find the transform between two images from their sources."""

from skyloom.registration.detect import SourceFlag, detect_sources, image_fwhm
from skyloom.registration.flux import FluxRatio, flux_ratio
from skyloom.registration.group import Group, register_group
from skyloom.registration.register import RegistrationOptions, register
from skyloom.registration.result import Registration
from skyloom.registration.sip import registered_header, registration_header, registration_wcs
from skyloom.registration.sky import register_to_catalogue
from skyloom.registration.transform import Transform

__all__ = [
    "FluxRatio",
    "Group",
    "Registration",
    "RegistrationOptions",
    "SourceFlag",
    "Transform",
    "detect_sources",
    "flux_ratio",
    "image_fwhm",
    "register",
    "register_group",
    "register_to_catalogue",
    "registered_header",
    "registration_header",
    "registration_wcs",
]
