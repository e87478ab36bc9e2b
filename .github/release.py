"""Tag the version of churn_nb/__init__.py and build its wheel.

    python .github/release.py [--check]     --check changes nothing

Refused, with what to do: a tree that is not clean, a branch other than main, a version that is tagged already, or one that CHANGELOG.md
does not date (`## [X.Y.Z] - YYYY-MM-DD`). The tag is not pushed: `git push origin vX.Y.Z` starts the workflow that publishes it.
"""
import argparse, re, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

def git(*args:str, root:Path=ROOT) -> str:
    return subprocess.run(["git", *args], cwd=root, check=True, capture_output=True, text=True).stdout.strip()

def version(root:Path=ROOT) -> str:
    return re.search(r'^__version__ = "(.+)"$', (root/"churn_nb/__init__.py").read_text(), re.M)[1]

def notes(root:Path=ROOT) -> str:
    "The section of CHANGELOG.md about this version; empty: there is none with a date."
    found = re.search(rf"^## \[{re.escape(version(root))}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)", (root/"CHANGELOG.md").read_text(), re.M | re.S)
    return found[1].strip() if found else ""

def obstacles(root:Path=ROOT) -> list[str]:
    "What stands against a release, a sentence each."
    v, out = version(root), []
    if git("status", "--porcelain", root=root): out.append("the tree has changes that are not committed: commit them first")
    if (branch := git("branch", "--show-current", root=root)) != "main": out.append(f"the branch is {branch or 'detached'}: releases are made from main")
    if git("tag", "--list", f"v{v}", root=root): out.append(f"v{v} is tagged already: raise __version__ in churn_nb/__init__.py")
    if not notes(root): out.append(f"CHANGELOG.md has no section `## [{v}] - YYYY-MM-DD`: give the unreleased section this heading")
    return out

def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="say what stands against a release, and change nothing")
    args, found = parser.parse_args(), obstacles()
    for o in found: print(o, file=sys.stderr)
    if found or args.check: return 2 if found else 0
    subprocess.run([sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "-o", "dist"], cwd=ROOT, check=True)
    git("tag", "-a", f"v{version()}", "-m", f"churn_nb {version()}")
    print(f"== release: v{version()} is tagged and dist/ holds its wheel; `git push origin v{version()}` publishes it")
    return 0

if __name__ == "__main__": sys.exit(main())
