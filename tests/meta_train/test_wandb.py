"""Benchmarks on Weights & Biases: what an offline run holds, and what a report sends to a server."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from page_examples import LEARNED, METHODS, PROBLEMS, SETTINGS, STEPS, loss, write_benchmark, write_study
from wandb_files import wandb_artifacts, wandb_history, wandb_records, wandb_summary, wandb_tables

from l2o.checkpoint import save_rule
from l2o.rules import SGD, SGDConfig
from meta_train import benchmark_commands, commands
from meta_train.report import write_report
from meta_train.wandb_benchmark import log_benchmark, metric_name
from meta_train.wandb_report import report_publisher
from meta_train.wandb_run import choose_wandb, open_wandb

wandb = pytest.importorskip("wandb")


@pytest.fixture
def directory(tmp_path) -> Path:
    return write_benchmark(tmp_path / "results/made-up")


def log_offline(directory: Path, checkpoints=()) -> Path:
    log_benchmark(directory, checkpoints, "offline")
    wandb.teardown()  # waits for the service, which may write the last records after `finish`
    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    return file


# --- an offline run, read back ---


def test_the_summary_has_every_finite_number_of_every_method_and_setting(directory, nobody):
    summary = wandb_summary(log_offline(directory))
    for setting in SETTINGS:
        for method in METHODS:
            name = metric_name(setting, method)
            total = sum(loss(setting, method, step) for step in range(40))
            if method == "wild":
                assert f"{name}/sum_loss" not in summary and summary[f"{name}/diverged"] == PROBLEMS
            else:
                assert summary[f"{name}/sum_loss"] == pytest.approx(total, rel=1e-4)  # five digits in the file
                assert summary[f"{name}/diverged"] == 0
            assert summary[f"{name}/cpu_s"] == 0.5


def test_the_curves_are_logged_step_by_step(directory, nobody):
    history = wandb_history(log_offline(directory))
    for step in range(STEPS):
        for setting in SETTINGS:
            for method in METHODS:
                expected = loss(setting, method, step)
                found = history[step].get(metric_name(setting, method))
                assert found is None if expected == float("inf") else found == pytest.approx(expected, rel=1e-4)


def test_the_tables_are_the_csv_files(directory, nobody):
    file = log_offline(directory)
    logged = {name: value for values in wandb_history(file).values() for name, value in values.items()}
    types = {name: value for name, value in logged.items() if name.endswith("._type")}
    names = ("summary", "curves", *SETTINGS)
    assert types == {f"tables/{name}._type": "table-file" for name in names}
    tables = list(wandb_tables(file).values())
    assert sorted(len(table["data"]) for table in tables) == [6, 6, 12, 2 * 6 * STEPS]
    summary = next(table for table in tables if len(table["data"]) == 12)
    rows = [dict(zip(summary["columns"], row, strict=True)) for row in summary["data"]]
    assert [row["method"] for row in rows] == list(METHODS) * 2
    assert rows[0]["lr"] is None and rows[3]["lr"] == 0.1
    assert rows[2]["sum_loss"] is None, "not finite"


def test_the_learned_rules_are_artifacts(directory, tmp_path, nobody):
    checkpoints = [save_rule(SGD(SGDConfig(lr)), tmp_path / f"rule{lr}") for lr in (0.1, 0.2)]
    artifacts = wandb_artifacts(log_offline(directory, checkpoints), "model")
    assert list(artifacts) == ["benchmark-made-up-lstm-one", "benchmark-made-up-published---two"]
    for files, checkpoint in zip(artifacts.values(), checkpoints, strict=True):
        assert files == {path.name: path.read_bytes() for path in checkpoint.iterdir()}


def test_an_artifact_that_cannot_be_read_is_said_and_the_rest_is_logged(directory, tmp_path, nobody, capsys):
    file = log_offline(directory, [tmp_path / "nowhere"])
    assert "Weights & Biases gets no checkpoint: " in capsys.readouterr().err
    assert wandb_artifacts(file, "model") == {} and wandb_summary(file)


def test_the_run_is_named_after_the_protocol_and_has_its_facts(directory, nobody, capsys):
    file = log_offline(directory)
    started = next(r.run for r in wandb_records(file) if r.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert (started.display_name, started.project, started.job_type) == ("benchmark-made-up", "l2o", "benchmark")
    assert config["question"] == "Who is <fast> & who is not?" and config["problems"] == PROBLEMS
    assert f"to upload: wandb sync {file.parent}\n" in capsys.readouterr().err


def test_nothing_is_logged_where_wandb_is_off_or_not_installed(directory, nobody, monkeypatch):
    log_benchmark(directory, (), "off")
    monkeypatch.setitem(sys.modules, "wandb", None)  # `import wandb` raises ImportError
    log_benchmark(directory, (), "auto")
    assert not (directory / "wandb").exists()


def test_what_no_benchmark_wrote_is_not_logged(tmp_path, nobody):
    with pytest.raises(ValueError, match="is not a benchmark's directory"):
        log_benchmark(tmp_path, (), "offline")


def test_online_without_a_login_is_said_before_a_race(nobody, monkeypatch):
    def race(*_):
        raise AssertionError("raced")

    monkeypatch.setattr(benchmark_commands, "run_benchmark", race)
    with pytest.raises(ValueError, match="--wandb online needs a login"):
        commands.parse(["benchmark", "quadratic", "--wandb", "online"])()


def test_a_benchmark_logs_its_directory_and_the_checkpoints_that_took_part(tmp_path, nobody, monkeypatch, capsys):
    source = save_rule(SGD(SGDConfig(0.1)), tmp_path / "mine")
    logged = []
    monkeypatch.setattr(benchmark_commands, "run_benchmark", lambda protocol, checkpoint, out, command: None)
    monkeypatch.setattr(benchmark_commands, "write_report", lambda out: "table")
    monkeypatch.setattr(benchmark_commands, "log_benchmark", lambda *arguments: logged.append(arguments))
    out = tmp_path / "out"
    commands.parse(["benchmark", "digits", "--checkpoint", str(source), "--out", str(out), "--wandb", "offline"])()
    assert logged == [(out, [source], "offline")]


# --- a report, sent to a server on this machine ---


class Server(http.server.BaseHTTPRequestHandler):
    """As much of W&B's GraphQL as a report needs."""

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"] or 0))
        answer = {}
        if self.path == "/graphql":
            question = json.loads(content)
            self.server.questions.append(question)
            answer = {"data": self.answer(question["query"], question.get("variables") or {})}
        if isinstance(answer.get("data"), str):
            answer = {"errors": [{"message": answer["data"]}], "data": None}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, query: str, given: dict):
        """Return the data, or the text of an error."""
        if "upsertView" in query:
            project = {"id": "p", "name": given["projectName"], "entityName": given["entityName"]}
            view = {"id": "Vmlldzox", "type": "runs", "project": project, "updatedAt": "2026-01-01T00:00:00"}
            view |= {name: given[name] for name in ("name", "displayName", "description", "spec")}
            return self.server.refusal or {"upsertView": {"view": view, "inserted": True}}
        if "ProjectInternalId" in query:
            return {"project": {"id": "p", "internalId": "cA=="}}
        if "CreateProject" in query:
            project = {"id": "p", "name": "l2o", "entityName": "me", "description": "", "access": "", "views": "{}"}
            return {"result": {"project": project, "model": project, "inserted": True}}
        if "GetProjects" in query:
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            node = {
                "__typename": "Project", "id": "p", "name": "l2o", "entityName": "me", "internalId": "cA==",
                "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None, "tags": [],
            }  # fmt: skip
            edges = [{"node": node, "cursor": ""}] if self.server.has_project else []
            return {"models": {"pageInfo": page, "edges": edges}}
        flags = {"flags": "{}", "teams": {"edges": []}}
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "me@example.org"} | flags}

    def log_message(self, *_):
        """Be quiet."""


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.questions, running.has_project, running.refusal = [], True, None
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def publish(tmp_path: Path, port: int) -> subprocess.CompletedProcess:
    """Run `l2o report results --wandb-report`, in a process of its own, because wandb keeps a login."""
    write_report(write_benchmark(tmp_path / "results/made-up"))
    write_study(tmp_path / "results/study")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | {
        "WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_SILENT": "true",
        "WANDB_DIR": str(tmp_path), "WANDB_DATA_DIR": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path),
        "WANDB_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    command = [sys.executable, "-m", "meta_train.cli", "report", "results", "--wandb-report"]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)


def sent(server) -> dict:
    (given,) = [question["variables"] for question in server.questions if "upsertView" in question["query"]]
    return given | {"blocks": json.loads(given["spec"])["blocks"]}


def test_a_report_has_every_readme_and_a_chart_per_setting(server, tmp_path):
    pytest.importorskip("wandb_workspaces")
    result = publish(tmp_path, server.server_port)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^published http://127\.0\.0\.1:\d+/me/l2o/reports/.*Vmlldzox$", result.stdout, re.MULTILINE)
    given = sent(server)
    assert (given["displayName"], given["entityName"], given["projectName"]) == ("l2o: results", "me", "l2o")
    texts = [block["content"] for block in given["blocks"] if block["type"] == "markdown-block"]
    assert len(texts) == 2
    assert "**lstm-one** wins" in texts[0] and "| SGD |" in texts[0] and "l2o benchmark made-up" in texts[0]
    assert "1,500" in texts[1] and "![" not in texts[0] + texts[1].split("```")[0]
    (grid,) = [block["metadata"] for block in given["blocks"] if block["type"] == "panel-grid"]
    assert grid["runSets"][0]["search"]["query"] == "benchmark-made-up"
    charts = [panel["config"] for panel in grid["panelBankSectionConfig"]["panels"]]
    assert [chart["chartTitle"] for chart in charts] == list(SETTINGS)
    for setting, chart in zip(SETTINGS, charts, strict=True):
        assert chart["metrics"] == [metric_name(setting, method) for method in METHODS] and chart["yLogScale"] is True


def test_a_report_comes_without_charts_where_nothing_was_logged_yet(server, tmp_path):
    pytest.importorskip("wandb_workspaces")
    server.has_project = False
    result = publish(tmp_path, server.server_port)
    assert result.returncode == 0, result.stderr
    kinds = [block["type"] for block in sent(server)["blocks"]]
    assert "markdown-block" in kinds and "panel-grid" not in kinds


def test_a_server_that_refuses_is_one_line_after_the_page_was_written(server, tmp_path):
    pytest.importorskip("wandb_workspaces")
    server.refusal = "you may not"
    result = publish(tmp_path, server.server_port)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert re.match(r"l2o: --wandb-report: .*you may not", result.stderr.splitlines()[-1])
    assert (tmp_path / "results/report.html").is_file()


def test_a_report_needs_wandb_workspaces(monkeypatch, nobody):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(ValueError, match="--wandb-report needs wandb-workspaces: pip install wandb-workspaces"):
        report_publisher()


def test_a_report_needs_a_login(nobody):
    pytest.importorskip("wandb_workspaces")
    assert choose_wandb("auto") == "offline"
    with pytest.raises(ValueError, match="--wandb-report needs a login: run `wandb login` once"):
        report_publisher()


def test_the_names_of_learned_rules_are_those_of_the_made_up_race():
    assert list(METHODS)[: len(LEARNED)] == list(LEARNED)


def test_training_goes_on_without_a_service_that_does_not_start(nobody, tmp_path, monkeypatch, capsys):
    def fail(**facts):
        raise RuntimeError("the service did not start\nand more")

    monkeypatch.setattr(wandb, "init", fail)
    facts = {"name": "run", "identity": b"", "kind": "training", "config": {}}
    assert open_wandb(tmp_path, "auto", **facts) is None
    assert capsys.readouterr().err == "Weights & Biases is off: the service did not start\n"
    with pytest.raises(RuntimeError):
        open_wandb(tmp_path, "offline", **facts)
