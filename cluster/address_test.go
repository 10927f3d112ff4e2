package cluster

import (
	"net"
	"strings"
	"testing"
	"time"
)

func TestCheckURL(t *testing.T) {
	for _, list := range []string{
		"nats://a:4222", "nats://a:4222, tls://b:4222", "a", "10.0.0.1:4222", "[::1]:4222", "nats://a", "wss://a:443/nats",
		"tls://berlin:s3cr%2Fet@hub:7422", "nats://token@a:4222", "nats://a:4222/",
	} {
		if err := CheckURL(list); err != nil {
			t.Errorf("%q: %v", list, err)
		}
	}
	for _, list := range []string{
		"", "nats://", "nats://a:4222,", "nats://a:x", "tls://berlin:s3cr/et@hub:7422", "tls://berlin:s3cr%et@hub:7422",
		"tls://berlin:s3cr?et@hub:7422", "tls://berlin:s3cr#et@hub:7422", "nats://ok:4222,tls://berlin:s3cr/et@hub:7422",
		"tls://berlin:5/s3cr@hub:7422", "tls://berlin:5#s3cr@hub:7422", "tls://berlin:5?s3cr@hub:7422", "berlin:s3cr/et@hub",
	} {
		if err := CheckURL(list); err == nil {
			t.Errorf("%q is taken", list)
		} else if strings.Contains(err.Error(), "s3cr") {
			t.Errorf("%q: the error shows it: %v", list, err)
		}
	}
}

// TestOpenShowsNoPassword: an address that can't be read is not in the error.
func TestOpenShowsNoPassword(t *testing.T) {
	const address = "tls://berlin:s3cr/et@hub:7422"
	for name, o := range map[string]Options{
		"the cluster": {URL: address},
		"the hub":     {Server: ServerOptions{Dir: t.TempDir(), Leaf: LeafOptions{URL: address, Site: "berlin"}}},
	} {
		l, err := Open(o)
		if err == nil {
			l.Close()
			t.Errorf("%s: it is taken", name)
		} else if strings.Contains(err.Error(), "s3cr") || !strings.Contains(err.Error(), "not an address") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLastError: who waits for NATS is told why it can't be reached.
func TestLastError(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := taken.Addr().String()
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Open(Options{URL: "nats://perch:s3cret@" + address})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(20 * time.Second); ; {
		if err := l.LastError(); err != nil && strings.Contains(err.Error(), "connection refused") {
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the password is shown: %v", err)
			}
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("it says %v", l.LastError())
		}
	}
}
