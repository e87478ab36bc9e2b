"The connection to the registry: what is unavailable, what is rejected, and no password in a message."
import os, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
import pytest, requests, sqlalchemy
from churn_nb.core import errors
from churn_nb.core.settings import load_settings
from churn_nb.registry import connection as c
from serving import free_port

@pytest.mark.parametrize("uri, shown", [
    ("postgresql+psycopg2://u:secret@db:5432/mlflow", "postgresql+psycopg2://u:***@db:5432/mlflow"), ("http://u:secret@mlflow:5000", "http://u:***@mlflow:5000"),
    ("http://mlflow:5000", "http://mlflow:5000"), ("", "in the workspace")])
def test_the_address_hides_the_password(uri, shown): assert c.registry_address(uri) == shown

@pytest.mark.parametrize("error", [
    ConnectionError("refused"), requests.ConnectionError("refused"), RuntimeError("Max retries exceeded with url: /api"),
    type("EndpointConnectionError", (Exception,), {})("s3"), type("E", (Exception,), {"error_code": "TEMPORARILY_UNAVAILABLE"})("busy")], ids=lambda e: type(e).__name__)
def test_every_sign_of_an_unavailable_server_is_one_error(error):
    with pytest.raises(errors.RegistryUnavailable, match="does not answer") as e:
        with c.registry_errors("http://u:secret@mlflow:5000"): raise error
    assert "secret" not in str(e.value) and "\n" not in str(e.value) and (e.value.exit_code, e.value.status) == (4, 503)

@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("x"), errors.RegistryError("no champion"), errors.DataError("row 3")], ids=lambda e: type(e).__name__)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as e:
        with c.registry_errors(""): raise error
    assert e.value is error

def test_a_file_is_not_pinged(monkeypatch):
    monkeypatch.setattr(sqlalchemy, "create_engine", lambda *a, **k: pytest.fail("a file needs no server"))
    monkeypatch.setattr(requests, "get", lambda *a, **k: pytest.fail("a file needs no server"))
    for uri in ("", "sqlite:///mlflow.db"): c.ping(uri)

@pytest.mark.parametrize("status, up", [(200, True), (404, True), (500, False), (503, False)])
def test_a_server_is_up_unless_it_fails_itself(monkeypatch, status, up):
    asked = []
    monkeypatch.setattr(requests, "get", lambda url, timeout: asked.append((url, timeout)) or SimpleNamespace(status_code=status))
    if up: c.ping("http://mlflow:5000/")
    else: pytest.raises(errors.RegistryUnavailable, c.ping, "http://mlflow:5000/")
    assert asked == [("http://mlflow:5000/health", 5)]

def test_mlflow_gives_up_after_three_attempts_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.setattr(c, "tracking", lambda s: "client")
    monkeypatch.setattr(c, "ping", lambda uri: None)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    def connect(uri): return c.connect(load_settings({"paths.workspace": str(tmp_path), "stores.tracking_uri": uri}, environ={}))
    assert connect("") == "client" and "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    connect("http://mlflow:5000")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "9")
    connect("http://mlflow:5000")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "9"

def test_a_registry_that_nobody_answers_for_is_unavailable(tmp_path):
    s = load_settings({"paths.workspace": str(tmp_path), "stores.tracking_uri": f"http://127.0.0.1:{free_port()}"}, environ={})
    with pytest.raises(errors.RegistryUnavailable, match="start it, or change"): c.connect(s)

def test_versions_of_all_pages_come_in_order():
    class Page(list): token = None
    class Client:
        def search_model_versions(self, query, order_by, page_token):
            assert query == "name = 'm'" and order_by == ["version_number ASC"]
            page = Page([f"{page_token or 0}.{i}" for i in range(2)])
            page.token = {None: "1", "1": "2", "2": None}[page_token]
            return page
    assert c.list_versions(Client(), "m") == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"]

class Fake(BaseHTTPRequestHandler):
    "A fake of an MLflow server with users: it is healthy and rejects who does not say who he is."
    def answer(self):
        self.send_response(200 if self.path == "/health" else self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_GET = do_POST = answer
    def log_message(self, *args): pass

@pytest.mark.parametrize("status", [401, 403])
def test_rejected_credentials_are_no_crash(status, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Fake) as server:
        server.status = status
        threading.Thread(target=server.serve_forever, daemon=True).start()
        s = load_settings({"paths.workspace": str(tmp_path), "stores.tracking_uri": f"http://user:secret@127.0.0.1:{server.server_port}"}, environ={})
        with pytest.raises(errors.RegistryError, match="rejects the credentials.*MLFLOW_TRACKING_USERNAME") as e: c.connect(s)
        assert "secret" not in str(e.value)
        server.shutdown()
