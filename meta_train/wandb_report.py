"""Publish the results as a report on Weights & Biases: the READMEs, and charts of the benchmark runs logged there."""

import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import Any

from meta_train.page import INTRODUCTION, TITLE
from meta_train.page_sections import Section
from meta_train.wandb_benchmark import metric_name, run_name
from meta_train.wandb_run import PROJECT, choose_wandb

Publish = Callable[[Sequence[Section]], str]


def report_publisher() -> Publish:
    """Return the function that publishes sections and returns the report's address.

    Two steps, so that what is missing is said before anything is computed.

    Raises:
        ValueError: if wandb or wandb-workspaces is not installed, or nobody is logged in; from the function, if the
            server does not answer or refuses.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ValueError("--wandb-report needs wandb-workspaces: pip install wandb-workspaces")
    if choose_wandb("auto") != "online":
        raise ValueError("--wandb-report needs a login: run `wandb login` once")
    return _publish


def _publish(sections: Sequence[Section]) -> str:
    import wandb
    from wandb_workspaces.reports.v2 import interface as reports

    try:
        api = wandb.Api()
        entity = str(api.default_entity)
        known = any(project.name == PROJECT for project in api.projects(entity))  # else no run could be shown
        blocks: list[Any] = [reports.TableOfContents()]
        for section in sections:
            blocks += _blocks(section, entity, known)
        facts: dict[str, Any] = {"title": TITLE, "description": INTRODUCTION, "blocks": blocks}
        return reports.Report(project=PROJECT, entity=entity, **facts).save().url
    except Exception as error:  # what a refusal raises is private to wandb, and no wandb.Error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"--wandb-report: {reason}") from error


def _blocks(section: Section, entity: str, with_charts: bool) -> list[Any]:
    """Return heading, README and charts; pictures stay here, for the charts show the same."""
    from wandb_workspaces.reports.v2 import interface as reports

    heading, _, text = section.markdown.partition("\n")
    text = re.sub(r"^!\[[^]]*\]\([^)]*\)$", "", text, flags=re.MULTILINE)
    blocks: list[Any] = [reports.H1(heading.removeprefix("# ")), reports.MarkdownBlock(text.strip())]
    if section.curves is not None and with_charts:
        name = section.curves["name"]
        runs = reports.Runset(entity=entity, project=PROJECT, name=name, query=run_name(name))
        blocks.append(reports.PanelGrid(runsets=[runs], panels=_charts(section.curves)))
    return blocks


def _charts(curves: dict[str, Any]) -> list[Any]:
    """Return a chart per setting, two beside each other, of the newest run of the protocol."""
    from wandb_workspaces.reports.v2 import interface as reports

    charts = []
    for index, panel in enumerate(curves["panels"]):
        names: list[Any] = [metric_name(panel["title"], method["name"]) for method in curves["methods"]]
        layout = reports.Layout(x=12 * (index % 2), y=8 * (index // 2), w=12, h=8)
        charts.append(
            reports.LinePlot(
                title=panel["title"], x="Step", y=names, log_y=True, max_runs_to_show=1, layout=layout,
                title_y="mean loss",
            )
        )  # fmt: skip
    return charts
