"""Words of messages: the nearest known name, and values cut to a readable length."""

import pytest

from eqjax.messages import check_names, nearest, show


def test_unknown_names_get_the_nearest():
    with pytest.raises(TypeError, match=r"unknown option 'seeed'; did you mean 'seed'\? Known: seed, labels."):
        check_names("option", ["labels", "seeed"], ["seed", "labels"])
    with pytest.raises(KeyError, match="unknown field None. Known: a"):
        check_names("field", [None], ["a"], KeyError)
    assert nearest("zzz", ["a", "b"]) in ("a", "b")


def test_values_are_shown_short():
    class Bad:
        def __repr__(self):
            raise RuntimeError

    assert show(Bad()) == "<Bad>" and len(show("a" * 1000)) == 201
