import pytest
import torch

from geomtx.inference import choose_pairs, keep_near, retrieved_pairs
from geomtx.inference.pair_graphs import check_graph


@pytest.mark.parametrize(
    ("num_images", "graph", "expected"),
    [
        (3, "complete", [[1, 0], [2, 0], [2, 1]]),
        (5, "swin-1", [[0, 1], [0, 4], [1, 2], [2, 3], [3, 4]]),
        (5, "swin-1-noncyclic", [[0, 1], [1, 2], [2, 3], [3, 4]]),
        (2, "swin", [[0, 1]]),
        (5, "logwin-3-noncyclic", [[0, 1], [0, 2], [0, 4], [1, 2], [1, 3], [2, 3], [2, 4], [3, 4]]),
        (5, "swinstride-2-noncyclic", [[0, 1], [0, 3], [1, 2], [1, 4], [2, 3], [3, 4]]),
        (6, "swin2stride-2-noncyclic", [[0, 1], [0, 4], [1, 2], [1, 5], [2, 3], [3, 4], [4, 5]]),
        (4, "oneref-2", [[2, 0], [2, 1], [2, 3]]),
    ],
)
def test_graphs_by_name(num_images, graph, expected):
    assert choose_pairs(num_images, graph, both_directions=False).tolist() == expected
    both = choose_pairs(num_images, graph)
    assert both.tolist() == expected + [pair[::-1] for pair in expected]
    check_graph(both.tolist(), num_images)


def test_one_image_is_paired_with_itself():
    assert choose_pairs(1).tolist() == [[0, 0]]
    check_graph([(0, 0)], 1)


@pytest.mark.parametrize("graph", ["complete", "swin-7", "logwin-5", "swinstride-4", "oneref-3"])
def test_no_pair_is_there_twice_or_of_an_image_with_itself(graph):
    for num_images in range(2, 8):
        if graph == "oneref-3" and num_images < 4:
            continue
        pairs = choose_pairs(num_images, graph).tolist()
        assert len({tuple(pair) for pair in pairs}) == len(pairs)
        assert all(first != second for first, second in pairs)


def test_near_pairs_are_kept():
    pairs = choose_pairs(6, both_directions=False)
    assert keep_near(pairs, 1).tolist() == [[1, 0], [2, 1], [3, 2], [4, 3], [5, 4]]
    assert keep_near(pairs, 1, num_images=6).tolist() == [[1, 0], [2, 1], [3, 2], [4, 3], [5, 0], [5, 4]]


def test_retrieved_pairs_connect_groups_by_their_keys():
    """Two groups that look alike within: each has a key, and all others hang on theirs."""
    similarity = torch.full((6, 6), 0.1)
    similarity[:3, :3], similarity[3:, 3:] = 0.8, 0.8
    similarity.fill_diagonal_(1)
    similarity[0, 1] = similarity[1, 0] = 0.9
    pairs = retrieved_pairs(similarity, 2, 1, first_key=2, both_directions=False).tolist()
    assert pairs == [[0, 2], [1, 2], [2, 3], [3, 4], [3, 5]]
    more = retrieved_pairs(similarity, 2, 2, first_key=2, both_directions=False).tolist()
    assert [0, 1] in more
    check_graph(pairs, 6)


@pytest.mark.parametrize("kind", ["swin", "logwin", "swinstride", "swin2stride"])
def test_a_window_larger_than_the_scene_takes_no_longer(kind):
    for noncyclic in ("", "-noncyclic"):
        large = choose_pairs(6, f"{kind}-1000000000{noncyclic}")
        assert torch.equal(large, choose_pairs(6, f"{kind}-20{noncyclic}"))


def test_wrong_graphs():
    for graph in ("complete-5", "complete-noncyclic", "oneref-1-noncyclic"):
        with pytest.raises(ValueError, match=rf"^graph '(complete|oneref)' must be named so, got '{graph}'$"):
            choose_pairs(3, graph)
    with pytest.raises(ValueError, match=r"^graph must be one of 'complete', 'oneref', 'swin', .*, got 'all'$"):
        choose_pairs(3, "all")
    with pytest.raises(ValueError, match=r"^reference of the graph must be one of 0, 1, 2, got 3$"):
        choose_pairs(3, "oneref-3")
    with pytest.raises(ValueError, match=r"^window of the graph must be a whole number, at least 1, got 0$"):
        choose_pairs(3, "swin-0")
    with pytest.raises(ValueError, match=r"^pairs must connect all images, got none between images 2, 3 and the oth"):
        check_graph([(0, 1), (1, 4), (2, 3)], 5)
    with pytest.raises(ValueError, match=r"^pairs must be of two of the images 0 to 2, got \(1, 1\)$"):
        check_graph([(0, 1), (1, 1), (1, 2)], 3)
