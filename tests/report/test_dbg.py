import socket
from .test_watch import *
from .test_watch import served, troubled
def test_dbg(hiso, troubled):
    with served(hiso, troubled) as url:
        (troubled / "ledger.sqlite").write_bytes(b"<b>no database</b>" * 100)
        port=int(url.rstrip("/").rpartition(":")[2])
        for n in range(3):
            s=socket.create_connection(("127.0.0.1",port)); s.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            d=b""
            while c:=s.recv(65536): d+=c
            print(n,len(d)); 
        print(d[:300]); print(d[-900:])
        assert 0
