"""One's own matrix from a file: what is read, what is refused, and that a run keeps to the matrix it began with."""

import dataclasses
import hashlib
import os

import numpy as np
import pytest
import torch

from tasks import DataError, Lasso
from tasks.dictionaries import read_matrix
from tasks.lasso import problem


def matrix(rows: int = 4, columns: int = 7, dtype: type = np.float64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(dtype)


@pytest.fixture
def saved(tmp_path):
    """Save arrays under the name of a file, and return its path."""

    def save(name: str, **arrays: np.ndarray) -> str:
        (np.savez if name.endswith("z") else lambda path, A: np.save(path, A))(tmp_path / name, **arrays)
        return str(tmp_path / name)

    return save


@pytest.mark.parametrize("name", ["mine.npy", "mine.npz"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ">f8"])
def test_a_matrix_is_read_as_it_is_with_the_checksum_of_its_file(name, dtype, saved, tmp_path):
    path = saved(name, A=matrix(dtype=dtype))
    A, sha256 = read_matrix(path)
    assert A.dtype == np.float64 and np.array_equal(A, matrix(dtype=dtype))
    assert sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("order", ["F", "reversed"])
def test_a_matrix_may_lie_in_memory_in_any_order(order, saved):
    A = np.asfortranarray(matrix()) if order == "F" else matrix()[::-1]
    family = Lasso(matrix=saved("mine.npy", A=A))
    assert np.array_equal(family.shared_dictionary(torch.zeros(1, dtype=torch.float64)).numpy(), A)


@pytest.mark.parametrize(
    ("A", "message"),
    [
        (np.ones(3), r"must have two axes, \(rows, columns\), none of them empty; got shape \(3,\)"),
        (np.ones((2, 3, 4)), r"got shape \(2, 3, 4\)"),
        (np.ones((0, 4)), r"got shape \(0, 4\)"),
        (np.ones((2, 3), int), "must be of a floating type, got int64; save A.astype"),
        (np.ones((2, 3), complex), "must be of a floating type, got complex128"),
        (np.array([[1.0, np.nan], [np.inf, 2.0]]), "must be finite, but 2 of its 4 entries are not"),
        (np.array([[1.0, 0.0], [2.0, 0.0]]), "has 1 columns of zeros"),
    ],
)
def test_what_is_no_matrix_is_refused(A, message, saved):
    with pytest.raises(DataError, match=message):
        Lasso(matrix=saved("mine.npy", A=A))


def test_files_that_hold_no_matrix_are_named(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"matrix no.npy cannot be read \(No such file .*, looked for in {tmp_path}\)"):
        Lasso(matrix="no.npy")
    with pytest.raises(DataError, match=r"must hold the matrix under the key A; it holds \['B', 'C'\]"):
        Lasso(matrix=saved("other.npz", B=matrix(), C=matrix()))
    for content in (b"", b"garbage", b"PK\x03\x04garbage", b"\x93NUMPY\x01\x00"):
        (tmp_path / "damaged.npy").write_bytes(content)
        with pytest.raises(DataError, match="is neither a .npy file nor an .npz file with the key A"):
            Lasso(matrix="damaged.npy")
    np.save(tmp_path / "objects.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(DataError, match="is neither a .npy file"):  # a pickle could run anything
        Lasso(matrix="objects.npy")


def test_a_family_takes_size_and_checksum_from_the_file_and_measures_with_it(float64, saved):
    family = Lasso(strength=0.3, matrix=saved("mine.npy", A=matrix()))
    assert (family.rows, family.columns, family.dictionary) == (4, 7, "file")
    tasks = family.sample_tasks(3, torch.Generator().manual_seed(0))
    A = torch.from_numpy(matrix())
    torch.testing.assert_close(tasks["b"], tasks["x_star"] @ A.T)
    expected = problem(A, tasks["b"], 0.3).value(tasks["x_star"])
    torch.testing.assert_close(family.problem(tasks).value(tasks["x_star"]), expected)
    assert dataclasses.replace(family, strength=0.1).matrix_sha256 == family.matrix_sha256


def test_another_matrix_under_the_same_name_is_found_out(saved):
    path = saved("mine.npy", A=matrix())
    family = Lasso(matrix=path)
    saved("mine.npy", A=2 * matrix())
    again = dataclasses.replace(family, strength=0.2)  # what was noted still stands
    with pytest.raises(DataError, match="is not the one that this run was made with: its SHA-256 is .*, expected"):
        again.shared_dictionary(torch.zeros(1))
    with pytest.raises(DataError, match="is not the one that this run was made with"):
        Lasso(matrix=path, matrix_sha256=family.matrix_sha256)
    os.remove(path)
    assert dataclasses.replace(family, strength=0.4).rows == 4  # a card can be written elsewhere
    with pytest.raises(DataError, match="cannot be read"):
        dataclasses.replace(family, strength=0.4).shared_dictionary(torch.zeros(1))


def test_size_that_is_not_the_files_is_found_out(saved):
    family = Lasso(matrix=saved("mine.npy", A=matrix()))
    with pytest.raises(ValueError, match=r"holds a matrix of shape \(4, 7\), not \(5, 7\)"):
        dataclasses.replace(family, rows=5).shared_dictionary(torch.zeros(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dictionary": "file"}, "go with matrix, the path of"),
        ({"matrix_sha256": "0" * 64}, "go with matrix, the path of"),
        ({"matrix": "any.npy", "condition": 3.0}, "has its own conditioning, got condition 3.0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Lasso(**options)


@pytest.mark.parametrize("strength", ["0.1", None, True, 1j, [None], object()], ids=str)
def test_a_strength_that_is_no_number_is_refused(strength):
    with pytest.raises(ValueError, match=r"strength \(λ\) must be a positive number, or one per item, got "):
        problem(torch.ones(2, 3), torch.ones(2), strength)


def test_a_strength_may_be_a_number_of_any_kind_and_keeps_its_digits():
    A = torch.ones(2, 3, dtype=torch.float64)
    for strength in (0.1, np.float64(0.1), torch.tensor(0.1, dtype=torch.float64), [0.1, 0.1], np.array([0.1, 0.1])):
        found = problem(A, A[:, :2], strength).regularizer.strength
        assert found.dtype is torch.float64 and (found == 0.1).all()
