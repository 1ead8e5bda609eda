"""The documentation site: `make docs` builds it into site/, without a network.

Three directives put into the reference what the code says: every job's help, what `import surveybridge` offers, and
the Parquet schemas.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import surveybridge
from surveybridge import __version__
from surveybridge.jobs.registry import JOBS, help_of
from surveybridge.storage import evaluation_schemas, pair_labels, schema

project, author, version = "SurveyBridge", "SurveyBridge developers", __version__
copyright = f"2026, {author}"
extensions = ["myst_parser"]
myst_heading_anchors = 3
myst_links_external_new_tab = True
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"SurveyBridge {__version__}"
html_copy_source = False
nitpicky = True
smartquotes = False  # -- is a flag here, and quotes are copied into shells


class Commands(SphinxDirective):
    """A section for each job, with what its --help prints."""

    def run(self) -> list[nodes.Node]:
        lines = [line for job in JOBS for line in (f"## {job}", "", "```text", *help_of(job).splitlines(), "```", "")]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class Names(SphinxDirective):
    """A section for each name that `import surveybridge` offers, with its signature and docstring."""

    def run(self) -> list[nodes.Node]:
        lines = [
            line
            for name in surveybridge.__all__
            for line in (f"## {name}", "", "```text", *reference(getattr(surveybridge, name)), "```", "")
        ]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def reference(thing: Any) -> list[str]:
    """Signature, a line for each argument, and docstring."""
    arguments = [f"    {argument}," for argument in inspect.signature(thing).parameters.values()]
    lines = [f"{thing.__name__}(", *(line.replace("'", "") for line in arguments), ")", ""]
    return lines + inspect.getdoc(thing).splitlines()


class Schema(SphinxDirective):
    """The columns of a schema of `storage.schema` and its neighbours, with units and descriptions."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        lines = ["| column | type | unit | UCD | is |", "|---|---|---|---|---|"]
        columns = (vars(schema) | vars(evaluation_schemas) | vars(pair_labels))[self.arguments[0]]
        return self.parse_text_to_nodes("\n".join(lines + [row(field) for field in columns]))


def row(field: pa.Field) -> str:
    """One column as a line of a Markdown table."""
    texts = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    kind = str(field.type).split("[")[0].replace("extension<arrow.", "").split("<")[0]
    kind += f" [{texts['shape']}]" if "shape" in texts else ""
    cells = (f"`{field.name}`", kind, texts.get("unit", ""), texts.get("ucd", ""), texts.get("description", ""))
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "\\<") for cell in cells) + " |"


def setup(app: Sphinx) -> None:
    """Register the directives."""
    app.add_directive("commands", Commands)
    app.add_directive("names", Names)
    app.add_directive("schema", Schema)
