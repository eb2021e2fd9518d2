"""Class schedules by hand; their errors are those of `sample_latents` and `panorama`, tested there."""

import numpy as np
import pytest

from eqjax.sampling.class_schedule import ClassSchedule, class_schedule, parse_classes


def test_blends_of_two_transitions_by_hand():
    segment, weight = ClassSchedule((2, 3, None), 2).at(np.arange(9))
    np.testing.assert_array_equal(segment, [0, 0, 0, 0, 1, 1, 1, 2, 2])
    np.testing.assert_allclose(weight, [0, 0, 1 / 3, 2 / 3, 0, 1 / 3, 2 / 3, 0, 0], rtol=1e-6)


def test_without_transition_classes_change_at_once():
    segment, weight = ClassSchedule((2, 1, 1)).at([0, 1, 2, 3, 99])
    np.testing.assert_array_equal(segment, [0, 0, 1, 2, 2])
    np.testing.assert_array_equal(weight, np.zeros(5))


def test_one_class_needs_no_columns():
    assert class_schedule(np.array([1, 2]), None, 0) == ClassSchedule((None,), 0)
    assert class_schedule(np.array([[1, 2]]), [3, None], 1) == ClassSchedule((3, None), 1)


def test_columns_are_integers_of_any_kind():
    assert parse_classes([(0, np.int64(9)), ("dog", None)]) == ([0, "dog"], (9, None))
    with pytest.raises(TypeError, match="columns of class 0=2.5 must be an integer, or None"):
        parse_classes([(0, 2.5)])


def test_a_schedule_must_cover_the_image():
    ClassSchedule((2, 3)).check_length(5)
    ClassSchedule((2, None)).check_length(None)
    with pytest.raises(ValueError, match="covers columns 0 … 4, and the image has 6 columns"):
        ClassSchedule((2, 3)).check_length(6)
    with pytest.raises(ValueError, match="covers columns 0 … 4, and the image has no end"):
        ClassSchedule((2, 3)).check_length(None)


@pytest.mark.parametrize("classes", ["cat", ["cat", "dog"], [("cat",)], []])
def test_another_form_of_classes_is_refused(classes):
    with pytest.raises(ValueError, match=r"a class schedule is a list of \(label, columns\)"):
        parse_classes(classes)
