"Fixtures that more than one file needs."
import pytest
from serving import put_live, serving

@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    "A workspace with a small bundle live; returns the workspace."
    ws = tmp_path_factory.mktemp("served")
    put_live(ws)
    return ws

@pytest.fixture(scope="session")
def server(tiny_bundle):
    "A real API process over `tiny_bundle`."
    with serving(tiny_bundle) as s: yield s
