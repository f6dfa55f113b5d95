# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""What a client may rely on, and what it may find instead."""

from __future__ import annotations

from vmdkit.torture.promise import CHANGED, LOST, MIXED, Promises, Request, compare

S = 512
OLD, NEW, NEWER = b"o" * S, b"n" * S, b"N" * S
ZERO = bytes(S)


def request(verb: str, sent: int, done: int, value: bytes = b"", *, fua: bool = False, failed: bool = False) -> Request:
    sectors = {0: value} if value else {}
    return Request(verb, 0, len(value), fua, sent, done, failed, sectors)


def flush(sent: int, done: int) -> Request:
    return request("flush", sent, done)


def allowed(cut: int, *requests: Request) -> set[bytes]:
    expected = Promises(OLD, requests).at(cut)
    return {value for value in (OLD, NEW, NEWER, ZERO) if not compare(expected, value)}


def test_a_write_in_flight_is_there_or_not() -> None:
    assert allowed(10, request("write", 10, 20, NEW)) == {OLD}
    assert allowed(15, request("write", 10, 20, NEW)) == {OLD, NEW}
    assert allowed(25, request("write", 10, 20, NEW)) == {OLD, NEW}


def test_a_flush_promises_what_was_answered_before_it_was_sent() -> None:
    assert allowed(35, request("write", 10, 20, NEW), flush(25, 40)) == {OLD, NEW}
    assert allowed(45, request("write", 10, 20, NEW), flush(25, 40)) == {NEW}
    assert allowed(45, request("write", 10, 30, NEW), flush(25, 40)) == {OLD, NEW}


def test_fua_promises_its_own_request() -> None:
    assert allowed(25, request("write", 10, 20, NEW, fua=True)) == {NEW}
    assert allowed(15, request("write", 10, 20, NEW, fua=True)) == {OLD, NEW}
    later = request("write", 30, 40, NEWER, fua=True)
    assert allowed(45, request("write", 10, 20, NEW), later) == {NEWER}


def test_what_overlaps_in_time_may_come_in_either_order() -> None:
    both = request("write", 10, 30, NEW), request("write", 20, 40, NEWER)
    assert allowed(60, *both, flush(45, 50)) == {NEW, NEWER}


def test_a_trimmed_sector_holds_zeros_or_what_it_ever_held() -> None:
    written = request("write", 10, 20, NEW)
    assert allowed(60, written, request("trim", 30, 40, ZERO), flush(45, 50)) == {OLD, NEW, ZERO}
    assert allowed(60, written, request("zero", 30, 40, ZERO), flush(45, 50)) == {ZERO}


def test_a_failed_request_is_never_promised() -> None:
    assert allowed(60, request("write", 10, 20, NEW, failed=True), flush(45, 50)) == {OLD, NEW}
    again = request("write", 30, 40, NEWER)
    assert allowed(60, request("write", 10, 20, NEW, failed=True), again, flush(45, 50)) == {NEWER}


def test_a_failed_flush_promises_nothing() -> None:
    failed = flush(25, 30)
    failed.failed = True
    assert allowed(60, request("write", 10, 20, NEW), failed) == {OLD, NEW}


def test_kinds() -> None:
    promises = Promises(OLD + OLD, [request("write", 10, 20, NEW), flush(30, 40)])
    (wrong,) = compare(promises.at(15), NEWER + OLD)
    assert (wrong.kind, wrong.sector) == (MIXED, 0)
    (wrong,) = compare(promises.at(50), OLD + OLD)
    assert (wrong.kind, wrong.sector) == (LOST, 0)
    (wrong,) = compare(promises.at(50), NEW + NEW)
    assert (wrong.kind, wrong.sector) == (CHANGED, 1)
