"""Results directories made up by formula, for tests of what is shown of them: a race would take seconds."""

import csv
import json
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

SETTINGS = ("<20> units", "2 × 20 units")
METHODS = {"lstm-one": 0.06, "published & two": 0.03, "wild": math.inf, "SGD": 0.01, "momentum": 0.02, "NAG": 0.04}
"""Name → rate at which the loss shrinks; infinity diverges."""
LEARNED = ("lstm-one", "published & two", "wild")
STEPS, SUM_STEPS, PROBLEMS = 60, 40, 16


def loss(setting: str, method: str, step: int) -> float:
    """Return the mean loss: rates count twice in the second setting, and NAG is slow there."""
    rate = METHODS[method] * (1 + SETTINGS.index(setting))
    if math.isinf(rate):
        return 2.5 * 10.0 ** min(step * 4, 300) if step < 50 else math.inf
    return 2.5 * math.exp(-(rate / 4 if (setting, method) == (SETTINGS[1], "NAG") else rate) * step)


def write_benchmark(directory: Path, name: str = "made-up") -> Path:
    """Write what `l2o benchmark` would."""
    directory.mkdir(parents=True)
    summary, curves = [], []
    for setting in SETTINGS:
        sums = {method: sum(loss(setting, method, step) for step in range(SUM_STEPS)) for method in METHODS}
        best = min((method for method in METHODS if method not in LEARNED), key=sums.__getitem__)
        for method, total in sums.items():
            final = loss(setting, method, STEPS - 1)
            summary.append({
                "setting": setting, "method": method, "kind": "learned" if method in LEARNED else "classic",
                "seeds": PROBLEMS, "sum_loss": f"{total:.5g}" if total < 1e100 else "inf", "sum_loss_sd": "2",
                "sum_loss_median": f"{total:.5g}", "final_loss": f"{final:.5g}", "final_loss_sd": "0.1",
                "diverged": 0 if math.isfinite(final) else PROBLEMS, "lr": "" if method in LEARNED else "0.1",
                "lrs_tried": 0 if method in LEARNED else 21, "cpu_s": "0.5", "best_classic": best,
                "wins": f"{float(total < sums[best])}",
            })  # fmt: skip
            for step in range(STEPS):
                mean = loss(setting, method, step)
                row = {"setting": setting, "method": method, "step": step, "mean": f"{mean:.5g}", "sd": "0.1"}
                curves.append(row | {key: f"{mean * f:.5g}" for key, f in (("q25", 0.8), ("median", 1), ("q75", 1.2))})
    _write_csv(directory / "summary.csv", summary)
    _write_csv(directory / "curves.csv", curves)
    facts = {
        "name": name, "question": "Who is <fast> & who is not?", "settings": {s: f"Task({s!r})" for s in SETTINGS},
        "learned": ["lstm-one"], "problems": PROBLEMS, "tuning_problems": 8, "sum_steps": SUM_STEPS, "steps": STEPS,
        "command": f"l2o benchmark {name}", "directory": f"results/{name}",
        "environment": {
            "time": "2026-01-02T03:04:05+00:00", "commit": "abc1234", "packages": {"torch": "2.13.0"},
            "machine": {"cpu": "some CPU", "cores": 2}, "threads": 1,
        },
    }  # fmt: skip
    (directory / "protocol.json").write_text(json.dumps(facts))
    return directory


def write_study(directory: Path, name: str = "study") -> Path:
    """Write results of another kind: a README with a verdict, a table, a picture and a list."""
    directory.mkdir(parents=True)
    figure, axis = plt.subplots(figsize=(3, 2))
    axis.plot([0, 1])
    figure.savefig(directory / "figure.png")
    plt.close(figure)
    (directory / "README.md").write_text(STUDY.format(name=name))
    return directory


STUDY = """# {name}: what does it cost?

Command: `l2o {name} --out results/{name}`

## Verdict
- *first*: it pays,
  mostly.
- *second*: it does NOT.

## Table

| method | cost | share | remark |
|---|---|---|---|
| ten | 1,500 | 9% | b |
| nine | 20.5 | 100% | – |
| two | -3 ± 1 | – | a <script>alert(1)</script> |
| one | 1.2e-3 (0.5) | 50% | c |

![a picture](figure.png)

```
# not a heading | ![not a picture](figure.png)
```

Ends with a [link](details.md) and [another](https://example.org/a?b=1&c=2).
"""


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
