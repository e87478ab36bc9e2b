"Parts of a run are timed and listed, whatever their exit code; what takes over twice its budget is yellow and fails nothing."
import sys
import part

def test_a_part_is_noted_with_its_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(part, "NOTES", tmp_path/"build"/"parts.tsv")
    assert [part.run(f"exit {n}", "60", sys.executable, "-c", f"raise SystemExit({n})") for n in (0, 3)] == [0, 3]
    assert part.table() == 0
    head, good, bad = capsys.readouterr().out.splitlines()
    assert head == "== parts" and good.startswith("exit 0 ") and good.endswith("budget   60 s") and bad.endswith("FAILED (3)")
    assert part.table() == 0 and capsys.readouterr().out == "== parts\n", "a table forgets what it showed"

def test_only_a_part_over_twice_its_budget_is_yellow():
    assert [part.row("unit", seconds, "100", "0").startswith("\033[33m") for seconds in ("99", "200", "201")] == [False, False, True]
