package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listen makes a listener with a backlog of its own, beside others on the port.
func listen(t *testing.T, at netip.AddrPort, backlog int) netip.AddrPort {
	t.Helper()
	family := unix.AF_INET
	var to unix.Sockaddr = &unix.SockaddrInet4{Port: int(at.Port()), Addr: [4]byte{127, 0, 0, 1}}
	if at.Addr().Is6() {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, to); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(at.Addr(), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(at.Addr(), uint16(a.Port))
	}
	t.Fatalf("%T", name)
	return at
}

// queueOf is the finding of this machine.
func queueOf(t *testing.T, sys System, at netip.AddrPort) Finding {
	t.Helper()
	return Examine(sys, Load{Connections: 10, Listen: at.String()}).finding(t, "accept queue")
}

// TestAcceptQueueInForce reads the backlog of real listeners, which no sysctl
// shows.
func TestAcceptQueueInForce(t *testing.T) {
	// All addresses of IPv6 are there where none is configured.
	for _, host := range []string{"127.0.0.1", "::"} {
		t.Run(host, func(t *testing.T) {
			at := listen(t, netip.AddrPortFrom(netip.MustParseAddr(host), 0), 77)
			if f := queueOf(t, System{}, at); f.Status != Warn || f.Have != "in force: 1 listeners x 77, 0 waiting" || !strings.Contains(f.Set, "restart perch") {
				t.Errorf("one: %+v", f)
			}
			listen(t, at, 99)
			for range 3 {
				c, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port()).String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			}
			const want = "in force: 2 listeners x 77 to 99, 3 waiting"
			var f Finding
			for limit := time.Now().Add(10 * time.Second); time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
				if f = queueOf(t, System{}, at); f.Have == want {
					break
				}
			}
			if f.Have != want || f.Status != Warn {
				t.Errorf("two: %+v, want %s", f, want)
			}
			// The same of a process by its number.
			if f := queueOf(t, System{PID: os.Getpid()}, at); f.Have != want {
				t.Errorf("by its number: %+v", f)
			}
		})
	}
	// What is long enough is so whatever the sysctl says now.
	somaxconn, err := System{}.withDefaults().one("net.core.somaxconn")
	if err != nil {
		t.Fatal(err)
	}
	at := listen(t, netip.MustParseAddrPort("127.0.0.1:0"), minBacklog)
	want := either(somaxconn < minBacklog, Warn) // the kernel cuts a backlog to it
	have := fmt.Sprintf("in force: 1 listeners x %d, 0 waiting", min(somaxconn, minBacklog))
	if f := queueOf(t, System{}, at); f.Status != want || f.Have != have {
		t.Errorf("long enough: %+v", f)
	}
}

// TestAcceptQueueReckoned: where the kernel does not tell, or tells of other
// sockets than those of the process, the doctor says that it has reckoned.
func TestAcceptQueueReckoned(t *testing.T) {
	load := Load{Connections: 100_000, Listen: "127.0.0.1:8000"}
	const reckoned = "reckoned: 2 listeners x 16384, 7 waiting"
	for _, tt := range []struct {
		name string
		told []Listener
		err  error
		want Status
		have string
	}{
		{"told", []Listener{{1, 3, 16384}, {1, 4, 16384}}, nil, OK, "in force: 2 listeners x 16384, 7 waiting"},
		{"of an old sysctl", []Listener{{1, 3, 4096}, {1, 4, 4096}}, nil, Warn, "in force: 2 listeners x 4096, 7 waiting"},
		{"half full", []Listener{{1, 8192, 8192}, {1, 4096, 16384}}, nil, OK, "in force: 2 listeners x 8192 to 16384, 12288 waiting"},
		{"more than half", []Listener{{1, 8192, 8192}, {1, 4097, 16384}}, nil, Warn, "12289 waiting"},
		{"among others", []Listener{{7, 1, 128}, {1, 3, 16384}, {1, 4, 16384}}, nil, OK, "in force: 2 listeners x 16384, 7 waiting"},
		{"of another namespace", []Listener{{7, 1, 128}, {8, 0, 128}}, nil, OK, reckoned},
		{"not all", []Listener{{1, 3, 128}}, nil, OK, reckoned},
		{"nothing", nil, nil, OK, reckoned},
		{"an error", nil, errors.New("no such module"), OK, reckoned},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked := 0
			sys := System{FS: tree(nil), CPUs: 4, PageSize: 4096, Listeners: func(port int) ([]Listener, error) {
				asked = port
				return tt.told, tt.err
			}}
			if f := Examine(sys, load).finding(t, "accept queue"); f.Status != tt.want || !strings.Contains(f.Have, tt.have) {
				t.Errorf("%+v, want %s, %s", f, tt.want, tt.have)
			}
			if asked != 8000 {
				t.Errorf("asked for the port %d", asked)
			}
		})
	}
}

func diagMessage(kind uint16, port uint16, state byte, waiting, backlog, inode uint32) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN+diagSize)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	m := b[unix.NLMSG_HDRLEN:]
	m[1] = state
	binary.BigEndian.PutUint16(m[4:], port)
	binary.NativeEndian.PutUint32(m[56:], waiting)
	binary.NativeEndian.PutUint32(m[60:], backlog)
	binary.NativeEndian.PutUint32(m[68:], inode)
	return b
}

func TestDiagAnswer(t *testing.T) {
	one := diagMessage(unix.SOCK_DIAG_BY_FAMILY, 8000, tcpListen, 3, 128, 42)
	other := diagMessage(unix.SOCK_DIAG_BY_FAMILY, 8001, tcpListen, 3, 128, 43)
	done := diagMessage(unix.NLMSG_DONE, 0, 0, 0, 0, 0)
	list, end, err := diagAnswer(append(append(append([]byte{}, one...), other...), done...), 8000, nil)
	if err != nil || !end || len(list) != 1 || list[0] != (Listener{42, 3, 128}) {
		t.Errorf("%v, %v, %v", list, end, err)
	}
	if list, end, err = diagAnswer(one, 8000, nil); err != nil || end || len(list) != 1 {
		t.Errorf("without an end: %v, %v, %v", list, end, err)
	}
	refusal := diagMessage(unix.NLMSG_ERROR, 0, 0, 0, 0, 0)
	binary.NativeEndian.PutUint32(refusal[unix.NLMSG_HDRLEN:], uint32(0x100000000-int64(unix.ENOENT)))
	if _, _, err = diagAnswer(refusal, 8000, nil); !errors.Is(err, unix.ENOENT) {
		t.Errorf("refused: %v", err)
	}
	for _, cut := range []int{1, unix.NLMSG_HDRLEN - 1, unix.NLMSG_HDRLEN + 5, len(one) - 1} {
		if list, _, err := diagAnswer(one[:cut], 8000, nil); err == nil || list != nil {
			t.Errorf("cut at %d: %v, %v", cut, list, err)
		}
	}
}

// FuzzDiagAnswer: nothing that comes for an answer may end the doctor.
func FuzzDiagAnswer(f *testing.F) {
	f.Add(diagMessage(unix.SOCK_DIAG_BY_FAMILY, 8000, tcpListen, 3, 128, 42))
	f.Add(diagMessage(unix.NLMSG_DONE, 0, 0, 0, 0, 0))
	f.Add(diagMessage(unix.NLMSG_ERROR, 0, 0, 0, 0, 0)[:unix.NLMSG_HDRLEN])
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _, err := diagAnswer(b, 8000, nil)
		if len(list) > len(b)/diagSize || err != nil && list != nil {
			t.Errorf("%d listeners of %d bytes, %v", len(list), len(b), err)
		}
	})
}
