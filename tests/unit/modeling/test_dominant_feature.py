"A table's model that relies on one column far more than on the others is said to, by card, summary and report."
import pytest
from churn_nb.modeling.model_card import dominant_feature
from churn_nb.ops.run_report import _metrics, _training_summary

DOMINANT = {"importance": {"final bill": .4, "age": .005, "plan": -.001}}
RESULT = DOMINANT | {"winner": "trees", "version": "3", "baseline_name": "base_rate", "test": {"log_loss": .1}, "baseline": {"log_loss": .4}}

def test_the_factor_and_the_flag_are_named():
    assert dominant_feature(DOMINANT) == ("final bill: its importance is 80 times that of the next feature, age, so it may know the answer; "
                                      "if it was not known before the customers left, leave it out with --drop 'final bill'")

@pytest.mark.parametrize("gains", [{}, {"a": .4}, {"a": .04, "b": .01}, {"a": .001, "b": -.01}, {"b": .02, "a": .1}])
def test_nothing_is_said_of_usual_importances(gains): assert dominant_feature({"importance": gains}) == ""

@pytest.mark.parametrize("rest", [0, -.01, 1e-9])
def test_no_factor_is_made_up_where_the_next_is_nothing(rest):
    assert "more than 1,000 times" in dominant_feature({"importance": {"a": .3, "b": rest}})

def test_nothing_is_said_of_a_log(): assert dominant_feature(DOMINANT | {"monotone_in_recency": {}}) == ""

def test_summary_and_report_say_it():
    assert dominant_feature(DOMINANT) in _training_summary(RESULT) and _metrics(RESULT)["dominant"] == dominant_feature(DOMINANT)
    usual = RESULT | {"importance": {"a": .04, "b": .03}}
    assert _training_summary(usual).endswith("baseline 0.4000") and not _metrics(usual)["dominant"]
