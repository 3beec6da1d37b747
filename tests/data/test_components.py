"""Components and groups, by a case that can be followed with a finger."""

from __future__ import annotations

import numpy as np

from biometro.data.components import by_first_appearance, components


def test_groups_are_numbered_as_they_appear() -> None:
    assert by_first_appearance(np.array([7, 2, 7, 0, 2])).tolist() == [0, 1, 0, 2, 1]
    assert by_first_appearance(np.array([], np.int64)).tolist() == []


def test_links_of_links_hang_together() -> None:
    found = by_first_appearance(components(5, np.array([[0, 3, 4], [3, 1, 4]])))
    assert found.tolist() == [0, 0, 1, 0, 2]
