"""What the notebooks call: predict and reveal, claim and cite, show_source, check and hint."""

from pagedlab.course.claims import cite, claim
from pagedlab.course.exercises import check, hint
from pagedlab.course.predictions import Prediction, predict, reveal
from pagedlab.course.source import show_source
from pagedlab.errors import ClaimError

__all__ = ["ClaimError", "Prediction", "check", "cite", "claim", "hint", "predict", "reveal", "show_source"]
