"What a column is taken for: types, keys and the sense of the label."
from pathlib import Path
import duckdb, numpy as np, pytest
from churn_nb.core.errors import DataError
from churn_nb.data.column_profiles import find_positive, label_sense
from customer_tables import N, customers

def labelled(values, name="churn"):
    "Customers of whom those who left have the first value."
    df = customers()
    return df.assign(churn=np.where(df.churn == "yes", *values)).rename(columns={"churn": name}), (df.churn == "yes").to_numpy()

SENSES = [(("yes", "no"), "churn"), (("True", "False"), "Exited"), (("1", "0"), "is_churn"), (("1.0", "0.0"), "left"), (("ja", "nein"), "Gekündigt"),
          (("no", "yes"), "active"), (("False", "True"), "isActive"), (("0", "1"), "retained"), (("N", "Y"), "is_customer"), (("0", "1"), "not_churned"),
          (("Attrited Customer", "Existing Customer"), "kind"), (("inactive", "active"), "status"), (("blocked", "active"), "status"),
          (("churned", "active"), "active"), (("no renewal", "renewed"), "end"), (("goes", "stays"), "state"), (("closed", "open"), "churn")]

def decide(values, name, given=""):
    "What is decided of a label in which 30 of 100 rows have the first value."
    with duckdb.connect() as con:
        con.execute("CREATE TABLE raw AS SELECT ?[1 + (i >= 30)::INT] AS c0 FROM range(100) AS t(i)", [list(values)])
        return find_positive(con, "c0", given, name, Path("f.csv"))

@pytest.mark.parametrize("values, name", SENSES)
def test_those_who_left_are_the_positive_class(values, name):
    positive, findings = decide(values, name)
    assert positive == values[0] and bool(findings) == (values[0] in ("no", "False", "0", "N", "blocked", "goes"))
    assert not findings or f"{values[0]} (30.0%) means left" in findings[0].sentence

@pytest.mark.parametrize("values, name", [(("rare", "usual"), "churn"), (("1", "0"), "target"), (("yes", "no"), "flag"), (("1", "2"), "churn"), (("left early", "left late"), "exit"), (("yes", "no"), "left_or_active")])
def test_a_label_without_a_sense_is_asked_for(values, name):
    with pytest.raises(DataError) as e: decide(values, name)
    assert all(v in str(e.value) for v in (f"label {name}", "--positive", *values, "30.0%", "70.0%"))
    assert decide(values, name, values[1])[0] == values[1]

@pytest.mark.parametrize("values, name", [(("odszedł", "pozostał"), "stan"), (("tak", "nie"), "rezygnacja"), (("ayrıldı", "kaldı"), "durum"), (("evet", "hayır"), "churn"), (("解約", "継続"), "状態"), (("はい", "いいえ"), "退会"), (("да", "нет"), "ушёл"), (("ano", "ne"), "churn")])
def test_words_of_a_language_without_a_list_are_asked_for(values, name):
    with pytest.raises(DataError) as e: decide(values, name)
    assert all(v in str(e.value) for v in (f"label {name}", "--positive", *values, "30.0%", "70.0%"))
    assert [decide(values, name, v)[0] for v in values] == [*values]

@pytest.mark.parametrize("name", ["není_aktivní", "ikke_aktiv", "inte aktiv", "nem_aktív", "not_active", "nicht_aktiv"])
def test_a_negated_name_means_left(name): assert decide(("1", "0"), name)[0] == "1"

def test_a_stated_value_wins_and_a_contradiction_is_said(read):
    df, left = labelled(("no", "yes"), "active")
    d, out, _ = read(df, label="active", positive="YES")
    assert out.churn.astype(bool).tolist() == (~left).tolist() and any("the opposite" in f.sentence for f in d.findings)

def test_spellings_of_a_label_are_one_value(read):
    rng = np.random.default_rng(3)
    for left_as, stayed_as in [(["Yes", "yes", " YES", "yes "], ["No", "no", "NO"]), (["1", "1.0", "01"], ["0", "0.0", "0.00"]), (["É cancelado", "e\u0301  CANCELADO"], ["ativo", "Ativo"])]:
        df, left = labelled(("a", "b"))
        df["churn"] = np.where(left, rng.choice(left_as, N), rng.choice(stayed_as, N))
        d, out, _ = read(df)
        assert out.churn.astype(bool).tolist() == left.tolist() and any("differ only in spelling" in f.sentence for f in d.findings)

def test_a_negation_turns_the_sense_round():
    words = ["churned", "active", "renewed", "cancelled", "left", "Existing", "résilié", "loyal"]
    assert all(label_sense(w) == -label_sense(f"not {w}") == -label_sense(f"no_{w}") != 0 for w in words)

def test_whole_numbers_stay_keys_and_codes_with_zeros_stay_texts(read):
    d, out, _ = read(customers(zip=[f"0{1000 + i % 9}" for i in range(N)]).assign(id=np.arange(N) + 2**61))
    assert out.customer_id.tolist() == (np.arange(N) + 2**61).tolist() and "zip" in d.categories and out.zip[0] == "01000"
