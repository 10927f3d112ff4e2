package auth

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// rotateForever is the process that TestKill kills: it rotates and revokes as
// fast as it can, and says what was acknowledged, one line each.
func rotateForever(dir string) {
	s, err := OpenStore(StoreOptions{Dir: dir, Logger: quiet()})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	far := time.Now().Add(time.Hour).Unix()
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			client := "client-" + strconv.Itoa(g)
			token, info, err := s.NewFamily(Family{Client: client, Subject: "user", Expires: far, Access: far})
			for n := 0; err == nil; n++ {
				say("family %s %d %s", client, info.Generation, token)
				if n%5 == 4 {
					id := fmt.Sprintf("%s-%d", client, n)
					if err = s.RevokeID(client, id, far); err == nil {
						say("revoked %s", id)
					}
				}
				token, info, err = s.Rotate(token, client, far, far, nil)
			}
			fmt.Fprintln(os.Stderr, err)
		})
	}
	wg.Wait()
	os.Exit(1)
}

// TestKill kills the process in the middle of its rotations, several times over
// the same directory: what was acknowledged is there.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	far := time.Now().Add(time.Hour).Unix()
	for round := range 4 {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), "PERCH_TEST_ROTATE_DIR="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		type acked struct {
			generation uint64
			token      string
		}
		last := make(map[string]acked)
		var revoked []string
		lines := bufio.NewScanner(out)
		want := 60 + 90*round
		for n := 0; lines.Scan(); n++ {
			if n == want {
				cmd.Process.Kill() // and read on: what stands in the pipe was said
			}
			f := strings.Fields(lines.Text())
			switch {
			case len(f) == 4 && f[0] == "family":
				gen, _ := strconv.ParseUint(f[2], 10, 64)
				last[f[1]] = acked{gen, f[3]}
			case len(f) == 2 && f[0] == "revoked":
				revoked = append(revoked, f[1])
			}
		}
		if err := cmd.Wait(); err == nil || len(last) == 0 {
			t.Fatalf("the process ended by itself: %v", err)
		}
		s, err := OpenStore(StoreOptions{Dir: dir, Logger: quiet()})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for client, a := range last {
			shown, _ := ReadRefreshToken(a.token)
			s.mu.Lock()
			f := s.families[shown.key()]
			s.mu.Unlock()
			if f == nil {
				t.Fatalf("round %d: family of %s is lost", round, client)
			}
			if f.generation < a.generation || f.generation > a.generation+1 {
				t.Fatalf("round %d: %s at generation %d, acknowledged %d", round, client, f.generation, a.generation)
			}
			if f.generation == a.generation {
				if _, ok, _ := s.Lookup(a.token, client); !ok {
					t.Fatalf("round %d: acknowledged token of %s is not good", round, client)
				}
				if _, _, err := s.Rotate(a.token, client, far, far, nil); err != nil {
					t.Fatalf("round %d: rotate after the kill: %v", round, err)
				}
			}
		}
		for _, id := range revoked {
			if !s.Revoked(id, "") {
				t.Fatalf("round %d: revocation of %s is lost", round, id)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
