"""PyTorch's contract for optimizers, as tests that run on any optimizer.

    python -m pytest tests/conformance --factory torch.optim:RAdam --factory my_package.optimizers:make

A factory is callable(params, lr), lr by this name or in second place, or callable(params), and returns an optimizer;
params is whatever `torch.optim.Adam` takes. Each test states one clause of the contract in its docstring.
"""

import importlib
import inspect

import pytest
import torch

# torch's own show that the suite asks for nothing that torch does not give
DEFAULT = [
    "conformance.factories:lstm",
    "conformance.factories:adam",
    "conformance.factories:guarded",
    "torch.optim:Adam",
    "torch.optim:SGD",
    "torch.optim:AdamW",
]


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def pytest_addoption(parser):
    parser.addoption(
        "--factory",
        action="append",
        metavar="MODULE:CALLABLE",
        help="run the conformance suite on this optimizer: callable(params, lr) or callable(params); repeatable",
    )


def pytest_configure(config):
    """Say in one line what cannot be found, before a hundred tests do."""
    for address in _chosen(config) or ():
        try:
            _found(address)
        except (ImportError, AttributeError, ValueError) as error:
            raise pytest.UsageError(f"--factory {address}: {error}; expected MODULE:CALLABLE") from error


def _found(address: str):
    module, _, name = address.partition(":")
    factory = importlib.import_module(module)
    for part in name.split("."):
        factory = getattr(factory, part)
    return factory


def _chosen(config) -> list[str] | None:
    return config.getoption("--factory", default=None)  # unknown when pytest starts from another directory


def pytest_generate_tests(metafunc):
    if "make" in metafunc.fixturenames:
        metafunc.parametrize("make", _chosen(metafunc.config) or DEFAULT, indirect=True)


def pytest_collection_modifyitems(config, items):
    if _chosen(config):
        items[:] = [item for item in items if item.path.name != "test_suite_itself.py"]
        for item in items:  # the warnings of a foreign optimizer are its own affair
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture
def make(request):
    """The optimizer under test: make(params, lr=0.1)."""
    factory = _found(request.param)
    options = inspect.signature(factory).parameters
    by_name = "lr" in options
    in_place = sum(option.kind in _POSITIONAL and option.default is option.empty for option in options.values()) > 1

    def build(params, lr=0.1):
        if by_name:
            return factory(params, lr=lr)
        return factory(params, lr) if in_place else factory(params)

    return build


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in every test, for optimizers that draw some."""
    torch.manual_seed(0)
