"""`open_viewer`: scenes in a browser, until the viewer is stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from geomtx.checks import check_count
from geomtx.files import unique_names, user_path
from geomtx.report.viewer.panel import ScenePanel, add_tabs
from geomtx.report.viewer.server import require_viser, start_server, stop_server
from geomtx.report.viewer.shown import ShownScene, show_scene
from geomtx.scene.scene import Scene

__all__ = ["DEFAULT_MAX_POINTS", "Viewer", "open_viewer"]

DEFAULT_MAX_POINTS = 300_000
"""Number of points that a browser turns without a stutter on the graphics of a laptop."""

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # what a browser on this machine writes for them


class _Entry(NamedTuple):
    shown: ShownScene
    folder: Path | None  # for videos


class Viewer:
    """A running viewer. It is stopped by `stop`, at the end of a `with` block, or with the process.

    Attributes:
        url: Address of the page, for a browser on this machine.
    """

    def __init__(self, scenes: dict[str, _Entry], host: str, port: int) -> None:
        self._scenes = scenes
        self._server = start_server(host, port)
        try:
            name = _ANYWHERE.get(host, host)
            self.url = f"http://{f'[{name}]' if ':' in name else name}:{self._server.get_port()}/"
            names = tuple(scenes)
            self._choice = self._server.gui.add_dropdown("Scene", names, visible=len(names) > 1)
            self._choice.on_update(lambda _: self._switch(self._choice.value))
            self._tabs = add_tabs(self._server)
            self._panel = ScenePanel(self._server, self._tabs, *scenes[names[0]])
            self._server.on_client_connect(lambda client: client.camera.on_update(self._follow))
        except BaseException:
            self.stop()
            raise

    def show(self, name: str) -> None:
        """Show another of the scenes.

        Args:
            name: Its name in the list of scenes.
        """
        if self._choice.value == name:
            self._switch(name)
        else:
            self._choice.value = name  # which switches

    def stop(self) -> None:
        """End the server; the page says that it lost the connection."""
        stop_server(self._server)

    def _switch(self, name: str) -> None:
        entry = self._scenes[name]
        self._panel.remove()
        self._panel = ScenePanel(self._server, self._tabs, *entry)
        for client in self._server.get_clients().values():
            self._panel.look_from_start(client)

    def _follow(self, camera: Any) -> None:
        self._panel.follow(camera)

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Viewer({self.url})"

    def _repr_html_(self) -> str:
        """In a notebook, the page itself."""
        return f'<iframe src="{self.url}" width="100%" height="600" style="border: 0"></iframe>'


def open_viewer(
    *scenes: Scene | str | Path, host: str = "127.0.0.1", port: int = 0, max_points: int = DEFAULT_MAX_POINTS
) -> Viewer:
    """Serve a page that shows scenes in 3-D, and return at once; a browser on this machine opens `Viewer.url`.

    The page shows points by confidence and size, cameras with photos, depth or confidence, and tracks; it looks through
    cameras, measures distances, compares a refined scene with what was predicted, and records videos of camera paths.
    In a notebook the returned value shows itself.

    The page has no password: whoever can connect sees the scenes. With the default host these are users and programs of
    this machine, among them pages of others in its browser that guess the port.

    Args:
        scenes: Scenes, or folders that `Scene.save` or `geomtx reconstruct` wrote; the page has a list of several.
            Videos of camera paths are written into the folder of a scene, and downloaded for others.
        host: Address to listen at; "0.0.0.0" lets other machines connect.
        port: Port to listen at; 0 takes a free one.
        max_points: Largest number of points of each scene; more are thinned at random, the same every time.

    Raises:
        ImportError: If viser is not installed.
        FileNotFoundError: If there is no scene in a folder.
        OSError: If the address is in use or not one of this machine.
        ValueError: Without a scene, for one with neither points nor cameras, or a number out of its range.
    """
    check_count("max_points", max_points)
    if not scenes:
        raise ValueError("scenes must hold at least one scene or folder, got none")
    require_viser()
    entries = []
    for source in scenes:
        scene = source if isinstance(source, Scene) else Scene.load(source)
        folder = None if isinstance(source, Scene) else user_path(source)
        if folder is not None and not folder.is_dir():
            folder = folder.parent
        entries.append(_Entry(show_scene(scene, max_points=max_points), folder))
    return Viewer(dict(zip(_names(scenes), entries, strict=True)), host, port)


def _names(scenes: Sequence[Scene | str | Path]) -> tuple[str, ...]:
    """Return different names of scenes: their paths as they were given."""
    return unique_names("scene" if isinstance(each, Scene) else str(Path(each)) for each in scenes)
