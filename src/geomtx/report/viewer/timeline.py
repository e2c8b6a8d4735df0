"""The controls of time: which frame of a video is the one whose moving points are shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from geomtx.report.viewer.nodes import SceneNodes

__all__ = ["Timeline"]

_FPS = 8.0  # where the frames have no times


class Timeline:
    """A slider over the frames, and a button that plays them in their own time, again and again.

    Args:
        server: A `viser.ViserServer`.
        nodes: The scene.
        add_folder: Function that adds a folder with a title to the panel.
    """

    def __init__(self, server: Any, nodes: SceneNodes, add_folder: Callable[[str], Any]) -> None:
        self._nodes, self._running = nodes, False
        scene = nodes.shown.scene
        self._last, self._times = len(scene) - 1, scene.times
        with add_folder("Moving things"):
            self.frame = server.gui.add_slider("Frame", min=0, max=self._last, step=1, initial_value=0)
            self.time = server.gui.add_markdown("")
            self.all = server.gui.add_checkbox("All frames", False, hint="Show what moves in all frames at once")
            self.play = server.gui.add_button("Play")
        self.frame.on_update(lambda _: self._show())
        self.all.on_update(lambda _: self._show())
        self.play.on_click(lambda _: self._play())
        self._show()

    def stop(self) -> None:
        """End playing, if it is going on."""
        self._running = False

    def _show(self) -> None:
        number = int(self.frame.value)
        seconds = f", {self._times[number]:.2f} s" if self._times else ""
        self.time.content = "All frames" if self.all.value else f"{self._nodes.shown.scene.names[number]}{seconds}"
        self._nodes.change(frame=-1 if self.all.value else number)

    def _play(self) -> None:
        """Play until a second click."""
        if self._running:
            self.stop()
            self.play.label = "Play"
            return
        self._running, self.play.label = True, "Stop"
        self.all.value = False
        number = int(self.frame.value)
        while self._running:
            number = number + 1 if number < self._last else 0
            seconds = self._times[number] - self._times[number - 1] if self._times and number else 1 / _FPS
            time.sleep(min(max(seconds, 0.04), 1.0))
            if self._running:
                self.frame.value = number
