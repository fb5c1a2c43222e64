"""Is every term of the glossary one sentence in its place, with a page that exists?"""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "glossary.md").read_text()
SECTIONS = {part.split("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
TERMS = (
    "canary, classified, content, deficit, detected, dose, exposure, health, identity, inducible, induction key, "
    "matching, organism, pool, read-out, suppression, under-trained, Shapley value, not testable, null"
)
ENTRIES = re.findall(r"^- \*\*(.+?)\*\*: (.+?)(?=\n- |\n\n|\Z)", PAGE, re.M | re.S)


def test_it_has_the_terms_of_the_tables():
    told = {term for terms, _ in ENTRIES for term in re.split(r", ", terms)}
    assert not set(TERMS.split(", ")) - told
    assert len(ENTRIES) > 80


@pytest.mark.parametrize("entry", ENTRIES, ids=[term for term, _ in ENTRIES])
def test_a_term_is_one_sentence_with_a_page(entry):
    sentence, arrow, link = " ".join(entry[1].split()).partition(" → ")
    assert arrow
    assert sentence.endswith(".")
    assert not re.search(r"[a-z\)]\. [A-Z]", sentence), "two sentences"
    (page,) = re.findall(r"\[[^\]]+\]\(([\w.]+)\)", link)
    assert (DOCS / page).exists()


@pytest.mark.parametrize("name", SECTIONS)
def test_terms_are_in_the_order_of_the_alphabet(name):
    terms = re.findall(r"^- \*\*(.+?)\*\*", SECTIONS[name], re.M)
    assert terms == sorted(terms, key=str.lower)
    assert len(terms) == len(set(terms))
