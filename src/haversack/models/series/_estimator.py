"""What scikit-learn asks of an estimator, without needing it: parameters by name, clones, a plain repr."""

from __future__ import annotations

import inspect
from typing import Any, Self

from haversack.core.errors import UserError, unknown_name


class Estimator:
    """Stores the constructor's arguments untouched under their own names; what is learned ends in `_`."""

    @classmethod
    def _names(cls) -> list[str]:
        found = inspect.signature(cls.__init__).parameters
        return sorted(name for name in found if name != "self")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **values: Any) -> Self:
        """Replace some of them. Raises UserError for a name that the constructor does not take."""
        for name, value in values.items():
            if name not in self._names():
                raise unknown_name(f"parameter of {type(self).__name__}", name, self._names(), field=name)
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks before it searches or chains estimators; only it calls this."""
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            input_tags=InputTags(one_d_array=True),
        )

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names())
        return f"{type(self).__name__}({said})"

    def _need_fit(self, learned: str) -> None:
        if not hasattr(self, learned):
            raise NotFitted(f"this {type(self).__name__} has learned nothing yet; call fit first.")


class NotFitted(UserError, ValueError, AttributeError):  # noqa: N818 - the name that scikit-learn's has
    """Asked for what only `fit` brings. Also a ValueError and an AttributeError, as scikit-learn's is."""


class BadInput(UserError, ValueError):  # noqa: N818 - what was given, not what went wrong
    """Rows or targets that cannot be learned from; also a ValueError, which scikit-learn's users catch."""
