"A sample of customers is a share of them whatever their ids are, the same ones each time, in Python and in SQL."
import random
import uuid

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hyp
from hypothesis import strategies as st

from churn_nb import features as f
from churn_nb.core.errors import DataError
from churn_nb.core.settings import load_settings
from churn_nb.core.storage import connection
from churn_nb.core.workspace import Workspace
from churn_nb.data.datasets import sample_bound, sample_customers, sample_sql
from churn_nb.data.encoding import entity_key
from churn_nb.feature_store.event_log import customers_of, log_sql, write_base
from churn_nb.feature_store.online import write_watermark
from paths import ROOT

KINDS = {
    "odd": lambda r, n: [2*i + 1 for i in r.sample(range(10*n), n)], "in steps of a thousand": lambda r, n: [1000*i for i in r.sample(range(10*n), n)],
    "in a row": lambda r, n: [*range(1, n + 1)], "large": lambda r, n: r.sample(range(2**53, 2**63 - 1), n), "negative": lambda r, n: [-i - 1 for i in r.sample(range(10*n), n)],
    "texts": lambda r, n: [entity_key(f"C-{i:05}") for i in r.sample(range(10*n), n)], "UUIDs": lambda r, n: [entity_key(str(uuid.UUID(int=r.getrandbits(128)))) for _ in range(n)]}
many = hyp(max_examples=40, deadline=None, derandomize=True)
drawn = st.tuples(st.sampled_from([*KINDS]), st.integers(0, 10**6), st.integers(1, 3000))

def ids_of(kind, seed, n): return KINDS[kind](random.Random(seed), n)
def sampled(ids, about): return set(sample_customers(pd.DataFrame({"customer_id": ids}), about).customer_id)

@many
@given(drawn, st.integers(1, 3000))
def test_a_sample_has_as_many_customers_as_were_asked_for(drawn, about):
    ids = ids_of(*drawn)
    assert len(sampled(ids, about)) == min(about, len(set(ids))) and sampled(ids, about) <= set(ids)
    assert sampled(ids, 0) == set(ids)

@many
@given(drawn, st.data())
def test_a_sample_is_the_same_each_time_and_within_a_larger_one(drawn, data):
    ids = ids_of(*drawn)
    few, more = sorted(data.draw(st.tuples(*[st.integers(1, len(ids))]*2)))
    again = [*ids, *ids[:7]]
    random.Random(1).shuffle(again)
    assert sampled(again, few) == sampled(ids, few) <= sampled(ids, more)

@many
@given(drawn, st.integers(1, 3000))
def test_sql_finds_the_customers_that_python_finds(drawn, about):
    df = pd.DataFrame({"customer_id": ids_of(*drawn)})
    bound = sample_bound(df.customer_id.tolist(), about)
    rows = connection().execute(f"SELECT customer_id FROM df WHERE {sample_sql(bound)}").fetchall()
    assert {c for (c,) in rows} == sampled(df.customer_id, about)

@pytest.mark.parametrize("kind", KINDS)
def test_a_property_of_the_ids_has_its_share_in_the_sample(kind):
    "Every third customer is of one kind: of 1,000 drawn ones 333, within five standard deviations of the hypergeometric law."
    ids = sorted(ids_of(kind, 5, 6000))
    assert abs(len(sampled(ids, 1000) & set(ids[::3])) - 1000/3) < 5*(1000*(1/3)*(2/3)*(5/6))**.5

def test_the_order_is_the_same_for_ever():
    "A workspace keeps the bound of its sample: the order must not depend on machine, release or DuckDB."
    assert sorted(sampled(range(1, 1001), 5)) == FIRST and sample_bound(range(1, 1001), 5) == BOUND
FIRST, BOUND = [168, 236, 363, 381, 610], "01161aaa0b6d1345dd8fe4e481144d84"

@pytest.mark.parametrize("about", [-1, -2000])
def test_a_negative_number_is_refused(tmp_path, about):
    df = pd.DataFrame({"customer_id": [1, 2, 3]})
    with pytest.raises(DataError, match=f"customers = {about}: expected how many"): sample_customers(df, about)
    s = load_settings({"paths.workspace": str(tmp_path), "paths.data": str(ROOT/"data")}, environ={})
    with pytest.raises(DataError, match=f"customers = {about}: expected how many"): f.build(s, about)

def own_data(tmp_path, kind):
    "Settings of a file whose customers have odd numbers."
    odd, r = range(1, 401, 2), random.Random(0)
    if kind == "events":
        rows = pd.DataFrame([(c, f"1997-{m:02}-{1 + c % 28:02}", 5.0 + m) for c in odd for m in range(1, 13) if r.random() < .6], columns=["id", "at", "total"])
        roles = 'entity = "id"\ntimestamp = "at"\namount = "total"\n'
        roles += '[features]\nlabel_days = 30\ntrain_as_of = ["1997-05-01"]\nvalidation_as_of = "1997-07-01"\ntest_as_of = "1997-09-01"\nserve_as_of = "1997-12-31"\n'
    else:
        rows = pd.DataFrame({"id": odd, "spend": [r.random() for _ in odd], "churn": [int(r.random() < .5) for _ in odd]})
        roles = 'entity = "id"\nlabel = "churn"\npositive = "1"\n'
    rows.to_csv(tmp_path/"own.csv", index=False)
    (tmp_path/"own.toml").write_text(f'name = "own"\nkind = "{kind}"\nfile = "own.csv"\n{roles}')
    return load_settings({"paths.workspace": str(tmp_path/"ws"), "data.dataset": str(tmp_path/"own.toml")}, environ={})

@pytest.mark.parametrize("kind", ["events", "snapshot"])
def test_a_build_takes_a_share_of_odd_customers(tmp_path, kind):
    made = f.build(own_data(tmp_path, kind), 150)
    assert made["customers"] == 150

def test_a_refused_number_leaves_the_features_as_they_were(tmp_path):
    s = own_data(tmp_path, "snapshot")
    f.build(s, 150)
    with pytest.raises(DataError): f.build(s, -150)
    assert f.training_rows(s, 150).customer_id.nunique() == 150

def test_a_workspace_of_an_earlier_release_keeps_its_sample(tmp_path):
    "It took the customers whose number something divides, and says so beside its log."
    s = load_settings({"paths.workspace": str(tmp_path), "paths.data": str(ROOT/"data")}, environ={})
    Workspace(tmp_path).open()
    log = pd.DataFrame({"event_id": range(100), "customer_id": range(100), "event_timestamp": pd.Timestamp("1997-01-01", tz="UTC"), "quantity": 1, "amount": 1.0})
    write_base(s, log)
    write_watermark(s, every=10)
    assert customers_of(s) == [*range(0, 100, 10)] and "% 10" in log_sql(s)
