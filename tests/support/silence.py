"""`python silence.py COMMAND...` runs a command in a network of its own, in which every address is this machine, and prints what the command called.

Nothing leaves: a connection is refused and a name is not found. The attempt is seen as a packet, so whichever library made it, by whichever proxy."""
import collections, ipaddress, json, os, shutil, socket, subprocess, sys, threading

TCP, UDP, EVERY_PROTOCOL = 6, 17, 3
ALONE = ["unshare", "-rn"]

def can_be_alone() -> bool:
    "True where this user may make a network of its own and the tools are there."
    return all(map(shutil.which, ("unshare", "ip"))) and not subprocess.run([*ALONE, "true"], capture_output=True).returncode

def question(query: bytes) -> str:
    "The name that a DNS query asks for."
    labels, at = [], 12
    while at < len(query) and query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode(errors="replace"))
        at += 1 + query[at]
    return ".".join(labels)

def call(packet: bytes) -> str | None:
    "The name of a DNS query, or `address:port` of the first packet of a connection or of a datagram to another machine; None for any other packet."
    old = packet[0] >> 4 == 4
    protocol, head = (packet[9], (packet[0] & 15)*4) if old else (packet[6], 40)
    if protocol not in (TCP, UDP): return None
    address = ipaddress.ip_address(packet[16:20] if old else packet[24:40])
    port = int.from_bytes(packet[head + 2:head + 4])
    if protocol == UDP and port == 53: return question(packet[head + 8:])
    first = protocol == UDP or packet[head + 13] & 0x12 == 0x02 # SYN without ACK
    return f"{address}:{port}" if first and not address.is_loopback else None

def record(calls: collections.Counter, tap: socket.socket):
    "Count the calls among the packets that leave, for ever."
    while True:
        packet, where = tap.recvfrom(65535)
        if where[2] == socket.PACKET_OUTGOING and (to := call(packet)): calls[to] += 1

def run_alone(command: list[str]) -> int:
    "Run a command in the network that this process is in already, print its calls as the last line of stdout, and return its exit code."
    for words in ("link set lo up", "route add local 0.0.0.0/0 dev lo"): subprocess.run(["ip", *words.split()], check=True)
    subprocess.run(["ip", "-6", "route", "add", "local", "::/0", "dev", "lo"], capture_output=True) # a machine without IPv6 has no such route
    calls = collections.Counter()
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(EVERY_PROTOCOL)) as tap:
        threading.Thread(target=record, args=(calls, tap), daemon=True).start()
        code = subprocess.run(command).returncode
        print(json.dumps(calls), flush=True)
        os._exit(code)

if __name__ == "__main__":
    if sys.argv[1] == "--alone": run_alone(sys.argv[2:])
    os.execvp(ALONE[0], [*ALONE, sys.executable, __file__, "--alone", *sys.argv[1:]])
