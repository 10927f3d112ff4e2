package netpoll

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"

	"perch/session"
)

// deflatedCases are what a client sends with permessage-deflate, by sections of RFC
// 7692, and R of RFC 6455. What is answered is below the threshold.
var deflatedCases = []streamCase{
	{"7.2.3.1", "one block", compressed(ws.OpText, true, "\xf2\x48\xcd\xc9\xc9\x07\x00"), []string{"text:Hello"}, []string{"1:Hello"}},
	{"7.2.3.1", "in two fragments", stream(compressed(ws.OpText, false, "\xf2\x48\xcd"), masked(ws.OpContinuation, true, "\xc9\xc9\x07\x00")),
		[]string{"text:Hello"}, []string{"1:Hello"}},
	{"7.2.3.3", "a block that is stored", compressed(ws.OpText, true, "\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00"),
		[]string{"text:Hello"}, []string{"1:Hello"}},
	{"7.2.3.4", "a last block", compressed(ws.OpText, true, "\xf3\x48\xcd\xc9\xc9\x07\x00\x00"), []string{"text:Hello"}, []string{"1:Hello"}},
	{"7.2.3.4", "a last block without the octet behind it", compressed(ws.OpText, true, "\xf3\x48\xcd\xc9\xc9\x07\x00"),
		[]string{"text:Hello"}, []string{"1:Hello"}},
	{"7.2.3.4", "blocks behind a last one", compressed(ws.OpText, true, "\xf3\x48\xcd\xc9\xc9\x07\x00\xf3\x48\xcd\xc9\xc9\x07\x00\xf2\x48\xcd\xc9\xc9\x07\x00"),
		[]string{"text:HelloHelloHello"}, []string{"1:HelloHelloHello"}},
	{"7.2.3.5", "two blocks", compressed(ws.OpText, true, "\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00"),
		[]string{"text:Hello"}, []string{"1:Hello"}},
	{"7.2.3.6", "an empty message", compressed(ws.OpText, true, "\x00"), []string{"text:"}, []string{"1:"}},
	{"7.2.3.6", "an empty binary message", compressed(ws.OpBinary, true, "\x00"), []string{"binary:"}, []string{"2:"}},
	{"7.2.3.6", "an empty message by compress/flate", packedText(""), []string{"text:"}, []string{"1:"}},
	{"6", "one that is not deflated", hello, []string{"text:hello"}, []string{"1:hello"}},
	{"6", "one and one", stream(packedText("a"), hello, packedText("b"), packedText("c"), hello),
		[]string{"text:a", "text:hello", "text:b", "text:c", "text:hello"}, []string{"1:a", "1:hello", "1:b", "1:c", "1:hello"}},
	{"6", "binary", compressed(ws.OpBinary, true, squeezed("\xff\x00")), []string{"binary:\xff\x00"}, []string{"2:\xff\x00"}},
	{"6.1", "fragments of which some are empty", stream(compressed(ws.OpText, false, ""), masked(ws.OpContinuation, false, squeezed("hello")[:2]),
		masked(ws.OpContinuation, false, ""), masked(ws.OpContinuation, true, squeezed("hello")[2:])), []string{"text:hello"}, []string{"1:hello"}},
	{"6.1", "control frames between fragments", stream(compressed(ws.OpText, false, "\xf2\x48\xcd"), masked(ws.OpPing, true, "p"),
		masked(ws.OpContinuation, true, "\xc9\xc9\x07\x00"), masked(ws.OpPing, true, "q")), []string{"text:Hello"}, []string{"10:p", "1:Hello", "10:q"}},
	{"6.1", "a close behind a message", stream(packedText("a"), closing(1000, "")), []string{"text:a", "closed:peer_closed"}, []string{"1:a", "8:1000"}},
	{"6.1", "a violation behind a message", stream(packedText("a"), masked(ws.OpContinuation, true, "x")),
		append([]string{"text:a"}, wrong...), []string{"1:a", "8:1002"}},

	{"6.1", "RSV1 on a continuation", stream(compressed(ws.OpText, false, "\xf2\x48\xcd"), compressed(ws.OpContinuation, true, "\xc9\xc9\x07\x00")),
		wrong, []string{"8:1002"}},
	{"6.1", "RSV1 on a continuation of what is not deflated", stream(masked(ws.OpText, false, "a"), compressed(ws.OpContinuation, true, "b")),
		wrong, []string{"8:1002"}},
	{"6.1", "RSV1 on a ping", compressed(ws.OpPing, true, "p"), wrong, []string{"8:1002"}},
	{"6.1", "RSV1 on a pong", compressed(ws.OpPong, true, ""), wrong, []string{"8:1002"}},
	{"6.1", "RSV1 on a close", compressed(ws.OpClose, true, "\x03\xe8"), wrong, []string{"8:1002"}},
	{"6.1", "RSV1 alone", []byte("\xc9"), wrong, []string{"8:1002"}},
	{"R5.2", "RSV2", []byte("\xa1\x80\x00\x00\x00\x00"), wrong, []string{"8:1002"}},
	{"R5.2", "RSV3", []byte("\x91\x80\x00\x00\x00\x00"), wrong, []string{"8:1002"}},
	{"R5.2", "RSV1 and RSV2", []byte("\xe1\x80\x00\x00\x00\x00"), wrong, []string{"8:1002"}},
	{"R5.2", "RSV1 and a reserved opcode", []byte("\xc3\x80\x00\x00\x00\x00"), wrong, []string{"8:1002"}},
	{"R5.4", "a message within a message", stream(compressed(ws.OpText, false, "\xf2"), packedText("a")), wrong, []string{"8:1002"}},

	// What can't be inflated is data that is not what its message says it is: 1007 (R7.4.1).
	{"7.2.2", "a reserved kind of block", compressed(ws.OpText, true, "\x06"), invalid, []string{"8:1007"}},
	{"7.2.2", "a stored block of another length", compressed(ws.OpText, true, "\x00\x05\x00\xfb\xffHello\x00"), invalid, []string{"8:1007"}},
	{"7.2.2", "a reference to before the message", compressed(ws.OpText, true, "\xf2\x00\x11\x00\x00"), invalid, []string{"8:1007"}},
	{"7.2.2", "half a block", compressed(ws.OpText, true, squeezed("Hello, world, and everybody")[:5]), invalid, []string{"8:1007"}},
	{"7.2.2", "nothing at all", compressed(ws.OpText, true, ""), invalid, []string{"8:1007"}},
	{"7.2.2", "plain text", compressed(ws.OpText, true, "Hello"), invalid, []string{"8:1007"}},
	{"7.2.2", "more behind the end than a block", compressed(ws.OpText, true, "\xf3\x48\xcd\xc9\xc9\x07\x00\x06"), invalid, []string{"8:1007"}},
	{"7.2.2", "last blocks without end", compressed(ws.OpText, true, strings.Repeat("\x03\x00", 150)), invalid, []string{"8:1007"}},
	{"R8.1", "a text that is no UTF-8", packedText("a\xffb"), invalid, []string{"8:1007"}},
	{"R8.1", "a deflated text that would be UTF-8 only as it is", compressed(ws.OpText, true, "\x00\x01\x00\xfe\xff\xff\x00"), invalid, []string{"8:1007"}},
	{"R8.1", "binary that is no UTF-8", compressed(ws.OpBinary, true, squeezed("a\xffb")), []string{"binary:a\xffb"}, []string{"2:a\xffb"}},

	// The size is that of the message (R7.4.1).
	{"R7.4.1", "as large as allowed", packedText(long[:messageSize]), []string{"text:" + long}, []string{"1*" + long}},
	{"R7.4.1", "a byte larger", packedText(long + "a"), []string{"closed:message_too_big"}, []string{"8:1009"}},
	{"R7.4.1", "a thousand times larger", packedText(strings.Repeat("a", 1000*messageSize)), []string{"closed:message_too_big"}, []string{"8:1009"}},
	{"R7.4.1", "as large as allowed, and longer deflated", compressed(ws.OpText, true, "\x00\x2c\x01\xd3\xfe"+long+"\x00"),
		[]string{"text:" + long}, []string{"1*" + long}},
	{"R7.4.1", "larger than a message that size can be deflated", compressed(ws.OpText, true, strings.Repeat("\x00", 406)),
		[]string{"closed:message_too_big"}, []string{"8:1009"}},
	{"R7.4.1", "the same, by its header alone", compressed(ws.OpText, true, strings.Repeat("\x00", 406))[:4],
		[]string{"closed:message_too_big"}, []string{"8:1009"}},
	{"R7.4.1", "the same, in fragments", stream(compressed(ws.OpText, false, strings.Repeat("\x00", 300)),
		masked(ws.OpContinuation, false, strings.Repeat("\x00", 106))), []string{"closed:message_too_big"}, []string{"8:1009"}},
	{"R7.4.1", "what is not deflated may not be longer", stream(packedText("a"), masked(ws.OpText, true, long+"a")),
		[]string{"text:a", "closed:message_too_big"}, []string{"1:a", "8:1009"}},
	{"6.1", "incomplete", packedText("hello")[:6], nil, nil},
}

// echoingDeflate has an echoing endpoint that takes messageSize, with
// permessage-deflate.
func echoingDeflate(t testing.TB) *deflateRig {
	d := newDeflateRig(t, func(o *Options) { o.Listeners[0].Endpoints[0].MessageSize = messageSize })
	d.echoes()
	return d
}

// exchange is rig's, with a pool that works behind each piece, or at the end.
func (d *deflateRig) exchange(pieces [][]byte, late bool) (told []string, read []byte, over bool) {
	d.t.Helper()
	p := d.deflating()
	defer p.end()
	d.handler.log = nil
	for _, b := range pieces {
		p.feed(b)
		if !late {
			d.settle()
		}
	}
	d.settle()
	read = p.readAll(d)
	told = d.handler.log
	if p.c.mode == modeWebSocket {
		d.held(p.c)
	} else if p.c.in != nil {
		d.t.Error("a closed conn holds its input")
	}
	return told, read, p.eof
}

func TestDeflatedStream(t *testing.T) {
	d := echoingDeflate(t)
	for _, tt := range deflatedCases {
		t.Run(tt.name, func(t *testing.T) {
			d.t = t
			cuts(tt.sent, func(how string, pieces [][]byte) {
				for _, late := range []bool{false, true} {
					told, read, over := d.exchange(pieces, late)
					closed := len(tt.told) > 0 && strings.HasPrefix(tt.told[len(tt.told)-1], "closed:")
					if got := reads(t, read); closed != over || !slices.Equal(told, tt.told) || !slices.Equal(got, tt.reads) {
						t.Fatalf("%s, late %v: told %.300q, read %.300q, the end: %v; want %.300q and %.300q (section %s)",
							how, late, told, got, over, tt.told, tt.reads, tt.section)
					}
				}
			})
		})
	}
	d.t = t
	st := d.server.Stats().Deflate
	if st.Inflated == 0 || st.InflatedFrom == 0 || st.InflatedTo == 0 || st.Bombs == 0 {
		t.Errorf("counted %+v", st)
	}
}

// TestInflateForgets: what a message may refer to is its own. A block without codes has
// none, whatever those of another peer's message were.
func TestInflateForgets(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	before := make([]byte, 4<<10)
	for i := range before {
		before[i] = byte(random.ExpFloat64() * 3)
	}
	warm := append([]byte(squeezed(string(before))), tail...)
	noCodes := make([]byte, 600)
	noCodes[0] = 2 << 1 // dynamic codes, all of length 0 (RFC 1951, section 3.2.7)
	for i := range len(noCodes) {
		in := append(bytes.Clone(noCodes[:i+1]), tail...)
		var used, fresh tools
		if out, bad := used.unpack(bytes.Clone(warm), len(before)); bad != session.ReasonNone || !bytes.Equal(out, before) {
			t.Fatalf("the message before is refused: %v", bad)
		}
		want, wantBad := fresh.unpack(in, messageSize)
		if got, bad := used.unpack(in, messageSize); bad != wantBad || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: %v with %q behind another message, %v with %q alone", i+1, bad, got, wantBad, want)
		}
	}
}

// Without the extension RSV1 stays what it was, and with it all other rules hold.
func TestDeflateUnnegotiated(t *testing.T) {
	d := echoingDeflate(t)
	p := d.upgraded()
	if got := reads(t, p.feedAll([][]byte{packedText("a")})); len(got) != 1 || got[0] != "8:1002" {
		t.Errorf("RSV1 without the extension: %q", got)
	}
	p.end()
	for _, tt := range streamCases {
		if tt.name == "an RSV bit" {
			continue // the case above
		}
		told, read, _ := d.exchange([][]byte{tt.sent}, true)
		got := reads(t, read)
		for i := range got {
			got[i] = strings.Replace(got[i], "*", ":", 1)
		}
		if !slices.Equal(told, tt.told) || !slices.Equal(got, tt.reads) {
			t.Errorf("%s: told %q, read %q", tt.name, told, got)
		}
	}
}

// zeros is a deflated message of n times 16 MiB of zeros for each n asked for, and
// 1 MiB more.
func zeros(t testing.TB, ns ...int) (out []string) {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 1<<20)
	write := func(times int) string {
		b.Reset()
		for range times {
			_, _ = w.Write(chunk)
		}
		_ = w.Flush() // into a buffer
		return b.String()
	}
	first, more := write(1), write(16)
	for _, n := range ns {
		out = append(out, strings.TrimSuffix(first+strings.Repeat(more, n), tail[:4]))
	}
	return out
}

// A message is inflated to its limit and no further, whatever it would become.
func TestDeflateBomb(t *testing.T) {
	bombs := zeros(t, 1, 64)
	for _, tt := range []struct {
		name  string
		limit int
		bomb  string
	}{
		{"17 MiB in 17 KB, of 64 KiB", 64 << 10, bombs[0]},
		{"a GiB in 1 MB, of 16 MiB", 16 << 20, bombs[1]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDeflateRig(t, func(o *Options) { o.Listeners[0].Endpoints[0].MessageSize = tt.limit })
			p := d.deflating()
			frame := compressed(ws.OpText, true, tt.bomb)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			p.feed(frame)
			d.settle()
			runtime.ReadMemStats(&after)
			if got := reads(t, p.take()); len(got) != 1 || got[0] != "8:1009" {
				t.Errorf("read %q", got)
			}
			// Copies of the frame, the tools, and the scratch buffer as it doubles.
			if n, most := int(after.TotalAlloc-before.TotalAlloc), 4*len(frame)+4*tt.limit+1<<20; n > most {
				t.Errorf("%d bytes allocated, more than %d", n, most)
			}
			if n := d.server.Stats().Deflate.Bombs; n != 1 {
				t.Errorf("%d bombs", n)
			}
		})
	}
}

// While a message is being inflated nothing of its peer goes on; then all of it
// does, in order, however many messages are held.
func TestInflateHolds(t *testing.T) {
	d := newDeflateRig(t, nil)
	p, q := d.deflating(), d.deflating()
	var sent []byte
	var want []string
	for i := range 500 {
		m := fmt.Sprintf("%d %s", i, words(i, uint64(i)))
		want = append(want, "text:"+m)
		if i%3 == 0 {
			sent = append(sent, masked(ws.OpText, true, m)...)
		} else {
			sent = append(sent, packedText(m)...)
		}
	}
	d.handler.log = nil
	for b := range slices.Chunk(sent, 1000) {
		p.feed(b)
	}
	q.feed(hello)
	if got := d.handler.log; len(got) != 2 || got[0] != want[0] || got[1] != "text:hello" {
		t.Fatalf("told %d before the work", len(got))
	}
	if p.c.in == nil || p.c.in.job == nil || p.c.in.job.waits() < len(sent)/2 {
		t.Fatal("nothing is held")
	}
	held := p.c.in.job.held
	d.handler.log = d.handler.log[:1]
	d.workers.work()
	d.loop.turn(true)
	if p.c.in.job.held != held {
		t.Error("what is held was copied for the next message")
	}
	d.settle()
	if !slices.Equal(d.handler.log, want) {
		t.Fatalf("told %d messages, want %d", len(d.handler.log), len(want))
	}
	if p.c.in != nil {
		t.Error("something is held at the end")
	}
}

// Bytes that keep coming while others are held don't make the buffer grow.
func TestInflateHeldBuffer(t *testing.T) {
	d := newDeflateRig(t, nil)
	p := d.deflating()
	one := packedText(words(1000, 1))
	p.feed(bytes.Repeat(one, 20))
	for i := range 5000 {
		p.feed(one)
		d.workers.work()
		d.turn()
		if held := p.c.in.job.held; cap(held.B) > 100*len(one) {
			t.Fatalf("round %d: %d bytes held, the buffer has %d", i, p.c.in.job.waits(), cap(held.B))
		}
	}
	d.settle()
	if n := d.loop.stats.MessagesIn.Load(); n != 5020 {
		t.Errorf("%d messages", n)
	}
}

// laters checks how a session ends for which there is no room.
func (p *peer) laters(t *testing.T, code int) {
	t.Helper()
	got := reads(t, p.take())
	if len(got) != 1 || got[0] != fmt.Sprintf("8:%d", code) || !p.eof || p.c.reason != session.ReasonTooManyRequests {
		t.Errorf("read %q, then the end: %v, %v", got, p.eof, p.c.reason)
	}
}

func TestInflateBounds(t *testing.T) {
	t.Run("the pool is full", func(t *testing.T) {
		var told bytes.Buffer
		d := newDeflateRig(t, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&told, nil)) })
		d.workers.full = true
		p, q := d.deflating(), d.deflating()
		p.feed(packedText("a"))
		p.laters(t, 1013)
		q.sess().Encoding = session.EncodingJSON
		q.feed(packedText("a"))
		q.laters(t, 3013)
		if n := d.server.Stats().Deflate.InflateRefused; n != 2 {
			t.Errorf("%d refused", n)
		}
		if n := strings.Count(told.String(), "compressed messages are refused"); n != 1 {
			t.Errorf("logged %d times: %s", n, &told)
		}
	})
	t.Run("the inbox is full", func(t *testing.T) {
		d := newDeflateRig(t, func(o *Options) { o.InboxBytes = 1000 })
		p := d.deflating()
		d.loop.Reserve(990)
		p.feed(packedText("a"))
		p.laters(t, 1013)
		d.loop.Release(990)
	})
	t.Run("the inbox has no room for what a message becomes", func(t *testing.T) {
		d := newDeflateRig(t, func(o *Options) { o.InboxBytes = 1000 })
		p := d.deflating()
		p.feed(packedText(strings.Repeat("a", 900)))
		d.settle()
		p.laters(t, 1013)
	})
	t.Run("too much is held", func(t *testing.T) {
		d := newDeflateRig(t, func(o *Options) {
			o.PendingBytes = 10_000
			o.Listeners[0].Endpoints[0].MessageSize = 1000
		})
		p := d.deflating()
		p.feed(packedText("a"))
		for range 10 {
			p.feed(masked(ws.OpText, true, long[:300])[:1000/4])
			if p.eof {
				break
			}
		}
		p.feed(make([]byte, 7500))
		if len(p.take()) > 0 || p.c.in.job.waits() != 10_000 {
			t.Fatal("closed before the bound")
		}
		p.feed([]byte{0})
		p.laters(t, 1013)
	})
	t.Run("the inbox has no room for what is held", func(t *testing.T) {
		d := newDeflateRig(t, func(o *Options) { o.InboxBytes = 1000 })
		p := d.deflating()
		p.feed(packedText("a"))
		p.feed(make([]byte, 900))
		p.laters(t, 1013)
	})
	t.Run("the pool is stuck", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newDeflateRig(t, nil)
			p := d.deflating()
			p.feed(packedText("a"))
			p.feed(hello)
			d.pass((inflatePatience-1)*tick, func() {})
			if len(p.take()) > 0 {
				t.Fatal("closed before the patience was over")
			}
			d.pass(2*tick, func() {})
			p.laters(t, 1013)
			if len(d.handler.log) != 2 {
				t.Errorf("told %q", d.handler.log)
			}
		})
	})
}

// A conn that ends while its message is with the pool leaves nothing behind, also
// where its slot goes to another.
func TestInflateGone(t *testing.T) {
	d := newDeflateRig(t, nil)
	for name, end := range map[string]func(*peer){
		"ends":   func(p *peer) { p.end() },
		"closes": func(p *peer) { d.post(func() { p.sess().Close(session.ReasonForced) }) },
		"drops":  func(p *peer) { d.post(p.c.drop) },
	} {
		for _, worked := range []bool{false, true} {
			p := d.deflating()
			p.feed(packedText("a"))
			p.feed(hello)
			if worked {
				d.workers.work() // the result is in the inbox
			}
			end(p)
			p.end()
			d.handler.log = nil
			q := d.deflating()
			d.settle()
			if got := d.handler.log; len(got) != 1 || len(q.take()) > 0 {
				t.Errorf("%s: told %q", name, got)
			}
			q.end()
		}
	}
}

// A handler may end the session from within an inflated message, or panic.
func TestInflatedMessageEnds(t *testing.T) {
	d := newDeflateRig(t, nil)
	for name, end := range map[string]func(*session.Session){
		"closes": func(s *session.Session) { s.Close(session.ReasonForced) },
		"panics": func(*session.Session) { panic("asked for") },
		"drops":  func(s *session.Session) { d.loop.find(s.ID()).drop() },
	} {
		d.handler.message = func(s *session.Session, _ []byte, _ bool) { end(s) }
		p := d.deflating()
		d.handler.log = nil
		p.feed(stream(packedText("a"), packedText("b"), hello))
		d.settle()
		if got := d.handler.log; len(got) != 2 || got[0] != "text:a" || !strings.HasPrefix(got[1], "closed:") {
			t.Errorf("%s: told %q", name, got)
		}
		p.end()
	}
}

// A panic among the tools ends the session that it was for.
func TestInflatePanics(t *testing.T) {
	d := newDeflateRig(t, nil)
	p := d.deflating()
	p.feed(packedText("a"))
	d.server.deflater.idle = []*tools{{reader: brokenReader{}}}
	d.settle()
	if got := reads(t, p.take()); len(got) != 1 || got[0] != "8:1011" {
		t.Errorf("read %q", got)
	}
	if n := d.server.Stats().Panics; n != 1 {
		t.Errorf("%d panics", n)
	}
	p = d.deflating()
	p.feed(packedText("b"))
	d.settle()
	if got := d.handler.log; got[len(got)-1] != "text:b" {
		t.Errorf("told %q", got)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { panic("broken") }
func (brokenReader) Close() error             { return errors.New("broken") }

// The heartbeat misses nothing while a pong may be held.
func TestInflateHoldsPong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDeflateRig(t, func(o *Options) {
			o.PingInterval, o.PongTimeout = 5*time.Second, time.Second
		})
		p := d.deflating()
		d.until(func() bool { return p.pinged() > 0 }, func() {})
		p.feed(packedText("a"))
		p.feed(pong)
		d.pass(3*time.Second, func() {})
		if p.c.mode != modeWebSocket {
			t.Fatalf("closed: %v", p.c.reason)
		}
		d.settle()
		d.pass(2*time.Second, func() {})
		if p.c.mode != modeWebSocket || p.c.awaiting && p.pinged() == 0 {
			t.Errorf("closed: %v", p.c.reason)
		}
	})
}

// A session moves with a message in the pool and others behind it, with half a
// deflated message, and with frames in line.
func TestDeflateMove(t *testing.T) {
	first, second := packedText(message(1)), compressed(ws.OpText, false, squeezed(message(2))[:9])
	rest := masked(ws.OpContinuation, true, squeezed(message(2))[9:])
	for _, tt := range []struct {
		name   string
		before [][]byte
		after  []byte
		want   []string
	}{
		{"a message with the pool", [][]byte{first}, nil, []string{message(1)}},
		{"more behind it", [][]byte{first, first, hello[:4]}, hello[4:], []string{message(1), message(1), "hello"}},
		{"half a message", [][]byte{second}, rest, []string{message(2)}},
		{"nothing", nil, first, []string{message(1)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newDeflateRig(t, nil)
			a.handler.opened = func(s *session.Session) { s.State = session.StateConnected }
			a.server.ports["127.0.0.1:1"].endpoints["/echo"].Handler = moving{a.handler}
			b := newDeflateRig(t, nil)
			b.server.ports["127.0.0.1:1"].endpoints["/echo"].Handler = moving{b.handler}
			b.echoes()
			p := a.deflating("server_max_window_bits=12")
			for _, f := range tt.before {
				p.feed(f)
			}
			a.post(func() { p.sess().Write([]byte(message(9))) })
			var m Moved
			var err error
			a.post(func() {
				var f *os.File
				if m, f, err = p.c.export(); err == nil {
					err = f.Close() // b has a connection of its own
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := reads(t, p.take()); len(got) != 1 || got[0] != "1:"+message(9) {
				t.Errorf("what stood in line: %q", got)
			}
			a.settle()
			q := b.accept()
			b.post(func() { q.c.restore(&m) })
			q.feed(tt.after)
			b.settle()
			var want []string
			for _, w := range tt.want {
				kind := "1*"
				if len(w) < testThreshold {
					kind = "1:"
				}
				want = append(want, kind+w)
			}
			if got := reads(t, q.take()); !slices.Equal(got, want) {
				t.Errorf("read %q, want %q", got, want)
			}
			if q.c.deflate&windowBits != 12 {
				t.Errorf("the window has %d bits", q.c.deflate&windowBits)
			}
		})
	}
}

// A server without permessage-deflate can't take a session that has it.
func TestDeflateMoveRefused(t *testing.T) {
	r := newRig(t, nil)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fds[1]) }()
	m := Moved{Version: moveVersion, Path: "/echo", Deflate: fullWindow}
	if err := r.server.Import(m, os.NewFile(uintptr(fds[0]), "moved")); !errors.Is(err, errDeflate) {
		t.Errorf("got %v", err)
	}
	if n, err := unix.Read(fds[1], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the connection is still open: %d, %v", n, err)
	}
}

// moving is a recorder whose sessions can move.
type moving struct{ *recorder }

func (moving) Export(*session.Session) ([]byte, error) { return nil, nil }
func (m moving) Import(s *session.Session, _ []byte) error {
	m.Open(s, nil)
	return nil
}
