"""The listening socket: taken addresses are said before anybody believes that they are served."""

from __future__ import annotations

import pytest

from service.server.run import bind, listen
from service.settings import StartError


def test_two_that_start_at_once_do_not_share_an_address():
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", port) as second:  # neither listens yet
            listen(first, "127.0.0.1")
            with pytest.raises(StartError, match=rf"127\.0\.0\.1:{port} is in use"):
                listen(second, "127.0.0.1")


def test_a_taken_address_is_said():
    with bind("127.0.0.1", 0) as first:
        listen(first, "127.0.0.1")
        with pytest.raises(StartError, match="is in use: stop what listens there"):
            bind("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize("host", ["no.such.host.invalid", "[::1]", "300.1.1.1", "..", "a" * 64])
def test_a_host_that_is_none(host):
    with pytest.raises(StartError, match="IAFVAE_HOST="):
        bind(host, 0)


def test_another_machines_address():
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1:"):
        bind("192.0.2.1", 0)
