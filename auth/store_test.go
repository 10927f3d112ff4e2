package auth

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func openStore(t testing.TB, o StoreOptions) *Store {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	o.Logger = quiet()
	s, err := OpenStore(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (c *clock) in(d time.Duration) int64 { return c.now().Add(d).Unix() }

// family begins a family of client that holds for an hour.
func begin(t testing.TB, s *Store, c *clock, client string) (string, FamilyInfo) {
	t.Helper()
	token, info, err := s.NewFamily(Family{Client: client, Subject: "user", Expires: c.in(time.Hour), Access: c.in(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	return token, info
}

func rotate(s *Store, c *clock, token, client string) (string, FamilyInfo, error) {
	return s.Rotate(token, client, c.in(time.Hour), c.in(time.Minute), nil)
}

// TestNoTokenInLog: what stands on disk makes no token.
func TestNoTokenInLog(t *testing.T) {
	c := newClock()
	dir := t.TempDir()
	s := openStore(t, StoreOptions{Dir: dir, Now: c.now})
	token, _ := begin(t, s, c, "dev")
	next, _, _ := rotate(s, c, token, "dev")
	data, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, tok := range []string{token, next} {
		raw, _ := rawURL.DecodeString(tok)
		for _, part := range [][]byte{[]byte(tok), raw[:handleSize], raw[handleSize:]} {
			if bytes.Contains(data, part) {
				t.Error("the log holds a token")
			}
		}
	}
	st, _ := os.Stat(filepath.Join(dir, logFile))
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
}

// TestReopenForgets: a start drops what has expired, and only one process has the
// directory.
func TestReopenForgets(t *testing.T) {
	c := newClock()
	dir := t.TempDir()
	s := openStore(t, StoreOptions{Dir: dir, Now: c.now})
	begin(t, s, c, "dev")
	if err := s.RevokeID("dev", "jti-1", c.in(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(StoreOptions{Dir: dir, Logger: quiet()}); !errors.Is(err, ErrLocked) {
		t.Fatalf("a second process: %v", err)
	}
	if _, err := LockDir(dir); !errors.Is(err, ErrLocked) {
		t.Fatalf("the lock alone: %v", err)
	}
	c.add(2 * time.Hour)
	s.Close()
	s = openStore(t, StoreOptions{Dir: dir, Now: c.now})
	if len(s.families) != 0 || s.count.Load() != 0 || s.size != int64(len(logMagic)) {
		t.Errorf("expired state is kept: %d families, %d revocations, %d bytes", len(s.families), s.count.Load(), s.size)
	}
}

// TestTornTail cuts the log at every byte of the last record, and spoils it at
// every byte: what stands before it is there.
func TestTornTail(t *testing.T) {
	c := newClock()
	dir := t.TempDir()
	path := filepath.Join(dir, logFile)
	s := openStore(t, StoreOptions{Dir: dir, Now: c.now})
	token, _ := begin(t, s, c, "dev")
	second, _, _ := rotate(s, c, token, "dev")
	before, _ := os.ReadFile(path)
	third, _, _ := rotate(s, c, second, "dev")
	s.Close()
	whole, _ := os.ReadFile(path)
	if len(whole) <= len(before) {
		t.Fatal("no record was appended")
	}
	check := func(name string, data []byte, want string) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s := openStore(t, StoreOptions{Dir: dir, Now: c.now})
		defer s.Close()
		if _, ok, _ := s.Lookup(want, "dev"); !ok {
			t.Fatalf("%s: the last whole record is lost", name)
		}
		if len(s.families) != 1 {
			t.Fatalf("%s: %d families", name, len(s.families))
		}
	}
	check("whole", whole, third)
	for n := len(before); n < len(whole); n++ {
		check(fmt.Sprintf("cut at %d", n), whole[:n], second)
		spoiled := bytes.Clone(whole)
		spoiled[n] ^= 0x40
		check(fmt.Sprintf("spoiled at %d", n), spoiled, second)
	}
	check("zeros behind", append(bytes.Clone(whole), make([]byte, 4096)...), third)

	for name, data := range map[string][]byte{
		"another file":  []byte("hello"),
		"unknown kind":  appendRecord([]byte(logMagic), []byte{99}),
		"short payload": appendRecord([]byte(logMagic), []byte{recordFamily, 1, 2}),
		"long payload":  appendRecord([]byte(logMagic), append(record(recordToken).string("a").time(1).b, 0)),
	} {
		os.WriteFile(path, data, 0o600)
		if s, err := OpenStore(StoreOptions{Dir: dir, Logger: quiet()}); err == nil {
			s.Close()
			t.Errorf("%s: opened", name)
		}
		if left, _ := os.ReadFile(path); !bytes.Equal(left, data) {
			t.Errorf("%s: a log that is not understood was changed", name)
		}
	}
}

func TestCompaction(t *testing.T) {
	c := newClock()
	dir := t.TempDir()
	s := openStore(t, StoreOptions{Dir: dir, Now: c.now})
	var mu sync.Mutex
	tokens := make(map[string]string)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			client := fmt.Sprint("client-", g)
			token, _, err := s.NewFamily(Family{Client: client, Subject: string(bytes.Repeat([]byte("u"), 200)), Expires: c.in(time.Hour), Access: c.in(time.Minute)})
			for range 30 {
				if err != nil {
					t.Error(err)
					return
				}
				token, _, err = rotate(s, c, token, client)
			}
			mu.Lock()
			tokens[client] = token
			mu.Unlock()
		})
		wg.Go(func() { // the committer is made to rewrite all the time
			for range 10 {
				s.failing.Store(true)
				s.writable()
			}
		})
	}
	wg.Wait()
	s.Close()
	s = openStore(t, StoreOptions{Dir: dir, Now: c.now})
	for client, token := range tokens {
		if info, ok, _ := s.Lookup(token, client); !ok || info.Client != client || info.Generation != 30 {
			t.Errorf("%s: %+v %v", client, info, ok)
		}
	}
	if s.size > 16*400 {
		t.Errorf("%d bytes for 16 families", s.size)
	}
	// By growth.
	s.base = 1
	s.mu.Lock()
	s.pending = bytes.Repeat(record(recordToken).string("j").time(c.in(-1)).appendTo(nil), compactMin/8)
	s.mu.Unlock()
	if err := s.RevokeID("dev", "now", c.in(time.Minute)); err != nil {
		t.Fatal(err)
	}
	st, _ := os.Stat(filepath.Join(dir, logFile))
	if st.Size() > compactMin || !s.Revoked("now", "") {
		t.Errorf("log of %d bytes after growth", st.Size())
	}
}

// TestDiskFails: nothing is acknowledged that is not on disk, and the store goes
// on once the disk does.
func TestDiskFails(t *testing.T) {
	if os.Getuid() == 0 {
		t.Log("as root: the directory is taken away, not write-protected")
	}
	c := newClock()
	dir := filepath.Join(t.TempDir(), "data")
	s := openStore(t, StoreOptions{Dir: dir, Now: c.now})
	token, _ := begin(t, s, c, "dev")
	if err := os.Rename(dir, dir+".away"); err != nil { // compaction fails
		t.Fatal(err)
	}
	s.file.Close() // writes fail
	if _, _, err := s.NewFamily(Family{Client: "dev", Subject: "u", Expires: c.in(time.Hour)}); err == nil {
		t.Fatal("acknowledged without a disk")
	}
	for range 2 {
		if _, _, err := rotate(s, c, token, "dev"); err == nil || errors.Is(err, ErrGrant) {
			t.Fatalf("rotate without a disk: %v", err)
		}
	}
	if err := s.RevokeID("dev", "j", c.in(time.Minute)); err == nil || !s.Revoked("j", "") {
		t.Errorf("a revocation holds in memory all the same: %v", err)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	next, _, err := rotate(s, c, token, "dev")
	if err != nil {
		t.Fatalf("after the disk came back: %v", err)
	}
	s.Close()
	s = openStore(t, StoreOptions{Dir: dir, Now: c.now})
	if _, ok, _ := s.Lookup(next, "dev"); !ok || !s.Revoked("j", "") {
		t.Error("the state was not written anew")
	}
}

// TestDiskFailsInARotation: the client that has no answer comes again with the
// token that it has: it is no token that was used twice, in this process or the
// next.
func TestDiskFailsInARotation(t *testing.T) {
	c := newClock()
	dir := filepath.Join(t.TempDir(), "data")
	s := openStore(t, StoreOptions{Dir: dir, Now: c.now})
	first, _ := begin(t, s, c, "dev")
	second, _ := begin(t, s, c, "dev")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	s.file.Close()
	if _, _, err := rotate(s, c, first, "dev"); !errors.Is(err, ErrStoreWrite) {
		t.Fatalf("rotate without a disk: %v", err)
	}
	if n, failing := s.Failures(); n == 0 || !failing {
		t.Errorf("%d failures, failing %v", n, failing)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	// Another change brings the state to the disk before the client comes again.
	if _, _, err := rotate(s, c, second, "dev"); err != nil {
		t.Fatal(err)
	}
	if _, failing := s.Failures(); failing {
		t.Error("still failing")
	}
	s.Close()
	s = openStore(t, StoreOptions{Dir: dir, Now: c.now})
	next, _, err := rotate(s, c, first, "dev")
	if err != nil {
		t.Fatalf("with the token that it has: %v", err)
	}
	if _, _, err := rotate(s, c, next, "dev"); err != nil {
		t.Error(err)
	}
}

// FuzzLog: no content of the log makes a start panic, or lose what it can read.
func FuzzLog(f *testing.F) {
	var k familyKey
	f.Add(appendRecord(nil, record(recordToken).string("j").time(1<<40).b))
	f.Add(record(recordRotate).bytes(k[:]).bytes(make([]byte, 32)).number(1).time(2).time(3).appendTo(nil))
	f.Add([]byte{1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		for rest := data; ; {
			payload, next, ok := nextRecord(rest)
			if !ok {
				break
			}
			if again := appendRecord(nil, payload); !bytes.HasPrefix(rest, again) {
				t.Fatal("a record does not frame to itself")
			}
			rest = next
		}
		if len(data) == 0 {
			return
		}
		s := &Store{opts: StoreOptions{Now: time.Now}, families: make(map[familyKey]*family), owners: make(map[string]*owner),
			Revocations: NewRevocations(0, nil)}
		s.apply(data)
		s.apply(data)
	})
}

func BenchmarkRotate(b *testing.B) {
	c := newClock()
	s := openStore(b, StoreOptions{Now: c.now})
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		token, _, err := s.NewFamily(Family{Client: "dev", Subject: "u", Expires: c.in(time.Hour)})
		for pb.Next() && err == nil {
			token, _, err = rotate(s, c, token, "dev")
		}
		if err != nil {
			b.Error(err)
		}
	})
}
