"`churn_nb.ops.environment_checks`: each real thing is broken, and its line says so and what to do; what is whole stays `ok`."
import importlib.metadata, subprocess
import pytest
from churn_nb.ops import environment_checks as d
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace
from churn_nb.registry.tracking import git_sha
from checks import ill, line
from serving import settings_for

# versions

def test_the_installed_packages_are_those_asked_for(tmp_path):
    asked = {r.name for r in d.requirements_of(importlib.metadata.requires("churn-nb"), "pipeline")}
    assert {"numpy", "onnxruntime", "feast", "mlflow"} <= asked and "pyspark" not in asked and "churn-nb" not in asked
    assert line("versions", settings_for(tmp_path)).ok

@pytest.mark.parametrize("more, says", [
    ('numpy<1; extra == "pipeline"', "numpy is"), ('no-such-thing>=1; extra == "pipeline"', "no-such-thing is missing"), ('no-such-thing; sys_platform == "win32" and extra == "pipeline"', None), ('no-such-thing; extra == "spark"', None)])
def test_another_version_is_named(tmp_path, monkeypatch, more, says):
    real = importlib.metadata.requires("churn-nb")
    monkeypatch.setattr(d.importlib.metadata, "requires", lambda _: [*real, more])
    if says: ill("versions", settings_for(tmp_path), 2, says, "make setup")
    else: assert line("versions", settings_for(tmp_path)).ok

# machine

def test_settings_are_named_and_never_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("CHURN_REDIS_PASSWORD", "hunter2")
    text = line("settings", settings_for(tmp_path)).text
    assert "CHURN_REDIS_PASSWORD" in text and "hunter2" not in text and "settings.ini" in text

def test_no_place_and_no_memory(tmp_path):
    ill("workspace", settings_for("/proc/nowhere"), 2, "--workspace")
    with pytest.raises(d.CheckFailed, match="CHURN_FEATURES_MEMORY_LIMIT"): d.check_memory(settings_for(tmp_path), need_mb=10**9)

def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    "As root every file can be written: what the system answers is replaced."
    (Workspace(tmp_path).open().root/"mlflow.db").touch()
    assert line("workspace", settings_for(tmp_path)).ok
    monkeypatch.setattr(d.os, "access", lambda path, mode: not str(path).endswith("mlflow.db"))
    ill("workspace", settings_for(tmp_path), 2, "mlflow.db can't be written", "chown", "--workspace")

# git

@pytest.fixture
def checkout(tmp_path):
    for command in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "first"]): subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return load_settings({"paths.workspace": tmp_path/"w", "paths.notebooks": tmp_path}, environ={})

def test_git_that_is_missing_is_named_and_fails_no_step(checkout, monkeypatch, tmp_path):
    assert line("code", checkout).text.startswith("commit ")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert line("code", checkout).ok and "git is not installed" in line("code", checkout).text and git_sha() == "unknown"

def test_a_checkout_of_another_user_is_named(checkout, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1") # git's own switch
    ill("code", checkout, 2, "belongs to another user", f"safe.directory {checkout.paths.notebooks}")
