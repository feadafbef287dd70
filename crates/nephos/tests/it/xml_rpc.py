"""Uses a cloud as scripts do, with Python's own XML-RPC client. Arguments: the cloud's URL and the password."""
import sys
import time
from xmlrpc.client import Fault, MultiCall, ServerProxy

url, password = sys.argv[1:]
anonymous = ServerProxy(f"{url}/xmlrpc", allow_none=True)


def fault(call, *args):
    try:
        result = call(*args)
    except Fault as raised:
        return raised
    raise AssertionError(f"no fault but {result!r}")


def followed(workflow):
    """Follows a workflow to its end, as a script would."""
    end = time.monotonic() + 180
    while True:
        run = cloud.workflow.show({"workflow": workflow})
        if run["state"] in ("succeeded", "failed", "cancelled", "stuck"):
            return run
        assert time.monotonic() < end, run
        time.sleep(0.05)


# Logging in.
login = {"user": "admin", "password": password, "project": "demo"}
token = anonymous.token.create(login)["token"]
cloud = ServerProxy(f"{url}/xmlrpc", allow_none=True, headers=[("Authorization", f"Bearer {token}")])
assert fault(anonymous.token.create, {**login, "password": "wrong"}).faultCode == 401
assert fault(anonymous.server.list).faultCode == 401
assert fault(anonymous.server.list, "wrong").faultCode == 401
assert anonymous.server.list(token) == cloud.server.list() == cloud.server.list({}), "three ways to say the same"

# What there is. Streams are not for XML-RPC.
names = cloud.system.listMethods()
assert names == sorted(names), names
wanted = ["flavor.list", "image.create", "server.create", "system.multicall", "token.create", "workflow.show"]
assert set(wanted) <= set(names), names
assert not {"image.upload", "image.download", "server.console", "workflow.watch", "event.watch"} & set(names), names
for name in names:
    assert cloud.system.methodHelp(name).strip(), name
    ways = cloud.system.methodSignature(name)
    assert ways and all(isinstance(kind, str) for way in ways for kind in way), name
help_text = cloud.system.methodHelp("server.create")
assert "image (string" in help_text and "name (string, required)" in help_text, help_text
assert ["struct", "struct"] in cloud.system.methodSignature("server.create")
assert ["struct"] not in cloud.system.methodSignature("server.create"), "it needs a name"
assert ["struct", "string"] in cloud.system.methodSignature("server.list"), "it needs nothing but a token"

# A server, and the workflow that makes it.
started = cloud.server.create({"name": "web", "image": "blank", "flavor": "tiny", "labels": {"tier": "front"}})
run = followed(started["workflow"])
assert run["state"] == "succeeded" and run["name"] == "server.create", run
assert run["subject"] == started["resource"]["id"], run
assert all(step["state"] == "succeeded" for step in run["steps"]), run
web = cloud.server.show({"server": "web"})
assert web["id"] == run["subject"] and web["state"] == "active" and web["labels"] == {"tier": "front"}, web
assert web["vcpus"] == 1 and isinstance(web["memory_mib"], int), web
assert [server["name"] for server in cloud.server.list({"limit": 10})["items"]] == ["web"]

# Faults have the class of the error.
missing = fault(cloud.server.show, {"server": "nowhere"})
assert missing.faultCode == 404 and "nowhere" in missing.faultString, missing
for bad, named in [
    ({}, "server"),
    ({"server": 17}, "server"),
    ({"server": "web", "surprise": 1}, "surprise"),
]:
    wrong = fault(cloud.server.show, bad)
    assert wrong.faultCode == 400 and named in wrong.faultString, (bad, wrong)
assert fault(cloud.server.list, {"limit": 0}).faultCode == 400
assert fault(cloud.server.list, {"limit": 1001}).faultCode == 400
assert fault(cloud.server.list, {"limit": 1.5}).faultCode == 400
assert len(cloud.server.list({"limit": 1.0})["items"]) == 1, "1.0 is a whole number"
taken = fault(cloud.server.create, {"name": "web", "image": "blank", "flavor": "tiny"})
assert taken.faultCode == 409 and "web" in taken.faultString, taken
assert fault(cloud.server.explode, {"server": "web"}).faultCode == -32601
assert fault(cloud.system.methodHelp, "server.explode").faultCode == -32601
assert fault(cloud.server.show, "web", 1).faultCode == -32602
assert fault(cloud.server.show, ["web"]).faultCode == -32602

# Several calls at once: in order, and one that fails does not keep the others from happening.
many = MultiCall(cloud)
many.server.update({"server": "web", "name": "shop"})
many.server.show({"server": "web"})
many.server.show({"server": "shop"})
many.server.explode()
many.flavor.show({"flavor": "tiny"})
renamed, gone, shop, unknown, tiny = many().results
assert renamed[0]["name"] == shop[0]["name"] == "shop" and shop[0]["id"] == web["id"], (renamed, shop)
assert gone["faultCode"] == 404 and unknown["faultCode"] == -32601, (gone, unknown)
assert tiny[0]["name"] == "tiny", tiny

# And away with it.
assert followed(cloud.server.delete({"server": "shop"})["workflow"])["state"] == "succeeded"
assert cloud.server.list()["items"] == []
assert cloud.token.revoke() is True
assert fault(cloud.server.list).faultCode == 401
print("ok")
