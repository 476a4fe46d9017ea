"""A hook of MkDocs: files outside docs/ that a page links to are copied into the site, so that one link serves both."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"(?<=\]\()\.\./(?=([^)#\s]+))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the linked files that exist; MkDocs reports the others."""
    root = Path(config.config_file_path).parent
    for page in files.documentation_pages():
        for path in OUTSIDE.findall(page.content_string):
            if (root / path).is_file() and path not in files.src_uris:
                files.append(File(path, str(root), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links lead to the copies, which keep their paths below the project's folder."""
    return OUTSIDE.sub("", markdown)
