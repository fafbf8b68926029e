"""clipdistill: distil CLIP into a small multi-label classifier without a single label."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipdistill.application.open_student import OpenStudent
    from clipdistill.application.student import Prediction, Student

__version__ = "0.1.0"
__all__ = ["OpenStudent", "Prediction", "Student", "__version__"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attributes are of any type
    # Looked up when they are touched: torch takes seconds, and most of what imports this package needs none of it.
    if name == "OpenStudent":
        return importlib.import_module("clipdistill.application.open_student").OpenStudent
    if name in ("Prediction", "Student"):
        return getattr(importlib.import_module("clipdistill.application.student"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
