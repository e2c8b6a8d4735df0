import pytest
import torch
from torch import Tensor

from geomtx.inference import track_in_chunks
from geomtx.tracking.queries import take_queries
from geomtx.types import Tracks, TrackWindows, VideoTracks


def fake_tracks(queries: Tensor) -> VideoTracks:
    """Every number of a track says which query it is of."""
    number = queries[..., 0]
    views = torch.arange(6).view(2, 3)
    coords = queries[:, None, :, 1:].expand(-1, 4, -1, -1)
    plane = number[:, None].expand(-1, 4, -1)
    windows = TrackWindows(
        coords[None, None, :, :3].expand(2, 5, -1, -1, -1, -1), *[plane[None, None, :, :3]] * 2, views
    )
    return VideoTracks(Tracks(coords, plane, plane), windows)


@pytest.mark.parametrize("query_chunk", [1, 2, 5, 9])
def test_chunks_are_put_together_in_order(query_chunk):
    queries = torch.rand(2, 5, 3)
    sizes = []

    def track(chunk: Tensor) -> VideoTracks:
        sizes.append(chunk.shape[1])
        return fake_tracks(chunk)

    ours, whole = track_in_chunks(track, queries, query_chunk), fake_tracks(queries)
    assert max(sizes) == min(query_chunk, 5)
    for part, expected in zip((*ours.tracks, *ours.windows), (*whole.tracks, *whole.windows), strict=True):
        assert torch.equal(part, expected)


def test_the_first_queries():
    queries = torch.rand(2, 5, 3)
    ours, expected = take_queries(fake_tracks(queries), 3), fake_tracks(queries[:, :3])
    for part, other in zip((*ours.tracks, *ours.windows), (*expected.tracks, *expected.windows), strict=True):
        assert torch.equal(part, other)
