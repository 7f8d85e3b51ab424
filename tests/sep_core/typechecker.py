"""The checker that jaxtyping's import hook puts on every annotated function of sep_core."""

import jaxtyping
from beartype import BeartypeConf, beartype

# An int is a float where a float is asked for, as PEP 484 has it and JSON needs it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def install() -> None:
    """Check shapes and dtypes at run time. Call before anything imports sep_core."""
    jaxtyping.install_import_hook("sep_core", "tests.sep_core.typechecker.check")
