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
