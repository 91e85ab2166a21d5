"""The commands that concern checkpoints: `l2o import | push | card`."""

import hashlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from l2o.checkpoint import available, save_rule
from l2o.hub import push as push_to_hub
from l2o.rule import UpdateRule
from l2o.tensorflow_weights import load_tensorflow_lstm
from meta_train.model_card import card_text, write_card

FORMATS: dict[str, Callable[[Path], UpdateRule]] = {"dm": load_tensorflow_lstm}
"""Foreign weights that can be imported."""

Results = Annotated[tuple[Path, ...], tyro.conf.arg(help="Where l2o benchmark wrote; read for the card's results.")]


def add_zoo_commands(app: Any, postponed: Callable[..., Any]) -> None:
    """Add the commands to the command line."""
    app.command(name="import")(postponed(import_weights))
    app.command(name="push")(postponed(push))
    app.command(name="card")(postponed(card))


def import_weights(
    format: tyro.conf.Positional[Literal[tuple(FORMATS)]],  # pyright: ignore (the names are in a table)
    weights: tyro.conf.Positional[Path],
    out: Path,
) -> None:
    """Convert published weights of other programs to a checkpoint, which l2o.load and l2o benchmark take.

    Args:
        format: What the file holds. dm: the npz of a coordinate-wise LSTM of the TensorFlow code of Andrychowicz et al.
        weights: File to read.
        out: Checkpoint directory to write; must not exist yet.
    """
    rule = FORMATS[format](weights)
    if out.exists():
        raise ValueError(f"{out} exists already; choose another --out")
    training = {
        "imported_from": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "command": shlex.join(["l2o", "import", format, weights.name, "--out", str(out)]),
    }
    directory = save_rule(rule, out, training=training)
    write_card(directory, ())
    print(f'checkpoint: {directory}   (l2o.load("{directory}", params))')


def push(
    source: tyro.conf.Positional[str],
    repository: tyro.conf.Positional[str],
    private: bool = False,
    results: Results = (Path("results"),),
) -> None:
    """Upload a checkpoint with its model card to the Hugging Face Hub, where l2o.load("hf://OWNER/NAME", …) finds it.

    Args:
        source: Run directory, checkpoint directory or shipped name.
        repository: OWNER/NAME; created if there is none.
        private: Create it as a private one.
    """
    address = repository.removeprefix("hf://")
    url = push_to_hub(source, address, card_text(source, results, address), private)
    print(f'{url}   (l2o.load("hf://{address}", params))')


def card(
    sources: tyro.conf.Positional[tuple[str, ...]] = (),
    results: Results = (Path("results"),),
    note: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
) -> None:
    """Write the model card, README.md, of checkpoints from their rule.json, weights and benchmark results.

    Args:
        sources: Shipped names, checkpoint or run directories; none takes all shipped ones.
        note: Sentence about the checkpoint, kept in rule.json in the place of earlier ones; may be repeated.
    """
    shipped = [source for source in sources or available() if source in available()]
    if shipped and (missing := [str(folder) for folder in results if not folder.is_dir()]):
        raise ValueError(f"the cards of {shipped} show benchmark results, but {missing} does not exist; name --results")
    for source in sources or available():
        print(write_card(source, results, note))
