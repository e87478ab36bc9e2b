"Categories as codes and back, and names of any text in SQL and stores."
import math
import duckdb, numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from churn_nb.data import encoding as e
from churn_nb.data.encoding import UNSEEN, Dictionary
from churn_nb.core.manifest import Feature

quick = settings(max_examples=100, deadline=None, derandomize=True)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)

@st.composite
def tables(draw):
    n = draw(st.integers(1, 12))
    words = draw(st.lists(texts, min_size=1, max_size=4, unique=True))
    number = draw(st.lists(st.one_of(st.just(math.nan), st.floats(width=32, allow_nan=False)), min_size=n, max_size=n))
    return pd.DataFrame({"number": number, "word": pd.Series(draw(st.lists(st.one_of(st.none(), st.sampled_from(words)), min_size=n, max_size=n)), dtype=object)})

@quick
@given(tables())
def test_decoding_gives_back_what_was_encoded(table):
    d = Dictionary.learn(table, ["number", "word"])
    X = d.encode(table)
    back = d.decode(X)
    assert X.dtype == np.float32 and np.array_equal(back["number"], table.number.to_numpy(np.float32), equal_nan=True)
    assert back["word"].tolist() == [None if v is None else v for v in table.word]
    assert np.array_equal(d.encode(back), X, equal_nan=True)

@quick
@given(tables(), texts)
def test_an_unseen_text_is_shown_as_unseen_and_never_as_itself(table, new):
    d = Dictionary.learn(table, ["number", "word"])
    X = d.encode({"number": [1.], "word": np.array([new], object)})
    seen = new in {*table.word}
    assert (X[0, 1] == -1) == (not seen) and d.decode(X)["word"].tolist() == [new if seen else UNSEEN]
    assert d.feed(X)["categories"].tolist() == [[new if seen else UNSEEN]]

def test_the_dictionary_is_in_alphabetical_order_whatever_the_rows():
    one, two = (Dictionary.learn(pd.DataFrame({"w": list(v)}), ["w"]) for v in ("bca", "aabcc"))
    assert one.values == two.values == [["a", "b", "c"]]

def test_a_manifest_gives_the_dictionary_of_its_model():
    d = Dictionary.of([Feature(name="age"), Feature(name="plan", type="string", values=["m", "y"])])
    assert d.names == ["age", "plan"] and d.values == [None, ["m", "y"]] and d.any and d.texts.tolist() == [1] and d.numbers.tolist() == [0]

@pytest.mark.parametrize("value, want", [("408", 0), (408, 0), (408.0, 0), ("True", 1), (True, 1), ("true", -1), (False, -1), (None, math.nan), ("", math.nan), (" 408\xa0", 0), (408.5, -1)])
def test_a_value_of_a_request_is_spelled_as_a_file_would(value, want):
    found = e.code({"408": 0, "True": 1}, value)
    assert found == want or (math.isnan(found) and math.isnan(want))

@pytest.mark.parametrize("values, inputs", [([None, None], {"features"}), ([["a"], None], {"features", "categories"}), ([["a"], ["b"]], {"categories"})])
def test_a_graph_is_fed_only_what_it_has(values, inputs):
    X = np.array([[0, 0], [np.nan, np.nan]], np.float32)
    fed = Dictionary(["x", "y"], values).feed(X)
    assert {*fed} == inputs and all(len(v) == 2 for v in fed.values())
    if "categories" in fed: assert {*fed["categories"][1]} == {""} # missing

# Keys and names

@quick
@given(st.lists(texts, min_size=2, max_size=30, unique=True))
def test_entity_keys_are_whole_numbers_of_63_bits_and_differ(ids):
    keys = [e.entity_key(i) for i in ids]
    assert all(0 <= k < 2**63 for k in keys) and len({*keys}) == len(ids) and keys == [e.entity_key(i) for i in ids]

def test_an_entity_key_is_the_same_in_every_process_and_release(): assert e.entity_key("C-17") == 7656000731436545839

@quick
@given(texts)
def test_any_name_is_a_column_in_sql(name):
    with duckdb.connect() as con: assert con.execute(f"SELECT 1 AS {e.quoted_name(name)}").description[0][0] == name

@quick
@given(st.lists(texts, min_size=1, max_size=20, unique=True))
def test_names_in_a_store_are_plain_and_differ(names):
    inside = [e.column_name(n) for n in names]
    assert all(n.isidentifier() and n.isascii() for n in inside) and len({*inside}) == len(names)
    assert [i for i, n in zip(inside, names) if n.isascii() and n.isidentifier() and not n.startswith("_")] == [n for n in names if n.isascii() and n.isidentifier() and not n.startswith("_")]
