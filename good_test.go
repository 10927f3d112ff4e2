package perch_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"perch/internal/testkit"
)

// goodOnes are sessions that do what clients do. A round is one publication that
// each of them gets, and one call that each of them makes and that is answered.
type goodOnes struct {
	t      testing.TB
	server *server
	dense  *testkit.Dense
	n      int
	number int // of the round
	got    int // publications and answers of it
	seen   []int
	wrong  string
}

const goodTopic = "news"

func newGoodOnes(t testing.TB, s *server, n int) *goodOnes {
	t.Helper()
	g := &goodOnes{t: t, server: s, n: n, seen: make([]int, n)}
	first := testkit.Commands(testkit.ConnectCommand(token("good", time.Hour)), testkit.SubscribeCommand(2, goodTopic))
	var err error
	g.dense, err = testkit.NewDense(testkit.DenseOptions{
		Addr: s.public, Path: "/connection/websocket", Replies: 2, First: func(int) []byte { return first }, Seen: g.line,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*testkit.Timeout)
	defer cancel()
	if err := g.dense.Open(ctx, n); err != nil {
		t.Fatal(err)
	}
	return g
}

// line looks at a reply or a push of session i. Each says its round.
func (g *goodOnes) line(i int, line []byte) {
	if g.number == 0 {
		return // a reply to connect or subscribe
	}
	push := bytes.HasPrefix(line, []byte(`{"push"`))
	_, data, ok := bytes.Cut(line, []byte(`"data":`))
	end := bytes.IndexByte(data, '}')
	if !ok || end < 0 {
		g.wrong = fmt.Sprintf("session %d: %.100q", i, line)
		return
	}
	round, err := strconv.Atoi(string(data[:end]))
	if err != nil || round != g.number {
		g.wrong = fmt.Sprintf("session %d in round %d: %.100q", i, g.number, line)
		return
	}
	// Both come once a round, in either order.
	bit := 1
	if push {
		bit = 2
	}
	if g.seen[i]&bit != 0 {
		g.wrong = fmt.Sprintf("session %d in round %d: twice: %.100q", i, g.number, line)
	}
	g.seen[i] |= bit
	g.got++
}

func (g *goodOnes) round(ctx context.Context) {
	g.t.Helper()
	g.number++
	g.got = 0
	clear(g.seen)
	number := strconv.Itoa(g.number)
	if err := g.server.Publish(ctx, goodTopic, []byte(number)); err != nil {
		g.t.Fatal(err)
	}
	call := []byte(`{"id":` + strconv.Itoa(g.number+2) + `,"rpc":{"method":"echo","data":` + number + `}}`)
	for i := range g.n {
		g.dense.Send(i, call)
	}
	err := g.dense.Until(ctx, func() bool {
		return g.got == 2*g.n || g.wrong != "" || g.dense.Stats().Closed > 0
	})
	if st := g.dense.Stats(); err != nil || g.wrong != "" || st.Closed > 0 {
		g.t.Fatalf("round %d: %d of %d publications and answers, %v, %s; %+v", g.number, g.got, 2*g.n, err, g.wrong, st)
	}
}

func (g *goodOnes) close() { _ = g.dense.Close(true) }

// dialSmall dials so that little fits into the connection before it is full: with
// large segments, the kernel gives the server's side a large buffer.
func dialSmall(addr string) (*testkit.Conn, error) {
	d := net.Dialer{Timeout: testkit.Timeout, Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 536)
		})
	}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &testkit.Conn{Conn: c, R: bufio.NewReader(c)}, nil
}
