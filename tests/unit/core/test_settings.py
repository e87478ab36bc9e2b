"Settings: which layer wins, and errors that name section, key and what was expected."
import configparser
import pydantic, pytest
from hypothesis import given, settings, strategies as st
from churn_nb.core.errors import SettingsError
from churn_nb.core.data_settings import BUILT_IN
from churn_nb.core.settings import Criterion, find_settings, load_settings, parse_criterion, repository_file, step_settings
from paths import ROOT

def written(folder, text):
    (folder/"settings.ini").write_text(text)
    return folder/"settings.ini"

# Layers

NUMBERS = {"train.seed": ("CHURN_TRAIN_SEED", lambda s: s.train.seed), "serve.port": ("CHURN_SERVE_PORT", lambda s: s.serve.port),
           "features.label_days": ("CHURN_FEATURES_LABEL_DAYS", lambda s: s.features.label_days), "drift.bins": ("CHURN_DRIFT_BINS", lambda s: s.drift.bins)}
DEFAULTS = load_settings(path=ROOT/"settings.ini", environ={})

@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(NUMBERS)), *[st.one_of(st.none(), st.integers(2, 60_000))]*3)
def test_a_parameter_wins_over_the_environment_over_the_file(tmp_path_factory, name, file, env, over):
    (variable, value), (section, key) = NUMBERS[name], name.split(".")
    path = written(tmp_path_factory.mktemp("s"), "" if file is None else f"[{section}]\n{key} = {file}\n")
    s = load_settings({name: over}, path, {} if env is None else {variable: str(env)})
    assert value(s) == next((v for v in (over, env, file) if v is not None), value(DEFAULTS))

def test_folders_count_from_the_file_and_not_from_where_one_stands(tmp_path, monkeypatch):
    path = written(tmp_path, "[paths]\nworkspace = w\n")
    monkeypatch.chdir("/")
    assert load_settings(path=path, environ={}).paths.workspace == tmp_path/"w"
    assert load_settings(environ={"CHURN_SETTINGS": str(path)}).file == path

def test_empty_overrides_leave_a_setting_as_it_is():
    assert load_settings({"train.seed": None, "serve.host": ""}, ROOT/"settings.ini", {}) == DEFAULTS

def test_a_gate_of_a_data_set_is_completed_from_the_default(tmp_path):
    path = written(tmp_path, "[gate.telco]\nalpha = 0.011\n")
    s = load_settings(path=path, environ={})
    assert s.gate_for("telco").alpha == 0.011 and s.gate_for("another") == s.gate and s.gate.alpha != 0.011
    assert s.gate_for("telco").margin == s.gate.margin

def test_settings_cannot_be_changed():
    with pytest.raises(pydantic.ValidationError): DEFAULTS.train.seed = 1

def test_a_lesson_uses_no_service_of_the_settings():
    s = step_settings(environ={"CHURN_STORES_TRACKING_URI": "http://mlflow:5000", "CHURN_STORES_ONLINE": "redis://r:1"})
    assert (s.stores.tracking_uri, s.stores.online) == ("", "sqlite") and s.paths.workspace != DEFAULTS.paths.workspace

# Errors, each one line

@pytest.mark.parametrize("text, says", [
    ("[serve]\nprot = 1\n", r"settings.ini: \[serve\] prot: unknown key"), ("[srve]\nport = 1\n", r"\[srve\]: unknown section"),
    ("[serve]\nport = many\n", r"settings.ini: \[serve\] port = 'many'"), ("[train]\nseed = -1\n", r"\[train\] seed = '-1': .*greater than or equal to 0"),
    ("[drift]\npsi_warn = 0.3\npsi_retrain = 0.2\n", "at or over psi_warn = 0.3"), ("[stores]\nonline = redis://u:secret@r:1\n", "CHURN_REDIS_PASSWORD"),
    ("[features]\nmemory_limit = much\n", r"\[features\] memory_limit = 'much'"), ("no section\n", "settings.ini: .*no section headers"),
    ("[serve]\nport = 1\nport = 2\n", "settings.ini: .*port")])
def test_a_wrong_file_is_refused_with_the_place(tmp_path, text, says):
    with pytest.raises(SettingsError, match=says) as e: load_settings(path=written(tmp_path, text), environ={})
    assert "\n" not in str(e.value) and "secret" not in str(e.value)

@pytest.mark.parametrize("name, says", [("CHURN_SERVE_PRT", "environment variable CHURN_SERVE_PRT: no such setting"), ("CHURN_SERVE_PORT", r"environment: \[serve\] port = 'x'")])
def test_a_wrong_variable_is_refused_with_its_name(name, says):
    with pytest.raises(SettingsError, match=says): load_settings(environ={name: "x"})

def test_a_wrong_parameter_is_not_blamed_on_the_file():
    with pytest.raises(SettingsError, match=r"^parameter: \[serve\] port = "): load_settings({"serve.port": "x"}, environ={})

def test_variables_of_others_and_secrets_are_no_settings():
    assert load_settings(path=ROOT/"settings.ini", environ={"PATH": "x", "CHURNER": "x", "CHURN_REDIS_PASSWORD": "hunter2"}) == DEFAULTS

def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match="nowhere.ini: no such settings file"): load_settings(path=tmp_path/"nowhere.ini", environ={})

# The file

def test_a_foreign_settings_file_is_passed_by(tmp_path):
    (tmp_path/"a"/"b").mkdir(parents=True)
    ours = written(tmp_path, "[serve]\nport = 1\n")
    written(tmp_path/"a", "[DEFAULT]\nlib_name = other\n")
    assert find_settings(tmp_path/"a"/"b") == ours

def test_files_of_the_repository_are_found_from_below(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT/"nbs"/"core")
    assert repository_file("bench/serve.json") == ROOT/"bench/serve.json"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="run in a clone"): repository_file("x")

def test_the_projects_file_holds_every_setting_once():
    ini = configparser.ConfigParser(inline_comment_prefixes=("#",), interpolation=None)
    ini.read(ROOT/"settings.ini")
    for section in ("features", "train", "gate", "drift", "serve", "triton", "stores"):
        assert {*ini[section]} == {*type(getattr(DEFAULTS, section)).model_fields}, section

# Criteria

@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True), st.sampled_from([">", ">=", "<", "<="]), st.integers(-10**6, 10**6), st.one_of(st.none(), st.floats()))
def test_a_criterion_reads_what_it_prints(metric, op, thousandths, x):
    c = Criterion(metric, op, thousandths/1000)
    assert parse_criterion(f"  {metric}{op} {thousandths/1000!r} ") == c and parse_criterion(c) == c
    assert c.holds(x) == (x is not None and {">": x > c.value, ">=": x >= c.value, "<": x < c.value, "<=": x <= c.value}[op])

@pytest.mark.parametrize("text", ["", "auc", "auc = 1", "auc > ", "> 1", "auc > .8 extra", "Auc >> 1"])
def test_what_is_no_criterion_is_refused_with_the_form(text):
    with pytest.raises(ValueError, match="expected `metric op number`"): parse_criterion(text)

# What a data set inherits: costs are its own, or not known

def of_shop(tmp_path, kind="snapshot", more="", **environ):
    (toml := tmp_path/"shop.toml").write_text(f'kind = "{kind}"\nfile = "shop.csv"\n{more}')
    return load_settings({"data.dataset": str(toml), "paths.workspace": str(tmp_path/"w")}, environ=environ).train

@pytest.mark.parametrize("kind", ["snapshot", "events"])
def test_a_strangers_data_has_no_costs_and_threshold_one_half(tmp_path, kind):
    train = of_shop(tmp_path, kind)
    assert train.costs == {} and train.decision_threshold() == .5

@pytest.mark.parametrize("name", BUILT_IN)
def test_costs_are_known_of_cdnow_alone(tmp_path, name):
    train = load_settings({"data.dataset": name, "paths.workspace": str(tmp_path)}, environ={}).train
    assert (train.costs, train.decision_threshold()) == (({"offer_cost": 2., "saved_margin": 2.5}, .8) if name == "cdnow" else ({}, .5))

@pytest.mark.parametrize("more, environ", [("[train]\noffer_cost = 1\nsaved_margin = 4\n", {}), ("", {"CHURN_TRAIN_OFFER_COST": "1", "CHURN_TRAIN_SAVED_MARGIN": "4"})])
def test_given_costs_set_the_threshold(tmp_path, more, environ):
    train = of_shop(tmp_path, "snapshot", more, **environ)
    assert train.costs == {"offer_cost": 1., "saved_margin": 4.} and train.decision_threshold() == .25

def test_a_section_of_its_own_gives_a_data_set_its_costs(tmp_path):
    (ini := tmp_path/"settings.ini").write_text("[train.shop]\noffer_cost = 3\nsaved_margin = 4\n")
    (toml := tmp_path/"shop.toml").write_text('kind = "snapshot"\nfile = "shop.csv"\n')
    train = [load_settings({"data.dataset": d}, ini, environ={}).train for d in (str(toml), "cdnow")]
    assert [t.decision_threshold() for t in train] == [.75, .8]
    assert load_settings({"data.dataset": str(toml)}, ini, environ={"CHURN_TRAIN_SHOP_OFFER_COST": "1"}).train.decision_threshold() == .25

def test_one_cost_without_the_other_is_refused(tmp_path):
    for key in ("OFFER_COST", "SAVED_MARGIN"):
        with pytest.raises(SettingsError, match="offer_cost and saved_margin go together"): of_shop(tmp_path, **{f"CHURN_TRAIN_{key}": "3"})

@pytest.mark.parametrize("name", ["CHURN_API_KEY", "CHURN_SERVE_API_KEYS", "CHURN_SIGNING_KEY", "CHURN_REDIS_PASSWORD"])
def test_a_secret_of_the_environment_is_no_setting(name):
    "The generated client asks for CHURN_API_KEY; no command may stop at it."
    assert load_settings(environ={name: "secret"}) == load_settings(environ={})
