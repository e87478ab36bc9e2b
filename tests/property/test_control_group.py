"The control group is a share of the customers whatever their ids are, and the same one in every process, in the API, in a scored file and in SQL."
import json
import random
import subprocess
import sys
import uuid
from types import SimpleNamespace

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hyp
from hypothesis import strategies as st

from churn_nb.batch.readers import CustomerGroups
from churn_nb.core.control_group import control_group_sql, offer_group
from churn_nb.core.errors import SettingsError
from churn_nb.core.manifest import Feature
from churn_nb.core.settings import load_settings
from churn_nb.data.datasets import sample_bound, sample_sql
from churn_nb.data.encoding import entity_key
from churn_nb.monitoring.request_log import AnsweredRows, columns_of
from churn_nb.serving.request_schema import RequestSchema
from paths import own_environment

KINDS = {
    "in a row": lambda r, n: [*range(1, n + 1)], "odd": lambda r, n: [2*i + 1 for i in range(n)], "in steps of a thousand": lambda r, n: [1000*i for i in range(n)],
    "large": lambda r, n: r.sample(range(2**53, 2**63 - 1), n), "negative": lambda r, n: [-i - 1 for i in range(n)],
    "texts": lambda r, n: [entity_key(f"C-{i:05}") for i in range(n)], "UUIDs": lambda r, n: [entity_key(str(uuid.UUID(int=r.getrandbits(128)))) for _ in range(n)]}
many = hyp(max_examples=60, deadline=None, derandomize=True)
shares = st.floats(0, .5)
keys = st.one_of(st.integers(-2**63, 2**63 - 1), st.integers(0, 10**6))

def control(ids, share): return {c for c in ids if offer_group(c, share) == "control"}

@pytest.mark.parametrize("share", [.01, .1, .5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_share_is_the_one_that_was_asked_for(kind, share):
    "20,000 customers: within five standard deviations of the binomial law. Of any third of them as well."
    ids = KINDS[kind](random.Random(5), 20_000)
    for some in (ids, ids[::3]): assert abs(len(control(some, share)) - share*len(some)) < 5*(share*(1 - share)*len(some))**.5

@many
@given(st.lists(keys, max_size=200), shares, shares)
def test_a_larger_share_contains_a_smaller_one(ids, a, b):
    assert control(ids, min(a, b)) <= control(ids, max(a, b)) and control(ids, 0) == set()

def test_the_draw_has_nothing_to_do_with_that_of_samples():
    "Half of 20,000 customers by the hash of samples: a tenth of them is control, as of the others."
    ids = [*range(20_000)]
    con, bound = duckdb.connect(), sample_bound(ids, 10_000)
    sampled = {c for (c,) in con.execute(f"SELECT range AS customer_id FROM range(20000) WHERE {sample_sql(bound).replace('customer_id', 'range')}").fetchall()}
    assert len(sampled) == 10_000 and abs(len(control(sampled, .1)) - 1000) < 5*(10_000*.1*.9)**.5

def test_the_groups_of_today_are_those_of_tomorrow():
    "Fixed values: a release that draws anew would mix the groups of every experiment that is under way."
    assert [offer_group(c, .5) for c in (1, 2, 3, 7, -1, 2**62)] == PINNED
    code = "import json; from churn_nb.core.control_group import offer_group; print(json.dumps([offer_group(c, .1) for c in range(300)]))"
    said = {subprocess.run([sys.executable, "-c", code], env=own_environment(PYTHONHASHSEED=seed), capture_output=True, text=True, check=True).stdout for seed in ("1", "2")}
    assert [json.loads(s) for s in said] == [[offer_group(c, .1) for c in range(300)]]

PINNED = ["treated", "control", "control", "treated", "control", "treated"]

@many
@given(st.lists(keys, min_size=1, max_size=100, unique=True), shares)
def test_sql_and_the_request_log_agree_with_the_api(ids, share):
    con = duckdb.connect()
    con.register("rows", pa.table({"customer_id": pa.array(ids, pa.int64())}))
    assert {c for (c,) in con.execute(f"SELECT customer_id FROM rows WHERE {control_group_sql(share)}").fetchall()} == control(ids, share)
    if share:
        m = SimpleNamespace(version="1", names=["x"], threshold=.5)
        logged = columns_of([AnsweredRows(0, m, np.zeros((len(ids) + 1, 1), np.float32), [.4]*len(ids) + [.6], [*ids, None])], share)
        assert logged["offer_group"].tolist() == [*(offer_group(c, share) for c in ids), None]
        assert set(logged["control_share"]) == {share} and logged["churn_risk"].tolist() == [0]*len(ids) + [1]

spellings = {"as it is": lambda v: v, "as text": str, "between blanks": lambda v: f" {v} "}

@many
@given(st.one_of(st.tuples(st.just("int"), st.integers(0, 2**53)), st.tuples(st.just("text"), st.text("AZaz09-._é@ ", min_size=1, max_size=12).filter(str.strip))), shares, st.sampled_from([*spellings]))
def test_a_scored_file_agrees_with_the_api_however_an_id_is_spelled(drawn, share, spelling):
    kind, value = drawn
    sent = spellings[spelling](value)
    ((key, *_),) = RequestSchema([Feature(name="x")], kind).decode(json.dumps({"customer_id": sent}).encode())
    assert CustomerGroups("id", kind, share).of(pa.chunked_array([[sent]])).to_pylist() == [offer_group(key, share)]

@pytest.mark.parametrize("value", ["-0.1", "0.51", "1", "nan", "some"])
def test_another_share_is_refused_in_one_line(value):
    with pytest.raises(SettingsError, match=r"\[serve\] control_share") as e: load_settings({"serve.control_share": value}, environ={})
    assert "\n" not in str(e.value)
