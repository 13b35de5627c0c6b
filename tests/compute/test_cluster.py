"""Clusters: loopback only, cores shared out, and what cannot work is refused at once."""

import gc
import os
import signal
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, LocalCluster, get_client

from sar2eo.compute import cluster, dask_run
from sar2eo.errors import ClusterError, SettingsError


@pytest.fixture(scope="module")
def joined() -> Iterator[str]:
    """The address of a cluster somebody else started."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        host="127.0.0.1",
    ) as running:
        yield running.scheduler_address


def test_started_workers_listen_on_loopback_share_the_cores_and_leave_ctrl_c_to_the_driver() -> None:
    with cluster.connect_cluster(workers=1):
        client = get_client()
        pids = client.run(os.getpid).values()
        family = [psutil.Process(), *(psutil.Process(pid) for pid in pids)]
        listening = [c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == "LISTEN"]
        assert listening
        assert set(listening) == {"127.0.0.1"}
        assert set(client.run(signal.getsignal, signal.SIGINT).values()) == {signal.SIG_IGN}
        threads = set(client.run(os.environ.get, "OMP_NUM_THREADS").values())
        assert threads == {str(cluster.threads_per_worker(1))}
        address = client.scheduler.address
        anybody = ssl.create_default_context()
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        host, port = address.removeprefix("tls://").split(":")
        with (
            socket.create_connection((host, int(port)), timeout=20) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
            anybody.wrap_socket(plain) as encrypted,
        ):
            encrypted.recv(1)  # the server asks for a certificate of the run


def test_cores_are_shared_out() -> None:
    cores = cluster.available_cores()
    assert [cluster.threads_per_worker(n) for n in (0, 1, cores, 10 * cores)] == [cores, cores, 1, 1]


def test_a_joined_cluster_is_used_and_stays(joined: str, tmp_path: Path) -> None:
    for _ in range(2):
        with (
            warnings.catch_warnings(record=True, action="always") as told,
            cluster.connect_cluster(scheduler=joined),
        ):
            assert get_client().submit(sum, [1, 2]).result() == 3
        assert ["without TLS" in str(warning.message) for warning in told] == [True]


@pytest.mark.filterwarnings("ignore:--scheduler")
def test_a_worker_within_this_process_is_counted_once(joined: str) -> None:
    with cluster.connect_cluster(scheduler=joined):
        dask_run.reset_telemetry()
        dask_run.add_count("tiles_translated", 9)
        assert dask_run.collect_telemetry()["tiles_translated"] == 9
    with cluster.connect_cluster(workers=1):
        dask_run.reset_telemetry()
        dask_run.add_count("tiles_translated", 2)
        get_client().run(dask_run.add_count, "tiles_translated", 5)
        assert dask_run.collect_telemetry()["tiles_translated"] == 7


@pytest.mark.parametrize("options", [{"workers": -1}, {"workers": 2, "scheduler": "tcp://127.0.0.1:1"}])
def test_contradictions_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="workers"), cluster.connect_cluster(**options):
        pass


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense"])
def test_an_unreachable_cluster_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_JOIN_SECONDS", 1)
    with pytest.raises(ClusterError, match=address), cluster.connect_cluster(scheduler=address):
        pass
    assert dask.config.get("scheduler", None) is None
    # Nor does what is left of the attempt come back later.
    for _ in range(5):
        gc.collect()
        time.sleep(0.1)
    assert dask.config.get("scheduler", None) is None


@pytest.mark.filterwarnings("ignore:--scheduler")
def test_workers_that_lack_a_file_or_a_device_are_named(joined: str, tmp_path: Path) -> None:
    with cluster.connect_cluster(scheduler=joined):
        assert cluster.threads_per_worker(0, joined) == cluster.available_cores()
        cluster.check_workers(paths=[tmp_path], device="cpu")
        with pytest.raises(ClusterError, match=r"does not see .*elsewhere"):
            cluster.check_workers(paths=[tmp_path, tmp_path / "elsewhere"], device="cpu")
        with pytest.raises(ClusterError, match=r"lacks what the run needs: .*nonsense"):
            cluster.check_workers(paths=[tmp_path], device="nonsense")


class Foreign:
    """Stands for a client of workers with another set of packages."""

    def __init__(self, workers: int, answer: object) -> None:
        self.workers, self.answer = workers, answer

    def scheduler_info(self) -> dict[str, Any]:
        return {"workers": dict.fromkeys(range(self.workers))}

    def run(self, function: Callable[..., Any], *_: Any, on_error: str = "raise") -> dict[str, Any]:
        assert not function.__module__.startswith("sar2eo"), "a worker without it could not unpickle this"
        assert on_error == "return"
        return {"tcp://a": self.answer}


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (Foreign(0, ""), "no workers"),
        (Foreign(1, "0.0.0"), r"sar2eo 0\.0\.0"),
        (Foreign(1, ModuleNotFoundError("sar2eo")), "no sar2eo"),
    ],
)
def test_workers_that_are_missing_or_differ_are_named(client: Foreign, words: str) -> None:
    with pytest.raises(ClusterError, match=words):
        cluster._check_versions(client, "tcp://a")


def test_a_cluster_without_workers_is_an_error_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_run, "_WATCH_SECONDS", 0.1)
    monkeypatch.setattr(dask_run, "_LONELY_SECONDS", 0.3)
    options = {"processes": False, "protocol": "tcp", "dashboard_address": None, "host": "127.0.0.1"}
    scheduler = {"dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=0, scheduler_kwargs=scheduler, **options) as empty, Client(empty) as client:
        with pytest.raises(ClusterError, match="no workers"):
            dask_run.compute_keys({"three": (sum, [1, 2])}, ["three"])
        empty.scale(1)
        client.wait_for_workers(1, timeout=60)
        # Another key, for the first stays cancelled; a graph that Dask would warn of, warnings being errors.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1B"}):
            assert dask_run.compute_keys({"four": (sum, [1, 3])}, ["four"]) == [4]
