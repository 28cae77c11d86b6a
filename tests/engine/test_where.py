"""client=: from what users give to plain values."""

from __future__ import annotations

import asyncio
import pickle

import dask
import distributed
import pytest

from dask_loader.engine.where import Where, resolve_client
from dask_loader.errors import ConfigError

ADDRESS = "tcp://somewhere:8786"


@pytest.fixture(autouse=True)
def _nothing_configured():
    with dask.config.set({"scheduler-address": None}):
        yield


def test_threads_are_no_address():
    assert resolve_client("threads") == Where(None, None)


def test_none_means_threads_where_nothing_is_active_or_configured():
    assert resolve_client(None) == Where(None, None)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (ADDRESS, ADDRESS),
        ("tls://somewhere:8786", "tls://somewhere:8786"),
        ("somewhere:8786", ADDRESS),
        ("10.0.0.7:8786", "tcp://10.0.0.7:8786"),
    ],
)
def test_an_address_may_leave_out_its_protocol(given, address):
    assert resolve_client(given) == Where(address, None)


def test_none_takes_dasks_configured_scheduler():
    with dask.config.set({"scheduler-address": ADDRESS}):
        assert resolve_client(None) == Where(ADDRESS, None)


def test_the_environment_variable_of_dask_is_that_configuration(monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", ADDRESS)
    with dask.config.set(dask.config.collect_env()):
        assert resolve_client(None) == Where(ADDRESS, None)


def test_threads_win_over_the_configuration():
    with dask.config.set({"scheduler-address": ADDRESS}):
        assert resolve_client("threads") == Where(None, None)


@pytest.mark.cluster
def test_none_takes_the_active_client_before_the_configuration(local_cluster):
    with (
        dask.config.set({"scheduler-address": ADDRESS}),
        distributed.Client(local_cluster.address),
    ):
        assert resolve_client(None) == Where(local_cluster.address, None)
    assert resolve_client(None) == Where(None, None)


@pytest.mark.cluster
def test_a_client_that_is_not_the_default_is_not_active(local_cluster):
    with distributed.Client(local_cluster.address, set_as_default=False):
        assert resolve_client(None) == Where(None, None)


@pytest.mark.cluster
def test_a_client_gives_its_schedulers_address(local_cluster):
    with distributed.Client(local_cluster.address, set_as_default=False) as client:
        assert resolve_client(client) == Where(local_cluster.address, None)


@pytest.mark.cluster
def test_a_cluster_of_ours_and_its_client_give_the_address(local_cluster):
    assert resolve_client(local_cluster) == Where(local_cluster.address, None)
    client = local_cluster.client()
    assert resolve_client(client) == Where(local_cluster.address, None)
    client.close()


@pytest.mark.cluster
def test_a_cluster_object_of_dasks_gives_the_address():
    with distributed.LocalCluster(
        n_workers=0, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp://"
    ) as launched:
        assert resolve_client(launched) == Where(launched.scheduler_address, None)


@pytest.mark.cluster
def test_a_closed_client_is_refused(local_cluster):
    client = distributed.Client(local_cluster.address, set_as_default=False)
    client.close()
    with pytest.raises(ConfigError, match="is closed; pass one that is connected"):
        resolve_client(client)


@pytest.mark.cluster
def test_an_asynchronous_client_is_refused(local_cluster):
    async def main() -> None:
        async with distributed.Client(
            local_cluster.address, asynchronous=True, set_as_default=False
        ) as client:
            with pytest.raises(
                ConfigError, match="is asynchronous; pass its scheduler"
            ):
                resolve_client(client)

    asyncio.run(main())


@pytest.mark.parametrize("given", ["", "  "])
def test_an_empty_address_is_refused(given):
    with pytest.raises(ConfigError, match=r"is empty; give \"threads\", or an address"):
        resolve_client(given)


@pytest.mark.parametrize("given", [8786, True, object(), ["tcp://a:1"], {"a": 1}])
def test_anything_else_is_refused_with_what_it_was(given):
    with pytest.raises(ConfigError, match="is none of None") as caught:
        resolve_client(given)
    assert repr(given) in str(caught.value)


def secret_security() -> distributed.Security:
    return distributed.Security(
        require_encryption=True, tls_client_key="/a/secret/key.pem"
    )


def test_a_cluster_objects_security_is_taken_and_never_printed():
    class Launched:
        scheduler_address = "tls://somewhere:8786"
        security = secret_security()

    where = resolve_client(Launched())
    assert where.address == "tls://somewhere:8786"
    assert where.security is Launched.security
    assert "secret" not in repr(where)
    assert "secret" not in str(where)


def test_a_security_that_asks_for_nothing_is_left_out():
    class Launched:
        scheduler_address = ADDRESS
        security = distributed.Security()

    assert resolve_client(Launched()) == Where(ADDRESS, None)


def test_where_pickles_with_its_security():
    where = Where("tls://somewhere:8786", secret_security())
    copy = pickle.loads(pickle.dumps(where))
    assert copy.address == where.address
    assert copy.security.tls_client_key == "/a/secret/key.pem"
