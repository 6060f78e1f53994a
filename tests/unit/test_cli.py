"""The command line from outside: what is printed, and the exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from kaito.cli import app

RUNNER = CliRunner()


def test_crds_are_printed_for_kubectl_apply():
    done = RUNNER.invoke(app, ["crds"])
    assert done.exit_code == 0
    names = [d["metadata"]["name"] for d in yaml.safe_load_all(done.stdout)]
    assert names == ["workspaces.kaito.sh", "machines.karpenter.sh"]


def test_crds_are_written_a_file_each(tmp_path):
    assert RUNNER.invoke(app, ["crds", "--write", str(tmp_path / "crds")]).exit_code == 0
    assert sorted(p.name for p in (tmp_path / "crds").iterdir()) == [
        "kaito.sh_workspaces.yaml",
        "karpenter.sh_machines.yaml",
    ]


def test_presets_are_listed_with_what_they_need():
    done = RUNNER.invoke(app, ["presets"])
    assert done.exit_code == 0
    line = next(x for x in done.stdout.splitlines() if "phi-3-mini-128k" in x)
    assert line.split()[1:] == ["0.0.2", "1", "9", "50"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--controllers=gpu"], "--controllers (KAITO_CONTROLLERS)"),
        (["--workers=0"], "--workers (KAITO_WORKERS)"),
        (["--kubeconfig=/no/such/file"], "--kubeconfig (KAITO_KUBECONFIG)"),
        (["--webhook"], "--webhook (KAITO_WEBHOOK)"),
        (["--controllers=machine"], "ARM_SUBSCRIPTION_ID"),
    ],
)
def test_bad_settings_end_with_two_and_name_the_flag(flags, named, monkeypatch):
    """M13."""
    monkeypatch.delenv("ARM_SUBSCRIPTION_ID", raising=False)
    done = RUNNER.invoke(app, ["operator", *flags])
    assert done.exit_code == 2
    assert named in done.stderr


def test_no_cluster_at_all_is_said_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    done = RUNNER.invoke(app, ["operator", "--controllers=workspace"])
    assert done.exit_code == 2
    assert "--kubeconfig (KAITO_KUBECONFIG)" in done.stderr


def test_build_prints_where_each_program_is(tmp_path, monkeypatch):
    """``KUBEBUILDER_ASSETS`` comes first; then nothing is built."""
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    done = RUNNER.invoke(app, ["sandbox", "build"])
    assert done.exit_code == 0
    assert done.stdout.split() == [
        str(tmp_path / name)
        for name in (
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubectl",
        )
    ]


def test_down_without_a_sandbox_says_so(tmp_path):
    done = RUNNER.invoke(app, ["sandbox", "down", "--dir", str(tmp_path / "none")])
    assert done.exit_code == 0
    assert "no sandbox was up" in done.stderr


def test_up_that_cannot_start_says_why(tmp_path):
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text("{}")
    done = RUNNER.invoke(
        app, ["sandbox", "up", "--dir", str(tmp_path / "s"), "--kubeconfig", str(kubeconfig)]
    )
    assert done.exit_code == 1
    assert str(kubeconfig) in done.stderr


def test_the_operator_does_not_pay_for_rich_and_tables_still_have_it():
    seen = "import sys; assert 'rich' not in sys.modules; import structlog.dev, rich.console"
    code = f"from kaito.__main__ import _keep_rich_out_of_structlog as keep; keep(); {seen}"
    subprocess.run([sys.executable, "-c", f"{code}; assert structlog.dev.rich is None"], check=True)
