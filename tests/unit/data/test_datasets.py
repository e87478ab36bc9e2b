"Data: the tracked file made again bit by bit, fetched in a clone of its own, and one spoilt cell at a time against the contract."
import csv, datetime as dt, hashlib, io, re, shutil, subprocess, sys
import filelock, numpy as np, pandas as pd, pytest
from hypothesis import given, settings as hyp, strategies as st
from churn_nb.data import datasets as d
from churn_nb.features import build
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace
from paths import ROOT
from refusals import refused
from remotes import remote_object

NAMES = [c.name for c in d.EVENTS]
quick = hyp(max_examples=60, deadline=None, derandomize=True)
md5_of = lambda content: hashlib.md5(content).hexdigest()

def clone(to):
    "What a fresh clone holds of the data: tracked files only, a git folder of its own, no cache, no data/cdnow.csv."
    tracked = subprocess.run(["git", "ls-files", ".dvc", ".dvcignore", ".gitignore", "data", "settings.ini"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for f in tracked:
        (to/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/f, to/f)
    subprocess.run(["git", "init", "-q"], cwd=to, check=True)
    assert not (to/"data/cdnow.csv").exists() and not (to/".dvc/cache").exists()
    return to

def tree(root): return {str(p.relative_to(root)): p.is_file() and (p.read_bytes(), p.stat().st_mtime_ns) for p in root.rglob("*") if p.name != ".cdnow.csv.lock" and ".git" not in p.parts}

# The file and its hash

def test_a_fresh_clone_pulls_and_verifies(tmp_path):
    root = clone(tmp_path)
    want = d.pointer_md5(root/"data/cdnow.csv.dvc")
    assert d.pull(root/"data/cdnow.csv") == f"md5:{want}" and md5_of((root/"data/cdnow.csv").read_bytes()) == want
    before = tree(root)
    s = load_settings({"paths.data": str(root/"data"), "paths.workspace": str(tmp_path/"ws")}, environ={})
    assert d.data_hash(s) == f"md5:{want}" and len(d.load_events(s)) == 69_659 and tree(root) == before

def test_files_written_beside_the_data_are_ignored_by_git(tmp_path):
    root, made = clone(tmp_path), ["data/cdnow.csv", "data/.cdnow.csv.lock"]
    assert not any((root/f).exists() for f in made)
    assert subprocess.run(["git", "check-ignore", *made], cwd=root, capture_output=True, text=True).stdout.split() == made

def spoil_remote(root): (f := remote_object(root)).chmod(0o644), f.write_bytes(f.read_bytes()[:-1] + b"9")

@pytest.mark.parametrize("harm", [spoil_remote, lambda root: remote_object(root).unlink(), lambda root: shutil.rmtree(root/"data/remote")], ids=["tampered", "object missing", "remote missing"])
def test_a_bad_remote_is_one_line_with_a_reason(tmp_path, harm):
    root = clone(tmp_path)
    harm(root)
    line = refused(lambda: d.pull(root/"data/cdnow.csv"), "cdnow.csv")
    assert re.search(r"cdnow\.csv: \S", line), f"no reason given: {line!r}"
    assert not (root/"data/cdnow.csv").exists() # what failed is not left behind as if it were data

def test_a_tampered_file_or_pointer_is_refused(tmp_path):
    data = tmp_path/"data"
    data.mkdir()
    (data/"cdnow.csv").write_text("a,b\n")
    refused(lambda: d.pull(data/"cdnow.csv"), str(data/"cdnow.csv.dvc"), "no such DVC pointer")
    (data/"cdnow.csv.dvc").write_text("outs:\n- path: cdnow.csv\n")
    refused(lambda: d.pull(data/"cdnow.csv"), str(data/"cdnow.csv.dvc"), "no md5")
    shutil.copy(ROOT/"data/cdnow.csv.dvc", data)
    refused(lambda: d.pull(data/"cdnow.csv"), str(data/"cdnow.csv"), md5_of(b"a,b\n"), d.pointer_md5(ROOT/"data/cdnow.csv.dvc"))
    assert (data/"cdnow.csv").read_text() == "a,b\n" # refused, not repaired behind one's back

def test_two_processes_pull_at_once(tmp_path):
    root = clone(tmp_path)
    code = ("import sys\nfrom pathlib import Path\nimport churn_nb.data.datasets as d\nrun = d.subprocess.run\ndef seen(*a, **k): print('dvc', flush=True); return run(*a, **k)\n"
            "d.subprocess.run = seen\nprint('ready', flush=True)\nprint(d.pull(Path(sys.argv[1])))")
    with filelock.FileLock(root/"data/.cdnow.csv.lock"): # both are at the door before it opens
        both = [subprocess.Popen([sys.executable, "-c", code, str(root/"data/cdnow.csv")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        assert [p.stdout.readline() for p in both] == ["ready\n"]*2
    want = f"md5:{d.pointer_md5(root/'data/cdnow.csv.dvc')}\n"
    assert sorted((*p.communicate(), p.returncode) for p in both) == [("dvc\n" + want, "", 0), (want, "", 0)] # one fetches, the other finds it done

# The contract

GOOD = [["1", "7", "1997-01-01", "1", "11.77"], ["2", "7", "1997-01-12 10:30:00", "0", "12.00"], ["3", "8", "1997-01-12", "5", "0"], ["4", "9", "1997-02-01", "2", "1e2"], ["5", "9", "1997-02-02", "2", ".5"]]
BAD = { # (column, why) -> cells that break this rule and no other
    ("event_id", "is not of type BIGINT"): ["x", "9223372036854775808", "1 2", "1,5", "1997-01-01"], ("event_id", "is empty"): [""], ("event_id", "occurs more than once"): ["1", "01", " 1"],
    ("customer_id", "is not of type BIGINT"): ["eight", "-", "1e30"], ("customer_id", "is empty"): [""], ("customer_id", "is negative"): ["-1", "-9223372036854775808"],
    ("event_timestamp", "is not of type TIMESTAMP"): ["1997-02-30", "01/12/1997", "5", "1997-13-01", "yesterday", "1997-01-01 25:00:00"], ("event_timestamp", "is empty"): [""],
    ("event_timestamp", "is not a finite time"): ["-infinity"], ("event_timestamp", "lies in the future"): ["2997-01-12", "infinity", "9999-12-31 23:59:59"],
    ("quantity", "is not of type INTEGER"): ["n/a", "2147483648", "true", "nan"], ("quantity", "is empty"): [""], ("quantity", "is negative"): ["-1"],
    ("amount", "is not of type DOUBLE"): ["$5", "1,5", "12.0.0", "null"], ("amount", "is empty"): [""], ("amount", "is negative"): ["-0.01", "-1e-300", "-1e308"], ("amount", "is not a finite number"): ["nan", "inf", "1e400", "-inf"],
    ("amount", "is 100 trillion or more"): ["1e14", "100000000000000.00", "1e308"]}

def write(path, rows, header=NAMES, end="\n", quoting=csv.QUOTE_MINIMAL):
    buf = io.StringIO()
    csv.writer(buf, lineterminator=end, quoting=quoting).writerows([header, *rows])
    path.write_bytes(buf.getvalue().encode())
    return path

def with_cell(row, column, value): return [[value if (i, n) == (row, column) else v for n, v in zip(NAMES, r)] for i, r in enumerate(GOOD, 1)]

def test_every_rule_of_the_contract_has_a_bad_cell():
    rules = {(c.name, why) for c in d.EVENTS for why in (f"is not of type {c.type}", *c.rules.values(), *["occurs more than once"]*c.unique, *["is empty"]*(not c.nullable))}
    assert rules == set(BAD)

@pytest.mark.parametrize("column, why, value", [(c, why, v) for (c, why), values in BAD.items() for v in values])
def test_one_spoilt_cell_is_found(tmp_path, column, why, value):
    for row in (2, 5):
        f = write(tmp_path/"spoilt.csv", with_cell(row, column, value))
        first, more = (1, " (and 1 more)") if why == "occurs more than once" else (row, "") # of two equal cells the first is named and the other counted
        shown = "1" if first == 1 and row != 1 else value
        assert refused(lambda: d.check_csv(f, d.EVENTS)) == f"{f}: row {first}, column {column}: {repr(shown) if shown else 'the value'} {why}{more}"

@pytest.mark.parametrize("column, value", [("event_id", "7.5"), ("customer_id", "7.5"), ("quantity", "1.5"), ("quantity", "0.4"), ("event_timestamp", "-infinity"), ("event_timestamp", "1997-01-12T01:00:00-11:00")])
def test_no_value_is_changed_by_reading_it(tmp_path, column, value):
    f = write(tmp_path/"x.csv", with_cell(2, column, value))
    if "T" in value: # either the instant it means, or a refusal
        try: assert d.check_csv(f, d.EVENTS)[column][1] == pd.Timestamp("1997-01-12 12:00")
        except d.DataError: pass
    else: refused(lambda: d.check_csv(f, d.EVENTS), f"row 2, column {column}: {value!r}")

def test_the_first_row_is_named_and_the_others_counted(tmp_path):
    rows = with_cell(4, "amount", "-1")
    rows[2][1], rows[2][3], rows[1][4] = "-8", "", "x"
    f = write(tmp_path/"x.csv", rows)
    assert refused(lambda: d.check_csv(f, d.EVENTS)) == f"{f}: row 2, column amount: 'x' is not of type DOUBLE (and 3 more)"

def test_now_is_not_yet_the_future(tmp_path):
    f = write(tmp_path/"x.csv", with_cell(3, "event_timestamp", "1999-01-01 12:00:00"))
    assert len(d.check_csv(f, d.EVENTS, now="1999-01-01 12:00:00")) == 5
    refused(lambda: d.check_csv(f, d.EVENTS, now="1999-01-01 11:59:59"), "row 3, column event_timestamp", "lies in the future")

@pytest.mark.parametrize("header", [NAMES[:-1], NAMES[1:], [*NAMES, "note"], [NAMES[1], NAMES[0], *NAMES[2:]], [*NAMES[:-1], "dollars"], [*NAMES[:-1], "Amount"], [*NAMES[:-1], NAMES[-2]], [" event_id", *NAMES[1:]], ["event_id\n", *NAMES[1:]]])
def test_other_columns_are_refused(tmp_path, header):
    f = write(tmp_path/"x.csv", [], header)
    refused(lambda: d.check_csv(f, d.EVENTS), str(f), "columns are", "expected event_id, customer_id")

@pytest.mark.parametrize("content", [b"", b"\n", b"\0"*300, b"x"*200_000, b"\x89PNG\r\n\x1a\n\0\0", "\ufeffa".encode("utf-16")], ids=["empty", "newline", "nul", "one long word", "png", "utf-16"])
def test_what_is_no_csv_is_refused(tmp_path, content):
    (tmp_path/"x.csv").write_bytes(content)
    refused(lambda: d.check_csv(tmp_path/"x.csv", d.EVENTS), "x.csv")

@pytest.mark.parametrize("line", ["2,7,1997-01-12,1", "2,7,1997-01-12,1,1,1", '2,7,1997-01-12,1,"1', "2,7,1997-01-12,1,\xe9"])
def test_a_broken_line_is_named(tmp_path, line):
    text = "\n".join([",".join(NAMES), ",".join(GOOD[0]), line, ""])
    (tmp_path/"x.csv").write_bytes(text.encode("latin-1"))
    refused(lambda: d.check_csv(tmp_path/"x.csv", d.EVENTS), "x.csv", "row 2")

def test_a_header_alone_gives_no_rows_but_all_types(tmp_path):
    df = d.check_csv(write(tmp_path/"x.csv", []), d.EVENTS)
    assert len(df) == 0 and df.dtypes.astype(str).tolist() == ["int64", "int64", "datetime64[us]", "int32", "float64"]

@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_line_ends_and_quotes_make_no_difference(tmp_path, end, quoting):
    plain, other = d.check_csv(write(tmp_path/"a.csv", GOOD), d.EVENTS), d.check_csv(write(tmp_path/"b.csv", GOOD, end=end, quoting=quoting), d.EVENTS)
    pd.testing.assert_frame_equal(plain, other)
    assert plain.amount.tolist() == [11.77, 12, 0, 100, .5] and plain.event_timestamp[1] == pd.Timestamp("1997-01-12 10:30")

@pytest.mark.parametrize("name", ["with space.csv", "a[1].csv", "a*.csv", "a?.csv", "a'b.csv", "ümläut.csv"])
def test_a_name_is_a_name_and_not_a_pattern(tmp_path, name):
    write(tmp_path/"a1.csv", [["9"]*5]), write(tmp_path/"axx.csv", [["9"]*5])
    assert d.check_csv(write(tmp_path/name, GOOD), d.EVENTS).event_id.tolist() == [1, 2, 3, 4, 5]

def test_a_long_file_keeps_its_order_and_row_numbers(tmp_path):
    n = 700_000
    lines = [f"{i*7919 % 1_000_003},{i % 1000},1997-01-01 00:00:00,1,{i % 97}.25\n" for i in range(1, n + 1)]
    (f := tmp_path/"x.csv").write_text(",".join(NAMES) + "\n" + "".join(lines))
    assert (d.check_csv(f, d.EVENTS).event_id.to_numpy() == np.arange(1, n + 1)*7919 % 1_000_003).all()
    lines[654_320] = lines[654_320].replace(".25", ".2x")
    f.write_text(",".join(NAMES) + "\n" + "".join(lines))
    refused(lambda: d.check_csv(f, d.EVENTS), "row 654321, column amount")

def test_a_refused_load_writes_nothing(tmp_path):
    (data := tmp_path/"data").mkdir()
    spoilt = write(data/"cdnow.csv", with_cell(4, "amount", "-1")).read_bytes()
    (data/"cdnow.csv.dvc").write_text(f"outs:\n- md5: {md5_of(spoilt)}\n  path: cdnow.csv\n")
    s = load_settings({"paths.data": str(data), "paths.workspace": str(tmp_path/"ws")}, environ={})
    why = str(data/"cdnow.csv"), "row 4, column amount: '-1' is negative"
    before = tree(tmp_path)
    refused(lambda: d.load_events(s), *why)
    assert tree(tmp_path) == before
    Workspace(s.paths.workspace).open()  # a build locks the workspace before it reads
    before = tree(tmp_path)
    refused(lambda: build(s), *why)
    after = tree(tmp_path)
    assert {f for f in after if after[f] != before.get(f)} == {"ws/feast/.build.lock", "ws/.churn-workspace"}

logs = st.lists(st.tuples(st.integers(-2**63, 2**63 - 1), st.integers(0, 2**63 - 1), st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2024, 1, 1)),
                          st.integers(0, 2**31 - 1), st.floats(0, 1e14, exclude_max=True)), unique_by=lambda r: r[0], min_size=1, max_size=30)

@quick
@given(logs, st.sampled_from(["\n", "\r\n"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.sampled_from([" ", "T"]))
def test_any_valid_log_is_read_back_exactly(tmp_path_factory, log, end, quoting, sep):
    f = write(tmp_path_factory.getbasetemp()/"log.csv", [[e, c, t.isoformat(sep), q, repr(a)] for e, c, t, q, a in log], end=end, quoting=quoting)
    df = d.check_csv(f, d.EVENTS)
    assert [*zip(df.event_id, df.customer_id, map(pd.Timestamp.to_pydatetime, df.event_timestamp), df.quantity, df.amount)] == log
