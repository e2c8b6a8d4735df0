"""The error for photos that cannot be used."""

from __future__ import annotations

__all__ = ["PhotoError"]


class PhotoError(ValueError):
    """Raised for a photo, or a folder of photos, that cannot be used.

    The message is one line that names the file, the rule and what was found.
    """
