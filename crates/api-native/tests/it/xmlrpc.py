"""Asks a running server over XML-RPC as Python's own client does. Arguments: address and a good token."""
import sys
from xmlrpc.client import Binary, Fault, MultiCall, ProtocolError, ServerProxy

address, token = sys.argv[1:]
server = ServerProxy(f"http://{address}/xmlrpc", allow_none=True)
with_header = ServerProxy(f"http://{address}/xmlrpc", allow_none=True, headers=[("X-Auth-Token", token)])


def fault(call, *args):
    try:
        result = call(*args)
    except Fault as raised:
        return raised
    raise AssertionError(f"no fault but {result!r}")


names = server.system.listMethods()
assert names == sorted(names) and "system.multicall" in names and "flavor.list" in names, names
assert "probe.fetch" not in names and "probe.store" not in names, "streams are not for XML-RPC"
for name in names:
    assert server.system.methodHelp(name).strip(), name
    assert all(isinstance(kind, str) for way in server.system.methodSignature(name) for kind in way), name
assert server.system.getCapabilities()["faults_interop"]["specVersion"] == 20010516

echoed = server.probe.echo(token, {"thing": "größe <&>\r\n"[:5], "count": 7, "tags": ["a", "b"]})
assert echoed["thing"] == "größe" and echoed["count"] == 7 and echoed["tags"] == ["a", "b"], echoed
assert echoed["actor"] == "ada", echoed
assert with_header.probe.echo({"thing": "x"})["actor"] == "ada"
assert with_header.probe.echo({"thing": "x"})["count"] is None
# None counts as absent, also where a field does not know null; numbers may come as text, text as bytes.
assert with_header.probe.echo({"thing": "x", "count": None, "tags": None})["tags"] == []
assert with_header.probe.echo({"thing": "x", "count": "12"})["count"] == 12
assert with_header.probe.echo({"thing": Binary(b"bytes")})["thing"] == "bytes"
assert with_header.probe.start({"thing": "x", "count": "5000000000"})["resource"]["count"] == 5000000000
assert server.probe.greet()["actor"] is None
assert with_header.probe.fail({"kind": "none"}) is True

assert fault(server.no.such).faultCode == -32601
assert fault(server.system.methodHelp, "no.such").faultCode == -32601
assert fault(server.system.listMethods, 1).faultCode == -32602
assert fault(with_header.probe.echo, [1]).faultCode == -32602
assert fault(with_header.probe.echo, {}, {}).faultCode == -32602
assert fault(server.probe.echo, {"thing": "x"}).faultCode == 401
assert fault(server.probe.echo, "wrong", {"thing": "x"}).faultCode == 401
wrong = fault(with_header.probe.echo, {"thing": "x", "no_such_field": 1})
assert wrong.faultCode == 400 and "no_such_field" in wrong.faultString, wrong
wrong = fault(with_header.probe.echo, {})
assert wrong.faultCode == 400 and "thing" in wrong.faultString, wrong
for kind, code in {"not_found": 404, "conflict": 409, "quota": 1429, "rate_limited": 429, "capacity": 507}.items():
    wrong = fault(with_header.probe.fail, {"kind": kind})
    assert (wrong.faultCode, wrong.faultString) == (code, "Told to fail: by a test"), wrong
assert "req-" in fault(with_header.probe.fail, {"kind": "internal"}).faultString

many = MultiCall(with_header)
many.probe.echo({"thing": "one"})
many.probe.fail({"kind": "conflict"})
many.system.multicall([])
many.probe.echo({"thing": "two"})
results = many().results
assert [type(result) for result in results] == [list, dict, dict, list], results
assert results[0][0]["thing"] == "one" and results[3][0]["thing"] == "two"
assert results[1]["faultCode"] == 409 and results[2]["faultCode"] == -32600
assert fault(server.system.multicall, [{"methodName": "probe.greet", "params": []}] * 101).faultCode == -32602
assert server.system.multicall([{"methodName": "probe.greet"}, 7]) and server.system.multicall([]) == []

try:
    with_header.probe.echo({"thing": "x" * 1100000})
    raise AssertionError("accepted")
except ProtocolError as raised:
    assert raised.errcode == 413, raised
print("ok")
