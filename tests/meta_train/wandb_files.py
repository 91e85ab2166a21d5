"""What Weights & Biases left on disk, read back."""

import json
import struct
from pathlib import Path


def wandb_records(path: Path):
    """Yield the records of a .wandb file: protocol buffers in LevelDB's log format, behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, pieces = 7, b""
    while position + 7 <= len(content):
        rest = 32768 - position % 32768  # blocks count from the start of the file
        if rest < 7:
            position += rest
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        pieces += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            pieces = b""
            yield record


def wandb_history(path: Path) -> dict[int, dict[str, float]]:
    """Return step -> logged values."""
    history: dict[int, dict[str, float]] = {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            values = {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            history.setdefault(values.pop("_step"), {}).update(
                {name: value for name, value in values.items() if not name.startswith("_")}
            )
    return history


def wandb_summary(path: Path) -> dict[str, object]:
    """Return the run's summary as its page would show it."""
    summary: dict[str, object] = {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "summary":
            summary |= {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.summary.update}
    return summary


def wandb_artifacts(path: Path, kind: str) -> dict[str, dict[str, bytes]]:
    """Return name → file → content of the artifacts of a type."""
    artifacts = {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "artifact" and record.artifact.type == kind:
            contents = record.artifact.manifest.contents
            artifacts[record.artifact.name] = {entry.path: Path(entry.local_path).read_bytes() for entry in contents}
    return artifacts


def wandb_tables(path: Path) -> dict[str, dict]:
    """Return name → columns and data of the logged tables."""
    tables = {}
    for name, files in wandb_artifacts(path, "run_table").items():
        (content,) = files.values()
        tables[name] = json.loads(content)
    return tables
