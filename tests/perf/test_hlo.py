"""Collectives read from programs written by hand, and the notations of device groups."""

import pytest

from eqjax.perf import hlo

PROGRAM = """
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%body (arg: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %ag = f32[4,8]{1,0} all-gather(f32[1,8]{1,0} %x), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %ag)
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %w = (s32[], f32[4,8]) while(%init), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %ar = bf16[10]{0} all-reduce(bf16[10]{0} %y), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%sum
  %cp = f32[3]{0} collective-permute(f32[3]{0} %z), source_target_pairs={{0,1},{1,0}}
  %rs = f32[2]{0} reduce-scatter(f32[4]{0} %z), replica_groups={{0,1},{2,3}}, to_apply=%sum
  %none = f32[2]{0} all-reduce(f32[2]{0} %z), replica_groups=[8,1]<=[8], to_apply=%sum
}
"""


@pytest.mark.parametrize(
    "expected",
    [
        # The loop runs six times; in a ring of 4 a device sends 3/4 of the 128 bytes.
        hlo.Collective("all-gather", group_size=4, span=4, count=6, bytes_sent=6 * 0.75 * 128),
        # Groups {0,4}, {1,5} …; an all-reduce goes around the ring twice.
        hlo.Collective("all-reduce", group_size=2, span=5, count=1, bytes_sent=20.0),
        hlo.Collective("collective-permute", group_size=2, span=2, count=1, bytes_sent=12.0),
        # The result is one half of the 16 bytes that are reduced.
        hlo.Collective("reduce-scatter", group_size=2, span=2, count=1, bytes_sent=0.5 * 16),
    ],
    ids=lambda collective: collective.kind,
)
def test_collectives_of_a_program(expected):
    assert [item for item in hlo.collectives(PROGRAM) if item.kind == expected.kind] == [expected]


def test_a_computation_that_two_places_call_counts_for_both_and_so_does_what_it_calls():
    program = """
%inner (p: f32[2]) -> f32[2] {
  ROOT %ar = f32[2]{0} all-reduce(f32[2]{0} %p), replica_groups=[1,2]<=[2], to_apply=%sum
}

%shared (p: f32[2]) -> f32[2] {
  ROOT %c = f32[2]{0} call(%p), to_apply=%inner
}

%body (p: f32[2]) -> f32[2] {
  ROOT %c = f32[2]{0} call(%p), to_apply=%shared
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %w = f32[2]{0} while(%p), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %c = f32[2]{0} call(%w), to_apply=%shared
}
"""
    assert [item.count for item in hlo.collectives(program)] == [4]


def test_groups_of_one_device_send_nothing():
    assert len(hlo.collectives(PROGRAM)) == 4


def test_an_asynchronous_start_counts_its_results_but_not_its_operands():
    program = """
ENTRY %main (p: f32[2]) -> f32[8] {
  %s = (f32[2]{0}, f32[8]{0}) all-gather-start(f32[2]{0} %p), replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %d = f32[8]{0} all-gather-done((f32[2]{0}, f32[8]{0}) %s)
}
"""
    assert hlo.collectives(program) == [hlo.Collective("all-gather", 4, 4, 1, 0.75 * 32)]


PERMUTED = "mesh['a'=1,'b'=2,'c'=3], device_ids=([3,2]T(1,0)) "


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        (PERMUTED + "{'b'}", [[0, 1], [2, 3], [4, 5]]),
        (PERMUTED + "{'c'}", [[0, 2, 4], [1, 3, 5]]),
    ],
)
def test_all_notations_of_groups_give_device_numbers(groups, expected):
    line = f"%x = f32[] all-reduce(%y), replica_groups={groups}, to_apply=%z"
    assert hlo.device_groups(line).tolist() == expected


def test_source_target_pairs_are_groups_of_two():
    assert hlo.device_groups("collective-permute(%z), source_target_pairs={{0,1},{1,0}}").tolist() == [[0, 1], [1, 0]]


def test_an_unknown_notation_is_an_error_that_shows_the_line():
    with pytest.raises(ValueError, match="no groups of devices in a known notation in: %x = .* replica_groups=others"):
        hlo.device_groups("%x = f32[] all-reduce(%y), replica_groups=others, to_apply=%z")
