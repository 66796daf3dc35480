"""Reads a maildrop with Python's poplib and says what it saw; driven by tests/server.rs."""

import poplib
import sys

port = int(sys.argv[1])


def login(password="secret"):
    client = poplib.POP3("127.0.0.1", port, timeout=20)
    client.user("alice")
    client.pass_(password)
    return client


def refused(action, code):
    try:
        action()
    except poplib.error_proto as error:
        assert code in str(error), error
    else:
        raise AssertionError(f"{code} was expected")


def octets(lines):
    return b"".join(line + b"\r\n" for line in lines)


refused(lambda: login("wrong"), "[AUTH]")

client = login()
assert {"UIDL", "TOP", "PIPELINING"} <= set(client.capa()), client.capa()
count, total = client.stat()
assert count == 6, count
sizes = [int(line.split()[1]) for line in client.list()[1]]
names = [line.split()[1] for line in client.uidl()[1]]
assert sum(sizes) == total
assert len(set(names)) == count
for number, (size, name) in enumerate(zip(sizes, names), 1):
    _, lines, _ = client.retr(number)
    mail = octets(lines)
    assert len(mail) == size, (number, len(mail), size)
    assert mail.hex() == sys.argv[1 + number], (number, mail)
    assert client.uidl(number).split()[2] == name
    assert octets(client.top(number, 10000)[1]) == mail
    head = octets(client.top(number, 0)[1])
    assert mail.startswith(head) and (head.endswith(b"\r\n\r\n") or head == mail), (number, head)
refused(lambda: client.retr(count + 1), "-ERR")
refused(login, "[IN-USE]")
client.dele(1)
refused(lambda: client.retr(1), "-ERR")
client.rset()
client.dele(2)
client.close()

# The connection was cut: nothing is gone, and the maildrop is free again as soon as the server sees it.
for _ in range(1000):
    try:
        client = login()
        break
    except poplib.error_proto as error:
        assert "[IN-USE]" in str(error), error
assert [line.split()[1] for line in client.uidl()[1]] == names
client.dele(1)
client.dele(3)
client.quit()

client = login()
assert [line.split()[1] for line in client.uidl()[1]] == [name for name in names if name not in (names[0], names[2])]
client.quit()
print("done")
