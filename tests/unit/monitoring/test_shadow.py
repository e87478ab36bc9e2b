"The challenger in shadow: answers stay what they are byte by byte, whatever becomes of it, and the log is whole."
import json, os, shutil, subprocess, sys, threading
from types import SimpleNamespace
import httpx, numpy as np, pytest
from fastapi.testclient import TestClient
import churn_nb.monitoring.shadow
from churn_nb.registry.bundle import switch_shadow, write_bundle
from churn_nb.serve import create_app
from churn_nb.monitoring.logged_traffic import read_shadow
from churn_nb.monitoring.shadow import Shadow, ShadowLine, append_lines
from churn_nb.serving.http.telemetry import Metrics
from deadlines import allow
from serving import manifest, onnx_model, probability, put_live, serving, settings_for, wait_for

ROW = {"age": 42, "usage_minutes": 310.5, "gap": None}
FIELDS = ["at", "customer_id", "champion", "p_champion", "challenger", "p_challenger"]
row = lambda x: dict(zip(ROW, x, strict=True))

def put_shadow(workspace, version="2", bias=1., model=None, **kw):
    "Write a version and let it score in shadow."
    write_bundle(workspace/"bundle", model or onnx_model(bias), manifest(version, bias, **kw))
    return switch_shadow(workspace/"bundle", version)

def two(workspace):
    put_live(workspace)
    put_shadow(workspace)
    return workspace

def lines(workspace): return [json.loads(t) for f in sorted((workspace/"shadow").glob("*.jsonl")) for t in f.read_text().splitlines()]
def counted(text, name): return {t.split(" ")[0].removeprefix(name): float(t.split(" ")[1]) for t in text.splitlines() if t.startswith(name)}

# --- a running server ---

BODIES = [("/predict", ROW), ("/predict", row([20, 5, 1.5])), ("/predict/batch", [ROW, row([70, 3, 0]), row([1, 2, None])]), ("/predict?explain=true", ROW),
          ("/predict", {"age": 1}), ("/predict", {"customer_id": 5}), ("/predict/batch", []), ("/predict/batch", [row([30, 30, 30])] * 200)]
ANSWERED = 1 + 1 + 3 + 1 + 200

def test_a_shadow_changes_no_byte_of_any_answer(tmp_path):
    "Every scored row is in the shadow's log."
    said = {}
    for shadow in ("no", "yes"):
        assert not (tmp_path/"shadow").exists()
        with serving(two(tmp_path), shadow=shadow) as s, httpx.Client(base_url=s.url, timeout=allow(90)) as c:
            answers = [c.post(path, json=body, headers={"X-Request-Id": "x"}) for path, body in BODIES]
            said[shadow] = [(r.status_code, r.content, {k: v for k, v in r.headers.items() if k not in ("date", "server-timing")}) for r in answers]
            if shadow == "yes":
                assert wait_for(lambda: len(lines(tmp_path)) == ANSWERED)
                assert wait_for(lambda: counted(c.get("/metrics").text, "churn_shadow_rows_total") == {"": ANSWERED})
    assert said["yes"] == said["no"]
    log = lines(tmp_path)
    answers = [a for (path, _), (status, content, _) in zip(BODIES, said["yes"], strict=True) if status == 200
               for a in (json.loads(content) if "batch" in path else [json.loads(content)])]
    assert [line["p_champion"] for line in log] == [a["probability"] for a in answers]
    X = np.array([[*r.values()] for path, b in BODIES for r in (b if isinstance(b, list) else [b]) if len(r) == 3], np.float32)
    np.testing.assert_allclose([line["p_challenger"] for line in log], probability(X, 1.), atol=1e-6)
    assert all([*line] == FIELDS and (line["champion"], line["challenger"], line["customer_id"]) == ("1", "2", None) for line in log)
    assert "310.5" not in "".join(f.read_text() for f in (tmp_path/"shadow").iterdir()) # no features

def test_what_waits_is_written_before_the_server_ends(tmp_path):
    with serving(two(tmp_path), shadow="yes") as s: # stopped by SIGTERM
        for _ in range(5): assert httpx.post(s.url + "/predict/batch", json=[ROW] * 500, timeout=allow(90)).status_code == 200
    assert len(lines(tmp_path)) == 2500

def test_a_corrupt_challenger_is_reported_once_and_affects_no_answer(tmp_path):
    put_live(tmp_path)
    with serving(tmp_path, shadow="yes") as s, httpx.Client(base_url=s.url, timeout=allow(90)) as c:
        want = c.post("/predict", json=ROW).content
        def asked():
            assert c.post("/predict", json=ROW).content == want
            return lines(tmp_path)
        said = lambda text: [line for line in s.logged() if text in line["message"]]
        assert wait_for(lambda: said("no challenger at"))
        assert not asked()
        put_shadow(tmp_path)                                                      # it comes
        assert wait_for(asked) and asked()[0]["challenger"] == "2"
        (tmp_path/"bundle"/"2"/"model.onnx").write_bytes(b"spoilt")               # its file is spoilt: the one in memory goes on
        assert wait_for(lambda: said("bundle refused"))
        assert wait_for(lambda n=len(asked()): len(asked()) > n)
        bad = tmp_path/"bundle"/"3"                                                # another, which is no model at all
        bad.mkdir(); shutil.copy(tmp_path/"bundle"/"2"/"manifest.json", bad)
        (tmp_path/"bundle"/"shadow").unlink(); (tmp_path/"bundle"/"shadow").symlink_to("3")
        assert wait_for(lambda: len(said("bundle refused")) == 2)
        asked()
        put_shadow(tmp_path, "4", 2.)                                             # a good one after it
        assert wait_for(lambda: asked()[-1]["challenger"] == "4")
        switch_shadow(tmp_path/"bundle", None)                                    # and it is taken away
        assert wait_for(lambda: len(said("no challenger at")) == 2)
        n = len(asked())
        assert len(asked()) == n and wait_for(lambda: '"absent"' in c.get("/metrics").text)
        assert c.get("/readyz").json() == {"status": "ready", "model_version": "1"} and "churn_bundle_refused 0.0" in c.get("/metrics").text
        assert 'version="1"' in c.get("/metrics").text and 'churn_model_info{data_hash="md5:0",dataset="demo",name="churn_predictor",run_id="run4"' not in c.get("/metrics").text
    told = [line for line in s.logged() if line["level"] in ("warning", "error")]
    assert len(told) == 4 and {line["level"] for line in told} == {"warning"}, told

# --- in process: what the challenger may do to itself ---

class Stand:
    "A challenger that does what `predict` says."
    def __init__(self, predict, names=tuple(ROW), nullable=(False, False, True), version="2"):
        self.predict, self.schema = predict, SimpleNamespace(encoder=SimpleNamespace(nullable=np.array(nullable)))
        self.manifest = SimpleNamespace(version=version, names=[*names])

@pytest.fixture
def app(tmp_path):
    "An app with a shadow, not started by a lifespan; a test puts the challenger."
    put_live(tmp_path)
    app = create_app(settings_for(tmp_path, shadow="yes"))
    app.state.shadow.challenger = SimpleNamespace(model=None, refresh=lambda: None)
    return app

def dropped(app): return counted(app.state.current.metrics.text().decode(), "churn_shadow_dropped_total")

def test_a_hanging_challenger_delays_no_answer(app, tmp_path):
    "Its queue is bounded: requests that do not fit are dropped whole and counted."
    gate, shadow = threading.Event(), app.state.shadow
    def hang(X):
        assert gate.wait(allow(30))
        return probability(X, 1.).astype(np.float32)
    shadow.challenger.model, shadow.writer.most_rows, c = Stand(hang), 7, TestClient(app)
    assert all(c.post("/predict", json=ROW).status_code == 200 for _ in range(5)) # answered, while none of them is scored
    assert c.post("/predict/batch", json=[ROW] * 3).status_code == 200            # three more find room for two: dropped whole
    assert c.post("/predict/batch", json=[ROW] * 2).status_code == 200
    assert c.post("/predict", json=ROW).status_code == 200
    assert not lines(tmp_path) and shadow.waiting == 7 and dropped(app) == {'{reason="full"}': 4}
    gate.set()
    shadow.close()
    assert len(lines(tmp_path)) == 7 and shadow.waiting == 0
    assert c.post("/predict", json=ROW).status_code == 200 # and there is room again
    shadow.close()
    assert len(lines(tmp_path)) == 8

def test_a_hanging_challenger_does_not_block_shutdown(app, tmp_path, caplog):
    gate = threading.Event()
    app.state.shadow.challenger.model = Stand(lambda X: gate.wait(allow(30)))
    TestClient(app).post("/predict", json=ROW)
    app.state.shadow.close(.1)
    gate.set()
    assert "1 rows are not in the shadow's log" in caplog.text

def test_loading_a_challenger_is_off_the_path_too(app):
    gate = threading.Event()
    app.state.shadow.challenger.refresh = lambda: gate.wait(allow(30))
    with TestClient(app) as c: # the lifespan has started its thread, which is busy loading
        assert c.post("/predict", json=ROW).status_code == c.get("/readyz").status_code == 200
        gate.set()

@pytest.mark.parametrize("error", [RuntimeError("age was 42"), MemoryError(), ValueError("age was 42"), KeyError("plan"), ZeroDivisionError()])
def test_a_failing_challenger_is_counted_and_logged_once(app, tmp_path, caplog, error):
    "The log names the type of the error and no value."
    def fail(X): raise error
    app.state.shadow.challenger.model, c = Stand(fail), TestClient(app)
    want = probability([42, 310.5, np.nan])
    for _ in range(3): assert abs(c.post("/predict", json=ROW).json()["probability"] - want) < 1e-6
    app.state.shadow.close()
    assert not lines(tmp_path) and dropped(app) == {'{reason="failed"}': 3}
    told = [r.getMessage() for r in caplog.records if r.name == "churn_nb.monitoring.shadow"]
    assert len(told) == 1 and type(error).__name__ in told[0] and "42" not in caplog.text

def test_challenger_columns_are_matched_by_name(app, tmp_path):
    "Rows with a gap that the challenger does not take are dropped."
    seen = []
    def first(X): seen.append(X.copy()); return X[:, 0] / 1000
    app.state.shadow.challenger.model, c = Stand(first, ["gap", "age"], [False, False]), TestClient(app)
    assert c.post("/predict/batch", json=[row([42, 1, 7]), ROW, row([43, 1, 8])]).status_code == 200
    app.state.shadow.close()
    np.testing.assert_array_equal(seen[0], np.array([[7, 42], [np.nan, 42], [8, 43]], np.float32))
    assert [round(line["p_challenger"], 4) for line in lines(tmp_path)] == [.007, .008] and dropped(app) == {'{reason="failed"}': 1}

def test_a_probability_that_is_none_is_not_written(app, tmp_path):
    app.state.shadow.challenger.model = Stand(lambda X: np.array([np.nan, np.inf, .5], np.float32))
    TestClient(app).post("/predict/batch", json=[ROW] * 3)
    app.state.shadow.close()
    assert [line["p_challenger"] for line in lines(tmp_path)] == [.5] and dropped(app) == {'{reason="failed"}': 2}

def test_customer_ids_stand_in_the_log_where_they_were_sent(app, tmp_path):
    async def lookup(where, names, ids): return [(30., 100., None) for _ in ids]
    app.state.store.lookup, app.state.shadow.challenger.model = lookup, Stand(lambda X: probability(X))
    TestClient(app).post("/predict/batch", json=[{"customer_id": 2**40}, ROW, {"customer_id": -3}])
    app.state.shadow.close()
    assert [line["customer_id"] for line in lines(tmp_path)] == [2**40, None, -3]

def test_a_challenger_is_verified_like_a_champion(tmp_path, caplog):
    "A refused one does not change the champion's metrics."
    two(tmp_path)
    app = create_app(settings_for(tmp_path, shadow="yes"))
    challenger = app.state.shadow.challenger
    assert challenger.model is None and challenger.refresh().model.manifest.version == "2" # it is not loaded where the app is made
    write_bundle(tmp_path/"bundle", onnx_model(3.), manifest("5")) # right hashes, wrong probabilities
    switch_shadow(tmp_path/"bundle", "5")
    assert challenger.refresh().model.manifest.version == "2" and "self test" in challenger.refused
    assert not app.state.current.refused and "churn_bundle_refused 0.0" in app.state.current.metrics.text().decode()
    assert create_app(settings_for(tmp_path)).state.shadow is None
    assert [r.levelname for r in caplog.records if "refused" in r.getMessage()] == ["WARNING"]

# --- the log ---

line = lambda i=0, at="2026-03-01T12:00:00.000+00:00": ShadowLine(at, i, "1", .25, "2", .5)

def test_a_disk_that_takes_a_part_leaves_whole_lines(tmp_path, monkeypatch):
    append_lines(tmp_path, "d", [line(1)])
    before, real = (tmp_path/"d.jsonl").read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:-10]))
    with pytest.raises(OSError, match="No space left"): append_lines(tmp_path, "d", [line(2), line(3)])
    monkeypatch.setattr(os, "write", real)
    assert (tmp_path/"d.jsonl").read_bytes() == before
    append_lines(tmp_path, "d", [line(4)])
    assert read_shadow(tmp_path).customer_id.tolist() == [1, 4]

def test_a_full_disk_is_reported_once_per_outage(app, tmp_path, monkeypatch, caplog):
    app.state.shadow.challenger.model, c, real = Stand(lambda X: probability(X)), TestClient(app), os.write
    def ask(times):
        for _ in range(times):
            assert c.post("/predict", json=ROW).status_code == 200
            app.state.shadow.close() # each is written on its own
    def full(fd, data): raise OSError(28, "No space left on device")
    for _ in range(2):
        monkeypatch.setattr(churn_nb.monitoring.shadow.os, "write", full); ask(3)
        monkeypatch.setattr(churn_nb.monitoring.shadow.os, "write", real); ask(1)
    assert dropped(app) == {'{reason="unwritten"}': 6} and len(lines(tmp_path)) == 2
    told = [r.getMessage() for r in caplog.records if r.name == "churn_nb.monitoring.shadow"]
    assert len(told) == 2 and all("No space left on device; rows are missing" in t for t in told)

def test_a_folder_that_cannot_be_made_is_reported_once(app, tmp_path, caplog):
    (tmp_path/"shadow").write_text("a file")
    app.state.shadow.challenger.model, c = Stand(lambda X: probability(X)), TestClient(app)
    assert c.post("/predict/batch", json=[ROW] * 3).status_code == c.post("/predict", json=ROW).status_code == 200
    app.state.shadow.close()
    assert dropped(app) == {'{reason="unwritten"}': 4} and len([r for r in caplog.records if r.name == "churn_nb.monitoring.shadow"]) == 1

def test_a_day_is_a_file(tmp_path):
    at = iter([1772409599.9996, 1772409600.0, 1772409601.0]) # around midnight UTC
    shadow = Shadow(SimpleNamespace(model=Stand(lambda X: probability(X)), refresh=lambda: None), tmp_path, Metrics(), clock=lambda: next(at))
    champion = SimpleNamespace(manifest=SimpleNamespace(version="1", names=[*ROW]))
    for i in range(3): shadow.put(champion, np.zeros((1, 3), np.float32), [.5], [i])
    shadow.close()
    for f in tmp_path.iterdir(): assert {json.loads(t)["at"][:10] for t in f.read_text().splitlines()} == {f.stem}
    assert len([*tmp_path.iterdir()]) == 2 and read_shadow(tmp_path).customer_id.tolist() == [0, 1, 2]

def test_two_processes_on_one_folder_write_whole_lines(tmp_path):
    code = ("import sys\nfrom pathlib import Path\nfrom churn_nb.monitoring.shadow import ShadowLine, append_lines\n"
            "for i in range(200): append_lines(Path(sys.argv[1]), 'd', [ShadowLine('2026-03-01T00:00:00+00:00', i, sys.argv[2], .5, '2', .5)] * 3)")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), v]) for v in "ab"]
    assert [w.wait(allow(60)) for w in writers] == [0, 0]
    frame = read_shadow(tmp_path)
    assert frame.attrs["broken"] == 0 and frame.champion.value_counts().to_dict() == {"a": 600, "b": 600}
