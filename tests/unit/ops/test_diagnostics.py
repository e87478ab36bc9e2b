"`churn_nb.ops.diagnostics`: every check becomes a line, whatever it raises."
from churn_nb.ops import diagnostics as d
from serving import free_port, settings_for

def test_an_empty_workspace_is_in_order(tmp_path):
    lines = d.run_checks(settings_for(tmp_path, port=free_port()))
    assert [x.name for x in lines] == list(d.CHECKS) and [str(x) for x in lines if not x.ok] == []

def test_a_check_that_breaks_does_not_stop_the_others(tmp_path):
    checks = {"first": lambda s: 1/0, "second": lambda s: "fine"}
    assert [(x.ok, x.code) for x in d.run_checks(settings_for(tmp_path), checks)] == [(False, 2), (True, 0)]

def test_a_package_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    "As in the image that only serves: the checks of MLflow and Feast are left out, the others run."
    real = d.importlib.import_module
    def bare(module):
        if module == "churn_nb.ops.store_checks": raise ModuleNotFoundError("No module named 'feast'", name="feast")
        return real(module)
    monkeypatch.setattr(d.importlib, "import_module", bare)
    found = {x.name: x for x in d.run_checks(settings_for(tmp_path, port=free_port()))}
    assert [found[n].text for n in ("data", "stores", "features")] == ["not looked at: feast is not installed here"]*3
    assert [n for n, x in found.items() if not x.ok] == [] and found["bundle"].text.startswith("none yet")
