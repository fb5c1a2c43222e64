"""How are pools that are smaller than a block sampled and reported?"""

import pytest

import interp
from interp import views
from interp.errors import InterpError
from interp.results import label
from interp.tokens import Pool

pytestmark = pytest.mark.experiment

KEYWORDS = 'kw=texts=" self"," return"," import"'


def asked(model, pools, experiment="repeated_tokens", **options):
    said = []
    found = interp.run(experiment, model, pools, **{"batch": 8} | options, log=said.append)
    return found, " ".join(" ".join(str(line) for line in views.tables(found)).split()), said


def test_blocks_fit_the_smallest_pool(organism):
    found, table, said = asked(organism, ["ordinary", KEYWORDS])
    record = interp.provenance(found)
    assert (record["sequences"]["length"], record["sequences"]["fitted_to"]) == (3, "kw")
    assert not any(pool["replacement"] for pool in record["pools"].values())
    assert said == ["blocks of 3 tokens: pool 'kw' has only 3 (set --length for others)"]
    assert "Blocks are of 3 tokens, since 'kw' has no more; --length asks for others." in table
    assert "with replacement" not in table
    for half in (found.token_id.isel(position=slice(1, 4)), found.token_id.isel(position=slice(4, 7))):
        assert all(len(set(row)) == 3 for row in half.values.reshape(-1, 3).tolist())


def test_a_pool_that_is_large_enough_changes_nothing(organism):
    found, table, said = asked(organism, ["ordinary"], batch=30)
    assert interp.provenance(found)["sequences"]["length"] == 25
    assert "fitted_to" not in interp.provenance(found)["sequences"]
    assert "Blocks are" not in table
    assert "Student" not in table
    assert said == []


def test_singles_stand_in_blocks_of_25_whatever_their_pool(organism):
    """They are drawn from ordinary tokens."""
    lengths = []

    def mine(model, tokens, singles):
        """Lengths."""
        lengths.append((tokens.length, singles.length, singles.replacement))
        return label("one", [1.0], "batch").to_dataset()

    interp.run(mine, organism, ["300:303"], batch=1, log=print)
    interp.run(mine, organism, ["300:340"], batch=1)
    interp.run(mine, organism, ["300:340"], batch=1, length=10)
    assert lengths == [(3, 25, False), (25, 25, False), (10, 10, False)]


def test_blocks_with_repeated_tokens_give_no_verdict(organism):
    _, table, _ = asked(organism, [KEYWORDS, "ordinary"], length=25)
    assert "Whether kw tokens are copied cannot be determined" not in table
    assert (
        "whether kw tokens are copied cannot be determined: tokens recur within a block, followed by different ones"
        in table
    )
    assert "in part" not in table
    assert "Ordinary tokens (" in table
    assert "Blocks of kw are drawn with replacement" in table
    _, table, _ = asked(organism, ["ordinary"], replacement=True)
    assert "copied almost perfectly" in table  # few tokens recur


def test_a_pool_of_one_token(organism):
    found, table, _ = asked(organism, ["300"])
    assert interp.provenance(found)["pools"]["300"]["replacement"]
    assert "Whether 300 is copied cannot be determined: its blocks hold one token throughout." in table
    assert found.single_log_prob.notnull().all()


@pytest.mark.parametrize("experiment", ["activation_patching", "glitch_attribution", "path_patching"])
def test_pairs_need_distinct_tokens(organism, experiment):
    with pytest.raises(InterpError, match="distinct tokens: use a length of 16 or less, drawn without") as error:
        asked(organism, [Pool("some", tuple(range(300, 316)))], experiment, length=25, batch=4)
    assert "\n" not in str(error.value)
    with pytest.raises(InterpError, match="distinct tokens: use mixed=True, or a larger pool"):
        asked(organism, ["300"], "activation_patching", batch=4)


def test_tables_and_figures_of_few_sequences_say_which_interval_it_is(organism):
    found, table, _ = asked(organism, ["ordinary"])
    note = "95% intervals: Student's t, 8 sequences."
    assert note in table
    drawn = views.figures(found)
    assert note in [a.text for a in drawn["log_prob_by_position"].layout.annotations]
    assert note not in [a.text for a in drawn["halves"].layout.annotations]  # dots, no intervals
    assert "One sequence: no intervals." in asked(organism, ["ordinary"], batch=1)[1]
