from __future__ import annotations

import contextlib
import dataclasses
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("viser")

import geomtx
from geomtx.report import Viewer, open_viewer
from geomtx.report.viewer.flight import Pose, fly, to_wxyz
from geomtx.report.viewer.measuring import pick_point
from scene.known_scene import refined, without


@pytest.fixture(scope="module")
def viewer(scene: geomtx.Scene):
    with open_viewer(scene) as viewer:
        yield viewer


@pytest.fixture
def panel(viewer: Viewer):
    viewer.show("scene")  # as at the start
    return viewer._panel


class Client:
    """What a browser does for the viewer, without a browser."""

    def __init__(self) -> None:
        self.camera = SimpleNamespace(
            position=np.zeros(3), wxyz=np.array([1.0, 0, 0, 0]), fov=1.0, aspect=2.0, look_at=None, up_direction=None
        )
        self.asked: list[dict[str, Any]] = []
        self.downloads: list[str] = []

    def atomic(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def get_render(self, height: int, width: int, **pose: Any) -> np.ndarray:
        self.asked.append(pose)
        return np.full((height, width, 3), len(self.asked), np.uint8)

    def send_file_download(self, name: str, content: bytes) -> None:
        self.downloads.append(name)


def ray_to(point: np.ndarray, start: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(ray_origin=tuple(start), ray_direction=tuple(point - start))


def inside(points: np.ndarray, camera: Any) -> np.ndarray:
    """Which points are in the window of a browser whose up is the viewer's."""
    forward = camera.look_at - camera.position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, camera.up_direction)
    right /= np.linalg.norm(right)
    local = (points - camera.position) @ np.stack([right, np.cross(forward, right), forward], axis=1)
    limits = np.tan(camera.fov / 2) * np.array([camera.aspect, 1])
    return (local[:, 2] > 0) & (np.abs(local[:, :2]) < limits * local[:, 2:]).all(1)


def test_a_viewer_serves_a_page_on_this_machine_alone(viewer: Viewer):
    host, port = viewer.url.removeprefix("http://").strip("/").split(":")
    assert host == "127.0.0.1"
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert viewer.url in viewer._repr_html_()


def test_the_slider_leaves_out_the_least_confident_points(panel: Any, scene: geomtx.Scene):
    for percent in (0, 20, 75):
        panel.percent.value = percent
        assert len(panel.nodes.points) == len(scene.points(percent).xyz)
        assert len(panel.nodes._clouds["scene"].points) == len(panel.nodes.points)


def test_hidden_photos_have_neither_points_nor_cameras(panel: Any):
    everything = len(panel.nodes.points)
    panel.nodes.change(hidden=frozenset({0, 3}))
    assert 0 < len(panel.nodes.points) < everything
    assert [handle.visible for handle in panel.nodes._frusta.values()] == [False, True, True, False]
    panel.nodes.change(hidden=frozenset(range(4)))
    assert len(panel.nodes.points) == len(panel.nodes._clouds) == 0
    panel.nodes.change(hidden=frozenset())
    assert len(panel.nodes.points) == everything


def test_pictures_of_cameras_and_colors_of_points_change(panel: Any):
    photo = panel.nodes._frusta["scene", 1].image.copy()
    panel.nodes.change(picture="depth", color="confidence")
    assert np.array_equal(panel.nodes._frusta["scene", 1].image, panel.shown.picture(1, "depth"))
    assert not np.array_equal(panel.nodes._frusta["scene", 1].image, photo)
    colors = panel.nodes._clouds["scene"].colors
    assert colors[0].tolist() == [253, 231, 37]  # the most confident one is yellow
    assert colors[-1][2] > colors[-1][1]
    panel.nodes.change(picture="none", color="photo number")
    assert panel.nodes._frusta["scene", 1].image is None
    assert len(np.unique(panel.nodes._clouds["scene"].colors, axis=0)) == 4


def test_two_clicks_give_the_distance(panel: Any, scene: geomtx.Scene):
    panel.measuring.value = True
    start = panel.nodes.camera(0)[0].position
    wanted = [scene.point_map().value[0, row, column].double().numpy() for row, column in ((30, 30), (50, 80))]
    for point in wanted:
        panel._click_scene(ray_to(panel.shown.frame.to_viewer(point), start))
    told = float(panel.distance.content.partition("**")[2].split()[0])
    assert told == pytest.approx(np.linalg.norm(wanted[0] - wanted[1]), rel=0.01)
    assert "(no unit: up to scale)" in panel.distance.content
    panel._click_scene(
        SimpleNamespace(ray_origin=tuple(start), ray_direction=tuple(-panel.nodes.camera(0)[0].rotation[:, 2]))
    )
    assert panel.distance.content == "No point there: click on one."
    panel.measuring.value = False
    assert panel.distance.content == "Switch it on, then click on two points of the scene."


def test_one_looks_through_a_camera_and_away_from_it(panel: Any):
    client = Client()
    panel._click_camera(2, client)
    camera, _ = panel.nodes.camera(2)
    assert panel.photo.value == panel.shown.scene.names[2]
    assert np.allclose(client.camera.position, camera.position)
    way = client.camera.look_at - client.camera.position
    assert np.allclose(way / np.linalg.norm(way), camera.rotation[:, 2])
    assert client.camera.fov == pytest.approx(camera.fov)  # the window is wider than the photo
    assert not any(handle.visible for handle in panel.nodes._frusta.values())
    panel.follow(SimpleNamespace(position=np.full(3, 9.0)))  # where it was before
    assert panel.nodes.look.through == 2
    panel.follow(client.camera)
    panel.follow(SimpleNamespace(position=client.camera.position + 0.1))
    assert all(handle.visible for handle in panel.nodes._frusta.values())


def test_a_refined_scene_is_shown_beside_the_first_one(scene: geomtx.Scene):
    with open_viewer(dataclasses.replace(refined(scene), units="<b>feet", notice="<i>beware")) as viewer:
        panel = viewer._panel
        alone = len(panel.nodes.points)
        panel.refinement.value = "as predicted"
        assert {name for name, _ in panel.nodes._frusta} == {"first"}
        panel.refinement.value = "side by side"
        assert len(panel.nodes.points) == 2 * alone
        left, right = panel.nodes.points[:alone], panel.nodes.points[alone:]
        axis = panel.nodes.camera(0)[0].rotation[:, 0]
        assert np.median(right @ axis) - np.median(left @ axis) > 1
        assert [title.text for title in panel.nodes._titles] == ["refined", "as predicted"]
        client = Client()
        panel.look_from_start(client)
        for result in (left, right):
            assert np.mean(inside(result, client.camera)) > 0.95
        panel.refinement.value = "both (blue: refined)"
        assert panel.nodes._titles == []
        panel.look_from_start(client)
        assert np.allclose(client.camera.position, viewer._server.initial_camera.position)
        assert len(panel.nodes._frusta) == 8
        assert len({tuple(handle.color) for handle in panel.nodes._frusta.values()}) == 2
        heading = panel._parts[0].content
        assert "&lt;i>beware" in heading
        assert "<" not in heading


def test_several_scenes_are_in_one_viewer(scene: geomtx.Scene, tmp_path: Path):
    scene.save(tmp_path / "a", formats=(), report=False)
    without(scene, "depth", "points").save(tmp_path / "b", formats=(), report=False)
    with open_viewer(tmp_path / "a", tmp_path / "b" / "scene.safetensors") as viewer:
        assert len(viewer._panel.nodes.points) > 0
        viewer.show(str(tmp_path / "b" / "scene.safetensors"))
        assert len(viewer._panel.nodes.points) == 0
        assert len(viewer._panel.nodes._frusta) == 4
        assert viewer._choice.value.endswith("b/scene.safetensors")
        viewer._choice.value = str(tmp_path / "a")  # as a user does
        assert len(viewer._panel.nodes.points) > 0


def test_a_video_of_a_path_through_all_cameras(scene: geomtx.Scene, tmp_path: Path):
    av = pytest.importorskip("av")
    scene.save(tmp_path, formats=(), report=False)
    (tmp_path / "camera_path.mp4").write_bytes(b"of the user")
    with open_viewer(tmp_path) as viewer:
        tour, client = viewer._panel.tour, Client()
        tour._start(tour._record, client)
        assert client.asked == []  # there is no path yet
        tour.add_cameras()
        tour.seconds.value, tour.size.value = 1, "640 x 360"
        tour._start(tour._record, client)
        assert tour.state.content == f"Wrote {tmp_path / 'camera_path_2.mp4'}."
        assert np.allclose(client.asked[-1]["position"], viewer._panel.nodes.camera(3)[0].position)
        client.get_render = lambda *_, **__: tour.stop() or np.zeros((360, 640, 3), np.uint8)
        tour._start(tour._record, client)
        assert tour.state.content == "Stopped: no video was written"
    with av.open(str(tmp_path / "camera_path_2.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 24
    assert (tmp_path / "camera_path.mp4").read_bytes() == b"of the user"
    assert sorted(path.name for path in tmp_path.glob("*camera*_*")) == ["camera_path.mp4", "camera_path_2.mp4"]


def test_without_pyav_and_a_folder_the_browser_gets_an_animation(panel: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    client = Client()
    panel.tour.add(client)
    panel.tour.seconds.value, panel.tour.size.value = 1, "640 x 360"
    panel.tour._start(panel.tour._record, client)
    assert client.downloads == ["camera_path.webp"]


def test_a_path_is_played_in_the_browser(panel: Any):
    client = Client()
    panel.tour.add(client)
    panel.tour.add_cameras()
    assert len(panel.tour.keys) == 4
    panel.tour.seconds.value = 1
    panel.tour._start(panel.tour._play, client)
    assert np.allclose(client.camera.position, panel.nodes.camera(3)[0].position)
    assert panel.tour.play.label == "Play"


def test_a_flight_passes_its_key_poses():
    transforms = pytest.importorskip("viser").transforms
    turns = [transforms.SO3.from_y_radians(angle) for angle in (0.0, 1.0, 3.0)]
    keys = [Pose(np.array([x, x * x, 0.0]), turn.wxyz, 1 + x) for x, turn in zip((0.0, 1.0, 2.0), turns, strict=True)]
    poses = fly(keys, 21)
    for key, pose in zip(keys, poses[::10], strict=True):
        assert np.allclose(pose.position, key.position)
        assert np.allclose(pose.rotation, key.rotation)
        assert pose.fov == pytest.approx(key.fov)
    assert np.allclose(poses[5].rotation, transforms.SO3.from_y_radians(0.5).as_matrix())
    assert np.allclose(poses[9].position - 2 * poses[10].position + poses[11].position, 0, atol=0.05)  # no kink
    assert np.allclose(to_wxyz(poses[5].rotation), poses[5].wxyz)
    assert fly(keys[:1], 3) == [keys[0]] * 3


def test_a_click_takes_the_nearest_surface():
    points = np.array([[0, 0, 5], [0, 0, 2], [0.008, 0, 2.01], [1, 0, 3]], dtype=np.float32)
    assert pick_point(points, np.zeros(3), np.array([0, 0, 3.0])) == 1
    assert pick_point(points, np.zeros(3), np.array([0.008, 0, 2.01])) == 2
    assert pick_point(points, np.zeros(3), np.array([0.01, 0, -1])) is None
    assert pick_point(points[:0], np.zeros(3), np.array([0, 0, 1.0])) is None


# What can't be served


def test_addresses_that_can_not_be_used(scene: geomtx.Scene, viewer: Viewer):
    port = int(viewer.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match=rf"^host and port must be an address that is free here, got 127.0.0.1:{port}: "):
        open_viewer(scene, port=port)
    with pytest.raises(OSError, match=r"got 203\.0\.113\.1:0: "):
        open_viewer(scene, host="203.0.113.1")
    with pytest.raises(ValueError, match=r"^port must be in 0 … 65535, got 65536$"):
        open_viewer(scene, port=65536)


def test_a_port_is_free_when_its_viewer_has_stopped(scene: geomtx.Scene, capfd: pytest.CaptureFixture[str]):
    with open_viewer(scene) as viewer:
        url = viewer.url
    with open_viewer(scene, port=int(url.rstrip("/").rpartition(":")[2])) as viewer:
        assert viewer.url == url
    assert capfd.readouterr().out == ""


def test_no_scene_and_no_viser(scene: geomtx.Scene, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"^scenes must hold at least one scene or folder, got none$"):
        open_viewer()
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(
        ImportError, match=r"^viser must be installed for the viewer, got none; pip install 'geomtx\[viewer\]'$"
    ):
        open_viewer(scene)


def test_a_slider_shows_what_moves_frame_by_frame(scene: geomtx.Scene):
    masks = torch.zeros_like(scene.masks)
    masks[1, 20:50, 30:70] = masks[3, 40:60, 40:80] = True
    with open_viewer(dataclasses.replace(scene, moving=masks, times=(0.0, 0.1, 0.2, 0.3))) as viewer:
        panel = viewer._panel
        nodes, timeline = panel.nodes, panel.timeline
        panel.percent.value = 0
        still = len(nodes.points)
        assert nodes._moving == {}  # nothing moves in the first frame
        timeline.frame.value = 1
        first = nodes._moving["scene"].points
        assert timeline.time.content == f"{scene.names[1]}, 0.10 s"
        timeline.frame.value = 3
        third = nodes._moving["scene"].points
        assert 0 < len(third) != len(first) > 0
        timeline.all.value = True
        assert len(nodes._moving["scene"].points) == len(first) + len(third)
        assert len(nodes.points) == still  # the static cloud is the same in all frames
        playing = threading.Thread(target=timeline._play)
        playing.start()
        end = time.monotonic() + 20
        while timeline.frame.value != 1:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert timeline.play.label == "Stop"
        timeline._play()
        playing.join(20)
        assert not playing.is_alive()
        assert timeline.play.label == "Play"
        viewer.show("scene")
    with open_viewer(scene) as viewer:
        assert viewer._panel.timeline is None
