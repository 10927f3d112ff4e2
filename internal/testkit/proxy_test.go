package testkit

import (
	"io"
	"net"
	"testing"
	"time"
)

func TestProxy(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	p, err := NewProxy(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	dial := func() *Conn {
		t.Helper()
		c, err := Dial(p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	echo := func(c *Conn, text string) error {
		if err := c.Send([]byte(text)); err != nil {
			return err
		}
		return readText(c, text)
	}
	c := dial()
	if err := echo(c, "whole"); err != nil {
		t.Fatal(err)
	}
	p.Stall()
	if err := c.Send([]byte("later")); err != nil {
		t.Fatal(err)
	}
	late := dial()
	if err := late.Send([]byte("new")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Conn{c, late} {
		if err := c.Quiet(50 * time.Millisecond); err != nil {
			t.Errorf("stalled: %v", err)
		}
	}
	p.Heal()
	if err := readText(c, "later"); err != nil {
		t.Errorf("healed: %v", err)
	}
	if err := readText(late, "new"); err != nil {
		t.Errorf("healed: %v", err)
	}
	p.Cut()
	for _, c := range []*Conn{c, late, dial()} {
		if err := c.Ended(Timeout); err != nil {
			t.Errorf("cut: %v", err)
		}
	}
	p.Heal()
	if err := echo(dial(), "again"); err != nil {
		t.Errorf("healed: %v", err)
	}
}

func readText(c *Conn, text string) error {
	if err := c.SetReadDeadline(time.Now().Add(Timeout)); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c.R, got); err != nil {
		return err
	}
	if string(got) != text {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// TestProxyDeaf: from a word on nothing comes back, while what is said still goes
// there, until the link is healed.
func TestProxyDeaf(t *testing.T) {
	p, there := proxied(t)
	p.Cut()
	p.Deaf("commit")
	p.Heal()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	far := <-there
	defer far.Close()
	say := func(from, to net.Conn, text string) {
		t.Helper()
		if _, err := from.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		_ = to.SetReadDeadline(time.Now().Add(Timeout))
		b := make([]byte, len(text))
		if _, err := io.ReadFull(to, b); err != nil || string(b) != text {
			t.Fatalf("%q came as %q: %v", text, b, err)
		}
	}
	say(c, far, "com")
	say(far, c, "yes")
	say(c, far, "mit")
	if _, err := far.Write([]byte("held")); err != nil {
		t.Fatal(err)
	}
	say(c, far, "and on")
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 8)); err == nil {
		t.Errorf("%d bytes came back", n)
	}
	p.Heal()
	_ = c.SetReadDeadline(time.Now().Add(Timeout))
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "held" {
		t.Errorf("%q, %v", b, err)
	}
}

// proxied is a proxy, and who is at its other end.
func proxied(t *testing.T) (*Proxy, <-chan net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	there := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			there <- c
		}
	}()
	p, err := NewProxy(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		_ = l.Close()
	})
	return p, there
}
