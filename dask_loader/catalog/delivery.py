"""What the user wants columns delivered as: other dtypes, and stacked as features. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dask_loader.catalog.forms import Form
from dask_loader.catalog.lists import Lists, check_fills, check_ragged, shape_lists
from dask_loader.catalog.vocabulary import Asked, check_vocabulary
from dask_loader.errors import ColumnError, ConfigError

# Kinds of NumPy dtypes that torch has too.
_KINDS = "biuf"


@dataclass(frozen=True, slots=True)
class Delivery:
    """The user's choice, checked as far as it can be without a schema.

    Attributes:
        features: Name and columns of each feature.
        dtypes: NumPy dtype, as text, of columns and features that are cast.
        lists: How lists of any length come.
        vocabulary: The columns that come as codes.
    """

    features: tuple[tuple[str, tuple[str, ...]], ...] = ()
    dtypes: tuple[tuple[str, str], ...] = ()
    lists: Lists = field(default_factory=Lists)
    vocabulary: Asked = ()

    @property
    def wanted_dtypes(self) -> dict[str, str]:
        """The dtype of each column that is cast, also as a part of a feature."""
        wanted = dict(self.dtypes)
        for feature, names in self.features:
            if feature in wanted:
                wanted.update(dict.fromkeys(names, wanted[feature]))
        return wanted

    def columns(self, chosen: Sequence[str] | None) -> tuple[str, ...] | None:
        """Return the columns to read: those chosen, and those that features need."""
        if chosen is None:
            return None
        needed = [name for _, names in self.features for name in names]
        return tuple(dict.fromkeys((*chosen, *needed)))


def check_delivery(
    features: Any, dtypes: Any, ragged: Any = "jagged", vocabulary: Any = None
) -> Delivery:
    """Check what the user gave for features= and dtypes=.

    Args:
        features: {feature: [column, ...]} or None.
        dtypes: {column or feature: torch dtype, NumPy dtype or its name} or None.
        ragged: See check_ragged.
        vocabulary: See check_vocabulary.

    Raises:
        ConfigError: It is neither, or a dtype is none that torch and NumPy share.
        ColumnError: A column is in two features, or twice in one.
    """
    for name, value in (("features", features), ("dtypes", dtypes)):
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{name}={value!r} must be a dict, or None")
    found: list[tuple[str, tuple[str, ...]]] = []
    seen: dict[str, str] = {}
    for feature, names in (features or {}).items():
        if not isinstance(feature, str) or not feature:
            raise ConfigError(f"features={features!r}: {feature!r} is not a name")
        is_list = isinstance(names, Sequence) and not isinstance(names, str | bytes)
        if not is_list or not names or not all(isinstance(n, str) for n in names):
            raise ConfigError(
                f"features={{{feature!r}: {names!r}}} must name columns in a list"
            )
        for name in names:
            if name in seen:
                raise ColumnError(
                    f"column {name!r} is named twice in features, for {seen[name]!r} and "
                    f"{feature!r}; each column is delivered once",
                    column=name,
                )
            seen[name] = feature
        found.append((feature, tuple(names)))
    casts = tuple((str(name), _dtype(name, t)) for name, t in (dtypes or {}).items())
    return Delivery(
        tuple(found), casts, check_ragged(ragged), check_vocabulary(vocabulary)
    )


def deliver(forms: Sequence[Form], delivery: Delivery) -> tuple[Form, ...]:
    """Return the forms that the columns are delivered in, features' columns together.

    Without a dtype of its own, a feature has the one that NumPy promotes its columns' to;
    no number may then change.

    Args:
        forms: The columns as the files have them, in the user's order.
        delivery: From check_delivery.

    Raises:
        ColumnError: A name is not among the columns, or would be there twice.
        ConfigError: A column cannot be cast or stacked.
    """
    forms = shape_lists(forms, delivery.lists)
    by_name = {form.name: form for form in forms}
    dtypes = dict(delivery.dtypes)
    member_of = {n: feature for feature, names in delivery.features for n in names}
    for feature, names in delivery.features:
        if feature in by_name and member_of.get(feature) is None:
            raise ColumnError(
                f"features has the name {feature!r}, and so has a column that is "
                "delivered; give the feature another name",
                column=feature,
            )
        for name in names:
            if name not in by_name:
                raise ColumnError(
                    f"feature {feature!r} names column {name!r}, which is not there; "
                    f"there are {list(by_name)!r}",
                    column=name,
                )
            if by_name[name].shape or not by_name[name].is_fixed:
                raise ConfigError(
                    f"feature {feature!r} names column {name!r}, whose rows are not "
                    "single numbers; only numbers can be stacked"
                )
    for name in dtypes:
        if name in member_of and name not in dict(delivery.features):
            raise ConfigError(
                f"dtypes names {name!r}, a part of feature {member_of[name]!r}; give the "
                "dtype to the feature"
            )
        if name not in by_name and name not in dict(delivery.features):
            raise ColumnError(
                f"dtypes names {name!r}, which is neither a column that is delivered nor "
                f"a feature; there are {[*by_name, *dict(delivery.features)]!r}",
                column=name,
            )
    found: dict[str, Form] = {}
    for form in forms:
        feature = member_of.get(form.name, "")
        if not feature:
            found[form.name] = _cast(form, dtypes.get(form.name))
        elif form.name not in found:
            members = [by_name[n] for n in dict(delivery.features)[feature]]
            found.update((m.name, m) for m in _stack(feature, members, dtypes))
    check_fills(list(found.values()))
    return tuple(found.values())


def _stack(
    feature: str, members: Sequence[Form], dtypes: Mapping[str, str]
) -> list[Form]:
    wanted = dtypes.get(feature)
    if wanted is None:
        wanted = str(np.result_type(*[np.dtype(member.dtype) for member in members]))
        return [replace(m, dtype=wanted, feature=feature) for m in members]
    return [replace(_cast(member, wanted), feature=feature) for member in members]


def _cast(form: Form, dtype: str | None) -> Form:
    if dtype is None:
        return form
    if not form.number or not _can_become(form.number, dtype):
        raise ConfigError(
            f"dtypes={{{form.name!r}: {dtype!r}}}: a column of "
            f"{form.number or 'text or bytes'} is not cast to {dtype}; floats do not "
            "become integers, numbers do not become bool, and text is no number"
        )
    if form.depth:
        return replace(form, items=dtype, exact=False)
    return replace(form, dtype=dtype, exact=False)


def _can_become(source: str, target: str) -> bool:
    old, new = np.dtype(source).kind, np.dtype(target).kind
    return old == new or old == "b" or (old in "iu" and new in "iuf")


def _dtype(name: Any, value: Any) -> str:
    # torch writes its dtypes as "torch.float32"; torch itself is not loaded here.
    dtype = np.dtype(object)
    for spelling in (str(value).removeprefix("torch."), value):
        # NumPy raises whatever its parser does; and takes None for float64.
        with suppress(TypeError, ValueError, SyntaxError):
            if spelling is not None:
                dtype = np.dtype(spelling)
                break
    if dtype.kind not in _KINDS or dtype.itemsize > 8 or not dtype.isnative:
        raise ConfigError(
            f"dtypes={{{name!r}: {value!r}}} is no dtype that NumPy and torch share; give "
            "torch.float32, torch.int64, torch.bool or the like"
        )
    return str(dtype)
