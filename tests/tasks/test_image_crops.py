"""Crops of photographs to denoise."""

import pytest
import torch

from tasks.data_files import DataError
from tasks.image_crops import crops
from tasks.photographs import photograph


def test_crops_are_grey_parts_of_their_own_region():
    found = crops("embedded", "test", 3, 20, torch.Generator().manual_seed(0))
    whole = photograph("embedded", "test", 0).float() / 255
    grey = 0.299 * whole[0] + 0.587 * whole[1] + 0.114 * whole[2]
    windows = grey.unfold(0, 20, 1).unfold(1, 20, 1)
    assert found.shape == (3, 20, 20)
    for one in found:
        assert float((windows - one).abs().amax((-2, -1)).min()) < 1e-6


def test_crops_depend_on_the_generator_alone():
    first, again, other = (crops("embedded", "train", 2, 8, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_train400_is_cut_into_four_disjoint_splits(monkeypatch):
    images = torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1).expand(8, 6, 6).numpy()
    monkeypatch.setattr("tasks.image_crops.read_arrays", lambda *_: {"images": images})
    seen = [
        {round(255 * float(one[0, 0])) for one in crops("train400", split, 40, 4, torch.Generator().manual_seed(0))}
        for split in ("train", "inner_valid", "outer_valid", "test")
    ]
    assert seen == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist", "test", 1, 8), "embedded, train400, got 'mnist'"),
        (("embedded", "all", 1, 8), "split must be one of train, .* got 'all'"),
        (("embedded", "test", 1, 1000), "size must be from 1 to 320 for embedded, got 1000"),
    ],
)
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        crops(*arguments, torch.Generator())


def test_train400_without_data_is_refused(monkeypatch):
    monkeypatch.delenv("L2O_DATA", raising=False)
    with pytest.raises(DataError, match="set L2O_DATA"):
        crops("train400", "test", 1, 8, torch.Generator())
