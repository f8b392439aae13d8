"""What is written in one turn of the event loop goes out together, and nothing is left behind."""

from __future__ import annotations

import asyncio

import pytest

from service.server.transport import ClosedByProtocol


class Wire(asyncio.Transport):
    """A transport that keeps what reaches it."""

    def __init__(self):
        super().__init__()
        self.sent, self.closing = [], False

    def is_closing(self):
        return self.closing

    def lose(self):
        self.closing = True

    def write(self, data):
        self.sent.append(bytes(data))

    def writelines(self, pieces):
        self.sent.append(b"".join(pieces))

    def write_eof(self):
        self.sent.append("end")

    def abort(self):
        self.sent.append("abort")


@pytest.mark.parametrize(
    ("calls", "sent"),
    [
        ("head body", [b"headbody"]),
        ("head turn", [b"head"]),
        ("head turn body turn", [b"head", b"body"]),
        ("head body more turn", [b"headbody", b"more"]),
        ("head close", [b"head", "close"]),
        ("head body close turn", [b"headbody", "close"]),
        ("head end_writing", [b"head", "end"]),
        ("head abort turn", ["abort"]),
        ("head lose turn", []),
    ],
)
def test_writes_of_one_turn_go_out_together(calls, sent):
    async def main():
        wire = Wire()
        transport = ClosedByProtocol(
            wire, lambda: wire.sent.append("close"), asyncio.get_running_loop()
        )
        for call in calls.split():
            if call == "turn":
                await asyncio.sleep(0)
            elif call == "lose":  # the connection, as its system says
                wire.lose()
            elif hasattr(transport, call):
                getattr(transport, call)()
            else:
                transport.write(call.encode())
        return wire.sent

    assert asyncio.run(main()) == sent
