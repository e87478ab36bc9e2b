"`churn_nb.ops.environment_checks`: each real thing is broken, and its line says so and what to do; what is whole stays `ok`."
import importlib.metadata
import pytest
from churn_nb.ops import environment_checks as d
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
