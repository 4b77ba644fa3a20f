"""MkDocs hooks: add the pages at the root of the repository to the site, and the files there that pages link to."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def on_files(files, config):
    """Add the pages at the root, and the files outside docs/ that any page links to."""
    for source, target in PAGES.items():
        text = LINK.sub(lambda match: f"]({match[1].removeprefix('docs/')}", (ROOT / source).read_text())
        files.append(File.generated(config, target, content=text))
    for page in (*(ROOT / "docs").rglob("*.md"), *map(ROOT.joinpath, PAGES)):
        for link in LINK.findall(page.read_text()):
            path = (page.parent / link).resolve()
            if path.is_file() and not path.is_relative_to(ROOT / "docs"):
                name = path.relative_to(ROOT).as_posix()
                if name not in PAGES and name not in files.src_uris:
                    files.append(File.generated(config, name, content=path.read_bytes()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links that leave docs/ point to the copies in the site."""
    if page.file.abs_src_path is None:
        return markdown
    folder = Path(page.file.abs_src_path).parent
    up = "../" * page.file.src_uri.count("/")

    def inside(match):
        path = (folder / match[1]).resolve()
        if path.is_relative_to(ROOT / "docs") or not path.is_file():
            return match[0]
        name = path.relative_to(ROOT).as_posix()
        return f"]({up}{PAGES.get(name, name)}"

    return LINK.sub(inside, markdown)
