"""Every row of the catalogue: the error, the words that it names, and the user's networks as before."""

import pytest
from misuse import CATALOGUE, world
from watching import assert_untouched, fingerprint


def test_the_catalogue_is_long():
    assert len(CATALOGUE) >= 150


@pytest.mark.parametrize("row", CATALOGUE)
def test_misuse(row):
    call, error, words = CATALOGUE[row]
    w = world()
    watched = [w.model, w.net, w.two]
    before = [fingerprint(model) for model in watched]
    masks, moment = dict(w.ke.masks), (w.ke.seed, w.ke.generation)
    with pytest.raises(error) as raised:
        call(w)
    assert raised.type is error or error is Exception
    for word in words.split():
        assert word in str(raised.value), f"{word!r} is not in: {raised.value}"
    for model, was in zip(watched, before, strict=True):
        assert_untouched(model, was)
    assert w.ke.masks == masks
    assert (w.ke.seed, w.ke.generation) == moment
