package perch_test

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/gobwas/ws"

	"perch"
	"perch/internal/testkit"
)

// What RFC 7692 asks of a server, case by case, over real sockets, at each
// endpoint that speaks WebSocket.

const (
	deflateOffer  = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
	deflateAgreed = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
	rsv1          = 4
)

// squeeze deflates p as section 7.2.1 says: an empty stored block at the end, of
// which the last four octets are left out.
func squeeze(p []byte) []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		panic(err)
	}
	_, _ = w.Write(p) // a Buffer takes everything
	_ = w.Flush()
	return bytes.TrimSuffix(b.Bytes(), []byte{0, 0, 0xff, 0xff})
}

// unsqueeze is the other way (section 7.2.2).
func unsqueeze(p []byte) ([]byte, error) {
	b, err := io.ReadAll(flate.NewReader(io.MultiReader(bytes.NewReader(p), strings.NewReader("\x00\x00\xff\xff"))))
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil // the stream goes on behind a flush
	}
	return b, err
}

// squeezed is a whole message, deflated.
func squeezed(f testkit.Frame) testkit.Frame {
	f.Payload = squeeze(f.Payload)
	return f.Reserved(rsv1)
}

// cut is a frame as n fragments; the reserved bits stay with the first.
func cut(f testkit.Frame, n int) []testkit.Frame {
	out := make([]testkit.Frame, n)
	for i := range out {
		op, rsv := testkit.OpContinuation, byte(0)
		if i == 0 {
			op, rsv = f.Opcode, f.RSV
		}
		out[i] = testkit.Client(op, f.Payload[i*len(f.Payload)/n:(i+1)*len(f.Payload)/n]).More().Reserved(rsv)
	}
	out[n-1].Fin = true
	return out
}

// taken is a deflated message that refers to one before it: context takeover.
func taken(before, f testkit.Frame) testkit.Frame {
	var b bytes.Buffer
	w, err := flate.NewWriterDict(&b, flate.BestCompression, before.Payload)
	if err != nil {
		panic(err)
	}
	_, _ = w.Write(f.Payload)
	_ = w.Flush()
	f.Payload = bytes.TrimSuffix(b.Bytes(), []byte{0, 0, 0xff, 0xff})
	return f.Reserved(rsv1)
}

// stored is a deflated message in a block without compression (section 7.2.3.3).
func stored(f testkit.Frame) testkit.Frame {
	n := len(f.Payload)
	f.Payload = slices.Concat([]byte{0, byte(n), byte(n >> 8), ^byte(n), ^byte(n >> 8)}, f.Payload, []byte{0})
	return f.Reserved(rsv1)
}

// final is a deflated message whose last block says that it is (section 7.2.3.4).
func final(f testkit.Frame) testkit.Frame {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		panic(err)
	}
	_, _ = w.Write(f.Payload)
	_ = w.Close()
	f.Payload = append(b.Bytes(), 0)
	return f.Reserved(rsv1)
}

// raw is a frame that claims to be deflated, of whatever bytes.
func raw(d dialect, payload string) testkit.Frame {
	return testkit.Client(d.op, []byte(payload)).Reserved(rsv1)
}

func deflateCases(d dialect) []wireCase {
	m := d.message
	long := strings.Repeat("long and repeated ", 40)
	bomb := testkit.Client(d.op, bytes.Repeat([]byte("a"), 32<<20))
	ping := testkit.Ping("p")
	all := []wireCase{
		{"6.2", "a deflated message", frames(squeezed(m("one"))), replies(d.answer("one"))},
		{"6.2", "a plain message", frames(m("one")), replies(d.answer("one"))},
		{"6.2", "deflated, plain, deflated", frames(squeezed(m("a")), m("b"), squeezed(m("c"))),
			replies(d.answer("a"), d.answer("b"), d.answer("c"))},
		{"6.2", "a longer one", frames(squeezed(m(long))), replies(d.answer(long))},
		{"6.1", "two fragments", frames(cut(squeezed(m("frag")), 2)...), replies(d.answer("frag"))},
		{"6.1", "five fragments, pings between", frames(among(among(cut(squeezed(m("frag")), 5), 1, ping), 4, ping)...),
			replies(gotPong("p"), gotPong("p"), d.answer("frag"))},
		{"6.1", "an empty first fragment", frames(append([]testkit.Frame{testkit.Client(d.op, nil).More().Reserved(rsv1)},
			cutBehind(squeezed(m("frag")), 2)...)...), replies(d.answer("frag"))},
		{"6.1", "an empty last fragment", frames(append(more(cut(squeezed(m("frag")), 2)), testkit.Continuation(""))...), replies(d.answer("frag"))},
		{"6.1", "a ping behind a message", frames(squeezed(m("a")), ping), replies(d.answer("a"), gotPong("p"))},
		{"6.1", "a plain one in fragments", frames(d.parts("plain", 3)...), replies(d.answer("plain"))},
		{"6.1", "RSV1 on a continuation", frames(among(cut(squeezed(m("x")), 2), 1, testkit.Continuation("").More().Reserved(rsv1))...), replies(gotClose(1002))},
		{"6.1", "RSV1 on a continuation of a plain one", frames(testkit.Client(d.op, nil).More(), testkit.Continuation("x").Reserved(rsv1)), replies(gotClose(1002))},
		{"6.1", "RSV1 on a ping", frames(ping.Reserved(rsv1)), replies(gotClose(1002))},
		{"6.1", "RSV1 on a pong", frames(testkit.Pong("").Reserved(rsv1)), replies(gotClose(1002))},
		{"6.1", "RSV1 on a close", frames(testkit.Close(1000, "").Reserved(rsv1)), replies(gotClose(1002))},
		{"6.1", "RSV2", frames(m("x").Reserved(2)), replies(gotClose(1002))},
		{"6.1", "RSV3", frames(m("x").Reserved(1)), replies(gotClose(1002))},
		{"6.1", "RSV1 and RSV2", frames(m("x").Reserved(6)), replies(gotClose(1002))},
		{"6.1", "RSV1 and a reserved opcode", frames(testkit.Client(3, nil).Reserved(rsv1)), replies(gotClose(1002))},
		{"6.1", "a message within a deflated one", frames(cut(squeezed(m("x")), 2)[0], squeezed(m("y"))), replies(gotClose(1002))},
		{"6.1", "a violation behind a deflated message", frames(squeezed(m("a")), testkit.Continuation("")), replies(d.answer("a"), gotClose(1002))},
		{"6.1", "a close behind a deflated message", frames(squeezed(m("a")), testkit.Close(1000, "")), replies(d.answer("a"), gotClose(1000))},
		{"7.1.1.2", "two of the same, each for itself", frames(squeezed(m("same")), squeezed(m("same"))), replies(d.answer("same"), d.answer("same"))},
		{"7.1.1.2", "one that refers to the last", frames(squeezed(m(long)), taken(m(long), m(long))), replies(d.answer(long), gotClose(1007))},
		{"7.2.3.3", "a stored block", frames(stored(m("stored"))), replies(d.answer("stored"))},
		{"7.2.3.4", "a final block", frames(final(m("final"))), replies(d.answer("final"))},
		{"7.2.3.4", "a final block, and a message behind it", frames(final(m("final")), squeezed(m("next"))), replies(d.answer("final"), d.answer("next"))},
		{"7.2.2", "no block at all", frames(raw(d, "")), replies(gotClose(1007))},
		{"7.2.2", "a reserved kind of block", frames(raw(d, "\x06")), replies(gotClose(1007))},
		{"7.2.2", "a stored block of another length", frames(raw(d, "\x00\x05\x00\xfb\xffHello\x00")), replies(gotClose(1007))},
		{"7.2.2", "a reference to before the message", frames(raw(d, "\xf2\x00\x11\x00\x00")), replies(gotClose(1007))},
		{"7.2.2", "half a block", frames(raw(d, string(squeeze([]byte(long))[:9]))), replies(gotClose(1007))},
		{"7.2.2", "what is not deflated", frames(m("plain").Reserved(rsv1)), replies(gotClose(1007))},
		{"7.2.2", "more behind the end", frames(raw(d, string(squeeze([]byte("x")))+"\x06")), replies(gotClose(1007))},
		{"8", "a bomb", frames(squeezed(bomb)), replies(gotClose(1009))},
		{"8", "a bomb in fragments", frames(cut(squeezed(bomb), 7)...), replies(gotClose(1009))},
	}
	if d.op == testkit.OpText {
		all = append(all,
			wireCase{"6.2", "text that is no UTF-8", frames(squeezed(testkit.Text("a\xffb"))), replies(gotClose(1007))},
			wireCase{"6.2", "text that was UTF-8 deflated", frames(raw(d, "\x00\x01\x00\xfe\xff\xff\x00")), replies(gotClose(1007))},
		)
	}
	return all
}

// more clears FIN in the last of all.
func more(all []testkit.Frame) []testkit.Frame {
	all[len(all)-1].Fin = false
	return all
}

// cutBehind is a frame as n continuations.
func cutBehind(f testkit.Frame, n int) []testkit.Frame {
	all := cut(f, n)
	all[0].Opcode, all[0].RSV = testkit.OpContinuation, 0
	return all
}

// deflating opens a session with permessage-deflate.
func (d dialect) deflating(addr string) (*testkit.Conn, error) {
	w, err := testkit.Dial(addr)
	if err != nil {
		return nil, err
	}
	if err = w.Send([]byte(testkit.Head(addr, d.path, append(slices.Clone(d.lines), deflateOffer)...))); err == nil {
		var resp *http.Response
		if resp, err = w.Response(http.MethodGet); err == nil {
			if got := resp.Header.Get("Sec-WebSocket-Extensions"); resp.StatusCode != http.StatusSwitchingProtocols || got != deflateAgreed {
				err = fmt.Errorf("answered %d, agreed on %q", resp.StatusCode, got)
			}
		}
	}
	if err == nil && d.begin != nil {
		if err = w.SendFrames(testkit.Client(d.op, d.begin)); err == nil {
			_, err = deflatedReply(w)
		}
	}
	if err != nil {
		_ = w.Reset()
		return nil, err
	}
	return w, nil
}

// wsFrame reads a frame with whatever reserved bits.
func wsFrame(r io.Reader) (f ws.Frame, err error) {
	if f.Header, err = ws.ReadHeader(r); err != nil {
		return f, err
	}
	f.Payload = make([]byte, f.Header.Length)
	_, err = io.ReadFull(r, f.Payload)
	return f, err
}

// deflatedReply reads a frame, inflated where it has to be.
func deflatedReply(w *testkit.Conn) (reply, error) {
	f, err := wsFrame(w.R)
	if err != nil {
		return reply{}, err
	}
	r := reply{opcode: byte(f.Header.OpCode), payload: f.Payload}
	switch {
	case f.Header.Masked || !f.Header.Fin || f.Header.Rsv2() || f.Header.Rsv3() || f.Header.Rsv1() && f.Header.OpCode.IsControl():
		return r, fmt.Errorf("a frame that a server may not send: %+v", f.Header)
	case f.Header.OpCode == ws.OpClose:
		code, _ := ws.ParseCloseFrameData(f.Payload)
		r.code = uint16(code)
	case f.Header.Rsv1():
		r.payload, err = unsqueeze(f.Payload)
	}
	return r, err
}

// deflated holds the case once, on a connection that deflates.
func (c wireCase) deflated(addr string, d dialect, at ...int) error {
	attempted.Add(1)
	w, err := d.deflating(addr)
	if err != nil {
		return err
	}
	defer func() { _ = w.Reset() }()
	sent := make(chan error, 1)
	go func() { sent <- w.SendCut(c.send, at...) }()
	for i, want := range c.want {
		got, err := deflatedReply(w)
		if err != nil {
			return fmt.Errorf("answer %d, want %s: %w", i+1, want, err)
		}
		if got.opcode != want.opcode || got.code != want.code || want.opcode != testkit.OpClose && !bytes.Equal(got.payload, want.payload) {
			return fmt.Errorf("answer %d: got %s, want %s", i+1, got, want)
		}
	}
	if !c.open() {
		return lastWord(w)
	}
	return <-sent
}

// TestRFC7692 holds the table at each endpoint.
func TestRFC7692(t *testing.T) {
	s := start(t, func(o *perch.Options) {
		o.Echo, o.Insecure = true, true
		o.WebSocket.Compression = true
	})
	total := 0
	for _, d := range dialects {
		t.Run(d.name, func(t *testing.T) {
			cases := deflateCases(d)
			for _, c := range cases {
				t.Run(c.section+"/"+c.name, func(t *testing.T) {
					t.Parallel()
					ways := c.ways(d)
					if len(c.send) > 4<<10 {
						ways = ways[:1]
					}
					hold(t, ways, func(at ...int) error { return c.deflated(s.public, d, at...) })
				})
			}
			total += len(cases)
		})
	}
	t.Logf("%d cases, %d connections of all suites", total, attempted.Load())
	eventually(t, "all connections are gone", func() bool {
		return s.metric(t, "perch_sessions") == 0 && s.metric(t, "perch_connections") == 0
	})
}
