"""What is raised for a scene that cannot be used."""

from __future__ import annotations

__all__ = ["SceneError"]


class SceneError(ValueError):
    """A scene of a dataset that cannot be used. One line: it names the scene or the file, the rule and what was found.

    `SceneMixture` counts these and draws another scene.
    """
