# SPDX-FileCopyrightText: the vmdkit authors
# SPDX-License-Identifier: Apache-2.0
"""An epoch is over when nobody who began in it is running."""

from __future__ import annotations

from vmdkit.vmdk.epochs import Epochs


def test_advances_freely_while_nothing_runs() -> None:
    epochs = Epochs()
    assert [epochs.advance() for _ in range(3)] == [1, 2, 3]


def test_an_operation_holds_the_second_epoch_after_its_own() -> None:
    epochs = Epochs()
    with epochs.operation():
        begun = epochs.now
        for _ in range(5):
            epochs.advance()
        assert epochs.now < begun + 2
    assert epochs.advance() == begun + 2


def test_operations_of_different_epochs_are_counted_apart() -> None:
    epochs = Epochs()
    old = epochs.operation()
    old.__enter__()
    epochs.advance()
    with epochs.operation():
        pass
    assert epochs.advance() == epochs.now == 1  # the old one still runs
    old.__exit__(None, None, None)
    assert epochs.advance() == 2
