"""Stages the pages for the site, and checks what came out of it.

    .ci/site.py stage    docs into build/pages
    .ci/site.py check    site: links, anchors, and that nothing is asked of another host

The pages are written to be read in the repository. A link that leaves `docs/` becomes the name of
the file, as the site has no files of the repository. The drawing is done by mermaid's script, which
comes from npm; without npm the site shows the drawing's text.
"""

import html.parser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "pages"
SITE = ROOT / "site"
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)")


def stage() -> None:
    """Copies the pages, and what they need."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES)
    for page in PAGES.rglob("*.md"):
        text = OUTSIDE.sub(_named, page.read_text(encoding="utf-8"))
        if not _mermaid():
            text = text.replace("```mermaid\n", "```text\n")
        page.write_text(text, encoding="utf-8")


def _named(link: re.Match[str]) -> str:
    words, file = link[1], link[2]
    return f"`{file}`" if words.strip("`") in file else f"{words} (`{file}`)"


def _mermaid() -> bool:
    """Whether mermaid's script is there; it is fetched once."""
    script = PAGES / "mermaid.min.js"
    kept = ROOT / ".venv" / "mermaid" / "node_modules" / "mermaid" / "dist" / script.name
    if not kept.exists() and shutil.which("npm"):
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        prefix = ["--prefix", str(ROOT / ".venv" / "mermaid"), "mermaid@12"]
        subprocess.run([*command, *prefix], check=False, capture_output=True, timeout=120)
    if not kept.exists():
        script.write_text("// Not here: npm was not.\n", encoding="utf-8")
        return False
    shutil.copy(kept, script)
    return True


class Read(html.parser.HTMLParser):
    """What a page has, links to, and loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids, self.links, self.loads = set[str](), list[str](), list[str]()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Notes ids, links and what is loaded."""
        found = {name: value or "" for name, value in attributes}
        self.ids.update(found[name] for name in ("id", "name") if name in found)
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in found:
            self.loads.append(found["src"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loads.append(found["href"])


def check() -> list[str]:
    """What is wrong with the site."""
    pages = {page: Read(page) for page in SITE.rglob("*.html")}
    wrong = []
    for page, read in pages.items():
        name = page.relative_to(SITE)
        wrong += [f"{name} loads {url}" for url in read.loads if urlsplit(url).netloc]
        local = [url for url in [*read.links, *read.loads] if not urlsplit(url).scheme]
        for url in local if page.name != "404.html" else []:
            parts = urlsplit(url)
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                wrong.append(f"{name} leads to {url}, which is not there")
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].ids
            ):
                wrong.append(f"{name} leads to {url}, which has no such place")
    return sorted(set(wrong)) if pages else ["there is no site"]


if __name__ == "__main__":
    if sys.argv[1] == "stage":
        stage()
    elif found := check():
        sys.exit("\n".join(found))
    else:
        print(
            "every link and every anchor of the site is there, and it loads nothing from elsewhere"
        )
