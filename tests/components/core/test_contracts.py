"""What passes between steps: strict, small and equal after the round trip."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.contracts import (
    BatchRef,
    CandidateRef,
    Contract,
    DatasetRef,
    EvaluationRef,
    GateDecision,
    ModelKey,
    ModelRef,
    PackageRef,
    PromotionRef,
    Reason,
    ReportRef,
    RollbackRef,
    RunRef,
    ValidationRef,
    Verdict,
    canonical_json,
    digest_of,
)

CONTRACTS = (
    BatchRef, CandidateRef, DatasetRef, EvaluationRef, GateDecision, ModelKey, ModelRef, PackageRef, PromotionRef,
    Reason, ReportRef, RollbackRef, RunRef, ValidationRef,
)  # fmt: skip
_SLUGS = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)
_KEYS = st.builds(ModelKey, product=_SLUGS, line=_SLUGS, camera=_SLUGS)
_NIGHTS = st.dates().map(lambda date: date.isoformat())


def _examples(kind: type[Contract]) -> st.SearchStrategy[Contract]:
    st.register_type_strategy(ModelKey, _KEYS)
    st.register_type_strategy(RunRef, st.builds(RunRef, key=_KEYS, partition=_NIGHTS, work_dir=st.text()))
    st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
    if kind is ReportRef:
        return st.builds(ReportRef, page_path=st.text(), artifact_uri=st.text(), summary=st.just({"badge": "PROMOTED"}))
    return st.from_type(kind)


@pytest.mark.parametrize("kind", CONTRACTS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_contract_survives_the_wire(kind: type[Contract], data: st.DataObject) -> None:
    value = data.draw(_examples(kind))
    assert kind.from_json(json.loads(canonical_json(value))) == value


@pytest.mark.parametrize("kind", CONTRACTS, ids=lambda kind: kind.__name__)
def test_contracts_are_frozen_keyword_only_and_small(kind: type[Contract]) -> None:
    parameters = kind.__dataclass_params__  # type: ignore[attr-defined]
    assert parameters.frozen
    assert all(field.kw_only for field in dataclasses.fields(kind))
    assert not hasattr(kind, "__dict__") or "__slots__" in vars(kind)


def test_an_unknown_a_missing_and_a_mistyped_field_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown field 'colour'.*missing field 'camera'.*known fields: camera, line"):
        ModelKey.from_json({"product": "a", "line": "b", "colour": "red"})
    with pytest.raises(ValueError, match=r"ModelRef\.version: expected int, got '3'"):
        ModelRef.from_json({"name": "n", "version": "3", "candidate_key": "k", "package_dir": "p"})


def test_a_bool_is_no_number_and_a_whole_number_is_a_float() -> None:
    reason = {"rule": "r", "verdict": "REJECT", "detail": "d"}
    assert Reason.from_json(reason | {"value": 1}).value == 1.0
    with pytest.raises(ValueError, match=r"value: expected float, got True"):
        Reason.from_json(reason | {"value": True})


def test_an_unknown_verdict_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"expected one of \['PROMOTE', 'REJECT', 'INCONCLUSIVE', 'ERROR'\], got 'MAYBE'"
    ):
        Reason.from_json({"rule": "r", "verdict": "MAYBE", "detail": "d"})


@given(key=_KEYS)
def test_a_key_is_read_back_from_its_slug(key: ModelKey) -> None:
    assert ModelKey.parse(key.slug) == key
    assert key.path.count("/") == 2


@pytest.mark.parametrize("part", ["", "Upper", "a.b", "a/b", "..", "-a", "é", "a" * 64])
def test_a_key_that_could_leave_its_folder_or_tag_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match="product must be lower-case"):
        ModelKey(product=part, line="line1", camera="cam1")


@pytest.mark.parametrize("night", ["2026-2-1", "20260201", "2026-W05-1", "2026-02-30", "tonight", ""])
def test_a_night_is_a_date_with_hyphens(night: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        RunRef(key=ModelKey(product="a", line="b", camera="c"), partition=night, work_dir="w")


def test_the_digest_depends_on_values_and_not_on_their_order() -> None:
    assert digest_of({"a": 1, "b": [1.5, None]}) == digest_of({"b": (1.5, None), "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
    # Independent of this code: sha256 of the two bytes {}.
    assert digest_of({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_what_is_not_finite_never_reaches_the_wire() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"score": math.nan})


def test_only_promote_opens_the_way() -> None:
    assert [verdict.value for verdict in Verdict] == ["PROMOTE", "REJECT", "INCONCLUSIVE", "ERROR"]
