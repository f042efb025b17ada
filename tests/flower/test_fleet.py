"""A site's connection to a real SuperLink; and what of Flower's inside it relies on."""

from __future__ import annotations

import inspect
import logging
import shutil
import threading
import time
from concurrent.futures import Future
from importlib.metadata import version

import pytest
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import http_grid
from flwr.supernode.fleet_http_client import FleetHttpClient

from hiso.flower.access import Access
from hiso.flower.envelope import Envelope
from hiso.flower.fleet import Away, Fleet
from hiso.flower.network import Network

from .federation import Deployment

pytestmark = [pytest.mark.flower, pytest.mark.timeout(300)]
FIELDS = {
    fleet_pb2.RegisterNodeFleetRequest: {"public_key"},
    fleet_pb2.ActivateNodeRequest: {"public_key", "heartbeat_interval"},
    fleet_pb2.ActivateNodeResponse: {"node_id"},
    fleet_pb2.DeactivateNodeRequest: {"node_id"},
    fleet_pb2.PullMessagesRequest: {"node"},
    fleet_pb2.PullMessagesResponse: {"messages_list", "message_object_trees"},
    fleet_pb2.PushMessagesRequest: {
        "node", "messages_list", "message_object_trees", "clientapp_runtime_list",
    },
    fleet_pb2.PushMessagesResponse: {"objects_to_push", "session_id"},
    heartbeat_pb2.SendNodeHeartbeatRequest: {"node", "heartbeat_interval"},
    heartbeat_pb2.SendNodeHeartbeatResponse: {"success"},
    message_pb2.PullObjectRequest: {"node", "run_id", "object_id"},
    message_pb2.PullObjectResponse: {"object_found", "object_available", "object_content"},
    message_pb2.PushObjectRequest: {
        "node", "run_id", "object_id", "object_content", "session_id",
    },
    message_pb2.PushObjectResponse: {"stored"},
    message_pb2.ConfirmMessageReceivedRequest: {"node", "run_id", "message_object_id"},
}  # fmt: skip
CALLS = {
    "RegisterNode", "ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "PullMessages",
    "PushMessages", "PullObject", "PushObject", "ConfirmMessageReceived",
}  # fmt: skip


def test_flowers_internal_interface_is_the_one_that_fleet_py_was_written_for():
    assert version("flwr").startswith("1.41.")
    made = inspect.signature(FleetHttpClient.from_server_address).parameters
    assert list(made) == [
        "server_address", "insecure", "root_certificates", "interceptors", "retry_invoker",
    ]  # fmt: skip
    assert set(dir(FleetHttpClient)) >= CALLS
    waits = inspect.signature(pull_objects).parameters
    assert {"initial_backoff", "backoff_cap"} <= set(waits)
    assert http_grid.pull_objects is pull_objects  # what `look_again_soon` replaces at the server
    for kind, fields in FIELDS.items():
        assert set(kind.DESCRIPTOR.fields_by_name) >= fields, kind


@pytest.fixture
def site(tmp_path):
    site = Deployment(tmp_path / "s")
    try:
        yield site
    finally:
        site.close()


@pytest.fixture
def connect(site, tmp_path):
    """Connects to the SuperLink, with the key in the folder of this name."""
    made: list[Fleet] = []

    def connect(name: str) -> Fleet:
        (tmp_path / name).mkdir(exist_ok=True)
        made.append(Fleet(Access(site.address(), None, None), tmp_path / name))
        made[-1].join()
        return made[-1]

    yield connect
    for fleet in made:
        fleet.leave()


def test_a_restarted_process_is_the_same_node_at_once(site, connect, tmp_path):
    site.superlink()
    first = connect("w")
    again = connect("w")  # the SuperLink takes the first for alive
    assert again.node == first.node != 0
    assert connect("other").node != first.node

    (tmp_path / "w" / "node.json").unlink()
    with pytest.raises(Away, match="does not accept this site's key"):
        connect("w")
    first.leave()  # as a worker does that is stopped
    assert connect("w").node == first.node


def test_a_site_waits_for_a_superlink_and_says_so_once(site, tmp_path, caplog):
    """It comes late, is killed, comes again, and comes with an empty memory."""
    (tmp_path / "w").mkdir()
    state = ("--database", site.folder / "state.db")
    fleet = Fleet(Access(site.address(), None, None), tmp_path / "w")
    network = Network(fleet, lambda request: Future[Envelope]())
    thread = threading.Thread(target=network.run, daemon=True)
    with caplog.at_level(logging.INFO):
        thread.start()
        site.wait("first failure", lambda: "Connection refused" in network.trouble)
        site.superlink(*state)
        site.wait("connection", lambda: not network.trouble)
        node = fleet.node
        site.kill("superlink")
        site.wait("trouble", lambda: network.trouble)
        said = len(caplog.messages)
        time.sleep(2)
        assert len(caplog.messages) <= said + 1  # of the next heartbeat
        site.superlink(*state)
        site.wait("connection", lambda: not network.trouble)
        assert fleet.node == node
        site.kill("superlink")
        for path in site.folder.glob("state.db*"):
            path.unlink()
        site.superlink(*state)
        site.wait("connection", lambda: not network.trouble and fleet.node != node)
        network.stop()
        thread.join(30)
    assert not thread.is_alive()
    assert sum("connected to the SuperLink" in said for said in caplog.messages) == 3


@pytest.mark.skipif(shutil.which("tinyproxy") is None, reason="apt-get install tinyproxy")
def test_a_site_behind_an_http_proxy(site, tmp_path, monkeypatch):
    """As `HTTP_PROXY` and, with TLS, `HTTPS_PROXY` say; the proxy's log names the SuperLink."""
    site.superlink()
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{site.http_proxy()}")
    (tmp_path / "w").mkdir()
    fleet = Fleet(Access(site.address(), None, None), tmp_path / "w")
    fleet.join()
    assert fleet.node
    fleet.leave()
    log = site.output("tinyproxy")
    assert f"http://{site.address()}" in log
