import pytest
import torch

from geomtx import Predictions, SceneBatch
from geomtx.losses.head_term import HeadTerm
from geomtx.losses.term import Term

BATCH = SceneBatch(torch.zeros(1, 1, 3, 4, 4))


def test_it_reads_its_own_head():
    term = HeadTerm("a", lambda prediction, batch: prediction.mean() + batch.images.shape[1], 0.5)
    assert isinstance(term, Term)
    found = term(Predictions(extra={"a": torch.full((2,), 3.0), "b": torch.ones(2)}), BATCH)
    assert found.total == 4
    assert found.parts == {"loss_a": found.total}
    assert term(Predictions(extra={"b": torch.ones(2)}), BATCH) is None
    assert term(Predictions(), BATCH) is None


def test_labels_that_are_not_there():
    assert HeadTerm("a", lambda *_: None)(Predictions(extra={"a": 1}), BATCH) is None


def test_a_loss_is_a_scalar_and_a_weight_not_negative():
    with pytest.raises(ValueError, match=r"^loss of 'a' must be a scalar, got shape \(2,\)$"):
        HeadTerm("a", lambda prediction, _: prediction)(Predictions(extra={"a": torch.ones(2)}), BATCH)
    with pytest.raises(ValueError, match=r"^weight must be at least 0, got -1$"):
        HeadTerm("a", lambda *_: None, weight=-1)
