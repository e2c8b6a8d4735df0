"""A camera path through a scene: key poses, playing it in the browser, and recording it as a video."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geomtx.files import staged_folder
from geomtx.report.text import count
from geomtx.report.viewer.flight import Pose, fly, to_wxyz
from geomtx.report.viewer.nodes import SceneNodes
from geomtx.views.video import import_av, write_video

__all__ = ["Tour"]

_SIZES = {"640 x 360": (640, 360), "1280 x 720": (1280, 720), "1920 x 1080": (1920, 1080)}
_FPS = 24
_PATIENCE = 60.0  # seconds that a browser has for a frame; one whose window is hidden draws none
_COLOR = (120, 120, 120)


class Tour:
    """The controls of a camera path. Frames of a video are drawn by the browser that asks for it.

    So a video shows what the window shows, at the speed of the user's graphics card.

    Args:
        server: A `viser.ViserServer`.
        nodes: The scene.
        folder: Folder for videos; None where they are downloaded by the browser.
    """

    def __init__(self, server: Any, nodes: SceneNodes, folder: Path | None) -> None:
        self.keys: list[Pose] = []
        self._server, self._nodes, self._home = server, nodes, folder
        self._line: Any = None
        self._running = False
        gui = server.gui
        self.state = gui.add_markdown("")
        add, through = gui.add_button("Add this view"), gui.add_button("Through all cameras")
        clear = gui.add_button("Clear")
        self.seconds = gui.add_slider("Seconds", min=1, max=60, step=1, initial_value=8)
        self.cameras = gui.add_checkbox("Show cameras", False)
        self.play = gui.add_button("Play")
        self.size = gui.add_dropdown("Video", tuple(_SIZES), initial_value="1280 x 720")
        self.record = gui.add_button("Record a video")
        through.visible = nodes.camera(0) is not None or any(nodes.shown.results.values())
        add.on_click(lambda event: self.add(event.client))
        through.on_click(lambda _: self.add_cameras())
        clear.on_click(lambda _: self.clear())
        self.play.on_click(lambda event: self._start(self._play, event.client))
        self.record.on_click(lambda event: self._start(self._record, event.client))
        self.clear()

    def add(self, client: Any) -> None:
        """Add what a browser, viser's handle, shows now as a key pose."""
        if client is not None:
            camera = client.camera
            self._set([*self.keys, Pose(np.array(camera.position), np.array(camera.wxyz), float(camera.fov))])

    def add_cameras(self) -> None:
        """Make the cameras of the scene the key poses, in the order of the photos."""
        found = [self._nodes.camera(view) for view in range(len(self._nodes.shown.scene))]
        self._set([Pose(each[0].position + each[1], to_wxyz(each[0].rotation), each[0].fov) for each in found if each])

    def clear(self) -> None:
        """Forget the key poses."""
        self._set([])

    def stop(self) -> None:
        """End playing or recording, if either is going on."""
        self._running = False

    def poses(self, fps: float) -> list[Pose]:
        """Return the poses of the frames, at a number of frames a second."""
        return fly(self.keys, max(2, round(self.seconds.value * fps)))

    def _set(self, keys: list[Pose]) -> None:
        self.keys = keys
        if self._line is not None:
            self._line.remove()
            self._line = None
        if len(keys) > 1:
            way = np.stack([pose.position for pose in fly(keys, 20 * len(keys))]).astype(np.float32)
            self._line = self._server.scene.add_line_segments(
                "/camera path", points=np.stack([way[:-1], way[1:]], axis=1), colors=_COLOR, thickness=2,
                thickness_units="screen",
            )  # fmt: skip
        self.state.content = self._describe()

    def _describe(self) -> str:
        if not self.keys:
            return "No key views yet: move to where the path begins, add the view, move on, add the next."
        return f"{count(len(self.keys), 'key view')}. Play the path, or record it as a video."

    def _start(self, run: Any, client: Any) -> None:
        """Run what needs key poses and a browser; a second click ends it."""
        if self._running:
            self.stop()
            return
        if not self.keys:
            self.state.content = "Add at least one key view first."
            return
        if client is None:
            return
        self._running = True
        shown, labels = self._nodes.look.cameras, (self.play.label, self.record.label)
        self.play.label = self.record.label = "Stop"
        self._nodes.change(cameras=shown and self.cameras.value)
        if self._line is not None:
            self._line.visible = False
        try:
            self.state.content = run(client)
        except (OSError, RuntimeError, ValueError) as error:
            self.state.content = f"Stopped: {' '.join(str(error).split())}"
        finally:
            self._running = False
            self.play.label, self.record.label = labels
            self._nodes.change(cameras=shown)
            if self._line is not None:
                self._line.visible = True

    def _play(self, client: Any) -> str:
        poses, start = self.poses(60), time.monotonic()
        while self._running:
            share = (time.monotonic() - start) / self.seconds.value
            pose = poses[min(int(share * len(poses)), len(poses) - 1)]
            rotation = pose.rotation
            with client.atomic():
                client.camera.position = pose.position
                client.camera.up_direction = -rotation[:, 1]
                client.camera.look_at = pose.position + rotation[:, 2]
                client.camera.fov = pose.fov
            if share >= 1:
                break
            time.sleep(1 / 60)
        return self._describe()

    def _record(self, client: Any) -> str:
        write: Callable[..., None]
        try:
            import_av()
            write, suffix = write_video, "mp4"
        except ImportError:
            write, suffix = write_animation, "webp"
        if self._home is None:
            from tempfile import TemporaryDirectory

            with TemporaryDirectory() as folder:
                file = Path(folder) / f"camera_path.{suffix}"
                write(file, self._frames(client), fps=_FPS)
                client.send_file_download(file.name, file.read_bytes())
            return f"The browser has {file.name}."
        name = free_name(self._home, f"camera_path.{suffix}")
        with staged_folder(self._home) as stage:
            write(stage / name, self._frames(client), fps=_FPS)
        return f"Wrote {self._home / name}."

    def _frames(self, client: Any) -> Iterator[np.ndarray]:
        """Yield the frames, (H, W, 3) uint8, as the browser draws them."""
        width, height = _SIZES[self.size.value]
        poses = self.poses(_FPS)
        for number, pose in enumerate(poses):
            if not self._running:
                raise ValueError("no video was written")
            self.state.content = f"Frame {number + 1} of {len(poses)}. Keep this window visible."
            try:
                frame = client.get_render(
                    height, width, wxyz=pose.wxyz, position=pose.position, fov=pose.fov, timeout=_PATIENCE
                )
            except TimeoutError:
                raise ValueError(
                    "the browser drew no frame; its window must be visible. No video was written"
                ) from None
            yield np.ascontiguousarray(frame[..., :3])


def write_animation(path: Path, frames: Iterable[np.ndarray], *, fps: float) -> None:
    """Write frames (H, W, 3) uint8 as an animated WebP, which needs no PyAV; all of them are in memory."""
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=others, duration=round(1000 / fps), loop=0, quality=80)


def free_name(folder: Path, name: str) -> str:
    """Return a name that no file of a folder has: the given one, or one with a number before its ending."""
    candidate, number = name, 1
    while (folder / candidate).exists():
        number += 1
        candidate = f"{Path(name).stem}_{number}{Path(name).suffix}"
    return candidate
