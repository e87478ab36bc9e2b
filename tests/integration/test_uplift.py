"A control group from the request to the report: a real server and its log, what the customers did, and `churn uplift`."
import json
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from churn_nb.core.control_group import offer_group
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace
from churn_nb.monitoring.logged_traffic import read_requests
from churn_nb.ops.monitor import known_outcomes
from deadlines import allow
from online_store import NAMES, api_on, churn, customers, model_of
from serving import serving, put_live

SHARE, BY_FEATURES = .4, {"age": 42, "usage_minutes": 310.5, "gap": None}

def test_without_a_share_no_answer_has_a_group(tmp_path):
    put_live(tmp_path)
    with serving(tmp_path) as s, httpx.Client(base_url=s.url, timeout=allow(60)) as c:
        assert "offer_group" not in c.post("/predict", json=BY_FEATURES).json() and "offer_group" not in c.get("/openapi.json").text
    assert "offer_group" not in read_requests(tmp_path/"requests").columns

def test_a_customer_who_is_not_named_has_no_group(tmp_path):
    put_live(tmp_path)
    with serving(tmp_path, control_share=SHARE) as s, httpx.Client(base_url=s.url, timeout=allow(60)) as c:
        answers = [c.post("/predict", json=BY_FEATURES).json(), c.post("/predict", params={"explain": "true"}, json=BY_FEATURES).json(), *c.post("/predict/batch", json=[BY_FEATURES]*2).json()]
        assert all("churn_risk" in a and "offer_group" not in a for a in answers)
        for path in ("/predict", "/predict/batch"):
            schema = c.get("/openapi.json").json()["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
            answer = schema.get("items", schema)
            assert answer["properties"]["offer_group"]["enum"] == ["control", "treated"] and "offer_group" not in answer["required"]
        assert "churn_offer_groups_total{" not in c.get("/metrics").text
    logged = read_requests(tmp_path/"requests")
    assert logged.offer_group.isna().all() and (logged.control_share == SHARE).all()

def purchases_of(s, buyers, at):
    "Purchases of these customers, written into the log of the workspace."
    base = Workspace(s.paths.workspace).base
    log = pd.read_parquet(base)
    more = log.drop_duplicates("customer_id").set_index("customer_id").loc[buyers].reset_index()
    more = more.assign(event_timestamp=pd.Series(at, index=more.index).astype(log.event_timestamp.dtype))
    for c in ("event_id", "created_timestamp"):
        if c in more: more[c] = (log[c].max() + 1 + np.arange(len(more))) if c == "event_id" else more.event_timestamp.astype(log[c].dtype)
    pd.concat([log, more[log.columns]]).to_parquet(base, index=False)
    assert pq.read_schema(base).names == log.columns.tolist()

@pytest.fixture
def asked(copied):
    "A service with a control group that was asked about all of its customers, by each kind of request; settings and answers."
    s = copied("few")
    model_of(s.paths.workspace, NAMES[:1])
    people = customers(s)
    api = api_on(s, control_share=SHARE, request_log_seconds=3600)
    try:
        with httpx.Client(base_url=api.url, timeout=allow(120)) as c:
            half = len(people)//2
            answers = dict(zip(people[:half], c.post("/predict/batch", json=[{"customer_id": i} for i in people[:half]]).json(), strict=True))
            slow = {"content-type": "application/json; charset=utf-8"} # which the fast path does not take
            for n, i in enumerate(people[half:]): answers[i] = c.post("/predict", content=json.dumps({"customer_id": i}), headers=slow if n % 2 else {"content-type": "application/json"}).json()
            c.post("/predict/batch", json=[{"transactions_total": 1.}]*3)
            metrics = c.get("/metrics").text
    finally: api.stop()
    return s, answers, metrics

def test_requests_become_outcomes_and_outcomes_an_uplift(asked, capsys, monkeypatch, tmp_path):
    s, answers, metrics = asked
    ws = s.paths.workspace
    groups = {i: a["offer_group"] for i, a in answers.items()}
    assert groups == {i: offer_group(i, SHARE) for i in answers} and all(a["churn_risk"] == 1 for a in answers.values()) # churn_risk stays what the model says
    counts = {g: [*groups.values()].count(g) for g in ("control", "treated")}
    assert min(counts.values()) > 10 and all(f'churn_offer_groups_total{{churn_risk="1",offer_group="{g}"}} {n}.0' in metrics for g, n in counts.items())
    logged = read_requests(ws/"requests")
    assert logged[logged.customer_id.notna()].set_index("customer_id").offer_group.to_dict() == groups and logged.offer_group.isna().sum() == 3
    # nothing is known yet
    code, out, _ = churn(capsys, "uplift", "--workspace", ws)
    assert (code, out.splitlines()[-1]) == (0, "uplift: too few to say") and "0 outcomes" in out
    # the label window passes: every second treated customer buys, and none of the control group
    now = datetime.now(UTC)
    buyers = sorted(i for i, g in groups.items() if g == "treated")[::2]
    purchases_of(s, buyers, now + timedelta(days=30))
    monkeypatch.setenv("CHURN_FEATURES_SERVE_AS_OF", f"{now + timedelta(days=s.features.label_days + 2):%Y-%m-%d}")
    for key, value in {"offer_cost": 2, "saved_margin": 10}.items(): monkeypatch.setenv(f"CHURN_TRAIN_{key.upper()}", str(value))
    code, out, said = churn(capsys, "uplift", "--kept-margin", "25", "--json", tmp_path/"uplift.json", "--workspace", ws)
    found = json.loads((tmp_path/"uplift.json").read_text())
    u, left = found["uplift"], 1 - len(buyers)/counts["treated"]
    assert (code, found["verdict"], said) == (0, "offers keep customers", "")
    assert (u["control"]["rate"], u["treated"]["rate"], u["control"]["customers"], u["treated"]["customers"]) == (1, pytest.approx(left), counts["control"], counts["treated"])
    assert 0 < u["low"] < u["difference"] == pytest.approx(1 - left) and found["money"]["earned"] == pytest.approx(25*(1 - left) - 2)
    assert found["money"]["assumed"] == 8 and found["plan"]["have"] == found["plan"]["known"] == len(groups)
    assert out.splitlines()[-1] == "uplift: offers keep customers" and not any(str(i) in out for i in answers if i > 10**4) # no ids
    # what the watch is fed: the control group, for all
    known = known_outcomes(load_settings({"paths.workspace": str(ws)}))
    assert known.set_index("customer_id").weight.to_dict() == {i: 1/SHARE if g == "control" else 0 for i, g in groups.items()}

def test_a_log_without_groups_is_one_line_and_2(copied, capsys):
    s = copied("few")
    code, out, said = churn(capsys, "uplift", "--workspace", s.paths.workspace)
    assert (code, out, len(said.strip().splitlines())) == (2, "", 1) and "set [serve] control_share" in said

def test_a_file_of_other_origin_is_kept(asked, capsys, tmp_path):
    s, *_ = asked
    (tmp_path/"mine.json").write_text("{}")
    assert churn(capsys, "uplift", "--json", tmp_path/"mine.json", "--workspace", s.paths.workspace)[0] == 2 and (tmp_path/"mine.json").read_text() == "{}"
    assert churn(capsys, "uplift", "--json", tmp_path/"mine.json", "--overwrite", "--workspace", s.paths.workspace)[0] == 0
    assert churn(capsys, "uplift", "--json", tmp_path/"mine.json", "--workspace", s.paths.workspace)[0] == 0 # its own

def test_a_scored_file_has_the_groups_of_the_answers(asked, capsys, monkeypatch, tmp_path):
    s, answers, _ = asked
    pd.DataFrame({"customer_id": [*answers], "transactions_total": 1.}).to_csv(tmp_path/"in.csv", index=False)
    monkeypatch.setenv("CHURN_SERVE_CONTROL_SHARE", str(SHARE))
    code, _, said = churn(capsys, "score", tmp_path/"in.csv", tmp_path/"out.parquet", "--workspace", s.paths.workspace)
    out = pd.read_parquet(tmp_path/"out.parquet")
    assert code == 0 and dict(zip(out.customer_id.astype(int), out.offer_group, strict=True)) == {i: a["offer_group"] for i, a in answers.items()}, said
