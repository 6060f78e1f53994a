import pytest

from kaito.api.meta import ObjectMeta, Owned
from kaito.sandbox.crds import _is_established


@pytest.mark.parametrize(
    ("status", "established"),
    [
        (None, False),
        ({}, False),
        ({"conditions": None}, False),
        ({"conditions": [{"type": "Established", "status": "False"}]}, False),
        ({"conditions": [{"type": "NamesAccepted", "status": "True"}]}, False),
        ({"conditions": [{"type": "Established", "status": "True"}]}, True),
    ],
)
def test_a_crd_whose_conditions_are_still_null_is_not_established(status, established):
    """The server sends ``conditions: null`` for a moment: it once ended the sandbox's start."""
    assert _is_established(Owned(ObjectMeta(name="c"), {"status": status})) is established


def test_a_crd_that_is_not_there_is_not_established():
    assert not _is_established(None)
