"""The course as a web site: every notebook as it is stored, the measurements, the last run and every public function, as static HTML.

    python docs/build.py            into build/site; open build/site/index.html, no server is needed

Nothing is fetched, neither while building nor while reading: formulas become MathML, the search is a script beside the pages. Links between
notebooks lead to their pages; a link to any other file of the repository leads to a page that shows the file.
"""
import argparse, ast, html, json, os, posixpath, re, shutil, sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote
import jinja2, nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer, TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from rooms import page as map_of_rooms

ROOT, HERE = Path(__file__).resolve().parent.parent, Path(__file__).resolve().parent
START = ["nbs/index.ipynb", "bench/RESULTS.md", "bench/CAPACITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/decisions/README.md", "map", "run"]
MARK = ".churn-site" # in the folder of a site, written first
PLAIN = HtmlFormatter(cssclass="highlight")

@dataclass
class Page:
    "One page; `source` is the file it shows, from the top folder, with / between its parts."
    url: str
    title: str
    html: str
    source: str = ""
    short: str = ""
    summary: str = ""
    text: str = ""            # What the search looks at; empty: not searched
    headings: list[dict] = field(default_factory=list)
    base: str = ""            # File from whose place its links count, where that is not `source`

def formulas(markdown:str) -> tuple[str, list[str]]: # Text with marks in place of formulas; MathML of each
    "Take $...$ and $$...$$ out of Markdown, but not out of code, so that no underscore of theirs is taken for emphasis."
    found = []
    named = lambda m: "\\text{" + m[1].replace("\\_", "_") + "}" # the converter knows \_ nowhere, and _ in \text
    def mathml(m):
        if m["code"]: return m[0]
        tex = re.sub(r"\\(?:mathrm|mathit|texttt|text)\{([^{}]*\\_[^{}]*)\}", named, m["block"] or m["inline"])
        found.append(convert(tex, display="block" if m["block"] else "inline"))
        return f"\x02{len(found) - 1}\x03"
    return re.sub(r"(?P<code>^```.*?^```|`[^`\n]+`)|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", mathml, markdown, flags=re.S | re.M), found

def prose(markdown:str) -> str:
    "Markdown with formulas as HTML."
    text, found = formulas(markdown)
    return re.sub("\x02(\\d+)\x03", lambda m: found[int(m[1])], markdown2html(text))

def code(source:str, lexer=None) -> str:
    return f'<div class="in">{highlight(source, lexer or PythonLexer(), PLAIN)}</div>'

_exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
def outputs(cell) -> str:
    "What a cell showed, by nbconvert; tables as tables, pictures inside the page."
    if not cell.get("outputs"): return ""
    nb = nbformat.v4.new_notebook(cells=[nbformat.from_dict({**cell, "metadata": {}, "source": ""})])
    return f'<div class="out">{_exporter.from_notebook_node(nb)[0]}</div>'

def only_imports(source:str) -> bool:
    "Imports and nothing else; a cell of a magic command is none."
    try: statements = ast.parse(source).body
    except SyntaxError: return False
    return bool(statements) and all(isinstance(s, ast.Import | ast.ImportFrom) for s in statements)

def cell_html(cell) -> str:
    "A cell for readers: without the exporter's directives; what is hidden in a lesson is folded."
    source = "".join(cell["source"])
    if cell["cell_type"] != "code": return prose(source)
    if source.startswith("#| default_exp"): return ""
    directives = re.match(r"(#\|.*\n?)*", source)[0]
    shown = source[len(directives):].strip("\n")
    solution = re.match(r"# (Solution \d+)", shown)
    parameters = "parameters" in cell["metadata"].get("tags", [])
    if not re.search(r"hide\b", directives) and not parameters and not only_imports(shown): return code(shown) + outputs(cell)
    name = solution[1] if solution else "Parameters" if parameters else "Imports" if re.match(r"import|from", shown) else "Behind the lesson"
    return f'<details class="fold"><summary>{name}</summary>{code(shown)}{outputs(cell)}</details>'

def plain(fragment:str) -> str:
    "The words of HTML."
    words = re.sub(r"<(style|script|svg|math)\b.*?</\1>", " ", fragment, flags=re.S)
    words = re.sub(r"<[^>]+>", " ", re.sub(r"</?(span|a|code|em|strong)\b[^>]*>", "", words))
    return " ".join(html.unescape(words).replace("¶", " ").split())

def finished(page:Page) -> Page:
    "With what navigation and search need to know."
    page.headings = [{"level": int(m[1]), "id": m[2], "text": plain(m[3])} for m in re.finditer(r'<h([1-4]) id="([^"]+)">(.*?)</h\1>', page.html, re.S)]
    if page.headings: page.title = page.headings[0]["text"]
    page.text = plain(page.html)
    page.summary = html.escape(page.summary or page.text.removeprefix(page.title)[:150])
    page.short = page.short or page.title
    return page

def notebook(path:Path, url:str="", source:str="") -> Page:
    nb = nbformat.read(path, 4)
    summary = re.search(r"^> (.+)", "".join("".join(c["source"]) + "\n" for c in nb["cells"][:1]), re.M)
    body = "\n".join(cell_html(c) for c in nb["cells"])
    if not source: url, source = path.relative_to(ROOT/"nbs").with_suffix(".html").as_posix(), path.relative_to(ROOT).as_posix()
    return finished(Page(url, path.stem, body, source, summary=plain(summary[1]) if summary else ""))

def notebook_title(path:Path) -> str:
    return "".join(nbformat.read(path, 4).cells[0].source).partition("\n")[0].removeprefix("# ").replace("`", "")

def document(source:str) -> Page:
    return finished(Page(re.sub(r"\.md$", ".html", source), source, prose((ROOT/source).read_text()), source))

def signature(lines:list[str], node:ast.AST) -> str:
    "The head of a function or class as it is written, with its comments."
    start, end = min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.body[0].lineno - 1
    return "\n".join(lines[start - 1:max(end, node.lineno)])

def described(lines:list[str], node, level:int=2, inside:str="") -> str:
    "Heading, head and docstring of a function or class, and of a class its public methods."
    name, words = inside + node.name, ast.get_docstring(node) or ""
    head = signature(lines, node)
    if isinstance(node, ast.ClassDef): # its fields with their comments
        head = "\n".join([head, *(l for n in node.body if isinstance(n, ast.AnnAssign) for l in lines[n.lineno - 1:n.end_lineno])])
    parts = [f'<h{level} id="{name}"><code>{name}</code></h{level}>', prose(html.escape(words, quote=False)), code(head)]
    if isinstance(node, ast.ClassDef):
        parts += [described(lines, n, 3, f"{node.name}.") for n in node.body
                  if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and not n.name.startswith("_") and ast.get_docstring(n)]
    return "\n".join(parts)

def reference(module:Path) -> Page|None: # None: exports nothing
    "Every public function and class of a module; read, not imported."
    text = module.read_text()
    tree, lines = ast.parse(text), text.splitlines()
    origin = re.search(r"File to edit: (?:\.\./)+(nbs/[\w/]+\.ipynb)", text)
    shown = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    if not origin or not shown: return None
    source, name = module.relative_to(ROOT), ".".join(module.relative_to(ROOT/"churn_nb").with_suffix("").parts)
    book = posixpath.relpath(origin[1], source.parent.as_posix())
    intro = f'<h1 id="{module.stem}"><code>churn_nb.{name}</code></h1>{prose(ast.get_docstring(tree) or "")}<p>Explained in <a href="{book}">{html.escape(notebook_title(ROOT/origin[1]))}</a>.</p>'
    return finished(Page(f"api/{name.replace('.', '/')}.html", name, intro + "\n".join(described(lines, n) for n in shown), source.as_posix(), name))

def last_run(workspace:Path) -> list[Page]:
    "The report of the last run in a workspace, and its executed notebooks."
    reports = sorted((workspace/"reports").glob("[0-9]*.html"))
    if not reports:
        return [finished(Page("run.html", "The last run", '<h1 id="run">The last run</h1><p>There was none where this site was built. <code>make pipeline</code> makes one; then build the site again.</p>', short="The last run"))]
    body = reports[-1].read_text().split("</style>", 1)[1].removesuffix("</html>").replace("<h1>", '<h1 id="run">')
    run = workspace/"runs"/reports[-1].stem
    pages = [notebook(n, f"run/{n.stem}.html", f"runs/{n.name}") for n in sorted(run.glob("*.ipynb"))]
    for p in pages: p.text, p.short, p.base = "", f"run: {p.short}", f"nbs/{Path(p.url).stem}.ipynb" # a search should find the lessons themselves
    for p in pages: body = body.replace(f"../runs/{run.name}/{Path(p.url).stem}.ipynb", p.url)
    return [finished(Page("run.html", "The last run", body, short="The last run")), *pages]

class Site:
    "All pages, and where a link to a file of the repository leads."
    def __init__(self, out:Path, workspace:Path):
        self.out, self.files, self.broken = out, {}, []
        books = [notebook(p) for p in sorted((ROOT/"nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
        self.books = len(books)
        texts = [document(str(p.relative_to(ROOT))) for pattern in ("*.md", "bench/*.md", "data/*.md", "docs/decisions/*.md") for p in sorted(ROOT.glob(pattern)) if p != ROOT/"README.md"]
        self.api = [p for m in sorted((ROOT/"churn_nb").rglob("*.py")) if m.name[0] != "_" and (p := reference(m))]
        self.map = [finished(Page("map.html", "The map of the package", map_of_rooms()))] if (ROOT/"churn_nb").is_dir() else []
        self.run = last_run(workspace)
        self.pages = [*books, *texts, *self.api, *self.map, *self.run]
        self.by_source = {p.source: p.url for p in self.pages if p.source and not p.source.startswith("churn_nb/")} | {"README.md": "index.html"}

    def groups(self) -> list[tuple[str, list[Page]]]:
        "The menu: notebooks by room, in the order of the tables of the index; a notebook in no table is reported as broken."
        by = {p.source or p.url.removesuffix(".html"): p for p in self.pages}
        out = {"Start": START, "The five lessons": [s for s in sorted(by) if re.match(r"nbs/0\d_", s)]}
        index = ROOT/"nbs/index.ipynb"
        tables = "".join(c.source for c in nbformat.read(index, 4).cells) if index.exists() else ""
        for room, about, book in re.findall(r"^\| (?:\*\*(.+?)\*\*, (.+?))? \| \[.+?\]\((.+?\.ipynb)\) \|", tables, re.M):
            if room: subject = f"{room}: {about}"
            out.setdefault(subject, []).append(f"nbs/{book}")
        listed = {s for sources in out.values() for s in sources}
        self.broken += [f"nbs/index.ipynb: {s} is in none of its tables" for s in sorted(by) if s.startswith("nbs/") and s not in listed]
        return [*((name, [by[s] for s in sources if s in by]) for name, sources in out.items()), ("Functions", self.api)]

    def target(self, link:str, page:Page) -> str: # From the top of the site
        "Where a link of a page leads; files of the repository become pages."
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.base or page.source or page.url), unquote(link)))
        if path in self.by_source: return self.by_source[path]
        if (self.out/path).exists() or any(p.url == path for p in self.pages): return path
        file = ROOT/path
        if not file.exists():
            self.broken.append(f"{page.source or page.url}: link to {link}: no such file")
            return link
        if file.suffix in (".png", ".svg"): self.files[path] = path
        elif path not in self.files: self.files[path] = f"files/{path if path != '.' else 'repository'}.html"
        return self.files[path]

    def linked(self, page:Page) -> str:
        "The page's HTML with its links counted from where the page is."
        base = posixpath.dirname(page.url) or "."
        def here(m):
            link, _, anchor = m["link"].partition("#")
            if not link or re.match(r"[a-z]+:", link): return m[0]
            return f'{m["tag"]}"{posixpath.relpath(self.target(link, page), base)}{"#" + anchor if anchor else ""}"'
        return re.sub(r'(?P<tag><(?:a|img)\b[^<>]*?\b(?:href|src)=)"(?P<link>[^"]*)"', here, page.html)

    def source_page(self, path:str, url:str) -> Page:
        "A file or folder of the repository, to be looked at."
        file = ROOT/path
        if file.is_dir():
            inside = sorted(p for p in file.iterdir() if not p.name.startswith((".", "__")) and p.name not in ("build", "work"))
            body = "<ul>" + "".join(f'<li>{html.escape(p.name)}{"/" if p.is_dir() else ""}</li>' for p in inside) + "</ul>"
        else:
            try: lexer = get_lexer_for_filename(file.name)
            except ClassNotFound: lexer = TextLexer()
            body = code(file.read_text(errors="replace")[:100_000], lexer)
        return Page(url, path, f"<h1>{html.escape(path)}</h1>{body}", path, path, f"{path} of churn_nb")

    def write(self) -> int: # Number of pages
        if self.out.exists(): shutil.rmtree(self.out)
        self.out.mkdir(parents=True)
        (self.out/MARK).write_text("docs/build.py made this folder and replaces it\n")
        template = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=False, trim_blocks=True).get_template("page.html")
        groups = self.groups()
        order = [p for _, pages in groups for p in pages]
        def put(page, body):
            at = order.index(page) if page in order else None
            before, after = (order[at + d] if at is not None and 0 <= at + d < len(order) else None for d in (-1, 1))
            file = self.out/page.url
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(template.render(page=Page(**{**vars(page), "html": body}), groups=groups, before=before, after=after, root="../"*page.url.count("/")))
        for page in self.pages: put(page, self.linked(page))
        for path, url in sorted(self.files.items()):
            if url == path:
                (self.out/url).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT/path, self.out/url)
            else: put(page := self.source_page(path, url), page.html)
        themes = [(":root", "default"), ('[data-theme="dark"]', "github-dark")]
        styles = [HtmlFormatter(style=style).get_style_defs(f"{where} .highlight") for where, style in themes]
        styles.append("@media (prefers-color-scheme: dark) { " + HtmlFormatter(style="github-dark").get_style_defs(':root:not([data-theme="light"]) .highlight') + " }")
        (self.out/"site.css").write_text("\n".join([*styles, (HERE/"site.css").read_text()]))
        shutil.copy(HERE/"site.js", self.out)
        known = [{"url": p.url, "title": p.title, "headings": " ".join(h["text"] for h in p.headings), "text": p.text} for p in self.pages if p.text]
        (self.out/"pages.js").write_text("const PAGES = " + json.dumps(known, ensure_ascii=False, separators=(",", ":")) + "\n")
        return len(self.pages) + sum(url != path for path, url in self.files.items())

def replaceable(out: Path) -> bool: # The folder goes away with all that it holds
    if not out.exists() or out.is_dir() and not any(out.iterdir()): return True
    pages = out/"pages.js" # of a site from before the mark
    return (out/MARK).is_file() or pages.is_file() and pages.read_bytes().startswith(b"const PAGES = ")

def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT/"build/site", help="folder, replaced if it holds a site (default: build/site)")
    parser.add_argument("--workspace", type=Path, default=Path(os.environ.get("CHURN_PATHS_WORKSPACE", ROOT/"work")), help="whose last run is shown (default: work)")
    args = parser.parse_args()
    if not replaceable(args.out):
        print(f"{args.out}: exists and is not a site that docs/build.py made; choose another folder with --out", file=sys.stderr)
        return 2
    n = (site := Site(args.out, args.workspace)).write()
    print(*site.broken, f"{os.path.relpath(args.out)}/index.html and {n - 1} more pages; {site.books} notebooks, {len(site.api)} modules", sep="\n")
    return 2 if site.broken else 0

if __name__ == "__main__": sys.exit(main())
