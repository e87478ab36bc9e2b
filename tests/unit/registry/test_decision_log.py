"The rule of the decision log: which entries take effect."
from hypothesis import given, settings as hyp, strategies as st
from churn_nb.registry.decision_log import latest_promotion, lineage, new_entry, replay
import pytest

actions = st.lists(st.tuples(st.sampled_from(["promoted", "refused", "rolled_back", "adopted"]), st.integers(0, 12), st.integers(1, 4)), max_size=12)
def entries(drawn): return [{"n": n, "id": n, "action": a, "after": after, "version": str(v), "replaces": None} for n, (a, after, v) in enumerate(drawn, 1)]

@hyp(max_examples=300, deadline=None, derandomize=True)
@given(actions)
def test_replay(drawn):
    "One chain: each change that counts follows the one before it; a prefix of the log never changes its meaning; what is sent twice counts once."
    log, last = entries(drawn), 0
    out = replay(log)
    for e, o in zip(log, out):
        counts = e["action"] != "refused" and e["after"] == last
        assert o["action"] == (e["action"] if counts or e["action"] == "refused" else "superseded")
        if counts: last = e["n"]
    assert (latest_promotion(out) or {"n": 0})["n"] == last and (lineage(out) or [None])[-1] == (latest_promotion(out) or {"version": None})["version"]
    for k in range(len(log)): assert replay(log[:k]) == out[:k]
    assert [e["id"] for e in replay([e for e in log for _ in range(2)])] == [e["id"] for e in log]
    assert replay([*log, *log[::-1]]) == out

def test_an_entry_names_what_it_replaces_and_takes_no_unknown_fact():
    first = new_entry("promoted", "1", [], why="the first")
    second = new_entry("promoted", "2", [first | {"n": 1}], git_sha="abc")
    assert (first["replaces"], first["after"], second["replaces"], second["after"], second["git_sha"], second["checks"]) == (None, 0, "1", 1, "abc", [])
    with pytest.raises(TypeError, match="reason"): new_entry("promoted", "1", [], reason="misspelt")
