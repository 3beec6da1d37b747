"""What a configuration may say, whoever wrote it. A model folder's config.json is checked by these before anything is
built, so that no number in it can take all memory, and no word in it is silently read as another.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

from biometro.errors import UserError

# Far above any model of ours: they keep a damaged or hostile configuration from taking all memory.
LARGEST = {
    "vocab_size": 1 << 17, "width": 1 << 15, "depth": 1000, "head_size": 1 << 10, "ffn_width": 1 << 18,
    "embedding_width": 1 << 15, "table_width": 1 << 15, "outputs": 1 << 17, "features": 1 << 20,
    "hidden": 1 << 15, "rank": 1 << 12, "base_width": 1 << 15, "base_depth": 1000,
}  # fmt: skip


def check_sizes(what: str, config: Any) -> None:
    """Raises UserError for a size that is no whole number, or is out of bounds. None stands for a default."""
    for field in dataclasses.fields(config):
        most, value = LARGEST.get(field.name), getattr(config, field.name)
        if most is None or (value is None and field.default is None):
            continue
        if isinstance(value, bool) or not (isinstance(value, int) and 1 <= value <= most):
            raise UserError(f"{what}.{field.name} is {value!r}; it must be a whole number from 1 to {most:,}")


def check_flags(what: str, config: Any, *names: str) -> None:
    """Raises UserError for what is neither true nor false."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise UserError(f"{what}.{name} is {getattr(config, name)!r}; it must be true or false")


def check_small(what: str, config: Any, *names: str) -> None:
    """Raises UserError for what is no number above 0 and up to 1."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not (isinstance(value, int | float) and 0 < value <= 1):
            raise UserError(f"{what}.{name} is {value!r}; it must be above 0 and at most 1")


def check_positive(what: str, config: Any, *names: str) -> None:
    """Raises UserError for what is no number above 0, or is far from 1."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not (isinstance(value, int | float) and 2.0**-15 <= value <= 2.0**15):
            raise UserError(f"{what}.{name} is {value!r}; it must be a number between 2^-15 and 2^15")


def check_choices(what: str, config: Any) -> None:
    """Raises UserError for a word that its field does not offer."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            offered = ", ".join(map(str, get_args(hint)))
            raise UserError(f"{what}.{name} is {getattr(config, name)!r}; it must be one of: {offered}")
