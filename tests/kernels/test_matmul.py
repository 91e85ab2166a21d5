"""Products of few rows: the kernel equals torch.bmm, and torch.compile puts it where it belongs."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from l2o.kernels.matmul import FewRows, bmm

# (rows, inner, columns): tiles of 4 × 4 and 4 × 6 vectors, what is left over of them, and nothing at all.
SHAPES = [(20, 784, 128), (20, 128, 784), (3, 5, 7), (10, 20, 128), (1, 1, 1), (5, 17, 33), (7, 100, 130), (4, 0, 3)]
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-3}  # sums of up to 784 products of normal numbers


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def layouts(tensor):
    """Yield the same numbers in rows, in columns, in neither, and (the first matrix for all) without a batch's copy."""
    yield tensor
    yield tensor.mT.contiguous().mT
    yield torch.stack([tensor, tensor], -1)[..., 0]
    yield tensor[:1].expand(tensor.shape)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_product_equals_that_of_torch_for_every_layout(shape, dtype):
    rows, inner, columns = shape
    for a in layouts(draw(3, rows, inner, dtype=dtype)):
        for b in layouts(draw(3, inner, columns, dtype=dtype, seed=1)):
            found = bmm(a, b)
            assert found.is_contiguous()
            torch.testing.assert_close(found, a @ b, rtol=0, atol=TOLERANCES[dtype])


@pytest.mark.usefixtures("compiled")
def test_product_does_not_depend_on_the_number_of_threads():
    a, b = draw(5, 20, 300, dtype=torch.float32), draw(5, 300, 130, dtype=torch.float32, seed=1)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(torch.cat([bmm(a, b).flatten(), bmm(a, b.mT.contiguous().mT).flatten()]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.usefixtures("compiled")
def test_nan_and_infinity_come_out_where_they_went_in():
    a, b = torch.ones(1, 6, 20), torch.ones(1, 20, 50)
    a[0, 2, 3], b[0, 4, 41] = torch.nan, torch.inf
    expected = a @ b
    assert torch.equal(bmm(a, b).nan_to_num(7, 8), expected.nan_to_num(7, 8))
    assert torch.equal(bmm(a, b.mT.contiguous().mT).nan_to_num(7, 8), expected.nan_to_num(7, 8))


def test_operator_passes_opcheck():
    torch.library.opcheck(torch.ops.l2o.bmm.default, (draw(2, 3, 5), draw(2, 5, 7)))


def test_other_dtypes_are_left_to_torch():
    a, b = draw(2, 3, 5).bfloat16(), draw(2, 5, 7).bfloat16()
    assert torch.equal(bmm(a, b), a @ b)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("shapes", [((2, 3, 5), (2, 4, 7)), ((2, 3, 5), (1, 5, 7))])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"bmm takes a \(batch, rows, inner\) and b \(batch, inner, columns\), got"):
        bmm(*(torch.ones(shape) for shape in shapes))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    "rows, columns, replaced",
    [(20, 128, 1), (128, 20, 1), (20, 7, 0), (65, 66, 0)],
    ids=["few", "turned", "small", "big"],
)
def test_pass_replaces_products_with_a_narrow_factor_and_enough_work(rows, columns, replaced):
    a, b = draw(3, rows, 200), draw(3, 200, columns, seed=1)
    traced = make_fx(lambda a, b: 2 * torch.bmm(a, b) + 1, tracing_mode="fake")(a, b)
    FewRows()(traced.graph)
    traced.recompile()
    traced.graph.lint()
    targets = [node.target for node in traced.graph.nodes]
    assert targets.count(torch.ops.l2o.bmm.default) == replaced
    assert targets.count(torch.ops.aten.bmm.default) == 1 - replaced
    torch.testing.assert_close(traced(a, b), 2 * (a @ b) + 1, rtol=0, atol=1e-11)


def test_pass_leaves_graphs_alone_where_there_is_no_kernel(fresh_library, monkeypatch):
    monkeypatch.setenv("L2O_KERNELS", "off")
    a, b = draw(3, 20, 200), draw(3, 200, 128, seed=1)
    traced = make_fx(torch.bmm, tracing_mode="fake")(a, b)
    FewRows()(traced.graph)
    assert [node.target for node in traced.graph.nodes].count(torch.ops.aten.bmm.default) == 1
    assert torch.equal(bmm(a, b), a @ b)
