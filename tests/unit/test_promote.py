"The gate on every kind of number; deciding, deploying, taking back, tampering. Races and killed processes are in test_registry."
import shutil
from dataclasses import asdict
from pathlib import Path
import msgspec, numpy as np, pytest
from hypothesis import given, settings as hyp, strategies as st
from churn_nb import promote as p, train as t
from churn_nb.registry.bundle import read_bundle
from churn_nb.core.manifest import Backtest, Spread
from churn_nb.core.settings import Criterion
from churn_nb.core.workspace import Workspace
from registries import ROWS, current, made, refused

quick = hyp(max_examples=300, deadline=None, derandomize=True)
# The gate's logic

numbers = st.one_of(st.none(), st.floats(), st.sampled_from([float("nan"), 0., .5, .95, 1., 200.]))
metrics = st.dictionaries(st.sampled_from(["auc", "log_loss", "brier", "latency_ms", "accuracy"]), numbers)
operators = {">": lambda a, b: a > b, ">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b}
criteria = st.lists(st.builds(Criterion, st.sampled_from(["auc", "log_loss", "latency_ms", "accuracy"]), st.sampled_from(sorted(operators)), st.sampled_from([0., .5, .95, 200.])), max_size=4)
known = lambda v: v is not None and v == v
verdicts = lambda checks: [c.verdict for c in checks]

@quick
@given(metrics, criteria)
def test_promoted_only_where_every_criterion_holds(m, asked):
    holds = [known(m.get(c.metric)) and operators[c.op](m[c.metric], c.value) for c in asked]
    assert verdicts(p.threshold_checks(m, asked)) == ["pass" if h else "fail" for h in holds]
    d, good = p.Decision("2", "1", p.threshold_checks(m, asked)), len(holds) > 0 and all(holds)
    assert (d.promoted, d.verdict, d.exit_code) == (good, "promoted" if good else "refused", 1 - good)

@quick
@given(metrics, metrics, st.lists(st.sampled_from(["auc", "log_loss", "brier", "latency_ms", "accuracy"]), min_size=1, unique=True))
def test_only_strictly_better_beats(a, b, which):
    better = [known(a.get(m)) and known(b.get(m)) and (a[m] < b[m] if m in ("log_loss", "brier", "latency_ms") else a[m] > b[m]) for m in which]
    assert verdicts(p.point_checks(a, b, which)) == ["pass" if x else "fail" for x in better]
    assert p.Decision("2", "1", p.point_checks(a, b, which)).promoted == all(better)
    assert "pass" not in verdicts(p.point_checks(a, a, which))

def test_one_ulp_decides_and_notes_do_not():
    less, note, good, bad = np.nextafter(.3, 0), p.Check("drift", "-", "none", "note"), *(p.check("a", "", "", ok) for ok in (True, False))
    for a, b, verdict in ((less, .3, "pass"), (.3, .3, "fail"), (.3, less, "fail")): assert verdicts(p.point_checks({"log_loss": a, "auc": b}, {"log_loss": b, "auc": a}, ["log_loss", "auc"])) == [verdict]*2
    assert [p.Decision("1", None, c).verdict for c in ([], [note], [note, good], [note, good, bad])] == ["refused", "refused", "promoted", "refused"]

def tree(root): return {str(f.relative_to(root)): (f.read_bytes(), f.stat().st_mtime_ns, f.stat().st_ino) for f in root.rglob("*") if f.is_file()}

@pytest.fixture(scope="module")
def registry(registries): return registries("sqlite")

# Deciding, deploying, taking back

# Floors over several dates

def spread(mean, half=.01): return Spread(mean=mean, se=half/2, between=0., df=5., low=mean - half, high=mean + half, new_low=mean - 2*half, new_high=mean + 2*half)

@quick
@given(metrics, st.dictionaries(st.sampled_from(["auc", "log_loss", "accuracy"]), st.floats(0, 1)), criteria)
def test_a_floor_is_asked_of_the_mean_where_there_is_one(m, means, asked):
    several = Backtest(scheme="rolling origin", parts=6, metrics={k: spread(v) for k, v in means.items()})
    both = {**m, **means} # latency is of the moment
    checks = p.threshold_checks(m, asked, several)
    assert verdicts(checks) == verdicts(p.threshold_checks(both, asked))
    assert all(("mean of 6 parts" in c.measured) == (c.criterion in means) for c in checks)
    assert p.threshold_checks(m, asked, Backtest(scheme="rolling origin", parts=6)) == p.threshold_checks(m, asked)

def test_the_interval_is_shown_and_does_not_decide():
    shown, = p.threshold_checks({"accuracy": .949}, [Criterion("accuracy", ">", .95)], Backtest(scheme="folds of customers", parts=10, metrics={"accuracy": spread(.957)}))
    assert (shown.verdict, shown.measured) == ("pass", "0.95700 (0.94700 to 0.96700), mean of 10 parts")

def test_the_gate_reads_the_backtest_of_the_manifest(registry):
    s = registry.world("several dates", 0, "strong")
    manifest, model = p.ModelRegistry(s).load_version("1")
    gate = s.gate_for("cdnow")
    def judged(backtest): return p.evaluate_gate((msgspec.structs.replace(manifest, backtest=backtest), model), None, ROWS, gate)
    good, bad = (judged(Backtest(scheme="rolling origin", parts=6, metrics={"auc": spread(v)})) for v in (.7, .5))
    without = judged(None)
    floor = {d: next(c for c in x.checks if c.criterion == "auc") for d, x in (("good", good), ("bad", bad), ("without", without))}
    assert (good.verdict, bad.verdict) == ("promoted", "refused") and "mean of 6" in floor["bad"].measured and "mean of" not in floor["without"].measured
    assert [sum(c.criterion == "backtest" for c in d.checks) for d in (good, bad, without)] == [0, 0, 1]

def test_a_worse_or_equal_challenger_is_refused_and_recorded(registry):
    s = registry.world("refused", 0, "strong")
    assert p.run_gate(s, ROWS)[0].promoted
    for v, which in (("2", "weak"), ("3", "strong")):
        registry.challenger(s, which)
        decision, result = p.run_gate(s, ROWS)
        assert (decision.verdict, decision.exit_code, result["champion"], result["replaced"]) == ("refused", 1, "1", None)
        assert registry.aliases(s) == {"champion": "1", "challenger": v} and registry.tags(s, v)["gate"] == "refused"
    assert made(s) == [("promoted", "1", None), ("refused", "2", "1"), ("refused", "3", "1")]
    record = p.read_history(Workspace(s.paths.workspace))[-1]
    assert record["id"] == result["record"] and record["checks"] == result["checks"] and (record["data_hash"], record["git_sha"]) == ("md5:0", "abc")
    assert [c["verdict"] for c in record["checks"]] == ["pass"]*2 + ["note", "pass", "fail"] + ["note"]*4 # two floors, no backtest, baseline, champion; other metrics, drift, missing values

def test_what_else_refuses(registry):
    m, model = registry.model(registry.settings("seed")).load_version("2")
    gate = lambda **kw: registry.settings("seed").gate_for("cdnow").model_copy(update=kw)
    for drift, report, good in (("block", "retrain", 0), ("block", None, 0), ("block", "warn", 1), ("warn", "retrain", 1), ("ignore", "retrain", 1)):
        assert p.evaluate_gate((m, model), None, ROWS, gate(drift=drift), p.GateInputs(report and {"level": report})).promoted == bool(good), (drift, report)
    for nothing in ({}, {"baseline_log_loss": None}, {"baseline_log_loss": float("nan")}): assert not p.evaluate_gate((msgspec.structs.replace(m, metrics=nothing), model), None, ROWS, gate()).promoted
    assert not p.evaluate_gate((m, model), (msgspec.structs.replace(m, features=m.features[::-1]), model), ROWS, gate(beat_champion=[])).promoted
    assert not p.evaluate_gate((m, model), None, ROWS, gate(floors=[], beat_baseline=[])).promoted

def test_without_a_model_gate_deploy_and_rollback_are_refused(registry):
    s = registry.world("nobody")
    for f in (lambda: p.deploy_champion(s), lambda: p.run_gate(s, ROWS), lambda: p.rollback(s), lambda: p.rollback(s, to="1")): refused(f)
    assert registry.state(s) == ({}, {}, [], None)

def test_rollback_drill(registry):
    s = registry.world("drill", 3, "strong")
    champion = lambda: (registry.aliases(s), registry.stages(s), current(s))
    r = p.rollback(s, why="drill")
    assert (r["version"], r["replaces"], r["why"]) == ("2", "3", "drill")
    assert champion() == ({"champion": "2", "previous": "3", "challenger": "4"}, {"1": "Archived", "2": "Production", "3": "Archived", "4": "Staging"}, "2")
    p.rollback(s) # once more goes further back
    assert champion() == ({"champion": "1", "previous": "2", "challenger": "4"}, {"1": "Production", "2": "Archived", "3": "Archived", "4": "Staging"}, "1")
    refused(lambda: p.rollback(s), "nothing to roll back to: nothing was champion before version 1")
    p.rollback(s, to="2")
    assert current(s) == "2" and made(s)[3:] == [("rolled_back", "2", "3"), ("rolled_back", "1", "2"), ("rolled_back", "2", "1")]
    assert p.run_gate(s, ROWS)[0].promoted and made(s)[-1] == ("promoted", "4", "2")

@pytest.mark.parametrize("champions, to, says", [(1, None, "nothing to roll back to"), (2, "9", "version 9 is not in the registry; it has 1, 2, 3"), (2, "2", "version 2 is the champion already"), (2, "x", "version x is not in"), (2, "3", "3")])
def test_a_rollback_that_cannot_be_changes_nothing(registry, request, champions, to, says):
    s = registry.world(f"norollback-{request.node.callspec.id}", champions, "weak") # version 3 was never champion: no gate has seen it
    before = registry.state(s)
    refused(lambda: p.rollback(s, to=to), says)
    assert registry.state(s) == before

def test_deploying_twice_is_deploying_once_and_old_bundles_stay(registry):
    s = registry.world("deploy", 1, "strong")
    bundles = Workspace(s.paths.workspace).bundles
    first = tree(bundles/"1")
    assert p.deploy_champion(s) == bundles/"1" and tree(bundles/"1") == first
    assert p.run_gate(s, ROWS)[0].promoted and current(s) == "1" # the gate decides, deploying is another step
    assert p.deploy_champion(s) == p.deploy_champion(s) == bundles/"2"
    assert tree(bundles/"1") == first and sorted(f.name for f in bundles.iterdir() if not f.name.startswith(".")) == ["1", "2", "current"]

def test_a_bundle_carries_the_gate_rows_of_its_first_promotion(registry):
    "Also where the version was deployed as shadow before."
    s = registry.world("card", 1, "strong")
    on = s.model_copy(update={"serve": s.serve.model_copy(update={"shadow": True})})
    bundles, card = Workspace(s.paths.workspace).bundles, lambda v: read_bundle(bundles/v)[0].card
    p.deploy_champion(on)
    assert card("2").gate == [] and (bundles/"shadow").resolve().name == "2"
    decision, _ = p.run_gate(on, ROWS)
    p.deploy_champion(on)
    assert current(s) == "2" and [msgspec.structs.asdict(row) for row in card("2").gate] == [asdict(c) for c in decision.checks]
    before = tree(bundles/"2")
    p.rollback(s)
    assert current(s) == "1" and {row.verdict for row in card("1").gate} == {"pass"} # as `registry.world` promoted it
    registry.promote(s, "2", "1") # let through again, on other grounds: the version stays what it is
    p.deploy_champion(s)
    assert current(s) == "2" and tree(bundles/"2") == before and card("2").decided

@pytest.mark.parametrize("harm", [lambda f: f.write_bytes(f.read_bytes()[:-1] + b"\0"), lambda f: f.write_bytes(b""), lambda f: f.unlink()], ids=["tampered", "empty", "missing"])
def test_another_file_than_the_registered_one_is_not_used(registry, request, harm):
    s = registry.world(f"harm-{request.node.callspec.id}", 1)
    import mlflow
    with t.hushed(): mine = shutil.copytree(mlflow.artifacts.download_artifacts(registry.seed["strong"].source), registry.root/f"store-{request.node.callspec.id}")
    v = registry.challenger(s, "strong", source=Path(mine).as_uri())
    registry.model(s).load_version(v)
    harm(Path(mine)/"model.onnx")
    before = registry.state(s)
    for f in (lambda: registry.model(s).load_version(v), lambda: p.run_gate(s, ROWS), lambda: p.rollback(s, to=v)):
        refused(f)
    assert registry.state(s) == before
    with t.hushed(): registry.client.set_registered_model_alias(s.train.model_name, "champion", v) # by hand
    assert p.deploy_champion(s).name == registry.aliases(s)["champion"] == "1" # the log is the truth

def test_with_shadow_the_refused_challenger_stands_beside_the_champion(registry):
    s = registry.world("shadow", 1, "weak")
    on = s.model_copy(update={"serve": s.serve.model_copy(update={"shadow": True})})
    assert not p.run_gate(on, ROWS)[0].promoted
    bundles = Workspace(s.paths.workspace).bundles
    p.deploy_champion(on)
    assert (current(s), (bundles/"shadow").resolve().name) == ("1", "2")
    p.deploy_champion(s) # switched off again
    assert current(s) == "1" and not (bundles/"shadow").exists()

def test_a_broken_challenger_keeps_no_champion_from_going_live(registry, caplog):
    s = registry.world("brokenshadow", 1, "weak")
    on = s.model_copy(update={"serve": s.serve.model_copy(update={"shadow": True})})
    registry.client.set_model_version_tag(s.train.model_name, "2", "sha256", "0"*64) # not the file that was registered
    p.deploy_champion(on)
    assert current(s) == "1" and not (Workspace(s.paths.workspace).bundles/"shadow").exists()
    assert "no challenger in shadow: " in caplog.text and "version 2: model.onnx is not the file that was registered" in caplog.text
