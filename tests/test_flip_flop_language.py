import numpy as np
import pytest
import torch

from interp.errors import InterpError
from interp.languages.register import FIRST_VALUE, IGNORE, READ, WRITE, flip_flop, ids_of


def replayed(row: list[int]) -> list[tuple[int, int, int, int]]:
    """Position of each read value, what the register holds, where that was written, writes so far; by a plain loop."""
    found, held, place, writes = [], -1, -1, 0
    for at in range(0, len(row), 2):
        if row[at] == WRITE:
            held, place, writes = row[at + 1], at + 1, writes + 1
        elif row[at] == READ:
            found.append((at + 1, held, place, writes))
    return found


@pytest.mark.parametrize("values", [2, 5])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.8, 0.98, 1.0])
def test_every_read_repeats_the_last_write_and_coordinates_are_those_of_a_replay(p, values):
    tokens = flip_flop(p, batch=20, length=64, values=values, seed=3)
    coords = tokens.coords
    for i, row in enumerate(tokens.ids.tolist()):
        assert row[0] == WRITE
        assert row[-2] == READ
        known = replayed(row)
        assert [at for at, *_ in known] == np.flatnonzero(coords["read"][1][i]).tolist()
        for at, held, place, writes in known:
            assert row[at] == held == coords["register"][1][i, at] + FIRST_VALUE
            assert coords["distance"][1][i, at] == at - place
            assert coords["writes"][1][i, at] == writes
    assert set(tokens.ids[:, 0::2].flatten().tolist()) <= {WRITE, READ, IGNORE}
    assert set(tokens.ids[:, 1::2].flatten().tolist()) == set(range(FIRST_VALUE, FIRST_VALUE + values))


@pytest.mark.parametrize("p", [0.1, 0.8, 0.98])
def test_instructions_have_the_published_probabilities_and_values_are_uniform(p):
    tokens = flip_flop(p, batch=200, length=512, seed=1)
    inner = tokens.ids[:, 2:-2:2].flatten()
    sd = 5 / inner.numel() ** 0.5  # five standard deviations of a share, and more
    for instruction, share in ((IGNORE, p), (WRITE, (1 - p) / 2), (READ, (1 - p) / 2)):
        assert abs(float((inner == instruction).float().mean()) - share) < sd * (share * (1 - share)) ** 0.5
    free = tokens.ids[:, 1::2][tokens.ids[:, 0::2] != READ]
    assert abs(float((free == FIRST_VALUE).float().mean()) - 0.5) < 2.5 / len(free) ** 0.5


def test_a_sequence_depends_on_seed_and_number_alone():
    whole = flip_flop(0.8, batch=6, length=32, seed=5).ids
    assert torch.equal(flip_flop(0.8, batch=2, length=32, seed=5, start=3).ids, whole[3:5])
    assert not torch.equal(flip_flop(0.8, batch=6, length=32, seed=6).ids, whole)
    assert len({tuple(row) for row in whole.tolist()}) == 6


def test_reads_have_an_answer_and_all_other_values_as_rivals():
    tokens = flip_flop(0.5, batch=4, length=32, values=4, seed=0)
    assert torch.equal(tokens.answers[..., 0], tokens.ids)
    both = torch.cat([tokens.answers, tokens.rivals], -1)[tokens.read]
    assert torch.equal(both.sort(-1).values, torch.arange(FIRST_VALUE, FIRST_VALUE + 4).expand(len(both), 4))
    assert tokens.text[0, 0] == "w"
    assert set(tokens.text[:, 1::2].flatten()) == {"0", "1", "2", "3"}


def test_each_row_may_have_a_probability_of_its_own():
    chance = torch.rand((2, 2, 400), generator=torch.Generator().manual_seed(0))
    ids = ids_of(chance, torch.tensor([[1.0], [0.0]]))
    assert (ids[0, 2:-2:2] == IGNORE).all()
    assert not (ids[1, 0::2] == IGNORE).any()


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"p": 1.5}, "from 0 to 1"),
        ({"p": -0.1}, "from 0 to 1"),
        ({"length": 2}, "even number from 4"),
        ({"length": 7}, "even number from 4"),
        ({"values": 1}, "2 or more"),
        ({"batch": 0}, "positive integer"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_bad_input_gets_a_one_line_message(wrong, remedy):
    with pytest.raises(InterpError, match=remedy) as told:
        flip_flop(**wrong)
    assert "\n" not in str(told.value)
