"""How Sphinx builds the site: `nox -s docs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from numpydoc.xref import DEFAULT_LINKS

import vicreg

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "vicreg"
author = "The vicreg developers"
copyright = "The vicreg developers"  # the name that Sphinx reads
release = version = vicreg.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
    "sphinxcontrib.programoutput",
    # Of this folder's `extensions`:
    "pictures",
    "gallery",
    "links",
    "formulas",
]
exclude_patterns = ["_build", "jupyter_execute"]
default_role = "py:obj"  # of names in single backticks, in docstrings
nitpicky = True
# Types of other packages, whose sites are not asked: the site is built without a network.
nitpick_ignore_regex = [(r"py:.*", r"(?!vicreg).*")]

html_theme = "furo"
html_title = "vicreg"
html_static_path = ["_static"]
html_css_files = ["vicreg.css"]
html_show_sourcelink = False

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Every cell is run, each time the site is built, and a cell that raises ends the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 240
nb_merge_streams = True
nb_render_markdown_format = "gfm"

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # numpydoc's Parameters say them in words
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"  # except for these
numpydoc_xref_aliases = {word: word for word in DEFAULT_LINKS} | {  # no links to Python's site
    "Communicator": "vicreg.distributed.Communicator",
    "Convention": "vicreg.Convention",
    "Diagnosis": "vicreg.Diagnosis",
    "Identification": "vicreg.Identification",
    "VICRegTerms": "vicreg.VICRegTerms",
    "AttachedVCReg": "vicreg.torch.AttachedVCReg",
    "VCReg": "vicreg.torch.VCReg",
    "VCRegTerms": "vicreg.torch.VCRegTerms",
    "Plan": "vicreg.distributed.Plan",
    "ConformanceProblem": "vicreg.testing.ConformanceProblem",
}
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# What the command prints, in the width of the page and without colours.
os.environ |= {"COLUMNS": "80", "NO_COLOR": "1"}

copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
