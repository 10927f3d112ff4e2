package perch_test

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"perch"
	"perch/internal/testkit"
)

// The conformance suite: what RFC 6455 asks of a server, case by case, over
// real sockets, at each endpoint that speaks WebSocket. The cases stand in
// rfc6455_*_test.go, the endpoints in dialects.

// reply is what a case expects next from the server.
type reply struct {
	opcode  byte
	payload []byte
	code    uint16 // of a close frame; 1005: it has no payload
}

func gotText(s string) reply           { return reply{opcode: testkit.OpText, payload: []byte(s)} }
func gotBinary(p []byte) reply         { return reply{opcode: testkit.OpBinary, payload: p} }
func gotPong(s string) reply           { return reply{opcode: testkit.OpPong, payload: []byte(s)} }
func gotClose(code uint16) reply       { return reply{opcode: testkit.OpClose, code: code} }
func replies(r ...reply) []reply       { return r }
func frames(f ...testkit.Frame) []byte { return testkit.Wire(f...) }

// wireCase sends bytes behind the handshake and says what must come back, to
// the last frame. A case that ends with a close frame ends the connection, with
// nothing behind the frame; any other ends with a ping of the test's own, which
// shows that the connection is still good and that nothing else was said.
type wireCase struct {
	section string // of RFC 6455
	name    string
	send    []byte
	want    []reply
}

// Sizes below which a case is also sent byte by byte, and cut in two at every
// place; above it is cut around the first header and at the end.
const (
	eachUpTo = 150
	cutsUpTo = 64
)

// way is how a case's bytes are cut on their way.
type way struct {
	name string
	at   []int
}

func (c wireCase) ways(d dialect) []way {
	// The reader is the same at all endpoints, so each cut of what is longer is
	// made at one of them.
	upTo := cutsUpTo
	if d.begin != nil {
		upTo /= 2
	}
	ways := []way{{"whole", nil}}
	if len(c.send) <= eachUpTo {
		ways = append(ways, eachByte(len(c.send)))
	}
	for i := 1; i < len(c.send); i++ {
		if len(c.send) <= upTo || i <= 14 || i == len(c.send)-1 {
			ways = append(ways, way{fmt.Sprintf("cut at %d", i), []int{i}})
		}
	}
	return ways
}

// eachByte cuts n bytes into single ones.
func eachByte(n int) way {
	w := way{name: "byte by byte"}
	for i := range n {
		w.at = append(w.at, i+1)
	}
	return w
}

// attempts bounds the connections that the suite has open at a time. It mostly
// waits: for pieces to be read apart, and for answers.
var (
	attempts  = make(chan struct{}, 64)
	attempted atomic.Int64
)

// runOn holds the case in every way, many at a time. One failure says it: every
// other cut would repeat it.
func (c wireCase) runOn(t *testing.T, addr string, d dialect) {
	t.Run(c.section+"/"+c.name, func(t *testing.T) {
		t.Parallel()
		hold(t, c.ways(d), func(at ...int) error { return c.attempt(addr, d, at...) })
	})
}

// waitTogether lets more parallel tests run at a time than there are
// processors, where nobody has asked for another number: they mostly wait.
func waitTogether() {
	flag.Parse()
	if p := flag.Lookup("test.parallel"); p.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		_ = p.Value.Set("16")
	}
}

// hold makes an attempt in each way: first the first, then the others, many at
// a time.
func hold(t *testing.T, ways []way, attempt func(at ...int) error) {
	t.Helper()
	if err := attempt(ways[0].at...); err != nil {
		t.Fatalf("%s: %v", ways[0].name, err)
	}
	errs := make([]error, len(ways))
	var wg sync.WaitGroup
	for i, w := range ways[1:] {
		attempts <- struct{}{}
		wg.Go(func() {
			defer func() { <-attempts }()
			errs[i] = attempt(w.at...)
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("%s: %v", ways[i+1].name, err)
		}
	}
}

// attempt holds the case once, on a connection of its own.
func (c wireCase) attempt(addr string, d dialect, at ...int) error {
	attempted.Add(1)
	w, err := d.open(addr)
	if err != nil {
		return err
	}
	defer w.Reset()
	const still = "still there"
	sent := make(chan error, 1)
	go func() {
		err := w.SendCut(c.send, at...)
		if c.open() && err == nil {
			err = w.SendFrames(testkit.Ping(still))
		}
		sent <- err
	}()
	want := c.want
	if c.open() {
		want = append(slices.Clone(want), gotPong(still))
	}
	for i, r := range want {
		if err := r.check(w); err != nil {
			return fmt.Errorf("answer %d: %w", i+1, err)
		}
	}
	if c.open() {
		// A server that fails the connection early need not take the rest; one that
		// goes on must.
		if err := <-sent; err != nil {
			return fmt.Errorf("send: %w", err)
		}
		return nil
	}
	if err := lastWord(w); err != nil {
		return err
	}
	if len(at) == 0 {
		_ = w.CloseWrite() // the server may have closed by now
	}
	return nil
}

func (c wireCase) open() bool {
	return len(c.want) == 0 || c.want[len(c.want)-1].opcode != testkit.OpClose
}

// lastWord checks that the server ends the connection and says nothing more
// (section 5.5.1 and 7.1.1): a FIN, no reset, which could take the close frame
// with it.
func lastWord(w *testkit.Conn) error {
	if err := w.SetReadDeadline(time.Now().Add(testkit.Timeout)); err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(w.R, 1<<10))
	switch {
	case len(b) > 0:
		return fmt.Errorf("%q behind the close frame", b)
	case err != nil:
		return fmt.Errorf("not ended behind the close frame: %w", err)
	}
	return nil
}

func (r reply) check(w *testkit.Conn) error {
	f, err := w.Frame()
	if err != nil {
		return fmt.Errorf("want %s: %w", r, err)
	}
	// The server may fragment what it sends.
	for payload := f.Payload; !f.Fin; {
		more, err := w.Frame()
		if err != nil {
			return fmt.Errorf("want %s: %w", r, err)
		}
		payload = append(payload, more.Payload...)
		f.Payload, f.Fin = payload, more.Fin
	}
	switch {
	case f.Opcode != r.opcode:
		return fmt.Errorf("got %s, want %s", f, r)
	case r.opcode == testkit.OpClose:
		if f.CloseCode() != r.code || len(f.Payload) == 1 || !utf8.ValidString(f.CloseReason()) {
			return fmt.Errorf("got %s, want %s", f, r)
		}
	case !bytes.Equal(f.Payload, r.payload):
		return fmt.Errorf("got %s, want %s", f, r)
	}
	return nil
}

func (r reply) String() string {
	if r.opcode == testkit.OpClose {
		return fmt.Sprintf("close %d", r.code)
	}
	return testkit.Frame{Fin: true, Opcode: r.opcode, Payload: r.payload}.String()
}

// TestRFC6455Frames holds the tables at each endpoint.
func TestRFC6455Frames(t *testing.T) {
	s := start(t, func(o *perch.Options) { o.Echo, o.Insecure = true, true })
	total := 0
	for _, d := range dialects {
		t.Run(d.name, func(t *testing.T) {
			cases := slices.Concat(messageCases(d), fragmentCases(d), controlCases(d), violationCases(d), closeCases(d))
			switch d.name {
			case "echo":
				cases = slices.Concat(cases, lengthCases(), textCases())
			default:
				cases = slices.Concat(cases, kindCases(d))
			}
			names := make(map[string]bool)
			for _, c := range cases {
				if key := c.section + c.name; names[key] {
					t.Errorf("two cases are called %s/%s", c.section, c.name)
				} else {
					names[key] = true
				}
				c.runOn(t, s.public, d)
			}
			total += len(cases)
		})
	}
	t.Logf("%d cases, %d connections", total, attempted.Load())
	// Each of them has been told its end, and nothing of any is left.
	eventually(t, "all connections are gone", func() bool {
		_, page := get(t, "http://"+s.admin+"/metrics")
		return strings.Contains(page, "\nperch_sessions 0\n") && strings.Contains(page, "\nperch_connections 0\n")
	})
}
