"`make release`: what stands against a release, in a repository of its own."
import importlib.util, subprocess
import pytest
from paths import ROOT

spec = importlib.util.spec_from_file_location("release", ROOT/".github/release.py")
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)

@pytest.fixture
def repository(tmp_path):
    (tmp_path/"churn_nb").mkdir()
    (tmp_path/"churn_nb/__init__.py").write_text('"x"\n__version__ = "1.2.0"\n')
    (tmp_path/"CHANGELOG.md").write_text("# Changelog\n\n## [1.2.0] - 2026-12-01\n\n### Added\n- A map.\n\n## [1.1.0] - 2026-11-01\n\n- Old.\n")
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", "t"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path

def test_a_clean_dated_version_is_released(repository):
    assert release.obstacles(repository) == [] and release.notes(repository) == "### Added\n- A map."

def undated(top): (top/"CHANGELOG.md").write_text("## [Unreleased]\n")
def branched(top): subprocess.run(["git", "switch", "-qc", "other"], cwd=top, check=True)
def tagged(top): subprocess.run(["git", "tag", "v1.2.0"], cwd=top, check=True)
def changed(top): (top/"new.txt").touch()

@pytest.mark.parametrize(("what", "said"), [(undated, "give the unreleased section this heading"), (branched, "releases are made from main"), (tagged, "raise __version__"), (changed, "commit them first")])
def test_what_stands_against_a_release_is_said(repository, what, said):
    what(repository)
    assert any(said in o for o in release.obstacles(repository))

def test_a_notes_section_is_only_that_of_the_version(repository):
    assert "Old" not in release.notes(repository)
