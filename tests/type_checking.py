"""Checks annotations of eqjax at run time, array shapes included; production code pays nothing for them."""

import functools

import beartype
import jaxtyping

# An int is a float, as type checkers see it.
check_types = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def install():
    """Has every function and dataclass of eqjax checked when it is called; to be called before eqjax is imported.

    Pytree dataclasses are left out: JAX rebuilds them around placeholders (shapes, shardings, None), which no
    annotation of an array allows.
    """
    check = jaxtyping.jaxtyped

    def check_unless_pytree(fn=None, *, typechecker):
        if fn is None:
            return functools.partial(check_unless_pytree, typechecker=typechecker)
        is_pytree = isinstance(fn, type) and hasattr(fn, "_flax_dataclass")
        return fn if is_pytree else check(fn, typechecker=typechecker)

    jaxtyping.jaxtyped = check_unless_pytree
    jaxtyping.install_import_hook("eqjax", "tests.type_checking.check_types")
