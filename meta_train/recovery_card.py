"""The parts of a model card that differ for rules which step on a problem's structure."""

import csv
from collections.abc import Sequence
from pathlib import Path

from meta_train.config import TrainConfig
from meta_train.recovery_benchmark import setting_of

Row = dict[str, str]

_COLUMNS = {"setting", "method", "kind", "steps", "nmse", "nmse_long", "mean_db", "f1"}
"""What a summary.csv needs to have to be a sparse-recovery benchmark's."""


MODEL_BASED_LIMIT = (
    "A specialist of one kind of matrix, sparsity and noise, with no guarantee that it converges. Where the objective "
    "matters, and not the code behind b, compare the duality gap that `l2o.solve` returns with that of FISTA."
)


def usage(where: object, layers: int | None) -> str:
    """Return what a rule is, and how it is used; a rule without layers of its own runs to a tolerance."""
    length = f"steps={layers}" if layers else "tol=1e-4"
    return f"""A learned rule for l2o: one step of a solver of ½‖Ax − b‖² + λ‖x‖₁ that was itself trained.

    rule = l2o.load_rule("{where}")
    x = l2o.solve(rule, tasks.lasso.problem(A, b, strength), {length}).x"""


def recovery_results(name: str, results: Sequence[Path], config: TrainConfig | None) -> tuple[str, list[str]]:
    """Return the results section of a rule, and what goes to its limits.

    Args:
        name: of the checkpoint.
        results: directories of benchmarks, or directories that hold such directories.
        config: what the rule was trained with, which tells in which setting it took part.
    """
    setting = None if config is None else setting_of(getattr(config.task, "snr_db", None))
    lines = [
        "NMSE = 10 log₁₀(Σ‖x − x*‖² / Σ‖x*‖²) over the published test codes, float32.",
        "",
        "| benchmark | setting | steps | NMSE | mean of dB | support F1 | best classic, as many steps |",
        "|---|---|---|---|---|---|---|",
    ]
    limits = []
    for directory, rows in _tables(results):
        for row in rows:
            if row["method"] != name.removesuffix("-snr20") or row["setting"] != setting:
                continue
            rival = _best_classic(row, rows)
            lines.append(
                f"| `{directory}` | {row['setting']} | {row['steps']} | {float(row['nmse']):.1f} dB | "
                f"{float(row['mean_db']):.1f} dB | {float(row['f1']):.3f} | "
                f"{rival['method']} {float(rival['nmse']):.1f} dB |"
            )
            if not float(row["nmse_long"]) < 0:
                limits.append("**It diverges** when it runs on to 100 steps: stop where its training stopped.")
            if float(rival["nmse"]) <= float(row["nmse"]):
                limits.append(f"**It loses** on *{row['setting']}* against {rival['method']}.")
    if len(lines) == 4:
        return "It has taken part in no benchmark that is recorded here; `l2o benchmark sparse-recovery` runs one.", []
    return "\n".join(lines), limits


def _best_classic(row: Row, rows: list[Row]) -> Row:
    same = [r for r in rows if (r["setting"], r["steps"], r["kind"]) == (row["setting"], row["steps"], "classic")]
    return min(same, key=lambda r: float(r["nmse"]), default={"method": "none", "nmse": "inf"})


def _tables(results: Sequence[Path]) -> list[tuple[Path, list[Row]]]:
    tables = []
    for folder in results:
        for path in (folder / "summary.csv", *sorted(folder.glob("*/summary.csv"))):
            if path.is_file():
                with path.open(newline="") as file:
                    reader = csv.DictReader(file)
                    if set(reader.fieldnames or ()) >= _COLUMNS:
                        tables.append((path.parent, list(reader)))
    return tables
