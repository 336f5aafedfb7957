"""Arithmetic with Kubernetes quantities, against the one of Kubernetes' client."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity
from pydantic import TypeAdapter

from finetune_api.cluster import Quantity
from finetune_operator.children.quantities import amount, in_bytes, times, whole_processors

NUMBERS = st.integers(0, 10**9).map(str) | st.tuples(st.integers(0, 10**6), st.integers(0, 999)).map(
    lambda parts: f"{parts[0]}.{parts[1]:03}"
)
UNITS = st.sampled_from(["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
QUANTITIES = st.tuples(NUMBERS, UNITS).map("".join) | st.integers(0, 2**53)


@given(QUANTITIES)
def test_amount_is_what_kubernetes_reads(quantity: int | str) -> None:
    assert amount(quantity) == parse_quantity(quantity)


@given(QUANTITIES, st.integers(1, 16))
def test_times_is_so_many_times_the_amount_and_a_quantity_again(quantity: int | str, factor: int) -> None:
    product = times(quantity, factor)
    assert amount(product) == factor * amount(quantity)
    assert TypeAdapter[int | str](Quantity).validate_python(product) == product


@given(st.floats(1e-9, 2**53), st.integers(1, 16))
def test_numbers_of_a_spec_are_quantities_too(number: float, factor: int) -> None:
    assert math.isclose(amount(times(str(number), factor)), factor * number, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("1e3", 1000), ("1E3", 1000), ("1E", 10**18), ("2.5e-1", Decimal("0.25")), ("5m", Decimal("0.005"))],
)
def test_exponents_and_units_are_told_apart(quantity: str, number: Decimal) -> None:
    assert amount(quantity) == number


@pytest.mark.parametrize(
    ("quantity", "product"),
    [("16Gi", "64Gi"), ("1.5Gi", "6.0Gi"), ("500m", "2000m"), (3, 12), ("1e3", "4e3")],
)
def test_times_keeps_the_unit(quantity: int | str, product: int | str) -> None:
    assert times(quantity, 4) == product


@pytest.mark.parametrize(
    ("quantity", "processors"), [("500m", 1), (1, 1), ("1999m", 1), ("2", 2), ("7.9", 7), (0, 1)]
)
def test_processors_are_whole_and_at_least_one(quantity: int | str, processors: int) -> None:
    assert whole_processors(quantity) == processors


@pytest.mark.parametrize(("quantity", "number"), [("1Ki", 1024), ("1.5", 2), ("1k", 1000), ("1m", 1), (7, 7)])
def test_bytes_are_rounded_up(quantity: int | str, number: int) -> None:
    assert in_bytes(quantity) == number
