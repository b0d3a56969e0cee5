"""Find what changed: matched filter, candidates, flags."""

from skyloom.detection.candidates import find_candidates
from skyloom.detection.cutouts import cutouts
from skyloom.detection.flags import CandidateFlag, flag_text
from skyloom.detection.inject import inject
from skyloom.detection.output import write_ecsv, write_fits, write_regions
from skyloom.detection.photometry import forced_photometry
from skyloom.detection.score import Score, filter_image, noise_gain, score

__all__ = [
    "CandidateFlag",
    "Score",
    "cutouts",
    "filter_image",
    "find_candidates",
    "flag_text",
    "forced_photometry",
    "inject",
    "noise_gain",
    "score",
    "write_ecsv",
    "write_fits",
    "write_regions",
]
