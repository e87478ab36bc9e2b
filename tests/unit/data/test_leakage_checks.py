"Leakage and data-quality checks: one file per check, and the sentence it reports; a file without faults has none."
import numpy as np, pandas as pd, pytest
from churn_nb.core.errors import DataError
from churn_nb.data.schema_inference import DescribeOptions, infer_description
from churn_nb.data.typed_table import prepare

N = 600

def clean(seed=0, n=N, rate=.3):
    "A table that no check objects to."
    rng = np.random.default_rng(seed)
    left = rng.random(n) < rate
    return pd.DataFrame({"customer_id": np.arange(n), "tenure": rng.integers(1, 500, n), "fee": rng.normal(50 + 5*left, 10).round(4),
                         "plan": rng.choice(["basic", "plus", "gold"], n), "minutes": rng.lognormal(5, 1, n).round(3), "churn": left.astype(int)})

def found(tmp_path, df, **how):
    "The description of a table, and its sentences by rule."
    df.to_csv(f := tmp_path/"customers.csv", index=False)
    d = infer_description(f, DescribeOptions(**how))
    return d, {r: [x.sentence for x in d.findings if x.rule == r] for r in {x.rule for x in d.findings}}

def test_a_table_without_faults_is_left_alone(tmp_path):
    d, said = found(tmp_path, clean())
    assert (d.names, said) == (["tenure", "fee", "plan", "minutes"], {})

leaks = {"a number that knows": ("final_bill", lambda df, r: df.churn*100 + r.normal(0, 1, N)),
         "a text that knows": ("status", lambda df, r: np.where(df.churn, "closed", "open")),
         "filled only for those who left": ("reason", lambda df, r: np.where(df.churn, r.choice(["price", "moved"], N), None)),
         "empty only for those who left": ("next_bill", lambda df, r: np.where(df.churn, np.nan, r.normal(0, 1, N).round(4)))}

@pytest.mark.parametrize("what", leaks)
def test_a_column_that_leaks_the_label_is_dropped_and_reported(tmp_path, what):
    name, make = leaks[what]
    df = clean()
    df[name] = make(df, np.random.default_rng(1))
    d, said = found(tmp_path, df)
    assert name not in d.names and len(said["leak"]) == 1 and said["leak"][0].startswith(f"{name}: ") and "left out" in said["leak"][0]
    assert name in found(tmp_path, df, keep=(name,))[0].names # whoever knows better

def test_a_good_feature_is_no_leak(tmp_path):
    df = clean()
    df["usage"] = df.churn*3 + np.random.default_rng(1).normal(0, 1, N) # AUC about .98
    assert "usage" in found(tmp_path, df)[0].names

nearly = {"a number": ("calls", lambda df, r: df.churn*2 + r.normal(0, 1, N)),
          "a text": ("state", lambda df, r: np.where(df.churn ^ (r.random(N) < .08), "a", "b")),
          "the label's word": ("Churn-Score", lambda df, r: r.normal(0, 1, N).round(4))}

@pytest.mark.parametrize("what", nearly)
def test_a_column_that_nearly_knows_is_kept_with_a_sentence(tmp_path, what):
    name, make = nearly[what]
    df = clean()
    df[name] = make(df, np.random.default_rng(1))
    d, said = found(tmp_path, df)
    assert name in d.names and len(said["near leak"]) == 1 and said["near leak"][0].startswith(f"{name}: it nearly knows the answer")

@pytest.mark.parametrize("what", leaks)
def test_a_leak_that_was_asked_to_stay_gets_its_sentence(tmp_path, what):
    name, make = leaks[what]
    df = clean()
    df[name] = make(df, np.random.default_rng(1))
    d, said = found(tmp_path, df, keep=(name,))
    assert name in d.names and [s.partition(":")[0] for s in said["near leak"]] == [name] and "it is kept" in said["near leak"][0]

def test_a_date_after_the_rows_own_time_is_dropped(tmp_path):
    df = clean().assign(as_of="2025-01-01", closed_on=lambda d: np.where(d.churn, "2025-02-11", ""))
    d, said = found(tmp_path, df)
    assert "closed_on" not in d.names and any("lie after as_of, so it was written down afterwards" in s for s in said["leak"])

useless = {"constant": ("country", lambda df, r: "DE", "same value in all"), "numbered rows": ("no", lambda df, r: np.arange(N) + 7, "is an id"),
           "an id in text": ("mail", lambda df, r: [f"a{i}@example.org" for i in range(N)], "ids or prose"), "empty": ("fax", lambda df, r: None, "it is empty")}

@pytest.mark.parametrize("what", useless)
def test_columns_that_mean_nothing_are_dropped_and_reported(tmp_path, what):
    name, make, words = useless[what]
    df = clean()
    df[name] = make(df, np.random.default_rng(1))
    d, said = found(tmp_path, df)
    assert name not in d.names and len(said["useless"]) == 1 and name in said["useless"][0] and words in said["useless"][0]

def test_the_second_of_two_equal_columns_is_dropped(tmp_path):
    d, said = found(tmp_path, clean().assign(fee_again=lambda df: df.fee, plan_again=lambda df: df["plan"], nearly=lambda df: df.fee.where(df.index != 3, 0)))
    assert d.names == ["tenure", "fee", "plan", "minutes", "nearly"] and said["duplicate"] == [
        "fee_again: equal to fee in all rows; left out", "plan_again: equal to plan in all rows; left out"]

def test_near_duplicate_rows_share_a_number_for_the_split(tmp_path):
    "So the split keeps them on one side."
    df = clean()
    df = pd.concat([df, df[:40].assign(customer_id=lambda d: d.customer_id + N, fee=lambda d: d.fee*1.0001)])
    d, said = found(tmp_path, df)
    assert len(said["twins"]) == 1 and "stay on one side of the split" in said["twins"][0]
    prepare(d, tmp_path/"out.parquet")
    rows = pd.read_parquet(tmp_path/"out.parquet").set_index("customer_id")
    same = (rows.twin[:40].to_numpy() == rows.twin.loc[N:].to_numpy()).mean()
    assert same > .9 # the rest was rounded to another third digit

def test_extreme_imbalance_is_noted_with_what_to_look_at(tmp_path):
    df = clean(n=20_000)
    df["churn"] = (np.arange(len(df)) % 250 == 0).astype(int)
    _, said = found(tmp_path, df)
    assert "0.40% left, so accuracy says nothing here" in said["imbalance"][0] and "only 80 customers left" in said["few"][0]

def test_too_few_of_a_class_are_refused(tmp_path):
    df = clean()
    df["churn"] = (np.arange(N) < 12).astype(int)
    with pytest.raises(DataError, match="12 customers left and 588 stayed; at least 20 of each"): found(tmp_path, df)

def test_rows_without_a_label_are_left_out_and_counted(tmp_path):
    d, said = found(tmp_path, clean().assign(churn=lambda df: df.churn.astype(object).where(df.index % 60 > 0, None)))
    assert said["unlabelled"] == ["churn: 10 rows without a label are not used for training"]
    assert prepare(d, tmp_path/"out.parquet")["rows"] == N - 10

def test_few_invalid_numbers_are_missing_and_many_make_text(tmp_path):
    "The limit is a twentieth of the values."
    mixed = lambda every: clean().assign(fee=lambda df: df.fee.astype(str).where(df.index % every > 0, "unknown"))
    d, said = found(tmp_path, mixed(40))
    assert "fee" not in d.categories and "15 of 600 values are no numbers (unknown) and count as missing" in said["mixed"][0]
    prepare(d, tmp_path/"out.parquet")
    assert pd.read_parquet(tmp_path/"out.parquet").fee.isna().sum() == 15
    assert "fee" not in found(tmp_path, mixed(5))[0].names # prices as text are ids or prose

def test_dates_as_text_are_left_out_and_reported(tmp_path):
    for text in ("2024-03-{:02}", "{}.3.2024", "{}/3/2024"):
        d, said = found(tmp_path, clean().assign(since=[text.format(i % 28 + 1) for i in range(N)]))
        assert "since" not in d.names and "dates as text" in said["date"][0], text

def test_thousands_separators_are_read_and_reported(tmp_path):
    d, said = found(tmp_path, clean().assign(revenue=lambda df: (df.fee*1000).map("${:,.2f}".format)))
    assert "have thousands separators" in said["thousands"][0]
    prepare(d, tmp_path/"out.parquet")
    np.testing.assert_allclose(pd.read_parquet(tmp_path/"out.parquet").revenue, clean().fee*1000, rtol=1e-4)

def test_every_spelling_of_missing_is_missing_and_listed(tmp_path):
    spellings = ["?", "NA", "-", " ", "n/a", "null"]
    fee = clean().fee.astype(str)
    for i, s in enumerate(spellings): fee[i] = s
    d, said = found(tmp_path, clean().assign(fee=fee))
    assert len(said["missing"]) == 1 and all(repr(s) in said["missing"][0] for s in spellings)
    prepare(d, tmp_path/"out.parquet")
    assert pd.read_parquet(tmp_path/"out.parquet").fee.isna().tolist() == [True]*6 + [False]*(N - 6)

def test_names_in_any_alphabet_are_kept(tmp_path):
    d, said = found(tmp_path, clean().rename(columns={"fee": "Gebühr (€)", "plan": "料金プラン", "tenure": "срок"}))
    assert d.names == ["срок", "Gebühr (€)", "料金プラン", "minutes"] and said == {}

@pytest.mark.parametrize("rows, columns", [(1000, 500), (200_000, 6)])
def test_wide_and_long_files_pass_within_a_bound_of_memory(tmp_path, rows, columns):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.normal(size=(rows, columns - 2)).round(3), columns=[f"x{i}" for i in range(columns - 2)])
    df.assign(id=np.arange(rows), churn=(rng.random(rows) < .2).astype(int)).to_csv(f := tmp_path/"big.csv", index=False)
    d = infer_description(f, memory_limit="700MB")
    assert (len(d.names), prepare(d, tmp_path/"out.parquet", memory_limit="700MB")["rows"]) == (columns - 2, rows)

def test_each_finding_is_one_line_that_names_its_column(tmp_path):
    df = clean().assign(country="DE", fee=lambda d: d.fee.astype(str).where(d.index % 50 > 0, "?"), since="2024-01-02", final=lambda d: d.churn*9.)
    d, _ = found(tmp_path, df)
    assert len(d.findings) >= 4 and all("\n" not in f.sentence and f.sentence.startswith(f.column) and f.action in ("dropped", "changed", "noted") for f in d.findings)
