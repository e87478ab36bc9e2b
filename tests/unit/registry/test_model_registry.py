"The log of decisions on SQLite and on Postgres, by real processes: races, kill -9 at every step, rollback under traffic, a registry that is away."
import http.client, json, threading, time
from urllib.parse import urlsplit
import pytest
from churn_nb import promote as p
from churn_nb.registry.decision_log import lineage
from churn_nb.registry.deployment import decision_history
from churn_nb.core.errors import RegistryUnavailable
from churn_nb.registry.model_registry import judged_already, mark_made_again, version_like
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace
from registries import ROWS, current, made, refused
from deadlines import allow
from serving import free_port, serving, wait_for

@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def registry(request, registries):
    with (it := registries(request.param)).use(): pass
    return it

# Races: every process in a workspace of its own

@pytest.mark.parametrize("champions, n", [(0, 2), (1, 2), (1, 4)])
def test_of_processes_that_promote_at_once_one_does(registry, champions, n):
    s, old = registry.world(f"race-{champions}-{n}", champions), str(champions) if champions else None
    versions = [registry.challenger(s, "strong") for _ in range(n)]
    places = [s, *(registry.elsewhere(s, k) for k in range(2, n + 1))]
    ended, said = registry.crew(*((place, {"do": "race", "version": v, "was": old}) for place, v in zip(places, versions)))
    assert ended == [0]*n and sorted(k for a in said for k in a) == ["done"] + ["error"]*(n - 1)
    assert [e[0] for e in registry.log(s)] == ["promoted"]*(champions + n) and {e[2] for e in registry.log(s)[champions:]} == {champions}
    winner, losers = registry.log(s)[champions][1], [e[1] for e in registry.log(s)[champions + 1:]]
    assert sorted(a["error"] for a in said if "error" in a) == sorted(f"the champion changed from {old} to {winner} while version {v} was judged; run the gate again" for v in losers)
    assert registry.aliases(s) == {"champion": winner} | ({"previous": old} if old else {}) | ({"challenger": versions[-1]} if versions[-1] != winner else {})
    assert [v for v in versions if registry.tags(s, v).get("gate") == "promoted"] == [winner]
    histories = [decision_history(place) for place in places]
    assert all(h == histories[0] for h in histories) and {"promoted": 1, "superseded": n - 1} == {a: sum(e["action"] == a for e in histories[0][champions:]) for a in ("promoted", "superseded")}
    assert [{e["id"] for e in p.read_history(Workspace(place.paths.workspace))} for place in places] == [{e["id"] for e in histories[0]}]*n

def test_the_same_challenger_judged_twice_at_once(registry):
    s = registry.world("twice", 1, "strong")
    ended, said = registry.crew((s, {"do": "race"}), (registry.elsewhere(s), {"do": "race"}))
    assert ended == [0, 0] and sorted(k for a in said for k in a) == ["done", "error"]
    assert [a["error"] for a in said if "error" in a] == ["the champion changed from 1 to 2 while version 2 was judged; run the gate again"]
    assert registry.aliases(s) == {"champion": "2", "previous": "1"} and registry.stages(s) == {"1": "Archived", "2": "Production"}

def test_a_storm_leaves_one_chain(registry):
    s = registry.world("storm")
    versions = [registry.challenger(s, "strong") for _ in range(4)]
    ended, said = registry.crew(*((registry.elsewhere(s, k), {"do": "storm", "version": v, "times": 4}) for k, v in enumerate(versions)))
    won = {a["version"]: a["won"] for a in said if "won" in a}
    history = decision_history(s)
    changes = [e for e in history if e["action"] == "promoted"]
    assert ended == [0]*4 and len(won) == 4 and {v: sum(e["version"] == v for e in changes) for v in versions} == won # nobody was told a lie
    assert [e["replaces"] for e in changes] == [None, *(e["version"] for e in changes[:-1])] and len(changes) >= 4
    assert registry.aliases(s)["champion"] == changes[-1]["version"] and {v for v, stage in registry.stages(s).items() if stage == "Production"} == {changes[-1]["version"]}

def test_an_append_that_collides_again_and_again_gets_through(registry, monkeypatch):
    "MLflow gives up after three collisions; a network may lose the answer to an entry that was written."
    s = registry.world("stubborn", 1)
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
    real, calls = registry.client.create_model_version, []
    def create(*a, **k):
        calls.append(1)
        if len(calls) < 4: raise MlflowException("Model Version creation error (name=x). Giving up after 3 attempts.")
        real(*a, **k)
        raise MlflowException("the answer is lost", TEMPORARILY_UNAVAILABLE)
    v = registry.challenger(s, "strong")
    monkeypatch.setattr(registry.client, "create_model_version", create)
    assert registry.promote(s, v, "1")["action"] == "promoted" and len(calls) == 4 and len(registry.log(s)) == 2

# Killed

@pytest.fixture(scope="module")
def steps(registry):
    "What a promotion and a rollback do, in order, when nobody stops them."
    s = registry.world("uncut", 1, "strong")
    (up, done), (back, undone) = (registry.crew((s, {"do": do})) for do in ("promote", "rollback"))
    assert up == back == [0]
    for said in (done, undone): assert said[0]["done"][0] == "create_model_version" and {"set_registered_model_alias", "atomic_write", "write_bundle", "switch_current"} < set(said[0]["done"]) and len(said[0]["done"]) >= 9
    return {"promote": done[0]["done"], "rollback": undone[0]["done"]}

def recovered(registry, s):
    "The state after the next process came, in the same workspace; it does not change when yet another comes."
    p.deploy_champion(s)
    state = registry.state(s)
    assert [(e["action"], e["version"], e["replaces"]) for e in decision_history(registry.elsewhere(s))] == state[2] and registry.state(s) == state
    return state

def cuts(names, all_of_them):
    "Before the next step is after this one. What is between two databases is MLflow's, so each takes every cut of one kind only, and the telling ones of the other: around the entry, between aliases, before the file."
    some = [*range(1, len(names) + 1)] if all_of_them else [1, 2, 3, names.index("atomic_write")]
    return [(1, "before"), *((k, "after") for k in some)]

def test_a_promotion_that_was_killed_at_any_step(registry, steps):
    "Promoted from the entry in the log on, and not before; the alias is old or new at any moment."
    for at in cuts(steps["promote"], registry.engine.name == "postgresql"):
        s = registry.world(f"killed-{at[0]}-{at[1]}", 1, "strong")
        assert registry.crew((s, {"do": "promote", "die": at})) == ([9], []) # died by SIGKILL, said nothing
        assert registry.aliases(s)["champion"] in ("1", "2") and "Production" in registry.stages(s).values() and current(s) in ("1", "2") and made(s), at
        if at == (1, "before"):
            assert recovered(registry, s) == ({"champion": "1", "challenger": "2"}, {"1": "Production", "2": "Staging"}, [("promoted", "1", None)], "1")
            assert p.run_gate(s, ROWS)[0].promoted # the next run decides again
        assert registry.model(s).champion() == "2", at
        assert recovered(registry, s) == ({"champion": "2", "previous": "1"}, {"1": "Archived", "2": "Production"}, [("promoted", "1", None), ("promoted", "2", "1")], "2"), at
        tags = registry.tags(s, 2)
        assert tags["gate"] == "promoted" and json.loads(tags["decision"])["checks"], at

def test_a_rollback_that_was_killed_at_any_step(registry, steps):
    for at in cuts(steps["rollback"], registry.engine.name == "sqlite"):
        s = registry.world(f"killed-rollback-{at[0]}-{at[1]}", 2)
        assert registry.crew((s, {"do": "rollback", "die": at})) == ([9], [])
        champion, other, n = ("2", "1", 2) if at == (1, "before") else ("1", "2", 3)
        assert registry.aliases(s)["champion"] in ("1", "2"), at
        history = [("promoted", "1", None), ("promoted", "2", "1"), ("rolled_back", "1", "2")][:n]
        assert recovered(registry, s) == ({"champion": champion, "previous": other}, {champion: "Production", other: "Archived"}, history, champion), at

def test_a_refusal_that_was_killed(registry):
    for at in ((1, "before"), (1, "after"), (2, "after")): # the entry, then the tags
        s = registry.world(f"killed-refusal-{'-'.join(map(str, at))}", 1, "weak")
        assert registry.crew((s, {"do": "promote", "die": at})) == ([9], [])
        if at == (1, "before"): assert not p.run_gate(s, ROWS)[0].promoted
        assert [(e["action"], e["version"], e["replaces"]) for e in decision_history(s)[1:]] == [("refused", "2", "1")] == made(s)[1:]
        assert registry.aliases(s) == {"champion": "1", "challenger": "2"} and registry.tags(s, 2)["gate"] == "refused"

@pytest.mark.parametrize("next_one", [lambda s: p.deploy_champion(s), lambda s: p.run_gate(s, ROWS), lambda s: p.rollback(s), lambda s: decision_history(s)], ids=["deploy", "gate", "rollback", "history"])
def test_the_next_command_in_any_workspace_completes_the_promotion(registry, request, next_one):
    s = registry.world(f"next-{request.node.callspec.id}", 1, "strong")
    assert registry.crew((s, {"do": "promote", "die": (1, "after")}))[0] == [9] and registry.aliases(s)["champion"] == "1"
    registry.challenger(s, "weak")
    next_one(registry.elsewhere(s))
    assert [e[:2] for e in registry.log(s)[:2]] == [("promoted", "1"), ("promoted", "2")] and registry.tags(s, 2)["gate"] == "promoted"
    assert registry.aliases(s) == ({"champion": "1", "previous": "2"} if "rollback" in request.node.name else {"champion": "2", "previous": "1"}) | {"challenger": "3"}

# From before the log, by hand, and with a past

def test_a_registry_from_before_the_log_is_adopted(registry):
    s = registry.world("old")
    for _ in range(3): registry.challenger(s, "weak")
    with registry.use() as client:
        for alias, v in (("champion", "2"), ("previous", "1")): client.set_registered_model_alias("old", alias, v)
        for v, stage in (("1", "Archived"), ("2", "Production")): client.set_model_version_tag("old", v, "gate", "promoted"); client.transition_model_version_stage("old", v, stage)
    assert p.deploy_champion(s).name == "2" and registry.log(s) == [("adopted", "2", 0)]
    assert registry.aliases(s) == {"champion": "2", "previous": "1", "challenger": "3"} and made(s) == [("adopted", "2", "1")]
    assert lineage(decision_history(s)) == ["1", "2"] and len(registry.log(s)) == 1 # once
    assert p.rollback(registry.elsewhere(s))["version"] == "1" and registry.stages(s) == {"1": "Production", "2": "Archived", "3": "Staging"}

def test_changes_by_hand_are_undone_or_reported(registry):
    s = registry.world("byhand", 2, "weak")
    with registry.use() as client:
        client.set_registered_model_alias("byhand", "champion", "3")
        client.transition_model_version_stage("byhand", "3", "Production")
        client.set_model_version_tag("byhand", "1", "gate", "refused")
    decision_history(s)
    assert registry.aliases(s) == {"champion": "2", "previous": "1", "challenger": "3"} and registry.stages(s) == {"1": "Archived", "2": "Production", "3": "Archived"} and registry.tags(s, 1)["gate"] == "promoted"
    with registry.use() as client: client.delete_model_version("byhand", "2")
    refused(lambda: p.deploy_champion(s), "version 2: its files can't be read")
    assert p.rollback(s)["version"] == "1" and current(s) == "1"
    with registry.use() as client: client.delete_model_version("byhand.decisions", "1")
    for f in (lambda: p.deploy_champion(s), lambda: decision_history(s), lambda: p.rollback(s)): refused(f, "decision 1 was deleted or changed by hand; delete this")
    with registry.use() as client: client.delete_registered_model("byhand.decisions")
    assert [(e["action"], e["version"]) for e in decision_history(s)] == [("adopted", "1")] and len(made(s)) == 4 # what was read once stays in the file

def test_a_manifest_or_model_that_changed_since_is_not_used(registry):
    s = registry.world("changed", 1)
    v = registry.challenger(s, "strong")
    with registry.use() as client: client.set_model_version_tag("changed", v, "manifest_sha256", "0"*64)
    for f in (lambda: registry.model(s).load_version(v), lambda: p.run_gate(s, ROWS)): refused(f, "manifest.json is not the file that was registered")
    with registry.use() as client: client.delete_model_version_tag("changed", v, "manifest_sha256")
    assert p.run_gate(s, ROWS)[0].promoted
    with registry.use() as client: client.delete_model_version_tag("changed", v, "sha256")
    refused(lambda: p.deploy_champion(s), "model.onnx is not the file that was registered") # a version without a hash is none that we made
    assert current(s) == "1"
    refused(lambda: registry.model(s).load_version("77"), "can't be read")

def test_who_and_why_are_kept(registry, monkeypatch):
    s, why = registry.world("why", 2), "naïve \u2028 \x00 'quote' \"two\"\nlines"
    monkeypatch.setenv("GITHUB_ACTOR", "ada")
    assert p.rollback(s, why=why)["why"] == why
    assert (decision_history(s)[-1]["why"], p.read_history(Workspace(s.paths.workspace))[-1]["why"], decision_history(s)[-1]["by"]) == (why, why, "ada")
    before = registry.state(s)
    refused(lambda: p.rollback(s, to="2", why="x"*100_000), "shorten the reason")
    assert registry.state(s) == before

def test_a_long_log_is_read_to_its_end(registry, monkeypatch):
    s = registry.world("long", 1)
    real = registry.client.search_model_versions
    monkeypatch.setattr(registry.client, "search_model_versions", lambda *a, **k: real(*a, max_results=2, **k)) # pages of 2
    for i in range(6): registry.promote(s, registry.challenger(s, "weak"), str(i + 1))
    assert lineage(registry.model(s).reconcile()) == list("1234567")

# A rollback while the API answers

def test_rollback_under_traffic_fails_no_request(registry):
    "Each caller sees 1, then 2, then 1: a switch is one moment, and no answer is of a version before it."
    s = registry.world("traffic", 1, "strong")
    seen, failed, stop = [[] for _ in range(4)], [], threading.Event()
    with serving(s.paths.workspace) as api:
        at, body = urlsplit(api.url), json.dumps({"age": .5, "usage_minutes": -.5})
        def hammer(mine):
            c = http.client.HTTPConnection(at.hostname, at.port, timeout=allow(90))
            while not stop.is_set():
                try:
                    c.request("POST", "/predict", body, {"content-type": "application/json"})
                    answer = c.getresponse()
                    says = json.loads(answer.read())
                    mine.append(says["model_version"]) if answer.status == 200 else failed.append(says)
                except Exception as e: failed.append(repr(e)); c.close()
            c.close()
        crowd = [threading.Thread(target=hammer, args=[mine]) for mine in seen]
        for c in crowd: c.start()
        all_hear = lambda v: wait_for(lambda: all(mine and mine[-1] == v for mine in seen)) # one may report late what was answered before the switch
        try:
            assert all_hear("1")
            assert p.run_gate(s, ROWS)[0].promoted and p.deploy_champion(s).name == "2" and all_hear("2")
            assert p.rollback(s, why="drill")["version"] == "1" and all_hear("1")
        finally:
            stop.set()
            for c in crowd: c.join()
    heard = [[v for i, v in enumerate(mine) if i == 0 or v != mine[i - 1]] for mine in seen]
    assert not failed and heard == [["1", "2", "1"]]*4 and sum(map(len, seen)) > 200

# Away

@pytest.mark.parametrize("uri", ["http://127.0.0.1:{port}", "postgresql+psycopg2://user:secret@127.0.0.1:{port}/mlflow", "postgresql+psycopg2://user:secret@/mlflow?host=/nowhere"])
def test_an_unavailable_registry_fails_fast_with_one_line(tmp_path, uri):
    s = load_settings({"paths.workspace": str(tmp_path), "stores.tracking_uri": uri.format(port=free_port())}, environ={})
    for f in (lambda: p.run_gate(s, ROWS), lambda: p.deploy_champion(s), lambda: p.rollback(s), lambda: decision_history(s)):
        began = time.perf_counter()
        with pytest.raises(ConnectionError) as e: f()
        assert type(e.value) is RegistryUnavailable and "does not answer" in str(e.value) and "\n" not in str(e.value) and "secret" not in str(e.value) and time.perf_counter() - began < 3

# A model that is a version already

def test_a_version_is_known_by_its_file_and_by_what_it_decides(registry):
    import msgspec
    s = registry.world("known", 2)
    known = registry.model(s)
    (m, _), sha = known.load_version("1"), known.client.get_model_version(known.name, "1").tags["sha256"]
    changed = lambda **other: version_like(known, msgspec.structs.replace(m, **other), {"sha256": sha})
    assert changed() == changed(data_hash="md5:other", run_id="other", git_sha="other", metrics={"log_loss": 1.}) == "2", "the newer of two that are the same"
    assert [changed(**other) for other in ({"threshold": .9}, {"decision": {"offer_cost": 1., "saved_margin": 4.}}, {"dataset": "other"}, {"features": m.features[::-1]})] == [None]*4
    assert version_like(known, m, {"sha256": "0"*64}) is None
    assert version_like(known, m, {"sha256": sha, "facts.json.sha256": ""}) is None, "it was not registered whole: its process died"

def test_what_was_judged_and_only_made_again_is_nothing_new(registry):
    "The champion, which then has no challenger beside it; and one that was champion before, which becomes the challenger again."
    s = registry.world("again", 2)
    known, log = registry.model(s), registry.log(s)
    assert judged_already(known, None) is None
    for version, challenger in (("2", {}), ("1", {"challenger": "1"}), ("2", {})):
        said = mark_made_again(known, version, known.load_version(version)[0])
        assert said.startswith(f"the ONNX file is that of version {version}, from the same data")
        assert registry.aliases(s) == {"champion": "2", "previous": "1"} | challenger and judged_already(known, challenger.get("challenger")) == version
    fresh = registry.challenger(s, "strong")
    assert judged_already(known, fresh) is None and registry.log(s) == log

def test_a_first_model_that_was_refused_is_judged_again_when_made_again(registry):
    "There is no champion that could stay."
    s = registry.world("first")
    version = registry.challenger(s, "strong")
    known = registry.model(s)
    mark_made_again(known, version, known.load_version(version)[0])
    assert registry.aliases(s) == {"challenger": version} and judged_already(known, version) is None
