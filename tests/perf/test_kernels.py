"""Kernels, loops and launches read from a program and the dumps of its compiler, written by hand in their notation."""

from eqjax.perf import kernels

PROGRAM = """
%fused (p: f32[4]) -> f32[4] {
  ROOT %dot = f32[4]{0} dot(%p, %p), lhs_contracting_dims={0}
}

%inner (arg: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = f32[4]{0} get-tuple-element(%arg), index=1
  %gemm = f32[4]{0} fusion(%x), kind=kCustom, calls=%fused
  %library = (f32[4]{0}, s8[8]{0}) custom-call(%gemm), custom_call_target="__cublas$gemm"
  ROOT %t = (s32[], f32[4]) tuple(%i, %y)
}

%outer (arg: (s32[], f32[4])) -> (s32[], f32[4]) {
  %copy.1 = f32[4]{0} copy(%x)
  ROOT %while.2 = (s32[], /*index=1*/f32[4]{0}) while(%t), body=%inner, backend_config={"known_trip_count":{"n":"5"}}
}

%branch (arg: f32[4]) -> f32[4] {
  %a = f32[4]{0} fusion(%arg), kind=kLoop, calls=%fused
  ROOT %b = f32[4]{0} fusion(%a), kind=kLoop, calls=%fused
}

%other (arg: f32[4]) -> f32[4] {
  ROOT %a = f32[4]{0} fusion(%arg), kind=kLoop, calls=%fused
}

%wrapped (arg: f32[4]) -> f32[4] {
  ROOT %s = f32[4]{0} sort(%arg), dimensions={0}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %cast = f32[4]{0} fusion(%p), kind=kLoop, calls=%fused
  %while.1 = (s32[], f32[4]{0}) while(%t), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  %sorted = ((f32[4]{0}), f32[4]{0}) async-start(%p), calls=%wrapped
  %endless = (s32[], f32[4]{0}) while(%t), condition=%c, body=%other
  ROOT %choice = f32[4]{0} conditional(%q, %p, %p), branch_computations={%branch, %other}
}
"""

THUNKS = """\
000: kCommandBuffer [source | next=002 (1)]
    001: kCustomKernel [source | sink] cast grid: [1, 1, 1]
002: kWhile [prev=000 (1) | sink        ]
condition:
    003: kCustomKernel [source | sink] compare grid: [1, 1, 1]
  body:
    004: kDynamicSliceFusion [source | next=006 (1)] params=1, results=1
        005: kCopy [source | sink] kCopy
    006: kWhile [prev=004 (1) | sink        ]
condition:
        007: kCustomKernel [source | sink] compare grid: [1, 1, 1]
      body:
        000: kCommandBuffer [source | sink]
            008: kCustomKernel [source | next=009 (1)] gemm grid: [8, 1, 1]
            009: kGemm [prev=008 (1) | sink] library
        010: kCustomKernel [source | sink] counter grid: [1, 1, 1]
011: kWhile [prev=002 (1) | sink        ]
condition:
    012: kCustomKernel [source | sink] compare grid: [1, 1, 1]
  body:
    013: kCopy [source | sink] kCopy
"""

METADATA = """
thunk_metadata {
  thunk_info {
    profile_annotation: "while.1"
    thunk_id: 2
  }
  thunk_kind: "kWhile"
}
thunk_metadata {
  thunk_info {
    profile_annotation: "while.2"
    thunk_id: 6
  }
  thunk_kind: "kWhile"
}
thunk_metadata {
  thunk_info {
    profile_annotation: "endless"
    thunk_id: 11
  }
  thunk_kind: "kWhile"
}
"""


def test_loops_are_listed_from_the_outside_with_turns_and_kernels():
    _, loops = kernels.count_kernels(PROGRAM)
    assert loops == [
        kernels.Loop("outer", depth=0, turns=3, visits=1, kernels=1),
        kernels.Loop("inner", depth=1, turns=5, visits=3, kernels=2),
        kernels.Loop("other", depth=0, turns=None, visits=1, kernels=1),
    ]


def test_kernels_of_a_run_unroll_loops_and_take_the_larger_branch():
    total, _ = kernels.count_kernels(PROGRAM)
    # The cast, three turns of a copy and five of two kernels, the sort, one unknown turn, and the branch of two.
    assert total == 1 + 3 * (1 + 5 * 2) + 1 + 1 + 2


def test_a_conditional_of_true_and_false_names_its_branches():
    line = "  ROOT %c = f32[] conditional(%p, %a, %b), true_computation=%branch, false_computation=%other, metadata={}"
    assert kernels._branches(line) == ["branch", "other"]


def test_launches_unroll_loops_and_leave_out_conditions_of_loops_with_known_turns():
    found = kernels.count_launches(PROGRAM, THUNKS, METADATA)
    assert found == kernels.Launches(
        command_buffers=1 + 3 * 5,
        kernels_in_buffers=1 + 3 * 5 * 2,
        # A copy in the outer loop, the counter in the inner one; and of the loop without known turns one of each part.
        single_kernels=3 * 1 + 3 * 5 + 1 + 1,
    )


def test_what_runs_beside_other_kernels_is_one_kernel_and_one_launch():
    """The compiler writes it as two instructions, and as three steps, of which one waits."""
    program = """
%fused (p: f32[4]) -> f32[4] {
  ROOT %slice = f32[4]{0} slice(%p), slice={[0:4]}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %begun = ((f32[4]{0}), f32[4]{0}, u32[]) fusion-start(%p), kind=kLoop, calls=%fused
  %other = f32[4]{0} fusion(%p), kind=kLoop, calls=%fused
  ROOT %ended = f32[4]{0} fusion-done(%begun)
}
"""
    thunks = """\
000: kAsyncStart [source | next=003 (1)] stream=computation_stream[0], async_id=0
    001: kDynamicSliceFusion [source | sink] params=1, results=1
        002: kCopy [source | sink] kCopy
003: kCustomKernel [source | sink] other grid: [1, 1, 1]
004: kAsyncDone [source | sink] async_id=0
"""
    assert kernels.count_kernels(program) == (2, [])
    assert kernels.count_launches(program, thunks, "") == kernels.Launches(0, 0, single_kernels=2)
