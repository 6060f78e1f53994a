"""Where pydantic models and structural schemas meet.

``Model`` is the base of our own kinds. Types in the models are what reading needs; limits and CEL
rules ride along as ``json_schema_extra`` and are enforced by the API server only, so that an object
which an older release let in still reads (its faults then become conditions: ``validation.py``).
``structural`` turns a model into the schema of a CRD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, TypeVar

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema
from pydantic.alias_generators import to_camel

from kaito.api.meta import ConditionView, ObjectMeta, Undecodable

_NUMBER: Final = r"(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
QUANTITY_PATTERN: Final = rf"^(\+|-)?{_NUMBER}(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?{_NUMBER}))?$"


class Model(BaseModel):
    """Frozen, camelCase on the wire, blind to fields it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        arbitrary_types_allowed=True,
    )


def _conditions(value: object) -> tuple[ConditionView, ...]:
    try:
        return msgspec.convert(value, tuple[ConditionView, ...])
    except msgspec.ValidationError as err:
        raise ValueError(str(err)) from err


READS_CONDITIONS: Final = BeforeValidator(_conditions)
"""Annotation of a ``conditions`` field: the wire's mappings become ``ConditionView``."""


def shows_conditions(
    description: str, required: Sequence[str], properties: Mapping[str, Any]
) -> WithJsonSchema:
    """Annotation of a ``conditions`` field: the schema of its items."""
    item = {
        "type": "object",
        "description": description,
        "required": sorted(required),
        "properties": dict(properties),
    }
    return WithJsonSchema({"type": "array", "items": item})


Metadata = Annotated[ObjectMeta, WithJsonSchema({"type": "object"})]
"""``metadata``: typed by us, defined by the API server."""

Quantity = Annotated[
    str | int,
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY_PATTERN,
            "x-kubernetes-int-or-string": True,
        }
    ),
]
"""A resource quantity, as written."""


def rules(*items: Mapping[str, Any]) -> dict[str, Any]:
    """Extra schema content: these CEL rules (see ``rule``)."""
    return {"x-kubernetes-validations": [dict(item) for item in items]}


def rule(
    expression: str,
    message: str,
    *,
    reason: str = "",
    field_path: str = "",
    create_too: bool = False,
) -> dict[str, Any]:
    """One CEL rule.

    ``field_path``: relative to where the rule stands, when the fault is in a field below.
    ``create_too``: a rule that mentions ``oldSelf`` runs on create as well, with ``oldSelf`` as an
    optional; without it such a rule runs on updates only.
    """
    out: dict[str, Any] = {"rule": expression, "message": message}
    if reason:
        out["reason"] = reason
    if field_path:
        out["fieldPath"] = field_path
    if create_too:
        out["optionalOldSelf"] = True
    return out


RECREATE: Final = "delete the object and create it anew to change this"


def immutable(what: str) -> dict[str, Any]:
    """Extra schema content: the field cannot change once it is set."""
    return rules(rule("self == oldSelf", f"{what} is immutable: {RECREATE}"))


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """The model as a structural OpenAPI v3 schema: references inlined, ``null`` alternatives gone.

    Defaults are served only where they say something: a scalar that is not empty, zero or false.
    """
    document = model.model_json_schema(by_alias=True, mode="validation")
    definitions = document.pop("$defs", {})
    return _inline(document, definitions)


_DROPPED: Final = frozenset({"title", "$ref", "default", "anyOf", "additionalProperties"})


def _inline(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    reference = node.get("$ref")
    out = _inline(definitions[reference.rsplit("/", 1)[-1]], definitions) if reference else {}
    alternatives = [a for a in node.get("anyOf", ()) if a != {"type": "null"}]
    if node.get("x-kubernetes-int-or-string"):
        out["anyOf"] = alternatives
    elif alternatives:
        (only,) = alternatives  # other unions have no structural form
        out |= _inline(only, definitions)
    # A rule of the class and one of the field that uses it both hold.
    stacked = [*out.get("x-kubernetes-validations", ()), *node.get("x-kubernetes-validations", ())]
    for key, value in node.items():
        if key == "properties":
            out[key] = {name: _inline(item, definitions) for name, item in value.items()}
        elif key == "items":
            out[key] = _inline(value, definitions)
        elif key not in _DROPPED:
            out[key] = value
    if stacked:
        out["x-kubernetes-validations"] = stacked
    if isinstance(values := node.get("additionalProperties"), Mapping):
        out["additionalProperties"] = _inline(values, definitions)
    default = node.get("default")
    if default and isinstance(default, str | int):
        out["default"] = default
    return out


M = TypeVar("M", bound=Model)


class _Envelope(msgspec.Struct, gc=False):
    """``metadata`` typed, ``managedFields`` never built."""

    metadata: ObjectMeta


def decoder(model: type[M], envelope: type[_Envelope]) -> Callable[[bytes], M | Undecodable]:
    """A decoder for one of our kinds.

    ``envelope``: what ``envelope_of`` made for it. Metadata that cannot be read raises msgspec's
    error: such an object cannot even be named. Anything else that cannot be read is Undecodable.
    """
    parser = msgspec.json.Decoder(envelope)
    names = envelope.__struct_fields__

    def decode(raw: bytes) -> M | Undecodable:
        found = parser.decode(raw)
        fields = {name: getattr(found, name) for name in names}
        present = {name: value for name, value in fields.items() if value is not None}
        try:
            return model.model_validate(present)
        except ValidationError as err:
            told = _conditions_at_best(present.get("status"))
            return Undecodable(found.metadata, explain(err), told)

    return decode


def _conditions_at_best(status: object) -> tuple[ConditionView, ...]:
    with suppress(ValueError):
        if isinstance(status, Mapping):
            return _conditions(status.get("conditions") or ())
    return ()


def envelope_of(*sections: str) -> type[_Envelope]:
    """The outer shape of a kind: metadata, and these top-level sections as plain JSON or None."""
    fields: list[tuple[str, Any, Any]] = [(name, Any, None) for name in sections]
    return msgspec.defstruct("Envelope", fields, bases=(_Envelope,), gc=False)  # type: ignore[return-value]


_PLAIN: Final = {
    "tuple_type": "it should be a list",
    "mapping_type": "it should be a map",
    "model_type": "it should be a map",
    "missing": "it is missing",
}
"""What pydantic says in Python's words, by its error type."""


def explain(err: ValidationError) -> str:
    """One sentence that names the first unreadable field, and how many more there are."""
    faults = err.errors(include_url=False, include_input=False)
    path = ".".join(str(part) for part in faults[0]["loc"])
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{path} cannot be read: {_PLAIN.get(faults[0]['type'], faults[0]['msg'])}{more}"
