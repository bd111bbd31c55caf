"""The directive `{generated} NAME`: a table made of the code when the pages are built, so that it cannot go stale."""

import tables
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Generated(SphinxDirective):
    required_arguments = 1

    def run(self) -> list:
        self.env.note_reread()  # the code may have changed where the page has not
        return self.parse_text_to_nodes(tables.TABLES[self.arguments[0]](), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True}
