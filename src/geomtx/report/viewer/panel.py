"""The panel beside the 3-D view: what is shown of a scene, one photo of it, and distances in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from geomtx.report.text import count, describe_lengths, format_value
from geomtx.report.viewer.measuring import Measure, describe_length, pick_point
from geomtx.report.viewer.nodes import COLORS, GAP, PICTURES, SceneNodes
from geomtx.report.viewer.shown import ShownScene
from geomtx.report.viewer.timeline import Timeline
from geomtx.report.viewer.tour import Tour

__all__ = ["ScenePanel", "Tabs", "add_tabs"]

_ARRIVED = 0.02  # distance up to which one looks through a camera, in units of the viewer
_FITS = 0.6  # share of the window's width that two results side by side take
_HOW_TO_MEASURE = "Switch it on, then click on two points of the scene."
_MARGIN, _TITLE_WIDTH, _TABS_WIDTH = 15, 260, 320  # of the two panels, in pixels of CSS


class Tabs(NamedTuple):
    """Tabs of the panel with the controls, viser's handles; what is in a scene, one photo, distances, camera paths."""

    scene: Any
    photo: Any
    distance: Any
    path: Any


def add_tabs(server: Any) -> Tabs:
    """Add the panel of the controls at the upper right, and move viser's own to the lower left, for the heading.

    In a window as narrow as a phone's, viser has both in one sheet at the bottom, in which the tabs are a line until
    it is touched; the panel of its own would be open and hide most of the picture.

    Args:
        server: A `viser.ViserServer`.
    """
    server.gui.main_panel.float(x=_MARGIN, y=-_MARGIN, width=_TITLE_WIDTH)
    panel = server.gui.add_panel()
    panel.float(x=-_MARGIN, y=_MARGIN, width=_TABS_WIDTH)
    return Tabs(*(panel.add_tab(name) for name in ("Scene", "Photos", "Distance", "Path")))


class ScenePanel:
    """Shows a scene and builds its controls. Everything is gone after `remove`.

    Args:
        server: A `viser.ViserServer`.
        tabs: Group of tabs that holds the controls.
        shown: The scene.
        folder: Folder for videos; None where they are downloaded by the browser.
    """

    def __init__(self, server: Any, tabs: Tabs, shown: ShownScene, folder: Path | None) -> None:
        self.shown, self._server, self._gui = shown, server, server.gui
        self.nodes = SceneNodes(server, shown, self._click_camera)
        self.measure = Measure(server, shown.frame.unit, shown.scene.units)
        self._arrived = False
        self._parts: list[Any] = []
        self._add_heading()
        with tabs.scene:
            self._add_points()
            self._add_cameras()
            self._add_tracks()
            self._add_refinement()
            self.timeline = Timeline(server, self.nodes, self._folder) if shown.moving else None
        with tabs.photo, self._folder(None):
            self._add_photo()
        with tabs.distance, self._folder(None):
            self._add_distance()
        with tabs.path, self._folder(None):
            self.tour = Tour(server, self.nodes, folder)
        self._set_start()

    def remove(self) -> None:
        """Take the scene and its controls off the page."""
        self.tour.stop()
        if self.timeline is not None:
            self.timeline.stop()
        self._server.scene.remove_click_callback("all")
        self.tour.clear()
        self.measure.clear()
        self.nodes.remove()
        for part in self._parts:
            part.remove()

    def follow(self, camera: Any) -> None:
        """Show cameras again when the browser's own, viser's handle, has left the one that it looked through."""
        if self.nodes.look.through is None:
            return
        found = self.nodes.camera(self.nodes.look.through)
        near = found is not None and np.linalg.norm(camera.position - found[0].position - found[1]) < _ARRIVED
        if near:
            self._arrived = True
        elif self._arrived or found is None:
            self.nodes.change(through=None)

    def look_through(self, view: int, client: Any) -> None:
        """Put the camera of a browser to where a photo was taken, so that all of the photo's part is in its window."""
        found = self.nodes.camera(view)
        if found is None or client is None:
            return
        camera, offset = found
        self._arrived = False
        self.nodes.change(through=view)
        position, forward = camera.position + offset, camera.rotation[:, 2]
        wider = max(1.0, camera.aspect / client.camera.aspect)
        with client.atomic():
            client.camera.position = position
            client.camera.up_direction = -camera.rotation[:, 1]
            client.camera.look_at = position + forward * self._depth_from(position, forward)
            client.camera.fov = 2 * float(np.arctan(np.tan(camera.fov / 2) * wider))

    def _depth_from(self, position: np.ndarray, forward: np.ndarray) -> float:
        """Return how deep the points lie in front of a place, half of them less; about this point views turn."""
        depth = (self.nodes.points - position) @ forward
        depth = depth[depth > 0]
        return max(float(np.median(depth)), 0.05) if len(depth) else 1.0

    def _set_start(self) -> None:
        """Start a little behind and above the first camera, and look where it looks."""
        result = self.shown.results[self.nodes.look.results[0]]
        first = result.cameras[0] if result.cameras else None
        rotation = np.eye(3) if first is None else first.rotation
        place = self.shown.frame.to_viewer(np.zeros(3)) if first is None else first.position
        depth = self._depth_from(place, rotation[:, 2])
        self._server.scene.set_up_direction(-result.axis(1))
        start = self._server.initial_camera
        start.position = place - 0.5 * depth * rotation[:, 2] - 0.2 * depth * rotation[:, 1]
        start.look_at = place + depth * rotation[:, 2]
        start.fov = float(np.clip(1.0 if first is None else 1.1 * first.fov, np.deg2rad(40), np.deg2rad(70)))

    def look_from_start(self, client: Any) -> None:
        """Put the camera of a browser, viser's handle, to where it is at first, so far back that all results fit."""
        start, aside = self._server.initial_camera, self.nodes.offset(self.nodes.look.results[-1], self.nodes.look)
        position, target = np.array(start.position) + aside / 2, np.array(start.look_at) + aside / 2
        back = position - target
        width = np.linalg.norm(aside) * (1 + 1 / GAP) / _FITS
        needed = width / 2 / (np.tan(start.fov / 2) * client.camera.aspect)
        with client.atomic():
            client.camera.up_direction = -self.shown.results[self.nodes.look.results[0]].axis(1)
            client.camera.position = target + back * max(1.0, needed / float(np.linalg.norm(back)))
            client.camera.look_at = target
            client.camera.fov = start.fov

    def _folder(self, label: str | None) -> Any:
        folder = self._gui.add_folder(label)
        self._parts.append(folder)
        return folder

    def _bind(self, handle: Any, field: str) -> None:
        """Let a control set a field of the look."""
        handle.on_update(lambda _: self.nodes.change(**{field: handle.value}))

    def _add_heading(self) -> None:
        scene, num_points = self.shown.scene, len(self.shown.results[self.nodes.look.results[0]].xyz)
        facts = [count(len(scene), "photo"), count(self.shown.num_points, "point")]
        if num_points < self.shown.num_points:
            facts[-1] = f"{num_points:,} of {facts[-1]} loaded".replace(",", " ", 1)
        facts.append(describe_lengths(scene.units))
        made = [f"{name} {value}" for name, value in scene.provenance.items() if name in ("weights", "window")]
        lines = [", ".join([*made, *facts])]
        if scene.notice:
            lines.insert(0, f"**Note: {scene.notice}**")
        self._parts.append(self._gui.add_markdown("\n\n".join(map(_escape, lines))))

    def _add_points(self) -> None:
        if not self.shown.num_points:
            return
        with self._folder("Points"):
            percent = self._gui.add_slider(
                "Left out, %", min=0, max=99, step=1, initial_value=int(self.nodes.look.percent),
                hint="Share of the points that is left out, the least confident first",
            )  # fmt: skip
            size = self._gui.add_slider("Size", min=0.25, max=4, step=0.25, initial_value=1)
            color = self._gui.add_dropdown("Colors", COLORS)
        self._bind(percent, "percent")
        self._bind(size, "point_size")
        self._bind(color, "color")
        self.percent = percent

    def _add_cameras(self) -> None:
        if self.nodes.look.results and not any(result.cameras for result in self.shown.results.values()):
            return
        has_depth = self.shown.scene.predictions.depth is not None
        with self._folder("Cameras"):
            self._bind(self._gui.add_checkbox("Show", True), "cameras")
            self._bind(self._gui.add_slider("Size", min=0.25, max=3, step=0.25, initial_value=1), "camera_size")
            pictures = PICTURES if has_depth else ("photo", "none")
            self._bind(self._gui.add_dropdown("Picture", pictures), "picture")
            with self._gui.add_folder("Photo by photo", expand_by_default=False):
                switch = self._gui.add_button_group("Show", ("all", "none"))
                boxes = [self._gui.add_checkbox(name, True) for name in self.shown.scene.names]

        def update(_: Any) -> None:
            hidden = frozenset(view for view, box in enumerate(boxes) if not box.value)
            self.nodes.change(hidden=hidden)

        def switch_all(_: Any) -> None:
            for box in boxes:
                box.value = switch.value == "all"

        for box in boxes:
            box.on_update(update)
        switch.on_click(switch_all)

    def _add_photo(self) -> None:
        scene = self.shown.scene
        has_depth, has_camera = scene.predictions.depth is not None, self.nodes.camera(0) is not None
        self.photo = self._gui.add_dropdown("Photo", scene.names)
        if has_camera:
            look = self._gui.add_button("Look through its camera")
            look.on_click(lambda event: self.look_through(scene.names.index(self.photo.value), event.client))
        picture = self._gui.add_image(self.shown.picture(0, "photo"), format="jpeg")
        if has_depth:
            depth = self._gui.add_image(self.shown.picture(0, "depth"), format="jpeg")
            near, far = (format_value(value) for value in self.shown.limits("depth"))
            unit = "" if scene.units == "up to scale" else f" {_escape(scene.units)}"
            self._gui.add_markdown(f"Depth from {near} (blue) to {far}{unit} (red); unknown where it is gray.")

        def update(_: Any) -> None:
            view = scene.names.index(self.photo.value)
            picture.image = self.shown.picture(view, "photo")
            if has_depth:
                depth.image = self.shown.picture(view, "depth")

        self.photo.on_update(update)

    def _add_tracks(self) -> None:
        if len(self.shown.track_lines):
            with self._folder("Tracks"):
                label = f"Show {count(self.shown.num_tracks, 'track')}"
                self._bind(self._gui.add_checkbox(label, self.nodes.look.tracks), "tracks")

    def _add_refinement(self) -> None:
        if len(self.shown.results) < 2:
            return
        choices = {
            "refined": (("refined",), "over one another"),
            "as predicted": (("first",), "over one another"),
            "both (blue: refined)": (("refined", "first"), "over one another"),
            "side by side": (("refined", "first"), "side by side"),
        }
        with self._folder("Refinement"):
            choice = self._gui.add_dropdown("Show", tuple(choices))

        def update(event: Any) -> None:
            results, layout = choices[choice.value]
            moves = self.nodes.look.layout != layout
            self.nodes.change(results=results, layout=layout)
            if moves and event.client is not None:
                self.look_from_start(event.client)

        choice.on_update(update)
        self.refinement = choice

    def _add_distance(self) -> None:
        if not self.shown.num_points:
            self._gui.add_markdown("The scene has no points to measure between.")
            return
        self.measuring = self._gui.add_checkbox("Measure", False)
        self.distance = self._gui.add_markdown(_HOW_TO_MEASURE)

        def update(_: Any) -> None:
            if self.measuring.value:
                self._server.scene.on_click()(self._click_scene)
                self.distance.content = "Click on a point of the scene."
            else:
                self._server.scene.remove_click_callback("all")
                self.measure.clear()
                self.distance.content = _HOW_TO_MEASURE

        self.measuring.on_update(update)

    def _click_scene(self, event: Any) -> None:
        index = pick_point(self.nodes.points, np.array(event.ray_origin), np.array(event.ray_direction))
        if index is None:
            self.distance.content = "No point there: click on one."
            return
        length = self.measure.add(self.nodes.points[index], self.nodes.point_size)
        if length is None:
            self.distance.content = "This is A; now click on a second point."
        else:
            self.distance.content = f"A to B: **{describe_length(length, _escape(self.shown.scene.units))}**"

    def _click_camera(self, view: int, client: Any) -> None:
        if self.shown.num_points and self.measuring.value:
            return  # the click is for the point behind the camera
        self.photo.value = self.shown.scene.names[view]
        self.look_through(view, client)


def _escape(text: str) -> str:
    """Return text whose angle brackets are no elements of a page."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
