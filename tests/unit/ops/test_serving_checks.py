"`churn_nb.ops.serving_checks`: a bundle, a registry, a port and a Triton that are not as they should be, each with its line."
import json, socket
from pathlib import Path
import pytest
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace
from churn_nb.registry.bundle import current_bundle, switch_current, write_bundle
from checks import ill, line
from serving import free_port, manifest, onnx_model, put_live, serving, settings_for

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

def test_champion_files_that_are_changed_or_gone(registry):
    "Its bundle still serves; the next deployment would fail. The seed's files are put back, as other tests use them."
    s = registry.world("doctor-files", champions=1)
    assert line("registry", s).text.endswith("the champion's files hold")
    whole = {f: f.read_bytes() for f in (registry.root/"artifacts").rglob("model.onnx")}
    try:
        for f, content in whole.items(): f.write_bytes(content + b" ")
        ill("registry", s, 2, "is not the file that was registered")
        for f in whole: f.unlink()
        ill("registry", s, 2, "can't be read")
    finally:
        for f, content in whole.items(): f.write_bytes(content)
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
