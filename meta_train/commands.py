"""The command line: `l2o train | resume | search | benchmark | report | speed | estimators | paint | list | …`."""

import contextlib
import functools
import io
import sys
import traceback
from collections.abc import Callable, Sequence

import tyro

from l2o.checkpoint import available, find, read_card
from l2o.rules import MODEL_BASED, RULES
from meta_train.benchmark_commands import STUDIES, add_benchmark_commands
from meta_train.config import PRESETS
from meta_train.denoising_command import add_denoising_command
from meta_train.hyper_command import add_hyper_command
from meta_train.paint_command import add_paint_command
from meta_train.protocols import PROTOCOLS
from meta_train.search_commands import add_search_command
from meta_train.train_commands import add_train_commands
from meta_train.zoo_commands import add_zoo_commands

_DESCRIPTION = "Learned optimizers: train, benchmark, list. l2o --version prints the version."


def postponed(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Make a command return what it would do, so that it is run outside of tyro, which handles exceptions its way."""

    @functools.wraps(command)
    def prepare(*args, **kwargs) -> Callable[[], None]:
        return functools.partial(command, *args, **kwargs)

    return prepare


def list_everything() -> None:
    """List rules, training presets, benchmark protocols and shipped checkpoints."""
    print("rules:      ", ", ".join(RULES | MODEL_BASED))
    print("presets:    ", ", ".join(PRESETS))
    print("protocols:")
    width = 2 + max(map(len, (*PROTOCOLS, *available())))
    for protocol in PROTOCOLS.values():
        print(f"  {protocol.name:<{width}}{protocol.question}")
    print("  and:", ", ".join(STUDIES))
    print("checkpoints:")
    for name in available():
        results = read_card(find(name)).get("results", {})
        print(f"  {name:<{width}}{', '.join(f'{key} = {value:.4g}' for key, value in results.items())}")
        print(f"  {'':<{width}}card: {find(name) / 'README.md'}")


app = tyro.extras.SubcommandApp()
add_train_commands(app, postponed)
add_benchmark_commands(app, postponed)
add_hyper_command(app, postponed)
app.command(name="list")(postponed(list_everything))
add_paint_command(app, postponed)
add_denoising_command(app, postponed)
add_search_command(app, postponed)
add_zoo_commands(app, postponed)


def parse(arguments: Sequence[str] | None) -> Callable[[], None]:
    """Return the command that a command line asks for, ready to be called.

    Raises:
        ValueError: if a config refuses its values.
        SystemExit: after help, and after tyro's explanation of an unknown command, option or choice.
    """
    explanation = io.StringIO()
    try:
        with contextlib.redirect_stderr(explanation):
            # Cascading: an option of the run may also stand behind `rule:NAME`.
            return app.cli(
                prog="l2o", description=_DESCRIPTION, args=arguments, config=(tyro.conf.CascadeSubcommandArgs,)
            )
    except SystemExit as ended:
        if refusal := _refusal(ended):
            raise refusal from None
        sys.stderr.write(explanation.getvalue())
        raise


def _refusal(error: BaseException | None) -> ValueError | None:
    """Return the ValueError of a config that made tyro exit: tyro frames it, and puts names of its own before it."""
    while error is not None:
        frames = traceback.walk_tb(error.__traceback__)
        if isinstance(error, ValueError) and any(frame.f_code.co_name == "__post_init__" for frame, _ in frames):
            return error
        error = error.__context__
    return None
