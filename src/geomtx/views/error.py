"""What is raised for a photo that cannot be used."""

from __future__ import annotations

__all__ = ["PhotoError"]


class PhotoError(ValueError):
    """A photo or a folder of photos that cannot be used. One line: it names the file, the rule and what was found."""
