"""mypy proves here that the real packages are what the control plane asks for."""

from __future__ import annotations

from activator.router import Router as ActivatorRouter
from autoscaler.loop import Autoscaler
from cache.store import ModelStore
from serve.control.books import LedgerBooks
from serve.control.ports import Books, Router, Scaler, Store


def _the_store_is_a_store(store: ModelStore) -> Store:
    return store


def _the_autoscaler_is_a_scaler(autoscaler: Autoscaler) -> Scaler:
    return autoscaler


def _the_activators_router_is_a_router(router: ActivatorRouter) -> Router:
    return router


def _the_ledger_has_the_books(books: LedgerBooks) -> Books:
    return books


def test_the_real_packages_have_every_method_of_the_ports() -> None:
    """What mypy checks by type, by name as well: this fails without mypy too."""
    for port, real in ((Store, ModelStore), (Scaler, Autoscaler), (Router, ActivatorRouter), (Books, LedgerBooks)):
        wanted = {name for name in vars(port) if not name.startswith("_")}
        assert wanted
        assert wanted <= set(dir(real)), wanted - set(dir(real))
