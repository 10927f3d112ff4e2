package testkit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestFrameAppend(t *testing.T) {
	zero := func(f Frame) Frame { f.Mask = [4]byte{}; return f }
	for _, c := range []struct {
		name string
		f    Frame
		want string // the header
	}{
		{"text", zero(Text("hi")), "\x81\x82\x00\x00\x00\x00"},
		{"fragment", zero(Text("hi").More()), "\x01\x82\x00\x00\x00\x00"},
		{"reserved bits", zero(Text("hi").Reserved(5)), "\xd1\x82\x00\x00\x00\x00"},
		{"unmasked", Text("hi").Unmasked(), "\x81\x02"},
		{"125", zero(Binary(make([]byte, 125))), "\x82\xfd\x00\x00\x00\x00"},
		{"126", zero(Binary(make([]byte, 126))), "\x82\xfe\x00\x7e\x00\x00\x00\x00"},
		{"65536", zero(Binary(make([]byte, 65536))), "\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00"},
		{"not minimal, 16", zero(Text("hi").Length(Length16)), "\x81\xfe\x00\x02\x00\x00\x00\x00"},
		{"not minimal, 64", zero(Text("hi").Length(Length64)), "\x81\xff\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00"},
		{"declared", zero(Binary(nil).Length(Length64).Declare(1 << 63)), "\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.f.Append(nil)
			if want := c.want + string(c.f.Payload); string(got) != want {
				t.Errorf("got % x, want % x", got[:min(len(got), 20)], want[:min(len(want), 20)])
			}
			if c.f.HeaderLen() != len(c.want) {
				t.Errorf("HeaderLen is %d, want %d", c.f.HeaderLen(), len(c.want))
			}
		})
	}
	if got := Text("hi").Append(nil); got[6]^clientMask[0] != 'h' || got[7]^clientMask[1] != 'i' {
		t.Errorf("payload is not masked: % x", got)
	}
}

func TestReadFrame(t *testing.T) {
	for _, c := range []struct {
		name string
		wire []byte
		err  error
	}{
		{"good", Text("x").Unmasked().Append(nil), nil},
		{"large", Binary(make([]byte, 70000)).Unmasked().Append(nil), nil},
		{"masked", Text("x").Append(nil), ErrMasked},
		{"reserved", Text("x").Unmasked().Reserved(4).Append(nil), ErrReserved},
		{"not minimal", Text("x").Unmasked().Length(Length64).Append(nil), ErrNotMinimal},
		{"fragmented ping", Ping("").Unmasked().More().Append(nil), ErrControlFrame},
		{"long close", Client(OpClose, make([]byte, 126)).Unmasked().Append(nil), ErrControlFrame},
		{"too large", Binary(nil).Unmasked().Length(Length64).Declare(1 << 40).Append(nil), ErrFrameTooLarge},
		{"cut", Text("xyz").Unmasked().Append(nil)[:3], io.ErrUnexpectedEOF},
		{"none", nil, io.EOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := ReadFrame(bufio.NewReader(bytes.NewReader(c.wire)))
			if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
				t.Errorf("got %v, %v, want %v", f, err, c.err)
			}
		})
	}
}

func TestAccept(t *testing.T) {
	if got := AcceptOf(Key); got != Accept {
		t.Errorf("got %q, want %q", got, Accept)
	}
}

// lineServer upgrades, and answers each frame as answer says; nil ends the
// connection.
func lineServer(t *testing.T, answer func(payload []byte) []Frame) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	serve := func(c net.Conn) {
		defer c.Close()
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+Accept+"\r\n\r\n")
		for {
			var h [14]byte
			if _, err := io.ReadFull(r, h[:2]); err != nil {
				return
			}
			n := int(h[1] & 0x7f)
			if n == 126 {
				if _, err := io.ReadFull(r, h[2:4]); err != nil {
					return
				}
				n = int(h[2])<<8 | int(h[3])
			}
			p := make([]byte, 4+n)
			if _, err := io.ReadFull(r, p); err != nil {
				return
			}
			for i := range p[4:] {
				p[4+i] ^= p[i&3]
			}
			frames := answer(p[4:])
			if frames == nil {
				return
			}
			// In two pieces, so that the client sees half a frame.
			wire := Wire(frames...)
			_, _ = c.Write(wire[:len(wire)/2])
			_, _ = c.Write(wire[len(wire)/2:])
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return l.Addr().String()
}

func TestDense(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	text := func(s string) Frame { return Text(s).Unmasked() }
	addr := lineServer(t, func(p []byte) []Frame {
		switch {
		case bytes.Contains(p, []byte("connect")):
			return []Frame{text("{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{}}"), text("{}")}
		case bytes.Contains(p, []byte("publish")):
			return []Frame{text(`{"push":{"channel":"x","pub":{"data":` + Blob(4096) + `}}}`), text(`{"id":3,"publish":{}}`)}
		}
		return []Frame{text("")} // a pong
	})
	d, err := NewDense(SessionOptions(addr, "/", "secret", OwnTopic))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close(true)
	if err := d.Open(ctx, 50); err != nil {
		t.Fatal(err)
	}
	err = d.Burst(ctx, 3, 10, 2, func(i, k int) []byte { return Commands(PublishCommand(3, OwnTopic(i), Blob(200))) })
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Hold(ctx, 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if s := d.Stats(); s.Ready != 50 || s.Replies != 100+150 || s.Pushes != 150 || s.Pings != 50 || s.Failed+s.Closed+s.Errors != 0 {
		t.Errorf("got %+v", s)
	}
}

func TestDenseFailures(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	t.Run("closed by the server", func(t *testing.T) {
		addr := lineServer(t, func([]byte) []Frame { return []Frame{Close(3500, "no").Unmasked()} })
		d, err := NewDense(SessionOptions(addr, "/", "secret", SharedTopic))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close(true)
		if err := d.Open(ctx, 5); err == nil || !strings.Contains(err.Error(), "3500") {
			t.Errorf("got %v, want an error with the close code", err)
		}
		if s := d.Stats(); s.Failed != 5 || s.Codes[3500] != 5 {
			t.Errorf("got %+v", s)
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		addr, err := FreeAddr()
		if err != nil {
			t.Fatal(err)
		}
		d, err := NewDense(DenseOptions{Addr: addr, Path: "/"})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close(true)
		if err := d.Open(ctx, 2); err == nil {
			t.Error("no error")
		}
	})
	t.Run("IPv6", func(t *testing.T) {
		if _, err := NewDense(DenseOptions{Addr: "[::1]:1"}); err == nil {
			t.Error("no error")
		}
	})
}

func TestProcess(t *testing.T) {
	t.Setenv("GOGC", "5")
	t.Setenv("PERCH_X", "leaked")
	p, err := StartProcess("/bin/sh", []string{"-c", "echo gogc=$GOGC x=$PERCH_X y=$Y limit=$(ulimit -n); exec sleep 60"}, []string{"Y=1"}, 64)
	if err != nil {
		t.Fatal(err)
	}
	const want = "gogc= x= y=1 limit=64\n"
	for end := time.Now().Add(Timeout); p.Output() != want && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if p.Output() != want {
		t.Errorf("got %q, want %q", p.Output(), want)
	}
	if rss, err := p.RssAnon(); err != nil || rss <= 0 {
		t.Errorf("RssAnon %d, %v", rss, err)
	}
	if cpu, err := p.CPU(); err != nil || cpu <= 0 {
		t.Errorf("CPU %s, %v", cpu, err)
	}
	if err := p.Stop(Timeout); err == nil {
		t.Error("sleep ends by the signal, which is no success")
	}
	select {
	case <-p.Exited():
	default:
		t.Error("still running")
	}
}

func TestMedian(t *testing.T) {
	if got := Median([]int{5, 1, 3}); got != 3 {
		t.Errorf("got %d, want 3", got)
	}
	if got := Median[int](nil); got != 0 {
		t.Errorf("got %d, want 0", got)
	}
}
