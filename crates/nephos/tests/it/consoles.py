"""Consoles by URL, as any WebSocket client sees them: an RFB handshake, a login on the serial line, a URL that is over."""

import sys
import time

from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

PATIENCE = 120


class Line:
    """Bytes out of binary frames."""

    def __init__(self, socket):
        self.socket = socket
        self.seen = b""

    def more(self):
        frame = self.socket.recv(timeout=PATIENCE)
        assert isinstance(frame, bytes), "frames are binary"
        self.seen += frame

    def take(self, count):
        while len(self.seen) < count:
            self.more()
        taken, self.seen = self.seen[:count], self.seen[count:]
        return taken

    def until(self, text):
        while text not in self.seen:
            self.more()
        self.seen = self.seen[self.seen.index(text) + len(text) :]


def screen(url):
    with connect(url, subprotocols=["binary"]) as socket:
        assert socket.subprotocol == "binary", socket.subprotocol
        line = Line(socket)
        assert line.take(12) == b"RFB 003.008\n"
        socket.send(b"RFB 003.008\n")
        assert 1 in line.take(line.take(1)[0]), "no authentication"
        socket.send(b"\x01")
        assert line.take(4) == bytes(4), "security handshake"
        socket.send(b"\x01")
        size = line.take(4)
        width, height = int.from_bytes(size[:2], "big"), int.from_bytes(size[2:], "big")
        assert width >= 640 and height >= 400, (width, height)
        line.take(16)
        line.take(int.from_bytes(line.take(4), "big"))
        # The whole screen as raw pixels.
        socket.send(b"\x03\x00\x00\x00\x00\x00" + size)
        assert line.take(1) == b"\x00", "an update"


def serial(url, password):
    with connect(url) as socket:
        assert socket.subprotocol is None
        line = Line(socket)
        socket.send(b"\r")
        line.until(b"login:")
        socket.send(b"root\r")
        line.until(b"assword:")
        socket.send(password.encode() + b"\r")
        line.until(b"# ")
        socket.send(b"echo $((5 * 5))-by-python; exit\r")
        line.until(b"25-by-python")


def refused(url):
    try:
        connect(url).close()
    except InvalidStatus as refusal:
        return refusal.response.status_code
    return None


serial_url, vnc_url, short_url, secret = sys.argv[1:]
screen(vnc_url)
serial(serial_url, secret)
deadline = time.monotonic() + PATIENCE
while refused(short_url) is None:
    assert time.monotonic() < deadline, "a URL that never expires"
    time.sleep(0.2)
assert refused(short_url) == 404
print("ok")
