"""What every section of the configuration is, and the words that several of them use."""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel, ConfigDict

MAX_NAMES = 1000
"""Entries of a list in the configuration: longer lists belong in files."""


class Section(BaseModel):
    """What every section is: frozen, no unknown keys, its values never repeated by pydantic's own errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True, validate_default=False
    )


class Question(Enum):
    """Whether a composed message carries the question."""

    KEEP = "keep"
    OMIT = "omit"
