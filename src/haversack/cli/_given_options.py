"""Which options stood on the command line, and a refusal of those that a model does not have."""

from __future__ import annotations

from collections.abc import Container

from haversack.core.errors import UserError


def given(name: str) -> bool:
    """Whether the option or argument `name` of the command that runs was given by the person."""
    import click
    from click.core import ParameterSource

    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def refuse_others(taken: Container[str], why: str) -> None:
    """Raises UserError for an option that was given and is not `taken`: "--NAME is " and `why`."""
    import click

    for name, value in click.get_current_context().params.items():
        if given(name) and name not in taken:
            raise UserError(
                f"--{name.replace('_', '-')} is {why}",
                field=name,
                given=value if isinstance(value, int | float | str | bool) else str(value),
            )
